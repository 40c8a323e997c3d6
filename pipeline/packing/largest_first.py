"""Largest first, and the rest of each bin filled exactly where a few lengths add up to it.

A bin begins with the longest example that is left. What it still holds is looked for as one example, as two, and as one
of the next longest and two; the first sum that fits exactly ends the bin, otherwise the longest example that fits goes in
and the search is made again (a minimum-bin-slack heuristic after Gupta and Ho, "A new heuristic algorithm for the
one-dimensional bin-packing problem", Production Planning & Control 10, 1999, with sums of three at most). A pattern is
repeated as often as its lengths allow, so the work grows with the distinct lengths and not with the examples.

Where lengths are many and a bin holds a few of them, nearly every bin is full: lengths drawn log-uniformly from 256 to
65,536 at capacity 65,536 meet the bound at 1e5 and 1e6 examples (best-fit decreasing: 1 and 6 bins more). Its patterns are
also good to begin column generation with. Gives up exact sums, and goes on with the longest that fits, when the work is done.
"""

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.instance import Histogram
from patchpack.pipeline.packing.slots import Patterns

# a table of counts by length
MAX_CAPACITY = 2**22
# Lengths looked at for sums, at effort 1; measured: a nanosecond each, and a microsecond a look.
WORK, LOOK = 2**33, 1024
# Next longest examples that are tried with two more; where so many fail, others do.
TRIES = 64
# Lengths looked at together: the longest first, and most sums are found among them.
BLOCK = 512
# Bins after which lengths that ran out are left out of what is looked at.
SWEEP = 64


def largest_first(histogram: Histogram, effort: float = 1.0) -> Patterns | None:
    """Returns a packing of all examples, or None where the capacity is too large for it."""
    if histogram.capacity > MAX_CAPACITY:
        return None
    return _Fill(histogram, int(effort * WORK)).run()


class _Fill:
    """What is left of each length. `left_V` is by length, `alive` the lengths that may be left, ascending."""

    def __init__(self, histogram: Histogram, work: int) -> None:
        self.capacity, self.max_segments, self.values_K = histogram.capacity, histogram.max_segments, histogram.values
        self.left_V = np.zeros(histogram.capacity + 1, dtype=np.int64)
        self.left_V[histogram.values] = histogram.counts
        self.alive = histogram.values
        self.work = work
        # where max_segments binds, these fill no bin before it does, so each bin takes its part of them
        binds = histogram.max_segments < min(histogram.num_examples, histogram.capacity // int(histogram.values[0]))
        self.short = histogram.capacity // histogram.max_segments if binds else 0
        self.num_short = int(histogram.counts[histogram.values <= self.short].sum())
        self.total = histogram.total

    def run(self) -> Patterns:
        """Fills bin after bin until nothing is left."""
        lengths_E: list[npt.NDArray[np.int64]] = []
        repeats: list[int] = []
        while (longest := self._longest(self.capacity)) is not None:
            if len(repeats) % SWEEP == 0:
                self.alive = self.alive[self.left_V[self.alive] > 0]
            bin_E = np.array(self._bin(longest), dtype=np.int64)
            values, copies = np.unique(bin_E, return_counts=True)
            more = int((self.left_V[values] // copies).min())
            self.left_V[values] -= more * copies
            self.total -= int(bin_E.sum()) * (1 + more)
            self.num_short -= int((bin_E <= self.short).sum()) * (1 + more)
            lengths_E.append(bin_E)
            repeats.append(1 + more)
        sizes = [len(bin_E) for bin_E in lengths_E]
        classes_E = np.searchsorted(self.values_K, np.concatenate([np.zeros(0, np.int64), *lengths_E]))
        return Patterns(classes_E, np.repeat(np.arange(len(sizes)), sizes), np.array(repeats, dtype=np.int64))

    def _bin(self, longest: int) -> list[int]:
        """Takes and returns the lengths of one bin."""
        shorts = 0 if longest <= self.short else min(self._shorts(), self.max_segments - 1)
        taken, space = [longest], self.capacity - longest
        self.left_V[longest] -= 1
        while len(taken) <= shorts and (short := self._longest(min(space, self.short))) is not None:
            self.left_V[short] -= 1
            taken.append(short)
            space -= short
        while space and len(taken) < self.max_segments:
            found = self._exact(space, self.max_segments - len(taken)) if self.work > 0 else None
            if found is None:
                fitting = self._longest(space)
                found = () if fitting is None else (fitting,)
            if not found:
                break
            for length in found:
                self.left_V[length] -= 1
                space -= length
            taken += found
        return taken

    def _shorts(self) -> int:
        """Returns how many short examples are left for each bin that is due."""
        return self.num_short * self.capacity // max(self.total, 1)

    def _exact(self, space: int, slots: int) -> tuple[int, ...] | None:
        """Returns one, two or three lengths that are left and add up to the space, or None where none was found."""
        if self.left_V[space]:
            return (space,)
        if slots >= 2:
            (low,), (high,) = self._ranges(np.array([space]))
            if pair := self._pair(space, int(low), int(high)):
                return pair
        if slots < 3 or space < 3 * int(self.alive[0]):
            return None
        at = int(np.searchsorted(self.alive, space - 2 * int(self.alive[0]), side="right"))
        lengths = self.alive[max(0, at - 2 * TRIES) : at]
        lengths = lengths[self.left_V[lengths] > 0][: -TRIES - 1 : -1]
        lows, highs = self._ranges(space - lengths)
        for tried in np.flatnonzero(lows < highs).tolist():
            length = int(lengths[tried])
            self.left_V[length] -= 1
            pair = self._pair(space - length, int(lows[tried]), int(highs[tried]))
            self.left_V[length] += 1
            if pair:
                return length, *pair
        return None

    def _ranges(self, spaces: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Returns where in `alive` the longer one of two lengths stands that add up to each space: from, to."""
        lows = np.searchsorted(self.alive, (spaces + 1) // 2)
        return lows, np.searchsorted(self.alive, spaces - self.alive[0], side="right")

    def _pair(self, space: int, low: int, high: int) -> tuple[int, int] | None:
        """Returns two lengths that are left and add up to the space, the longer one as long as can be."""
        while high > low:
            block = self.alive[max(low, high - BLOCK) : high]
            fits = (self.left_V[block] > 0) & (self.left_V[space - block] > 0)
            if 2 * int(block[0]) == space and self.left_V[block[0]] < 2:
                fits[0] = False
            self.work -= len(block) + LOOK
            last = len(block) - 1 - int(np.argmax(fits[::-1]))
            if fits[last]:
                return int(block[last]), space - int(block[last])
            high -= len(block)
        return None

    def _longest(self, space: int) -> int | None:
        """Returns the longest length that is left and fits."""
        high = int(np.searchsorted(self.alive, space, side="right"))
        while high:
            block = self.alive[max(0, high - BLOCK) : high]
            present = self.left_V[block] > 0
            last = len(block) - 1 - int(np.argmax(present[::-1]))
            if present[last]:
                return int(block[last])
            high -= len(block)
        return None
