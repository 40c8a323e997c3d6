"""Media functions in a process of their own, so that a decoder that crashes or hangs costs one file, not the run.

A sandbox (`sandbox_process`) is started at the first call of a thread and serves it from then on; after a
crash or a time-out the next call starts another. Calls go to it pickled, by its standard input. What comes back is
never unpickled, since the file may have damaged the sandbox: JSON and raw arrays, each behind its length. The time
limit is an alarm that the sandbox's kernel keeps. An idle sandbox ends with its input, a busy one with its parent
(`parent`). Costs one more start of Python a worker (0.5 s), 0.2 ms a call, and one copy of the resized frames;
benchmarks/isolation.py measures it.
"""

import contextlib
import fcntl
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, NamedTuple, TypeVar, cast

import numpy as np

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.inputs.facts import Facts
from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.stages import records
from patchpack.pipeline.storage import files

LENGTH = struct.Struct("<Q")

# rows that may come back, by name: a closed list, as nothing else is ever sent
_ROWS: dict[str, Callable[..., object]] = {
    row.__name__: row for row in (records.Source, records.Part, Facts, records.Example, records.Reject, records.Ignored)
}

Result = TypeVar("Result")

# what Linux grants everyone
_PIPE_BYTES = 2**20

_of_thread = threading.local()

# whether this process isolates what no option asks it to
_always = False


class Limits(NamedTuple):
    """What a sandbox may take: seconds for a call, and bytes of memory; and the backend that it loads before the first."""

    seconds: float
    memory_bytes: int
    backend: str = "pillow"


def isolate_all() -> None:
    """Makes every call of `isolated` in a sandbox from now on, in this process and those that it forks."""
    global _always
    _always = True


def isolated(config: PlanConfig, call: Callable[..., Result], *args: object) -> Result:
    """Returns call(*args), made in this thread's sandbox if the config asks for one, or a decoder was met that crashes.

    Raises:
        DecodeError: also where the sandbox crashed ("crashed") or took too long ("timeout").
    """
    if config.decode_isolation == "none" and not _always:
        return call(*args)
    # for videos: H.264 keeps up to 16 frames (Annex A.3.1), 1.5 bytes a pixel; images stay below 4 (`media.image`)
    limits = Limits(config.decode_limit_s, 2**30 + 24 * config.max_pixels, config.media_backend)
    sandbox = getattr(_of_thread, "sandbox", None)
    if sandbox is None or sandbox.limits != limits:
        sandbox = _of_thread.sandbox = Sandbox(limits)
    return sandbox.call(call, *args)


class Sandbox:
    """One sandbox, started when it is needed; for one thread."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, call: Callable[..., Result], *args: object) -> Result:
        """Returns what a call gives that is made in the sandbox; `call` is a function of a module.

        Raises:
            DecodeError: as `call` raises it, or with reason "crashed" or "timeout".
            OSError: as `call` raises it.
            RuntimeError: anything else that `call` raises, or the sandbox cannot start: bugs of ours.
        """
        process = self._process = self._process or _start(self.limits)
        requests, answers = _pipes(process)
        try:
            send(requests, pickle.dumps((call, args)))
            answer = json.loads(receive(answers))
            arrays = [receive(answers) for _ in range(answer["num_arrays"])]
        except (EOFError, BrokenPipeError) as error:
            self._process = None
            raise _epitaph(_buried(process), self.limits) from error
        if "error" in answer:
            raise _raised(**answer["error"])
        return cast(Result, _unpacked(answer["value"], arrays))

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            _buried(self._process)
            self._process = None


def packed(value: object, arrays: list[np.ndarray]) -> object:
    """Returns a value as JSON can hold it; its arrays are appended to `arrays`."""
    if isinstance(value, np.ndarray):
        arrays.append(np.ascontiguousarray(value))
        return {"array": [len(arrays) - 1, str(value.dtype), value.shape]}
    if isinstance(value, tuple | list):
        items = [packed(item, arrays) for item in value]
        name = type(value).__name__
        return {name: items} if name in _ROWS else {"list": items} if isinstance(value, list) else items
    return value


def _unpacked(value: object, arrays: list[bytes]) -> object:
    if isinstance(value, list):
        return tuple(_unpacked(item, arrays) for item in value)
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    if name == "array":
        number, dtype, shape = content
        return np.frombuffer(arrays[number], dtype).reshape(shape)
    items = [_unpacked(item, arrays) for item in content]
    return items if name == "list" else _ROWS[name](*items)


def send(stream: IO[bytes], data: bytes | memoryview) -> None:
    """Writes bytes behind their number."""
    stream.write(LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes:
    """Returns the next bytes that were sent.

    Raises:
        EOFError: the sender is gone.
    """
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    (size,) = LENGTH.unpack(head)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def serve(requests: IO[bytes], answers: IO[bytes], seconds: float) -> None:
    """Answers calls until there are no more; a call that takes longer than `seconds` ends the process."""
    while True:
        try:
            call, args = pickle.loads(receive(requests))  # noqa: S301 (from our own parent)
        except EOFError:
            return
        # nobody handles this signal, so the kernel ends the process, whatever a decoder is stuck in
        signal.setitimer(signal.ITIMER_REAL, seconds)
        arrays: list[np.ndarray] = []
        answer = _made(call, args, arrays)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(answers, json.dumps(answer | {"num_arrays": len(arrays)}).encode())
        for array in arrays:
            send(answers, array.data.cast("B"))


def _made(call: Callable[..., object], args: tuple[object, ...], arrays: list[np.ndarray]) -> dict[str, object]:
    """Returns what a call gave, or what it raised, as JSON can hold it."""
    try:
        return {"value": packed(call(*args), arrays)}
    except DecodeError as error:
        return {"error": {"kind": "decode", "reason": error.reason, "detail": str(error)}}
    except MemoryError:
        return {"error": {"kind": "memory", "detail": ""}}
    except OSError as error:
        kind = "not_regular" if isinstance(error, files.NotRegularError) else "storage"
        return {"error": {"kind": kind, "number": error.errno or 0, "detail": error.strerror or str(error)}}
    except Exception as error:  # noqa: BLE001 (a bug of ours, reported where it can be seen)
        return {"error": {"kind": "bug", "detail": f"{type(error).__name__}: {error}"}}


def module_search() -> dict[str, str]:
    """Returns the environment in which another Python finds modules where this one does: patchpack among them."""
    # an empty entry is the current folder
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


def _start(limits: Limits) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(  # noqa: S603 (this Python, and numbers)
        [sys.executable, "-m", "patchpack.pipeline.execution.sandbox_process", str(os.getpid()), *map(str, limits)],
        env=os.environ | module_search(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        _, answers = _pipes(process)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            # an image of 256 tokens at once, where the usual 64 KiB take four turns of both processes
            with contextlib.suppress(PermissionError):
                fcntl.fcntl(answers, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        receive(answers)
    except EOFError as error:
        raise RuntimeError(f"the sandbox for decoding did not start (exit status {_buried(process)})") from error
    return process


def _pipes(process: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    """Returns the ends of a sandbox's input and output."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the sandbox was started without pipes")
    return process.stdin, process.stdout


def _buried(process: "subprocess.Popen[bytes]") -> int:
    """Returns the exit status of a sandbox that is dead or not needed any more."""
    requests, answers = _pipes(process)
    # its input first: a living one then ends by itself
    try:
        requests.close()
    except BrokenPipeError:
        # what the dead one left unread
        process.stdin = None
    answers.close()
    return process.wait()


def _epitaph(status: int, limits: Limits) -> DecodeError:
    """Returns the error of the file that a sandbox died over."""
    if status == -signal.SIGALRM:
        return DecodeError("timeout", f"not done after {limits.seconds:g} s; see --decode-timeout-s")
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return DecodeError("crashed", f"its decoder ended with {how}")


def _raised(kind: str, detail: str, reason: str = "", number: int = 0) -> Exception:
    """Returns the error that the sandbox reports."""
    if kind == "decode":
        return DecodeError(reason, detail)
    if kind == "memory":
        return DecodeError("crashed", "its decoder ran out of memory")
    if kind == "not_regular":
        return files.NotRegularError(number, detail)
    return OSError(number, detail) if kind == "storage" else RuntimeError(detail)
