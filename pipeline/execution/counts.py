"""What workers have done so far: counted once, for whoever asks.

Each count is a counter of Beam's (namespace "patchpack"), which a remote runner shows, and which the launcher asks it for.
The runner of this machine says its counters only at the end, so its processes also add up their own: the launcher's
is read where it is, a worker's from a file that it replaces every half second. What cannot be written or read there
costs progress and nothing else; at the end Beam's counters hold. Costs 6 microseconds an input.

Counts begin with `num_`; what ends in `_us` is time, see `timed`. What is tried again counts again.
"""

import contextlib
import copy
import functools
import json
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

from apache_beam.metrics.metric import Metrics, MetricsFilter
from apache_beam.runners.runner import PipelineResult

from patchpack.pipeline.stages.records import Reject

NAMESPACE = "patchpack"
FILE_EVERY_S = 0.5

Item = TypeVar("Item")

_lock = threading.Lock()
_own: Counter[str] = Counter()


def add(**amounts: int) -> None:
    """Counts what this worker has done."""
    for name, amount in amounts.items():
        _counter(name).inc(amount)
    with _lock:
        _own.update(amounts)


def add_reject(row: Reject) -> Reject:
    """Counts a reject, also by its reason, and returns it."""
    add(num_rejects=1, **{f"num_rejects_{row.reason}": 1})
    return row


@contextlib.contextmanager
def timed(work: str) -> Iterator[None]:
    """Counts the time that this worker is at some kind of work, in microseconds, waiting for files included."""
    began = time.perf_counter()
    try:
        yield
    finally:
        add(**{f"{work}_us": round((time.perf_counter() - began) * 1e6)})


def each_timed(work: str, items: Iterable[Item]) -> Iterator[Item]:
    """Yields items, and counts the time that making them takes; not that of whoever takes them."""
    iterator = iter(items)
    while True:
        with timed(work):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def begin() -> None:
    """Forgets what this process has counted: a graph counts from zero."""
    with _lock:
        _own.clear()


@contextlib.contextmanager
def folder() -> Iterator[str]:
    """Yields a folder for the counts of workers; an empty name where none can be made."""
    try:
        made = tempfile.mkdtemp(prefix="patchpack-counts-")
    except OSError:
        made = ""
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def leave_in(folder: str) -> None:
    """Leaves the counts of this process in a file below a folder from now on."""

    def leave() -> None:
        path = os.path.join(folder, f"{os.getpid()}.json")
        while True:
            time.sleep(FILE_EVERY_S)
            with _lock:
                text = json.dumps(_own)
            # the next try comes in half a second
            with contextlib.suppress(OSError):
                with open(f"{path}.tmp", "w") as file:
                    file.write(text)
                os.replace(f"{path}.tmp", path)

    threading.Thread(target=leave, name="counts", daemon=True).start()


def of_machine(folder: str) -> Counter[str]:
    """Returns what this process has counted and what others have left below a folder."""
    with _lock:
        counts = Counter(_own)
    with contextlib.suppress(OSError):
        for name in os.listdir(folder) if folder else []:
            # a worker's file is replaced whole; others are nobody's
            with contextlib.suppress(OSError, ValueError, TypeError):
                if name.endswith(".json"):
                    with open(os.path.join(folder, name)) as file:
                        counts.update(dict(json.load(file)))
    return counts


def of_result(result: PipelineResult) -> Counter[str]:
    """Returns Beam's counters of a pipeline, running or not; empty where its runner has none, or does not answer."""
    counts: Counter[str] = Counter()
    # a copy: PortableRunner's results keep what they were first asked
    with contextlib.suppress(Exception):
        metrics = copy.copy(result).metrics().query(MetricsFilter().with_namespace(NAMESPACE))
        for counter in metrics["counters"]:
            counts[counter.key.metric.name] += counter.result or 0
    return counts


@functools.cache
def _counter(name: str) -> Metrics.DelegatingCounter:
    return Metrics.counter(NAMESPACE, name)
