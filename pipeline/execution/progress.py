"""Progress and warnings on standard error: tqdm on a terminal, plain lines elsewhere, nothing for what ends within two seconds.

With --log-json every line is an object of JSON instead: `time` (UTC, ISO 8601), `level` (info, warning, error), and a `message` or
the fields of an `Amount`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple, TextIO

from tqdm import tqdm

from patchpack.schemas.errors import without_secrets

# what is over sooner needs no bar
DELAY_S = 2.0
# often enough for eyes, and seldom enough to cost nothing
DRAW_EVERY_S = 0.1
# a log file is read later
LINE_EVERY_S = 30.0

_BOUNDED = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} {unit} [{elapsed}{postfix}]"
_UNBOUNDED = "{desc}: {n_fmt} {unit} [{elapsed}{postfix}]"
_UNCOUNTED = "{desc}: [{elapsed}{postfix}]"


# of this process: whether lines are JSON; a command sets it
_as_json = False


def log_as_json(*, on: bool) -> None:
    """Makes every line of this process an object of JSON from now on, or no longer."""
    global _as_json
    _as_json = on


def say(text: str, level: str = "info") -> None:
    """Prints one line, whatever the text: names may hold line breaks, commands to the terminal, and URIs their passwords."""
    line = without_secrets(" ".join(text.splitlines()))
    if _as_json:
        _log(sys.stderr, level, message=line)
        return
    shown = (c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
    print("".join(shown), file=sys.stderr)


def warn(text: str) -> None:
    """Prints a warning, one line."""
    say(text if _as_json else f"warning: {text}", "warning")


def _log(out: TextIO, level: str, **fields: object) -> None:
    entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level} | fields
    print(json.dumps(entry), file=out, flush=True)


class Amount(NamedTuple):
    """How far some work is.

    `total` is None where nobody knows it. `before` of `done` was done by an earlier run, and says nothing about how fast it
    goes. `token_bytes` are those that this run has written. `num_rejects` is None where they are not counted.
    """

    work: str
    unit: str
    done: int
    total: int | None = None
    before: int = 0
    token_bytes: int = 0
    num_rejects: int | None = None


class Progress:
    """Shows how far one piece of work after another is; speeds are means since its first part was done, or nearly.

    What comes before is the start of workers, which says nothing about how long the rest takes.
    """

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Shows nothing yet.

        Args:
            out: where to, standard error if left out.
            clock: gives seconds.
        """
        self._out, self._clock = out or sys.stderr, clock
        self._work = ""
        self._began = self._moving = self._shown_at = clock()
        self._on_terminal = self._out.isatty() and not _as_json
        self._bar: tqdm | None = None

    def show(self, amount: Amount) -> None:
        """Shows an amount, if it is time to: on a terminal in place, elsewhere as a line now and then."""
        now = self._clock()
        if amount.work != self._work:
            self.close()
            self._work, self._began, self._moving = amount.work, now, now
        if amount.done <= amount.before:
            self._moving = now
        if now - self._shown_at < (DRAW_EVERY_S if self._on_terminal else LINE_EVERY_S):
            return
        elapsed, words = now - self._began, _speeds(amount, now - self._moving)
        if _as_json:
            self._shown_at = now
            _log(self._out, "info", **amount._asdict(), elapsed_s=round(elapsed, 1))
            return
        if not self._on_terminal:
            self._shown_at = now
            of_total = "" if amount.total is None else f" of {amount.total:,}"
            done = [f"{amount.done:,}{of_total} {amount.unit}"] if _is_counted(amount) else []
            line = ", ".join([*done, f"after {tqdm.format_interval(elapsed)}", *words])
            print(f"{amount.work}: {line}", file=self._out, flush=True)
        elif elapsed >= DELAY_S:
            self._shown_at = now
            self._draw(amount, elapsed, words)

    def close(self) -> None:
        """Takes away what stands on a terminal."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _draw(self, amount: Amount, elapsed: float, words: list[str]) -> None:
        layout = _BOUNDED if amount.total is not None else _UNBOUNDED if _is_counted(amount) else _UNCOUNTED
        if self._bar is None:
            done, total = amount.done, amount.total
            self._bar = tqdm(
                desc=amount.work, total=total, initial=done, file=self._out, leave=False, bar_format=layout
            )
            self._bar.start_t -= elapsed
        self._bar.bar_format = layout
        self._bar.n, self._bar.unit = amount.done, amount.unit
        self._bar.set_postfix_str(", ".join(words))


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
    with shown(out) as progress:
        # from now on it takes time
        progress.show(Amount(what, unit, done, total, done))
        yield lambda now: progress.show(Amount(what, unit, now, total, done))


@contextmanager
def shown(out: TextIO | None = None) -> Iterator[Progress]:
    """Yields a Progress that is taken away at the end."""
    progress = Progress(out)
    try:
        yield progress
    finally:
        progress.close()


def _is_counted(amount: Amount) -> bool:
    """Returns whether the number done says something: not where nobody has counted anything, and nobody knows how much there is."""
    return amount.total is not None or amount.done > 0


def _speeds(amount: Amount, moving_s: float) -> list[str]:
    """Returns how fast it goes, what is left, and what else is counted."""
    words = []
    speed = (amount.done - amount.before) / moving_s if moving_s else 0.0
    if speed:
        words.append(f"{speed:,.1f} {amount.unit}/s")
    if amount.token_bytes and speed:
        words.append(f"{amount.token_bytes / 1e6 / moving_s:,.1f} MB/s of tokens")
    if amount.num_rejects is not None:
        words.append(f"{amount.num_rejects:,} rejects")
    if speed and amount.total is not None:
        words.append(f"{tqdm.format_interval((amount.total - amount.done) / speed)} to go")
    return words
