"""The command: options in, log lines and one summary line out, one line for an error.

Results go to stdout, progress to stderr; with --json both are JSON lines on stdout. Exit 0, 1 for a
failure, 2 for usage, 130 for Ctrl-C, 143 for SIGTERM.
"""

import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TextIO, cast

from patchpack.schemas import FormatError
from patchpack.schemas.errors import without_secrets
from patchpack.trainer.budgets import Judged, table
from patchpack.trainer.config import make_parser
from patchpack.trainer.runlog import plot
from patchpack.trainer.stop import Interrupted
from patchpack.trainer.train import train

FORMATS = {
    "step": "step {}",
    "resumed": "resumed from {}",
    "taken_over": "taken over: {}",
    "steps": "{} steps",
    "loss": "loss {:.4f}",
    "tokens_per_s": "{:,.0f} real tokens/s",
    "examples_per_s": "{:,.1f} examples/s",
    "efficiency": "efficiency {:.4f}",
    "mfu": "useful MFU {:.3f}",
    "waiting": "waiting {:.3f}",
    "left_s": "{:,.0f} s left",
    "attention": "attention {}",
    "skipped": "{:,} broken sequences skipped",
    "lr": "lr {:.2e}",
    "grad_norm": "gradient {:.2f}",
    "seconds": "{:.1f} s",
    "device": "on {}",
    "real_tokens": "{:,} real tokens",
    "eval": "evaluated on {}",
    "eval_loss": "loss {:.4f}",
    "eval_accuracy": "accuracy {:.4f}",
    "eval_counted": "over {:,} counted",
    "eval_sequences": "{:,} sequences",
    "eval_segments": "{:,} segments",
    "eval_tokens": "{:,} real tokens",
    "eval_gflops": "{:,.2f} GFLOPs",
    "drawn": "drawn to {}",
}


def as_line(values: Mapping[str, object]) -> str:
    """Returns the values for a reader, those that are None left out."""
    return "  ".join(FORMATS[name].format(value) for name, value in values.items() if value is not None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the trainer and returns its exit status.

    Args:
        arguments: as typed after `patchpack train`; None takes them from the process.
    """
    parser = make_parser()
    typed = vars(parser.read(arguments))
    folder = typed.pop("plot")
    if (folder is None) == (typed["shards"] is None):
        parser.error("SHARDS or --plot FOLDER: give one of them")

    def log(values: Mapping[str, object]) -> None:
        if typed.get("json"):
            _say(json.dumps({"event": "log", **values}), sys.stdout)
        else:
            _say(as_line(values))

    try:
        if folder is not None:
            print(plot(folder))
            return 0
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
            summary = train(typed, log)
    except Interrupted as error:
        _say(str(error))
        return error.status
    except KeyboardInterrupt:
        # before the first step, after the last, or the second Ctrl-C
        print("interrupted; a run goes on with --resume where it has a checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        if typed.get("debug"):
            raise
        usage = isinstance(error, ValueError) and not isinstance(error, FormatError)
        ours = isinstance(error, ValueError | FloatingPointError)
        # what was typed is wrong for every process: the first one says so
        if not usage or os.environ.get("RANK", "0") == "0":
            said = " ".join(str(error).split()) if ours else f"{type(error).__name__}: {error}".split("\n")[0]
            if isinstance(error, OSError) and error.filename:
                said = f"{error.filename}: {error.strerror}"
            _say(said)
        return 2 if usage else 1
    budgets = [] if typed.get("json") else cast(list[Judged], summary.pop("budgets", []))
    if budgets:
        _say("\n".join(table(budgets)), sys.stdout)
    if summary:
        _say(json.dumps({"event": "summary", **summary}) if typed.get("json") else as_line(summary), sys.stdout)
    return 0


def _say(text: str, out: TextIO | None = None) -> None:
    """Prints a text, to standard error if nothing else is said, without passwords of URIs."""
    print(without_secrets(text), file=out or sys.stderr, flush=True)
