"""The server that forks workers, and a worker: Beam's own. Both end with their launcher.

The server imports everything, reads a line of JSON for each worker to start, forks it before there is any thread or channel of
gRPC's (which does not survive a fork), and writes a line when one has ended. Workers write what they count to the same pipe:
lines shorter than PIPE_BUF bytes do not mix. When the launcher is gone its end of the pipe is closed, and the server ends
with its workers; while it imports it looks for the launcher itself, and workers look for the server.
"""

import gc
import json
import os
import select
import signal
import sys
import threading
from typing import NoReturn

from patchpack.collecting import uncollected
from patchpack.pipeline.execution import sandbox
from patchpack.pipeline.execution.parent import end_with


class Server:
    """The server; `answers` is where lines go."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers = requests, answers
        self._workers: dict[int, str] = {}

    def serve(self) -> None:
        """Forks workers and says when they end, until there are no more requests; then ends them all."""
        ended, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake)
        text = b""
        while True:
            ready, _, _ = select.select([self._requests, ended], [], [])
            if ended in ready:
                os.read(ended, 4096)
                self._bury()
            if self._requests in ready:
                more = os.read(self._requests, 65536)
                if not more:
                    break
                *lines, text = (text + more).split(b"\n")
                for line in lines:
                    self._fork(**json.loads(line))
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)

    def _fork(self, worker: str, control: str) -> None:
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            say(self._answers, worker=worker, ended=f"it was not started: {error.strerror}")
            return
        if pid:
            self._workers[pid] = worker
            return
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._requests)
        work(worker, control, server, self._answers)

    def _bury(self) -> None:
        """Says which workers have ended."""
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            status = os.waitstatus_to_exitcode(status)
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            say(self._answers, worker=self._workers.pop(pid), ended=how)


def say(answers: int, **what: object) -> None:
    """Writes one line, whole; a launcher that is gone needs none."""
    try:
        os.write(answers, json.dumps(what).encode() + b"\n")
    except BrokenPipeError:
        os._exit(1)


def work(worker: str, control: str, server: int, answers: int) -> NoReturn:
    """Is a worker until its launcher needs it no more; a thread that fails ends it, as others would wait for that for ever."""
    from apache_beam.runners.worker import sdk_worker_main

    from patchpack.pipeline.execution import counts

    def die(error: BaseException | None) -> NoReturn:
        say(answers, worker=worker, ended=described(error))
        os._exit(1)

    end_with(server, and_its_thread=True)
    threading.excepthook = lambda arguments: die(arguments.exc_value)
    try:
        counts.send(lambda counted: say(answers, worker=worker, counts=counted))
        _, harness, _ = sdk_worker_main.create_harness(
            {"CONTROL_API_SERVICE_DESCRIPTOR": f'url: "{control}"', "PIPELINE_OPTIONS": "{}", "WORKER_ID": worker}
        )
        harness.run()
    except BaseException as error:  # noqa: BLE001 (the launcher says it)
        die(error)
    os._exit(0)


def described(error: BaseException | None) -> str:
    """Returns an error in a few words, of one line."""
    if isinstance(error, MemoryError):
        return "out of memory"
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def main() -> None:
    """Imports what workers need, and serves; its arguments are the launcher's process, --media-backend and whether to isolate."""
    launcher, backend, isolates = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "1"
    looking = end_with(launcher, and_its_thread=False)
    # Ctrl-C reaches every process of a terminal; the launcher answers it, and its workers end with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.dup(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    try:
        with uncollected():
            load(backend)
        if isolates:
            sandbox.isolate_all()
        # workers share what is there now, and never look at it for garbage, which would copy it
        gc.freeze()
    except BaseException as error:  # noqa: BLE001 (the launcher says it)
        say(answers, ended=described(error))
        os._exit(1)
    looking.set()
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()
    say(answers, ready=True)
    Server(0, answers).serve()
    os._exit(0)


def load(backend: str) -> None:
    """Imports what workers would otherwise each import."""
    import logging

    # before Beam is imported, which logs at import
    logging.disable(logging.CRITICAL)
    from apache_beam.runners.worker import sdk_worker_main  # noqa: F401

    from patchpack.pipeline.execution import graph  # noqa: F401
    from patchpack.pipeline.media import resize

    resize.load(resize.resolved(backend))


if __name__ == "__main__":
    main()
