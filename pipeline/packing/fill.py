"""Exact fill by subset sums: proves itself optimal where bins hold many examples, or gives up.

Where many examples share a bin, nearly every number of tokens is a sum of some of them, and a packing whose bins are
all full to the last token, but for the last few, meets the bound ceil(tokens / capacity). Bins are filled one pattern
after another, as in the minimum-bin-slack heuristic (Gupta and Ho, "A new heuristic algorithm for the one-dimensional
bin-packing problem", Production Planning & Control 10, 1999), but most of a bin is drawn at random from what is left,
so that what is left keeps its mixture. The rest of the bin is filled exactly from a small pool of lengths, long ones
preferred, whose reachable sums are the bits of one Python integer: adding a length is a shift and an or. A pool that
does not reach the target grows, up to all lengths. A pattern is repeated as often as a half, then in a second try a
quarter, of what is left of each of its lengths allows: the work grows with the distinct lengths and with log N.

What is left should grow shorter, as short lengths close the last bins; but where max_segments binds, bins of short ones
would run into it: then draws hold the mean, and bins with too many examples are drawn again.

Costs some 0.2 ms a pattern and six patterns a length. Gives up as soon as more tokens are wasted than the bound leaves
room for, past the work limit, or when too many bins must be drawn again. Measured: filling longest first leaves lengths
at the end that add up to nothing useful; so does preferring short ones in the exact part; repeating as often as counts
allow uses up rare lengths too soon; below four examples a bin it rarely ends well, and column generation is as fast; so
too where max_segments is within some 15 % of the examples a bin would hold without it.
"""

import numpy as np
import numpy.typing as npt

from pipeline.packing.instance import Histogram
from pipeline.packing.slots import Patterns, random_words

MIN_EXAMPLES = 4  # a bin, on average
MAX_CAPACITY = 2**20  # bits of the sums, 128 KiB
# Bits of reachable sums computed in one try, at effort 1: 2 to 5 s.
WORK_LIMIT = 2**33
FIRST_POOL = 24
# The room that the exact part of a bin has at least, in examples of mean length: without and with a limit on segments.
TAIL_EXAMPLES = (2, 3)
# Of bins with too many examples, in one try: so many, and so many more for each pattern found.
FIRST_REDRAWS, MORE_REDRAWS = 200, 3
SHARES = (2, 4)  # repeated as often as this part of what is left allows; one try each


def fill(histogram: Histogram, num_bins: int, *, seed: int, effort: float) -> Patterns | None:
    """Returns a packing into `num_bins` bins, or None where this way does not find one."""
    if histogram.capacity > MAX_CAPACITY:
        return None
    if histogram.capacity * histogram.num_examples < MIN_EXAMPLES * histogram.total:
        return None
    for share in SHARES:
        if found := _Fill(histogram, num_bins, seed, share, int(effort * WORK_LIMIT)).run():
            return found
    return None


class _Fill:
    """One try: what is left of each length, and how much may still be wasted."""

    def __init__(self, histogram: Histogram, num_bins: int, seed: int, share: int, work: int) -> None:
        self.capacity = histogram.capacity
        self.max_segments = histogram.max_segments
        self.values_K = histogram.values
        self.left_K = histogram.counts.copy()
        self.limited = histogram.max_segments < histogram.capacity // int(histogram.values[0])
        self.mean = histogram.total // histogram.num_examples
        # Coarse enough that no sum of weights leaves int64.
        self.long_first_K = (1 + (self.values_K << 10) // self.values_K[-1]) ** 2
        self.short_first_K = 1 + (self.values_K[-1] << 10) // self.values_K
        self.slack = num_bins * histogram.capacity - histogram.total
        self.seed = seed
        self.share = share
        self.draws = 0
        self.redraws = FIRST_REDRAWS
        self.work = work

    def run(self) -> Patterns | None:
        """Fills bin after bin until nothing is left, the slack is used up or the work is."""
        patterns, repeats = [], []
        while self.left_K.any():
            pattern = self._pattern()
            if pattern is None:
                return None
            if len(pattern) > self.max_segments:
                self.redraws -= 1
                continue
            kinds, copies = np.unique(pattern, return_counts=True)
            times = max(1, int((self.left_K[kinds] // copies).min()) // self.share)
            waste = self.capacity - int(self.values_K[kinds] @ copies)
            if waste:
                times = min(times, self.slack // waste)
            if times < 1:
                return None
            self.slack -= times * waste
            self.left_K[kinds] -= times * copies
            patterns.append(pattern)
            repeats.append(times)
            self.redraws += MORE_REDRAWS
        of_each = [len(pattern) for pattern in patterns]
        return Patterns(np.concatenate(patterns), np.repeat(np.arange(len(of_each)), of_each), np.array(repeats))

    def _pattern(self) -> npt.NDArray[np.int64] | None:
        """Returns the kinds of one bin, one for each example, or None where the work or the redraws are used up."""
        body = self._body()
        left_K = self.left_K.copy()
        np.subtract.at(left_K, body, 1)
        room = self.capacity - int(self.values_K[body].sum())
        within = int(np.searchsorted(self.values_K, room, side="right"))
        candidates = np.flatnonzero(left_K[:within])[::-1].tolist()  # a pool is used from the long end
        size = FIRST_POOL
        while self.work > 0 and self.redraws > 0:
            pool = self._pool(candidates, size)
            reached, tail = self._best_sum(pool, left_K, room)
            if reached == room or len(pool) == len(candidates):
                return np.concatenate([body, np.array(tail, dtype=np.int64)])
            size *= 4
        return None

    def _body(self) -> npt.NDArray[np.int64]:
        """Returns examples drawn from what is left, as kinds, with room beside them for the exact part."""
        num_left, total_left = int(self.left_K.sum()), int(self.left_K @ self.values_K)
        if total_left <= self.capacity:
            return np.repeat(np.arange(len(self.left_K)), self.left_K)
        mean = total_left // num_left
        weight_K = np.cumsum(self.left_K * self._weights(mean))
        words = self._words(self.capacity // mean + 1)
        drawn = np.searchsorted(weight_K, (words >> np.uint64(1)).astype(np.int64) % weight_K[-1], side="right")
        fits = np.cumsum(self.values_K[drawn]) <= self.capacity - TAIL_EXAMPLES[self.limited] * mean
        kinds, copies = np.unique(drawn[fits], return_counts=True)
        return np.repeat(kinds, np.minimum(copies, self.left_K[kinds]))

    def _weights(self, mean: int) -> npt.NDArray[np.int64] | int:
        """Returns how much sooner than its share each length is drawn, given the mean of what is left."""
        if not self.limited:
            return self.long_first_K
        return self.short_first_K if mean < self.mean else 1

    def _words(self, count: int) -> npt.NDArray[np.uint64]:
        """Returns the next random words."""
        self.draws += 1
        return random_words(self.seed, 2**32 * self.share + self.draws, count)

    def _pool(self, candidates: list[int], size: int) -> list[int]:
        """Returns `size` of the candidates, in their order, one drawn from each of as many equal runs."""
        if len(candidates) <= size:
            return candidates
        bounds = [len(candidates) * run // size for run in range(size + 1)]
        runs = zip(bounds[:-1], bounds[1:], self._words(size).tolist(), strict=True)
        return [candidates[low + word % (high - low)] for low, high, word in runs]

    def _best_sum(self, pool: list[int], left_K: npt.NDArray[np.int64], room: int) -> tuple[int, list[int]]:
        """Returns the largest sum up to `room` of examples from the pool, and their kinds, the first of the pool that do."""
        mask = (1 << (room + 1)) - 1
        sums = [1]  # bit s is set where the lengths so far reach s
        values = self.values_K[pool].tolist()
        for value, most in zip(values, left_K[pool].tolist(), strict=True):
            reachable = sums[-1]
            copies, most = 1, min(most, room // value)
            while most > 0:
                copies = min(copies, most)
                reachable |= reachable << copies * value & mask
                self.work -= room
                most -= copies
                copies *= 2
            sums.append(reachable)
            if reachable >> room & 1:
                break
        reached = missing = sums[-1].bit_length() - 1
        tail = []
        for used in range(len(sums) - 2, -1, -1):
            while not sums[used] >> missing & 1:
                tail.append(pool[used])
                missing -= values[used]
        return reached, tail
