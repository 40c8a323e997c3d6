"""Progress and warnings on standard error: tqdm on a terminal, plain lines elsewhere, nothing for what ends within two seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

# what is over sooner needs no bar
DELAY_S = 2.0
# a log file wants few lines
LINE_EVERY_S = 30.0


def say(text: str) -> None:
    """Prints one line, whatever the text: names may hold line breaks, and commands to the terminal."""
    line = " ".join(text.splitlines())
    shown = (c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
    print("".join(shown), file=sys.stderr)


def warn(text: str) -> None:
    """Prints a warning, one line."""
    say(f"warning: {text}")


@contextmanager
def bar(
    what: str, total: int | None, unit: str, done: int = 0, out: TextIO | None = None
) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes how much is done in all.

    Args:
        what: the work, as the line begins.
        total: how much there is, or None if nobody knows.
        unit: of what is counted, plural.
        done: how much is done already, and says nothing about how fast it goes.
        out: where to, standard error if left out.
    """
    out = out or sys.stderr
    if out.isatty():
        layout = "{desc}: {elapsed}" if total is None else None
        with tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=f" {unit}",
            delay=DELAY_S,
            file=out,
            leave=False,
            bar_format=layout,
        ) as shown:
            yield lambda done: shown.update(done - shown.n) if total is not None else shown.refresh()
        return
    started = time.monotonic()
    last_line = [started]

    def advance(done: int) -> None:
        now = time.monotonic()
        if now - last_line[0] >= LINE_EVERY_S:
            last_line[0] = now
            amount = (
                f"{now - started:.0f} s" if total is None else f"{done:,} of {total:,} {unit}, {now - started:.0f} s"
            )
            print(f"{what}: {amount}", file=out, flush=True)

    yield advance
