"""The process behind `isolated`: makes one call after another until its input ends, or a file ends it, or its parent does."""

import os
import resource
import signal
import sys

from patchpack.pipeline.execution.parent import end_with


def main() -> None:
    """Takes parent and limits from the command line, and keeps decoders from the pipe that the answers go through."""
    parent, seconds, memory_bytes, backend = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    # before anything that takes time; its thread's, as a sandbox is one thread's
    end_with(parent, and_its_thread=True)
    # Ctrl-C reaches every process of a terminal; the launcher answers it, and this one ends with its input
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # modules load now: later it would count against the first file
    import patchpack.pipeline.stages.probe
    import patchpack.pipeline.stages.write  # noqa: F401
    from patchpack.pipeline.execution.sandbox import send, serve
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
