"""Largest first, and the rest of each bin filled exactly where a few lengths add up to it.

A bin begins with the longest example that is left. What it still holds is looked for as one example, as two, and as one
of the next longest and two; the first sum that fits exactly ends the bin, otherwise the longest example that fits goes in
and the search is made again (a minimum-bin-slack heuristic after Gupta and Ho, "A new heuristic algorithm for the
one-dimensional bin-packing problem", Production Planning & Control 10, 1999, with sums of three at most).

Where lengths are many and a bin holds a few of them, nearly every bin is full: lengths drawn log-uniformly from 256 to
65,536 at capacity 65,536 meet the bound at 1e5 and 1e6 examples (best-fit decreasing: 1 and 6 bins more). Its patterns are
also good to begin column generation with. Gives up when the work is done: best fit packs the rest.
"""

import numpy as np

from patchpack.pipeline.packing.greedy import best_fit
from patchpack.pipeline.packing.instance import Histogram
from patchpack.pipeline.packing.left import Left
from patchpack.pipeline.packing.slots import Patterns

# a table of counts by length
MAX_CAPACITY = 2**22
# Lengths looked at for sums, at effort 1: some seconds.
WORK = 2**31
# Next longest examples that are tried with two more; where so many fail, others do.
TRIES = 64


def largest_first(histogram: Histogram, effort: float = 1.0) -> Patterns | None:
    """Returns a packing of all examples, or None where the capacity is too large for it."""
    if histogram.capacity > MAX_CAPACITY:
        return None
    return _Fill(histogram, int(effort * WORK)).run()


class _Fill:
    """What is left, and the part of it that is short where max_segments binds."""

    def __init__(self, histogram: Histogram, work: int) -> None:
        self.histogram, self.max_segments = histogram, histogram.max_segments
        self.left = Left(histogram, work)
        # where max_segments binds, these fill no bin before it does, so each bin takes its part of them
        self.short = histogram.capacity // histogram.max_segments if histogram.segments_bind else 0
        self.num_short = int(histogram.counts[histogram.values <= self.short].sum())
        self.total = histogram.total

    def run(self) -> Patterns:
        """Fills bin after bin until nothing is left; the rest goes to best fit where the work is done before."""
        while self.left.work > 0 and (longest := self.left.longest(self.left.capacity)) is not None:
            lengths = self._bin(longest)
            times = self.left.close(lengths)
            self.total -= times * sum(lengths)
            self.num_short -= times * sum(length <= self.short for length in lengths)
        bins = self.left.patterns()
        kinds, rest = self.histogram.without(bins.used(len(self.histogram.values)))
        return bins.joined(best_fit(rest).of(kinds))

    def _bin(self, longest: int) -> list[int]:
        """Takes and returns the lengths of one bin."""
        left_V = self.left.left_V
        shorts = 0 if longest <= self.short else min(self._shorts(), self.max_segments - 1)
        taken, space = [longest], self.left.capacity - longest
        left_V[longest] -= 1
        while len(taken) <= shorts and (short := self.left.longest(min(space, self.short))) is not None:
            left_V[short] -= 1
            taken.append(short)
            space -= short
        while space and len(taken) < self.max_segments:
            found = self._exact(space, self.max_segments - len(taken))
            if found is None:
                fitting = self.left.longest(space)
                found = () if fitting is None else (fitting,)
            if not found:
                break
            for length in found:
                left_V[length] -= 1
                space -= length
            taken += found
        return taken

    def _shorts(self) -> int:
        """Returns how many short examples are left for each bin that is due."""
        return self.num_short * self.left.capacity // max(self.total, 1)

    def _exact(self, space: int, slots: int) -> tuple[int, ...] | None:
        """Returns one, two or three lengths that are left and add up to the space, or None where none was found."""
        left = self.left
        if left.left_V[space]:
            return (space,)
        if slots >= 2:
            (low,), (high,) = left.longer_halves(np.array([space]))
            if pair := left.pair(space, int(low), int(high), space):
                return pair
        shortest = int(left.alive[0])
        if slots < 3 or space < 3 * shortest:
            return None
        at = int(np.searchsorted(left.alive, space - 2 * shortest, side="right"))
        lengths = left.alive[max(0, at - 2 * TRIES) : at]
        lengths = lengths[left.left_V[lengths] > 0][: -TRIES - 1 : -1]
        lows, highs = left.longer_halves(space - lengths)
        for tried in np.flatnonzero(lows < highs).tolist():
            length = int(lengths[tried])
            left.left_V[length] -= 1
            pair = left.pair(space - length, int(lows[tried]), int(highs[tried]), space)
            left.left_V[length] += 1
            if pair:
                return length, *pair
        return None
