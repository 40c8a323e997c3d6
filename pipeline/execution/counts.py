"""What workers have done so far: counted once, for whoever asks.

Each count is a counter of Beam's (namespace "patchpack"), which a remote runner shows, and which the launcher asks it for.
The runner of this machine says its counters only at the end, so its processes also add up their own: the launcher's
is read where it is, and workers send theirs twice a second (`workers`). At the end Beam's counters hold. Costs 6
microseconds an input.

What varies from one to the next is in Beam's distributions as well (`spread`), 0.4 microseconds a value.

Counts begin with `num_`; what ends in `_us` is time, see `timed`. What is tried again counts again.
"""

import contextlib
import copy
import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from apache_beam.metrics.metric import Metrics, MetricsFilter
from apache_beam.runners.runner import PipelineResult

from patchpack.pipeline.stages.records import Reject

NAMESPACE = "patchpack"
SEND_EVERY_S = 0.5

Item = TypeVar("Item")

_lock = threading.Lock()
_own: Counter[str] = Counter()


def add(**amounts: int) -> None:
    """Counts what this worker has done."""
    for name, amount in amounts.items():
        _counter(name).inc(amount)
    with _lock:
        _own.update(amounts)


def spread(name: str, value: int) -> None:
    """Adds a value to a distribution of Beam's, whose least, mean and greatest another runner shows; nothing here reads them."""
    _distribution(name).update(value)


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


def own() -> Counter[str]:
    """Returns what this process has counted."""
    with _lock:
        return Counter(_own)


def send(take: Callable[[Counter[str]], object]) -> None:
    """Hands over what this process has counted, every half second from now on."""

    def hand_over() -> None:
        while True:
            time.sleep(SEND_EVERY_S)
            take(own())

    threading.Thread(target=hand_over, name="counts", daemon=True).start()


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


@functools.cache
def _distribution(name: str) -> Metrics.DelegatingDistribution:
    return Metrics.distribution(NAMESPACE, name)
