"""The worker processes of one build, as its launcher sees them: started, counted, watched, and ended.

They are forked by a server (`worker`) that has imported everything once; what it imports, it imports while the launcher
does the same. The server says at once when a worker has ended, whatever ended it, and it and its workers end with the launcher.
It serves all graphs of a build. The server costs 1.5 s of CPU, a worker some 0.2 s, where a Python of its own took 2.3
(docs/decisions.md); what is given up is a look at what a worker prints, which goes nowhere.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from patchpack.pipeline.execution.sandbox import module_search

# what a worker that was let go may take, and the server after the last of them
LET_GO_S = 5.0

_NO_SERVER = "the process that starts workers is gone"

# a worker is one core's work; pools of threads in libraries would only wait for each other
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Workers:
    """The server and its workers."""

    def __init__(self, backend: str) -> None:
        """Starts the server.

        Args:
            backend: --media-backend, which it loads too.
        """
        self._backend = backend
        self._lock = threading.Lock()
        self._start(isolates=False)

    def isolate(self) -> None:
        """Starts another server in the place of the one that was closed; its workers decode in sandboxes, whatever was asked for."""
        self._listener.join(LET_GO_S)
        self._start(isolates=True)

    def _start(self, *, isolates: bool) -> None:
        self._server = subprocess.Popen(  # noqa: S603 (this Python, a number and an option that was checked)
            [
                sys.executable,
                "-m",
                "patchpack.pipeline.execution.worker",
                str(os.getpid()),
                self._backend,
                str(int(isolates)),
            ],
            env=_ONE_THREAD | os.environ | module_search(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # held open, it would keep a pipe's reader waiting
            stderr=subprocess.DEVNULL,
        )
        self._is_ready = False
        self._ended: dict[str, tuple[threading.Event, Callable[[str], object]]] = {}
        self._counts: dict[str, Counter[str]] = {}
        self._why = ""
        self._listener = threading.Thread(target=self._listen, name="workers", daemon=True)
        self._listener.start()

    def start(self, worker: str, control: str, died: Callable[[str], object]) -> None:
        """Starts a worker, and does not wait for it.

        Args:
            worker: its name.
            control: the address that it is to ask for work.
            died: called with a reason when it has ended by itself; maybe before this returns.
        """
        with self._lock:
            self._ended[worker] = threading.Event(), died
        try:
            if self._server.stdin is None:
                raise BrokenPipeError
            self._server.stdin.write(json.dumps({"worker": worker, "control": control}).encode() + b"\n")
            self._server.stdin.flush()
        except (OSError, ValueError):
            # there is no server any more, and so no worker
            self._end(worker, self._why or _NO_SERVER)

    def let_go(self, worker: str) -> None:
        """Takes the end of a worker for no failure from now on."""
        with self._lock:
            ended, _ = self._ended[worker]
            self._ended[worker] = ended, lambda why: None

    def wait(self, worker: str) -> None:
        """Waits for the end of a worker that was let go; not for ever: what is left ends with the server."""
        self._ended[worker][0].wait(LET_GO_S)

    def counts(self) -> Counter[str]:
        """Returns what the workers of a graph have counted so far."""
        with self._lock:
            return sum(self._counts.values(), Counter())

    def begin(self) -> None:
        """Forgets workers that have ended, and what was counted: a graph counts from zero."""
        with self._lock:
            self._counts.clear()
            self._ended = {name: entry for name, entry in self._ended.items() if not entry[0].is_set()}

    def close(self) -> None:
        """Ends the server and its workers."""
        for worker in list(self._ended):
            self.let_go(worker)
        if not self._is_ready:
            # it imports, has no workers, and would see the end of its input seconds later
            self._server.kill()
        with contextlib.suppress(OSError):
            if self._server.stdin is not None:
                self._server.stdin.close()
        try:
            self._server.wait(LET_GO_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def _listen(self) -> None:
        """Takes what the server and the workers say, until the last of them has ended."""
        try:
            for line in self._server.stdout or ():
                said = json.loads(line)
                worker = said.get("worker", "")
                if "ready" in said:
                    self._is_ready = True
                elif "counts" in said:
                    with self._lock:
                        self._counts[worker] = Counter(said["counts"])
                elif worker:
                    self._end(worker, said["ended"])
                else:
                    self._why = said["ended"]
        finally:
            for worker in list(self._ended):
                self._end(worker, self._why or _NO_SERVER)

    def _end(self, worker: str, why: str) -> None:
        with self._lock:
            ended, died = self._ended[worker]
        if not ended.is_set():
            ended.set()
            died(why)


_current: ContextVar[Workers | None] = ContextVar("workers", default=None)


@contextlib.contextmanager
def started(workers: int, backend: str) -> Iterator[None]:
    """Starts what worker processes need while the launcher imports the same, and ends it; graphs run inside share it.

    Args:
        workers: how many there will be; one is none.
        backend: --media-backend; "pillow" where no images are resized.
    """
    if workers == 1 or _current.get() is not None:
        yield
        return
    with contextlib.closing(Workers(backend)) as mine:
        token = _current.set(mine)
        try:
            yield
        finally:
            _current.reset(token)


@contextlib.contextmanager
def of_build() -> Iterator[Workers]:
    """Yields the workers that were started for this build, or others where none were."""
    if (mine := _current.get()) is not None:
        yield mine
        return
    with contextlib.closing(Workers("pillow")) as other:
        yield other
