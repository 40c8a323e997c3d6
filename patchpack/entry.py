"""Where the command `patchpack` and `python -m patchpack` begin."""

import contextlib
import io
import os
import sys
from typing import NoReturn

from patchpack.extras import MissingExtra


def run() -> NoReturn:
    """Runs one command and ends the process with its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a terminal without UTF-8 shows a mark where it cannot show a name
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _main(sys.argv[1:])
    except KeyboardInterrupt:
        # before there was anything to interrupt
        code = 130
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    for stream in (sys.stdout, sys.stderr):
        # the reader has seen enough (`| head`)
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    # not sys.exit: where a worker process died, Beam's threads would wait for it for ever
    os._exit(code)


def _main(arguments: list[str]) -> int:
    if arguments[:1] != ["train"]:
        from patchpack.command import main

        return main(arguments)
    try:
        from patchpack.trainer.cli import main as train
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("patchpack"):
            raise
        sys.stderr.write(f"{MissingExtra(error.name, 'train needs', 'train')}\n")
        return 1
    return train(arguments[1:])
