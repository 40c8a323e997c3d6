"""The process behind `isolation`: makes one call after another until its input ends, or a file ends it."""

import json
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from typing import IO

import numpy as np

from patchpack.pipeline.execution.sandbox import packed, receive, send
from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.storage import files


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


def main() -> None:
    """Takes the limits from the command line, and keeps decoders from the pipe that the answers go through."""
    seconds, memory_bytes, backend = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # Ctrl-C reaches every process of a terminal; the launcher answers it, and this one ends with its input
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # modules load now: later it would count against the first file
    import patchpack.pipeline.stages.probe
    import patchpack.pipeline.stages.write  # noqa: F401
    from patchpack.pipeline.media import resize

    resize.load(backend)

    answers = os.fdopen(os.dup(1), "wb")
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    # no core of a gigabyte for each bad file
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    send(answers, b"ready")
    try:
        serve(sys.stdin.buffer, answers, seconds)
    except BrokenPipeError:
        # the parent is gone, and nobody waits for this answer
        os._exit(0)


if __name__ == "__main__":
    main()
