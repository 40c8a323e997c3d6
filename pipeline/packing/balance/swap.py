"""Swaps of examples between bins that even out the attention cost of steps of bins.

What `balance` repairs with: bins are kept within capacity and max_segments, and their number is not changed. Within a
step the most expensive bin and the cheapest that it can, best swap of a few hundred subsets of each; then with bins of
other steps, which have cost to spare, through an index of all examples and many pairs of examples by their tokens.
All of it is bounded by counts of what is looked for, never by time.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# Most maximum over mean of a step, as whole numbers: 1.02, a fiftieth of a step lost to waiting.
LIMIT, PER = 51, 50

# What bounds the time, by counts: swaps looked for in all, in one step from within, and from outside.
WORK = 24_000
WORK_WITHIN = 600
WORK_OUTSIDE = 256

# Subsets of a bin: all where there are so few, otherwise so many runs of its shuffled examples.
WHOLE = 7
SUBSETS = 192
# Pairs in the index: all of a bin of at most so many examples, otherwise two an example.
WHOLE_PAIRS = 12
# How many entries of one subset's window in the index are looked at, evenly spread.
SPREAD = 64

# sets these draws apart from those of others with the same seed, and gives what they are for
_STREAM = 0xBA1A4CE
ORDER, _SUBSETS, _PAIRS = range(3)


def words(count: int, seed: int, purpose: int, number: int = 0) -> npt.NDArray[np.uint64]:
    """Returns raw words of Philox: equal on every machine and version of numpy."""
    key, counter = seed % 2**64 + (_STREAM << 64), (purpose << 192) + (number << 128)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def over_limit(sums: Ints, most: Ints, size: int) -> npt.NDArray[np.bool_]:
    """Returns which steps are over the limit, given the sum and the maximum of their costs."""
    return most * size * PER > sums * LIMIT


def attention_costs(lengths: npt.ArrayLike, bin_index: npt.ArrayLike) -> Ints:
    """Returns the sum of n^2 over the examples of each bin, (num_bins,) int64, in pairs of tokens."""
    squares, bins = np.asarray(lengths, dtype=np.int64) ** 2, np.asarray(bin_index)
    costs = np.zeros(int(bins.max(initial=-1)) + 1, dtype=np.int64)
    np.add.at(costs, bins, squares)
    return costs


@dataclass(frozen=True, eq=False)
class _Subsets:
    """Some subsets of a bin: R masks over its M examples, and tokens, costs and counts of each, (R,) int64."""

    masks_RM: npt.NDArray[np.bool_]
    tokens: Ints
    costs: Ints
    counts: Ints


class Bins:
    """Bins whose examples can be swapped.

    Attributes:
        bin_index: (N,) int64, the bin of each example.
        costs, loads, counts: (num_bins,) int64, sum of n^2, tokens and examples of each.
        members: the examples of each.
        work_left: how many more swaps may be looked for.
    """

    def __init__(self, lengths: Ints, bin_index: Ints, capacity: int, max_segments: int, seed: int) -> None:
        self.lengths, self.bin_index = lengths, bin_index.astype(np.int64)
        self.capacity, self.max_segments, self.seed = capacity, max_segments, seed
        self.work_left = WORK
        self.costs = attention_costs(lengths, bin_index)
        self.counts = np.bincount(bin_index).astype(np.int64)
        self.loads = np.zeros_like(self.costs)
        np.add.at(self.loads, bin_index, lengths)
        ends = np.cumsum(self.counts)[:-1]
        self.members: list[Ints] = np.split(np.argsort(bin_index, kind="stable"), ends) if len(lengths) else []
        self._subsets: dict[int, _Subsets] = {}
        self._num_draws = 0

    def subsets(self, number: int) -> _Subsets:
        """Returns subsets of a bin, the empty one among them; others after a swap."""
        if number not in self._subsets:
            lengths_M = self.lengths[self.members[number]]
            masks_RM = self._masks(len(lengths_M))
            sums = masks_RM @ lengths_M, masks_RM @ lengths_M**2, masks_RM.sum(axis=1)
            self._subsets[number] = _Subsets(masks_RM, *sums)
        return self._subsets[number]

    def swap(self, one: int, out: Ints, other: int, back: Ints) -> None:
        """Moves examples `out` of bin `one` to bin `other`, and `back` from there."""
        self.bin_index[out], self.bin_index[back] = other, one
        for number, gone, come in ((one, out, back), (other, back, out)):
            kept = self.members[number]
            self.members[number] = np.concatenate([kept[~np.isin(kept, gone)], come])
            lengths_M = self.lengths[self.members[number]]
            self.costs[number], self.loads[number] = (lengths_M**2).sum(), lengths_M.sum()
            self.counts[number] = len(lengths_M)
            self._subsets.pop(number, None)

    def _masks(self, size: int) -> npt.NDArray[np.bool_]:
        if size <= WHOLE:
            return (np.arange(2**size)[:, None] >> np.arange(size) & 1).astype(bool)
        self._num_draws += 1
        drawn = words(2 * SUBSETS + size, self.seed, _SUBSETS, self._num_draws)
        ranks = np.argsort(drawn[2 * SUBSETS :], kind="stable")
        # circular runs of the shuffled examples, short ones more often: one long example goes against few others
        starts = (drawn[:SUBSETS] % np.uint64(size)).astype(np.int64)
        sizes = (drawn[SUBSETS : 2 * SUBSETS] % np.uint64(size - 1)).astype(np.int64) >> np.arange(SUBSETS) % 6
        masks_RM = (ranks - starts[:, None]) % size <= sizes[:, None]
        masks_RM[0] = False
        return masks_RM


class _Index:
    """All single examples and many pairs of one bin, sorted by tokens."""

    def __init__(self, bins: Bins, number: int) -> None:
        num_examples = len(bins.lengths)
        drawn = words(num_examples, bins.seed, _PAIRS, number)
        order = np.lexsort((drawn, bins.bin_index))
        sizes = np.repeat(bins.counts, bins.counts)
        ranks = np.arange(num_examples) - np.repeat(np.cumsum(bins.counts) - bins.counts, bins.counts)
        first, second = [np.arange(num_examples)], [np.full(num_examples, -1)]
        for step in range(1, WHOLE_PAIRS):
            with_partner = np.flatnonzero((ranks + step < sizes) & ((sizes <= WHOLE_PAIRS) | (step <= 2)))
            first.append(order[with_partner])
            second.append(order[with_partner + step])
        first_E, second_E = np.concatenate(first), np.concatenate(second)
        partner_lengths_E = np.where(second_E < 0, 0, bins.lengths[second_E])
        tokens_E = bins.lengths[first_E] + partner_lengths_E
        by_tokens = np.argsort(tokens_E, kind="stable")
        self.first_E, self.second_E, self.tokens_E = first_E[by_tokens], second_E[by_tokens], tokens_E[by_tokens]
        self.costs_E = (bins.lengths[first_E] ** 2 + partner_lengths_E**2)[by_tokens]


class Repair:
    """One pass over the steps that are over the limit."""

    def __init__(self, bins: Bins, steps_SW: Ints, number: int) -> None:
        """Indexes the bins as they are; `number` of the pass decides its draws."""
        self.bins, self.steps_SW, self.size = bins, steps_SW, steps_SW.shape[1]
        # the rest counts as step -1, which has no limit
        self.step_of = np.full(len(bins.costs), -1)
        self.step_of[steps_SW] = np.arange(len(steps_SW))[:, None]
        self.index = _Index(bins, number)
        self.spare = (bins.capacity * len(bins.loads) - int(bins.loads.sum())) // len(bins.loads) + 1

    def run(self) -> None:
        """Swaps examples until every step is within the limit, or nothing more is found."""
        costs_SW = self.bins.costs[self.steps_SW]
        for step in np.flatnonzero(over_limit(costs_SW.sum(axis=1), costs_SW.max(axis=1), self.size)).tolist():
            # costly bins give to other steps first; what is raised to the maximum afterwards stays
            _ = self._within(step) or self._outside(step, -1) or self._outside(step, 1)

    def _within(self, step: int) -> bool:
        """Evens out the most expensive bin with the cheapest that it can, again and again; returns whether that was enough."""
        members, costs = self.steps_SW[step], self.bins.costs
        limit = int(costs[members].sum()) * LIMIT // (PER * self.size)
        work_left = min(WORK_WITHIN, self.bins.work_left)
        while int(costs[members].max()) > limit:
            most_expensive = int(members[np.argmax(costs[members])])
            for cheap in members[np.argsort(costs[members], kind="stable")].tolist():
                if costs[cheap] >= limit or work_left < 1:
                    return False
                work_left -= 1
                self.bins.work_left -= 1
                if self._even_out(most_expensive, cheap):
                    break
        return True

    def _even_out(self, costly: int, cheap: int) -> bool:
        """Makes the swap after which the costlier of two bins is cheapest; returns whether there is one."""
        bins = self.bins
        one, other = bins.subsets(costly), bins.subsets(cheap)
        into_costly = other.tokens - one.tokens[:, None]
        saved = one.costs[:, None] - other.costs
        more = other.counts - one.counts[:, None]
        # nothing that saves anything leaves a bin empty
        allowed = (saved > 0) & (saved < bins.costs[costly] - bins.costs[cheap])
        allowed &= (into_costly <= bins.capacity - bins.loads[costly]) & (
            into_costly >= bins.loads[cheap] - bins.capacity
        )
        allowed &= (bins.counts[costly] + more <= bins.max_segments) & (bins.counts[cheap] - more <= bins.max_segments)
        if not allowed.any():
            return False
        then = np.maximum(bins.costs[costly] - saved, bins.costs[cheap] + saved)
        best = np.where(allowed, then, np.iinfo(np.int64).max).argmin()
        row, column = np.unravel_index(best, then.shape)
        bins.swap(costly, bins.members[costly][one.masks_RM[row]], cheap, bins.members[cheap][other.masks_RM[column]])
        return True

    def _outside(self, step: int, sign: int) -> bool:
        """Moves cost out of the bins over the limit (sign -1), or into the cheapest (1), from and to other steps.

        Returns whether the step is within the limit then.
        """
        members, costs, stuck = self.steps_SW[step], self.bins.costs, set()
        for _ in range(WORK_OUTSIDE):
            total, most = int(costs[members].sum()), int(costs[members].max())
            if most * self.size * PER <= total * LIMIT:
                return True
            candidates = [number for number in members.tolist() if number not in stuck]
            if sign < 0:
                candidates = [number for number in candidates if costs[number] * self.size * PER > total * LIMIT]
                chosen = max(candidates, key=costs.__getitem__, default=None)
            else:
                chosen = min(candidates, key=costs.__getitem__, default=None)
            if chosen is None or self.bins.work_left < 1:
                return False
            self.bins.work_left -= 1
            target = int(costs[chosen]) - total // self.size if sign < 0 else most - int(costs[chosen])
            if not self._shift(chosen, sign, target):
                stuck.add(chosen)
        return False

    def _shift(self, number: int, sign: int, target: int) -> bool:
        """Swaps a subset of a bin for an example or pair of another step: the one that moves most cost.

        At most what is requested, and so that the other step stays within the limit. Returns whether there is one.
        """
        bins, index, own = self.bins, self.index, self.bins.subsets(number)
        low = np.searchsorted(index.tokens_E, own.tokens - self.spare)
        high = np.searchsorted(index.tokens_E, own.tokens + bins.capacity - bins.loads[number], side="right")
        entries_RT = low[:, None] + (high - low)[:, None] * np.arange(SPREAD) // SPREAD
        entries_RT = np.minimum(entries_RT, len(index.tokens_E) - 1)
        first, second = index.first_E[entries_RT], index.second_E[entries_RT]
        other = bins.bin_index[first]
        moved = sign * (index.costs_E[entries_RT] - own.costs[:, None])
        into = index.tokens_E[entries_RT] - own.tokens[:, None]
        more = 1 + (second >= 0) - own.counts[:, None]
        # a pair may have been torn apart since it was indexed
        allowed = ((high > low) & (own.counts > 0))[:, None] & ((second < 0) | (bins.bin_index[second] == other))
        allowed &= (self.step_of[other] != self.step_of[number]) & (moved > 0) & (moved <= target)
        allowed &= moved <= self._capacity_left(sign, other)
        allowed &= (into <= bins.capacity - bins.loads[number]) & (into >= bins.loads[other] - bins.capacity)
        allowed &= (bins.counts[number] + more <= bins.max_segments) & (bins.counts[other] - more <= bins.max_segments)
        row, column = np.unravel_index(np.where(allowed, moved, 0).argmax(), moved.shape)
        if not allowed[row, column]:
            return False
        back = np.array([example for example in (first[row, column], second[row, column]) if example >= 0])
        bins.swap(number, bins.members[number][own.masks_RM[row]], int(other[row, column]), back)
        return True

    def _capacity_left(self, sign: int, others: Ints) -> Ints:
        """Returns how much cost each bin may take (sign -1) or give (1) before its step is over the limit."""
        costs_SW = self.bins.costs[self.steps_SW]
        sums, unlimited = costs_SW.sum(axis=1), np.iinfo(np.int64).max // 2
        if sign < 0:
            capacity_left = np.append(sums * LIMIT // (PER * self.size), unlimited)
            left: Ints = capacity_left[self.step_of[others]] - self.bins.costs[others]
            return left
        capacity_left = np.append(sums + -costs_SW.max(axis=1) * self.size * PER // LIMIT, unlimited)
        unmoved: Ints = capacity_left[self.step_of[others]]
        return unmoved
