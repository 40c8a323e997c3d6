"""Runs a graph: by default on this machine with Beam's FnApiRunner, or on the runner named after `--`.

Local workers are processes (`workers`), which Beam meets as an environment of its own kind. A worker process that dies makes
FnApiRunner wait for ever, and so does a thread of gRPC's or Beam's that does; so the pipeline runs in a thread of
its own, and this thread watches, and asks for what is counted meanwhile (`counts`).
"""

import contextlib
import logging
import re
import resource
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from traceback import format_exception, walk_tb
from types import TracebackType
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcWorkerHandler, WorkerHandler
from apache_beam.runners.runner import PipelineResult
from apache_beam.transforms.environments import Environment
from apache_beam.utils import processes

from patchpack.pipeline.execution import counts, remembered
from patchpack.pipeline.execution.workers import Workers, of_build
from patchpack.pipeline.storage.remote import EXHAUSTED

# how long threads of Beam's may take to complain about a dead worker
COMPLAINTS_S = 2.0

# of the launcher with two workers: below, gRPC gets no threads, or aborts, as it happens (docs/decisions.md)
_ADDRESSES_BYTES = 3 * 10**9

# how Python, its extensions and the kernel say that there is no memory, which all come as errors of their own
_NO_MEMORY = re.compile(
    "MemoryError|out of memory|can't start new thread|Cannot allocate memory|failed to map segment|"
    "error return without exception set|bad_alloc"
)

# how processes end whose native code is broken; SIGKILL is somebody's will, or the kernel's when there is no memory
_CRASHES = frozenset(["SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGTRAP"])

# a failed look-up, a wrong type, a wrong call: what no input and no storage raises
_BUGS = frozenset(
    [
        "ArithmeticError",
        "AssertionError",
        "AttributeError",
        "ImportError",
        "IndexError",
        "KeyError",
        "LookupError",
        "ModuleNotFoundError",
        "NameError",
        "NotImplementedError",
        "OverflowError",
        "RecursionError",
        "StopIteration",
        "TypeError",
        "UnboundLocalError",
        "UnicodeDecodeError",
        "UnicodeEncodeError",
        "ValueError",
        "ZeroDivisionError",
    ]
)


class PipelineFailed(RuntimeError):
    """A pipeline did not finish; the message is one line.

    Attributes:
        traceback: of a bug of ours; empty where the reason is another.
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class WorkerCrashed(PipelineFailed):
    """A worker process died as one does whose native code is broken: by a file that its decoder cannot take."""


@contextlib.contextmanager
def _quiet_beam() -> Iterator[None]:
    """Keeps Beam's log off the screen, and what the making of the sdist for its workers says: errors hold what matters."""
    before, log = processes.check_output, logging.getLogger("apache_beam")
    level = log.level
    log.setLevel(logging.CRITICAL)
    setattr(processes, "check_output", partial(before, stderr=subprocess.STDOUT))  # noqa: B010 (a function, which type checkers guard)
    try:
        yield
    finally:
        processes.check_output = before
        log.setLevel(level)


def run_here(
    add_graph: Callable[[beam.Pipeline], object],
    workers: int,
    tick: Callable[[Counter[str]], object],
    tick_every_s: float,
) -> Counter[str]:
    """Runs one pipeline on this machine to its end, and returns what it counted.

    Args:
        add_graph: adds the transforms.
        workers: more than one are processes, one runs inside this process.
        tick: called while it runs, with what was counted so far.
        tick_every_s: how often, in seconds.

    Raises:
        PipelineFailed: it did not finish.
    """
    run = _Run()

    def target(processes: Workers | None) -> PipelineResult:
        _of_thread.processes, _of_thread.fail = processes, run.fail
        pipeline = _local(workers)
        add_graph(pipeline)
        # it ends before there is a result
        return pipeline.run()

    if workers > 1:
        _check_addresses()
    counts.begin()
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(of_build()) if workers > 1 else None
        if processes:
            processes.begin()
        stack.enter_context(run.watched(target, processes))
        while not run.ended.wait(tick_every_s):
            tick(counts.own() + (processes.counts() if processes else Counter()))
        if run.failure and processes:
            processes.close()
    return run.counted()


def run_there(
    start: Callable[[], PipelineResult],
    submitted: Callable[[PipelineResult], bool],
    tick: Callable[[Counter[str]], object],
    tick_every_s: float,
) -> Counter[str]:
    """Starts a job of another runner, or meets one again, waits for its end, and returns what it counted, if its runner says.

    Where the waiting is interrupted the job is cancelled.

    Args:
        start: returns the job.
        submitted: is called when there is one, and says whether to wait for it.
        tick: called while it runs, with what was counted so far.
        tick_every_s: how often, in seconds.

    Raises:
        PipelineFailed: it did not finish.
    """
    run, jobs = _Run(), list[PipelineResult]()

    def target() -> PipelineResult:
        jobs.append(start())
        if submitted(jobs[0]):
            jobs[0].wait_until_finish()
        return jobs[0]

    with run.watched(target):
        try:
            while not run.ended.wait(tick_every_s):
                tick(counts.of_result(jobs[0]) if jobs else Counter())
        except KeyboardInterrupt:
            for job in jobs:
                # it is over already, or its service does not answer: what the user asked for is to get out
                with contextlib.suppress(Exception):
                    job.cancel()
            raise
    return run.counted()


class _Run:
    """A pipeline in a thread of its own: this one watches, since what runs it may wait for ever."""

    def __init__(self) -> None:
        self.failure: list[BaseException] = []
        self.ended = threading.Event()
        self._results: list[PipelineResult] = []

    def fail(self, error: BaseException) -> None:
        """Ends the wait."""
        self.failure.append(error)
        self.ended.set()

    @contextlib.contextmanager
    def watched(self, target: Callable[..., PipelineResult], *args: object) -> Iterator[None]:
        """Starts the thread, and watches it and Beam's own meanwhile."""

        def call() -> None:
            try:
                self._results.append(target(*args))
            except BaseException as error:  # noqa: BLE001 (raised again in the waiting thread)
                self.failure.append(error)
            finally:
                self.ended.set()

        with _watched_threads(self.failure, self.fail), _quiet_beam(), remembered.signatures():
            threading.Thread(target=call, name="pipeline", daemon=True).start()
            yield

    def counted(self) -> Counter[str]:
        """Returns what was counted; raises PipelineFailed if it did not finish."""
        if self.failure:
            raise _described(self.failure[0]) from self.failure[0]
        return counts.of_result(self._results[0])


def _check_addresses() -> None:
    """Checks the limit of addresses, where there is one: gRPC may abort without a word where it is met.

    Raises:
        PipelineFailed: it is too low.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _ADDRESSES_BYTES:
        raise PipelineFailed(
            f"out of memory (ulimit -v is {limit // 1024}); the launcher of several workers reserves {_ADDRESSES_BYTES // 10**9} GB of "
            "addresses, most of which it never uses; raise the limit, and run the same command with --resume"
        )


def _local(workers: int) -> beam.Pipeline:
    if workers == 1:
        pipeline = beam.Pipeline(runner=FnApiRunner(), options=remembered.LocalOptions([]))
    else:
        options = remembered.LocalOptions([f"--direct_num_workers={workers}"])
        pipeline = beam.Pipeline(runner=FnApiRunner(default_environment=_Forked()), options=options)
    # Beam's, for what is not used here; a launcher that is killed would leave it
    shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)
    return pipeline


_FORKED = "patchpack:env:forked"

# what belongs to the pipeline that a thread runs: its processes, and what to call when one dies
_of_thread = threading.local()


class _Forked(Environment):
    """Where workers run: in processes that are forked (`workers`)."""

    def to_runner_api_parameter(self, context: object) -> tuple[str, bytes]:
        return _FORKED, b""

    @staticmethod
    def from_runner_api_parameter(*_: object) -> "_Forked":
        return _Forked()


Environment.register_urn(_FORKED, None)(_Forked)


class _ForkedHandler(GrpcWorkerHandler):
    """One worker process, as FnApiRunner starts and stops it; made by the thread of its pipeline."""

    def __init__(self, payload: bytes, *of_beam: Any) -> None:
        super().__init__(*of_beam)
        self._processes, self._fail = _of_thread.processes, _of_thread.fail

    def start_worker(self) -> None:
        self._processes.start(self.worker_id, self.control_address, self._died)

    def close(self) -> None:
        self._processes.let_go(self.worker_id)
        super().close()

    def stop_worker(self) -> None:
        self._processes.wait(self.worker_id)

    def _died(self, why: str) -> None:
        kind = WorkerCrashed if why in _CRASHES else RuntimeError
        error = kind(f"a worker process died ({why}); run the same command with --resume")
        self._fail(error)
        # so that the pipeline's thread ends, too
        self.control_conn.abort(error)


WorkerHandler.register_environment(_FORKED, bytes)(_ForkedHandler)


@contextlib.contextmanager
def _watched_threads(failure: list[BaseException], fail: Callable[[BaseException], None]) -> Iterator[None]:
    """Fails a run when a thread of gRPC's or Beam's in this process does, such as one that got no memory."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if issubclass(arguments.exc_type, grpc.RpcError):
            # a complaint about a worker that is gone
            return
        if not _is_of_beam(arguments.exc_traceback):
            before(arguments)
            return
        what = f"{arguments.exc_type.__name__}: {arguments.exc_value}"
        fail(RuntimeError(f"the launcher cannot go on ({what}); run the same command with --resume"))

    threading.excepthook = hook
    try:
        yield
    finally:
        if failure:
            _await_complaints()
        threading.excepthook = before


def _is_of_beam(traceback: TracebackType | None) -> bool:
    """Returns whether a thread's error came through code of gRPC's or Beam's: other threads are their owners'."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(traceback)]
    return any(name.partition(".")[0] in ("grpc", "apache_beam") for name in names)


def _await_complaints() -> None:
    """Lets Beam's threads that read from a dead worker end while their complaint is not printed yet; others go on reading."""
    deadline = time.monotonic() + COMPLAINTS_S
    for thread in threading.enumerate():
        if thread.name in ("beam_control_read", "read_grpc_client_inputs"):
            thread.join(max(0.0, deadline - time.monotonic()))


def _described(error: BaseException) -> PipelineFailed:
    """Returns what a failure of Beam's says, in one line, without the tracebacks that Beam puts into its messages."""
    if isinstance(error, WorkerCrashed):
        return error
    text = str(error) or type(error).__name__
    if found := _NO_MEMORY.search(text):
        return PipelineFailed(
            f"out of memory ({found[0]}); the launcher takes some 300 MB and each of --workers as much; free memory, or "
            "use fewer, and run the same command with --resume"
        )
    # a note of ours stands behind the message
    lines = [line.strip() for line in text.splitlines() if line.strip() not in ("", EXHAUSTED)]
    # the last line of a remote traceback: "module.SomeError: text [while running 'step']"
    last = re.sub(r"\s*\[while running .*\]$", "", lines[-1])
    match = re.match(r"(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*): ?", last)
    if "Traceback (most recent call last)" in text and match and match[1] in _BUGS:
        return PipelineFailed(last, text)
    if type(error).__name__ in _BUGS:
        return PipelineFailed(f"{type(error).__name__}: {last}", "".join(format_exception(error)))
    return PipelineFailed(re.sub(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]*(?:Error|Exception|Gone|Fits): ", "", last))
