"""Exact fill by sums of two: bins full to the last token where many examples share one, as far as that goes.

A packing whose bins are all full, but for the last few, meets the bound ceil(tokens / capacity). Bins are filled one
pattern after another, as in the minimum-bin-slack heuristic (Gupta and Ho, "A new heuristic algorithm for the
one-dimensional bin-packing problem", Production Planning & Control 10, 1999), but most of a bin is drawn at random from
what is left, so that what is left keeps its mixture; the draw ends where some two examples of mean length still fit,
and a pair that fits exactly is drawn among all pairs that do. Where no pair does, all reachable sums of what is left
are the bits of one Python integer: adding a length is a shift and an or. A pattern is repeated as often as half of what
is left of each of its lengths allows: the work grows with the distinct lengths and with log N.

What is left should not grow longer, as short lengths close the last bins: where it does, long ones are drawn first. But
where max_segments binds, bins of short ones would run into it: then draws hold the mean, and bins with too many
examples are drawn again.

Costs some 0.1 ms a pattern and two to five patterns a length. Ends, with what is left, as soon as a bin wastes more
than its share of what the bound leaves room for, or the work is done; column generation closes the rest (`pack`).
Measured: filling longest first leaves lengths at the end that add up to nothing useful; an exact part of many short
examples does too; repeating as often as counts allow uses up rare lengths too soon; below three examples a bin it
rarely ends well; so too where max_segments is within some 15 % of the examples a bin would hold without it.
"""

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.instance import Histogram
from patchpack.pipeline.packing.slots import Patterns, random_words

MIN_EXAMPLES = 3  # a bin, on average
MAX_CAPACITY = 2**20  # bits of the sums, 128 KiB
# Bits of reachable sums and cells looked at for pairs, at effort 1: 1 to 3 s.
WORK_LIMIT = 2**33
DRAW_WORK = 8  # of a draw, for each length
PAIR_WORK = 64  # bits of sums in the time of a cell
TRIES = 64  # at one bin; where so many fail, others would


def fill(histogram: Histogram, num_bins: int, *, seed: int, effort: float) -> Patterns | None:
    """Returns the most bins of a packing into `num_bins` bins, all but full, or None where this way is no good."""
    if histogram.capacity > MAX_CAPACITY:
        return None
    if histogram.capacity * histogram.num_examples < MIN_EXAMPLES * histogram.total:
        return None
    return _Fill(histogram, num_bins, seed, int(effort * WORK_LIMIT)).run()


class _Fill:
    """What is left of each length, and how much may still be wasted."""

    def __init__(self, histogram: Histogram, num_bins: int, seed: int, work: int) -> None:
        self.capacity = histogram.capacity
        self.max_segments = histogram.max_segments
        self.values_K = histogram.values
        self.left_K = histogram.counts.copy()
        self.left_V = np.zeros(histogram.capacity + 1, dtype=np.int64)  # the same by length
        self.left_V[self.values_K] = self.left_K
        self.kind_V = np.zeros_like(self.left_V)
        self.kind_V[self.values_K] = np.arange(len(self.values_K))
        self.limited = histogram.segments_bind
        self.mean = histogram.total // histogram.num_examples
        # Coarse enough that no sum of weights leaves int64.
        self.long_first_K = (1 + (self.values_K << 10) // self.values_K[-1]) ** 2
        self.short_first_K = 1 + (self.values_K[-1] << 10) // self.values_K
        self.bins_left = num_bins
        self.slack = num_bins * histogram.capacity - histogram.total
        self.seed = seed
        self.draws = 0
        self.work = work

    def run(self) -> Patterns | None:
        """Fills bin after bin until nothing is left, or nothing fits any more."""
        classes_E: list[npt.NDArray[np.int64]] = []
        repeats: list[int] = []
        while self.work > 0 and self.left_K.any() and (pattern := self._pattern()) is not None:
            length_classes, copies = np.unique(pattern, return_counts=True)
            times = max(1, int((self.left_K[length_classes] // copies).min()) // 2)
            waste = self.capacity - int(self.values_K[length_classes] @ copies)
            if waste:
                times = min(times, self.slack // waste)
            self.slack -= times * waste
            self.bins_left -= times
            self.left_K[length_classes] -= times * copies
            self.left_V[self.values_K[length_classes]] -= times * copies
            classes_E.append(pattern)
            repeats.append(times)
        if not repeats:
            return None
        of_each = [len(pattern) for pattern in classes_E]
        return Patterns(np.concatenate(classes_E), np.repeat(np.arange(len(of_each)), of_each), np.array(repeats))

    def _pattern(self) -> npt.NDArray[np.int64] | None:
        """Returns the kinds of one bin, one for each example, or None where no bin can be had for its share of waste."""
        for _ in range(TRIES):
            body, word = self._body()
            capacity_left = self.capacity - int(self.values_K[body].sum())
            tail = self._pair(body, capacity_left, word) if capacity_left else []
            if tail is None:
                tail = self._best_sum(body, capacity_left)
            pattern = np.concatenate([body, np.array(tail, dtype=np.int64)])
            waste = self.capacity - int(self.values_K[pattern].sum())
            if len(pattern) <= self.max_segments and waste <= self.slack // max(1, self.bins_left):
                return pattern
            if self.work < 0:
                break
        return None

    def _body(self) -> tuple[npt.NDArray[np.int64], int]:
        """Returns examples drawn from what is left, as kinds, with room beside them for two, and a random word more."""
        num_left, total_left = int(self.left_K.sum()), int(self.left_K @ self.values_K)
        if total_left <= self.capacity:
            return np.repeat(np.arange(len(self.left_K)), self.left_K), 0
        weight_K = np.cumsum(self.left_K * self._weights(num_left, total_left))
        self.draws += 1
        self.work -= DRAW_WORK * len(self.left_K)
        words = random_words(self.seed, 2**32 + self.draws, self.capacity * num_left // total_left + 3)
        drawn = np.searchsorted(weight_K, (words >> np.uint64(1)).astype(np.int64) % weight_K[-1], side="right")
        capacity_left = self.capacity - np.concatenate(([0], np.cumsum(self.values_K[drawn])))
        capacity_left = capacity_left[: np.searchsorted(-capacity_left, 0)]  # those above 0
        end = int(np.argmin(np.abs(capacity_left * num_left - 2 * total_left)))
        length_classes, copies = np.unique(drawn[:end], return_counts=True)
        return np.repeat(length_classes, np.minimum(copies, self.left_K[length_classes])), int(words[-1])

    def _weights(self, num_left: int, total_left: int) -> npt.NDArray[np.int64] | int:
        """Returns how much sooner than its share each length is drawn, given the mean of what is left."""
        if self.limited:
            return self.short_first_K if total_left < self.mean * num_left else 1
        # 3 % below the mean at first: some short ones more for the end
        return self.long_first_K if 100 * total_left > 97 * self.mean * num_left else 1

    def _pair(self, body: npt.NDArray[np.int64], capacity_left: int, word: int) -> list[int] | None:
        """Returns two kinds that fill the room exactly, drawn among all pairs that do; None where none does."""
        low, high = max(1, capacity_left - int(self.values_K[-1])), capacity_left // 2
        self.work -= PAIR_WORK * max(0, high + 1 - low)
        if high < low:
            return None
        taken = self.values_K[body]
        np.subtract.at(self.left_V, taken, 1)
        pairs = self.left_V[low : high + 1] * self.left_V[capacity_left - high : capacity_left - low + 1][::-1]
        if capacity_left == 2 * high:
            pairs[-1] = self.left_V[high] * (self.left_V[high] - 1) // 2
        np.add.at(self.left_V, taken, 1)
        pairs = np.cumsum(pairs)
        if not pairs[-1]:
            return None
        shorter = low + int(np.searchsorted(pairs, word % int(pairs[-1]), side="right"))
        return [int(self.kind_V[capacity_left - shorter]), int(self.kind_V[shorter])]

    def _best_sum(self, body: npt.NDArray[np.int64], capacity_left: int) -> list[int]:
        """Returns the kinds of the largest sum up to `capacity_left` of examples beside the body, long ones preferred."""
        left_K = self.left_K.copy()
        np.subtract.at(left_K, body, 1)
        within = int(np.searchsorted(self.values_K, capacity_left, side="right"))
        pool = np.flatnonzero(left_K[:within])[::-1]
        mask = (1 << (capacity_left + 1)) - 1
        sums = [1]  # bit s is set where the lengths so far reach s
        values = self.values_K[pool].tolist()
        for value, most in zip(values, left_K[pool].tolist(), strict=True):
            reachable = sums[-1]
            copies, most = 1, min(most, capacity_left // value)
            while most > 0:
                copies = min(copies, most)
                reachable |= reachable << copies * value & mask
                self.work -= capacity_left
                most -= copies
                copies *= 2
            sums.append(reachable)
            if reachable >> capacity_left & 1:
                break
        missing = sums[-1].bit_length() - 1
        tail: list[int] = []
        for used in range(len(sums) - 2, -1, -1):
            while not sums[used] >> missing & 1:
                tail.append(int(pool[used]))
                missing -= values[used]
        return tail
