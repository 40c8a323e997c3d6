"""Elastic fill: bins filled exactly, by moving the token counts of a few examples a little.

NaViT (Dehghani et al., arXiv 2307.06304, section 2.3) suggests choosing the resolution of the last image of a
sequence so that it fits. Here every example brings a candidate lengths of admissible counts. In seeded random order, the
largest of the next examples and then the oldest head a bin until it lacks about `RESERVE` average ones; the rest
is chosen among the next `lookahead` by dynamic programming over reachable sums (`closing`): members and counts
that add up to exactly the capacity at the least total cost, which is none where requested counts already do. Of
equals the larger examples are taken, so that the small ones, which fit anywhere, are left. A bin that nothing
closes is tried with a wider view, then takes the fullest subset at requested counts: a count is moved only where
that makes a bin exactly full. A running debt forbids growing, or shrinking, while realised tokens are more than
1/400 off the target ones.

For 16,384 examples (`benchmarks/elastic.py`) 0.2-1 s where bins hold four and more, 3-5 s where two or where many
examples nearly fill one. Gives up the last bin, and a guarantee for the others: at two to a bin fewer than half are
full. Where a packing of the target counts has fewer bins it is taken, each bin closed from its own members.
Counts that share a divisor (clips of one length only) reach only its multiples: full then means the largest.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.counts.closing import CandidateLengths, choose
from patchpack.pipeline.packing.instance import read_integer
from patchpack.pipeline.packing.pack import pack
from patchpack.pipeline.packing.result import Packing, check_packing

# What heads leave open, in average examples, and (under max_segments) in places: of 1, 2, 3 and 4, 3 moved
# fewest counts at 512 and 1,024 tokens.
RESERVE = 3
RESERVED_SEGMENTS = 6

# A bin that does not close is tried once more, with so many times the lookahead.
WIDEST = 8

# The debt is at most 1/400 of the target tokens, and what one bin adds.
DEBT = 400

# So that 2**31 costs add up below 2**62.
MAX_COST = 2**31 - 1

# sets this module's draws apart from those of others with the same seed
_STREAM = 0xE1A571C


@dataclass(frozen=True, eq=False)
class Candidates:
    """The token counts that each of N examples may have, and what they cost: ragged, flattened.

    Attributes:
        offsets: (N + 1,) int64; the candidate lengths of example i is entries offsets[i] to offsets[i + 1] of the others.
        counts: (M,) int64, ascending within a candidate lengths, each from 1 to the capacity.
        costs: (M,) int64, how far from what was requested, in any unit: 0 once in each list of candidate lengths, for the target count.
    """

    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    costs: npt.NDArray[np.int64]

    @classmethod
    def of(cls, candidates: Iterable[CandidateLengths]) -> Self:
        """Returns the candidate lengths of examples given as lists of (count, cost)."""
        listed = list(candidates)
        flat_M2 = np.array(
            [option for candidate_lengths in listed for option in candidate_lengths], dtype=np.int64
        ).reshape(-1, 2)
        offsets = np.cumsum([0, *map(len, listed)], dtype=np.int64)
        return cls(offsets, flat_M2[:, 0].copy(), flat_M2[:, 1].copy())

    def at(self, choice: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns the count of each example, (N,) int64, given an index into each candidate lengths."""
        counts_N: npt.NDArray[np.int64] = self.counts[self.offsets[:-1] + choice]
        return counts_N

    def target(self) -> npt.NDArray[np.int64]:
        """Returns the index of the target count in each list of candidate lengths, (N,) int64."""
        return np.flatnonzero(self.costs == 0) - self.offsets[:-1]

    def lists(self) -> list[CandidateLengths]:
        """Returns each candidate lengths as a list of (count, cost)."""
        options = list(zip(self.counts.tolist(), self.costs.tolist(), strict=True))
        return [options[start:stop] for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True)]


@dataclass(frozen=True, eq=False)
class ElasticPacking:
    """Which count each example gets, and which bin it goes to.

    Attributes:
        choice: (N,) int64, index into the candidate lengths of each example.
        bin_index: (N,) int64, bins in the order they were filled: shuffle them before they are drawn in order.
        num_bins: how many bins; none is empty.
    """

    choice: npt.NDArray[np.int64]
    bin_index: npt.NDArray[np.int64]
    num_bins: int


def fill(
    candidates: Candidates,
    capacity: int,
    *,
    max_segments: int | None = None,
    seed: int = 0,
    lookahead: int = 16,
    packing: Packing | None = None,
) -> ElasticPacking:
    """Returns counts and bins, so that as many bins as the candidate lengths allow are filled exactly.

    Never more bins than the packing has. The same arguments give the same answer.

    Args:
        candidates: admissible counts of each example.
        capacity: tokens of a bin.
        max_segments: most examples in one bin; None for no limit.
        seed: of the order in which examples are taken.
        lookahead: examples behind the heads of a bin from which its rest is chosen.
        packing: of the target counts, to be bettered; None for best-fit decreasing's.

    Raises:
        ValueError: an argument is out of its range; the message names it (and its index).
    """
    capacity = read_integer("capacity", capacity)
    lookahead, seed = read_integer("lookahead", lookahead), read_integer("seed", seed)
    if lookahead < 0:
        raise ValueError(f"lookahead: {lookahead}; the least is 0; leave it out for 16")
    _check_candidates(candidates, capacity)
    target = candidates.at(candidates.target())
    if packing is None:
        packing = pack(target, capacity, max_segments=max_segments, method="best-fit")
    check_packing(target, capacity, packing, max_segments)
    if not len(target):
        return ElasticPacking(packing.bin_index, packing.bin_index, 0)
    full = capacity - capacity % int(np.gcd.reduce(candidates.counts))
    limit = len(target) if max_segments is None else min(max_segments, len(target))
    bins = _Filler(candidates, full, limit).fill(_order(len(target), seed), lookahead, packing.num_bins)
    if bins is None:
        bins = _Filler(candidates, full, limit).close_all(packing)
    return _answer(candidates, bins)


class _Filler:
    """Fills bins one after the other. A bin is a dict from example to count."""

    def __init__(self, candidates: Candidates, full: int, limit: int) -> None:
        self.candidates = candidates.lists()
        self.target: list[int] = candidates.at(candidates.target()).tolist()
        self.full = full
        self.limit = limit
        total = sum(self.target)
        self.reserve = RESERVE * total // len(self.target)
        self.reserved_segments = min(RESERVED_SEGMENTS, limit - 1)
        self.debt = 0  # realised less requested tokens, of all bins so far
        self.most_debt = max(1, total // DEBT)
        self.least_debt = -self.most_debt

    def fill(self, order: list[int], lookahead: int, max_bins: int) -> list[dict[int, int]] | None:
        """Returns the bins that taking the examples in this order gives, or None as soon as they will be too many."""
        bins: list[dict[int, int]] = []
        waiting = order
        tokens_left = sum(self.target)
        # what is grown has to find room in the last bin, or it costs one: half of it, as one bin may go beyond
        self.most_debt = min(self.most_debt, (-tokens_left % self.full + 1) // 2)
        while waiting:
            # even if all that is left shrinks as far as the debt allows, and fills its bins
            if len(bins) + -(-(tokens_left + self.least_debt - self.debt) // self.full) > max_bins:
                return None
            # the largest first while small ones are left to go with it, then the oldest, so that none waits for ever
            largest = max(waiting[: lookahead + 1], key=self.target.__getitem__)
            waiting.remove(largest)
            waiting.insert(0, largest)
            num_heads = self._num_heads(waiting)
            view = waiting[: num_heads + WIDEST * lookahead]
            taken = self._next_bin(view[:num_heads], view[num_heads:], lookahead)
            waiting[: len(view)] = [example for example in view if example not in taken]
            tokens_left -= sum(self.target[example] for example in taken)
            bins.append(taken)
        return bins if len(bins) <= max_bins else None

    def close_all(self, packing: Packing) -> list[dict[int, int]]:
        """Returns the bins of a packing of the target counts, closed where their own members can."""
        members: list[list[int]] = [[] for _ in range(packing.num_bins)]
        for example, number in enumerate(packing.bin_index.tolist()):
            members[number].append(example)
        as_drawn = [{example: self.target[example] for example in heads} for heads in members]
        # the fullest first: each takes little of the debt
        as_drawn.sort(key=lambda taken: -sum(taken.values()))
        return [self._closed(list(taken), []) or taken for taken in as_drawn]

    def _num_heads(self, waiting: list[int]) -> int:
        """Returns how many of the oldest waiting examples the next bin takes in any case, at least one."""
        capacity_left = self.full
        for number, example in enumerate(waiting):
            capacity_left -= self.target[example]
            if number and (capacity_left < self.reserve or self.limit - number <= self.reserved_segments):
                return number
        return len(waiting)

    def _next_bin(self, heads: list[int], behind: list[int], lookahead: int) -> dict[int, int]:
        """Returns a bin of all heads and some of those behind them: full if at all possible, otherwise the fullest."""
        near = behind[:lookahead]
        if self.limit - len(heads) < lookahead:
            behind = near  # counting places makes a wide view too slow
        return (
            self._taken(heads, near, self._target_only, exact=True)  # is a cheapest one, found sooner
            or self._closed(heads, near)
            or self._closed(heads, behind)
            or self._taken(heads, near, self._target_only, exact=False)
        )

    def _closed(self, heads: list[int], free: list[int]) -> dict[int, int]:
        """Returns an exactly full bin of all heads and some of the free at the least cost, or nothing."""
        taken = self._taken(heads, free, self._affordable, exact=True)
        self.debt += sum(count - self.target[example] for example, count in taken.items())
        return taken

    def _target_only(self, example: int) -> CandidateLengths:
        return [(self.target[example], 0)]

    def _affordable(self, example: int) -> CandidateLengths:
        """Returns the options that do not add to a debt which is too large already."""
        target = self.target[example]
        low = 0 if self.debt > self.least_debt else target
        high = self.full if self.debt < self.most_debt else target
        return [option for option in self.candidates[example] if low <= option[0] <= high]

    def _taken(
        self, heads: list[int], free: list[int], candidate_lengths_of: Callable[[int], CandidateLengths], *, exact: bool
    ) -> dict[int, int]:
        """Returns what `choose` takes, nothing where it finds nothing, the largest free examples first."""
        free = sorted(free, key=lambda example: (-self.target[example], example))
        counts = choose(
            [candidate_lengths_of(example) for example in heads],
            [candidate_lengths_of(example) for example in free],
            self.full,
            self.limit - len(heads),
            exact=exact,
        )
        return {example: count for example, count in zip(heads + free, counts or [], strict=bool(counts)) if count}


def _order(num_examples: int, seed: int) -> list[int]:
    """Returns the examples in an order that depends on nothing but the arguments.

    Two lines of `stages.sample.shuffled` again: packing knows no stage of the pipeline.
    """
    words = np.random.Philox(key=seed % 2**64 + (_STREAM << 64)).random_raw(num_examples)
    order: list[int] = np.argsort(words, kind="stable").tolist()
    return order


def _answer(candidates: Candidates, bins: list[dict[int, int]]) -> ElasticPacking:
    """Returns the bins in arrays."""
    counts = np.empty(len(candidates.offsets) - 1, dtype=np.int64)
    bin_index = np.empty_like(counts)
    for number, taken in enumerate(bins):
        members = list(taken)
        bin_index[members] = number
        counts[members] = list(taken.values())
    # entries up to the one of that count, in each list of candidate lengths
    below = candidates.counts < np.repeat(counts, np.diff(candidates.offsets))
    return ElasticPacking(np.add.reduceat(below, candidates.offsets[:-1], dtype=np.int64), bin_index, len(bins))


def _check_candidates(candidates: Candidates, capacity: int) -> None:
    """Raises ValueError where the candidate lengths are not as documented; the capacity is known to be an integer above 0."""
    offsets, counts, costs = candidates.offsets, candidates.counts, candidates.costs
    for name, array in (("offsets", offsets), ("counts", counts), ("costs", costs)):
        if array.ndim != 1 or array.dtype != np.int64:
            raise ValueError(
                f"{name}: shape {array.shape}, dtype {array.dtype}; it is one row of int64; convert it first"
            )
    if not len(offsets) or offsets[0] or offsets[-1] != len(counts) or len(counts) != len(costs):
        raise ValueError(
            f"offsets: {offsets[:1]} to {offsets[-1:]}; they run from 0 to the {len(counts)} counts and as many costs"
        )
    for example in np.flatnonzero(np.diff(offsets) < 1)[:1].tolist():
        raise ValueError(
            f"candidate lengths {example}: empty; every example has the target count; leave the example out"
        )
    of_entry = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    for entry in np.flatnonzero((counts < 1) | (counts > capacity))[:1].tolist():
        raise ValueError(
            f"candidate lengths {of_entry[entry]}: count {counts[entry]}; it is 1 to the capacity, {capacity}; leave it out"
        )
    for entry in np.flatnonzero((costs < 0) | (costs > MAX_COST))[:1].tolist():
        raise ValueError(
            f"candidate lengths {of_entry[entry]}: cost {costs[entry]}; it is 0 to {MAX_COST}; use a larger unit"
        )
    descending = np.flatnonzero((np.diff(counts) <= 0) & (np.diff(of_entry) == 0))
    for entry in descending[:1].tolist():
        raise ValueError(
            f"candidate lengths {of_entry[entry]}: {counts[entry]} before {counts[entry + 1]}; counts ascend; sort and merge them"
        )
    for example in np.flatnonzero(np.bincount(of_entry[costs == 0], minlength=len(offsets) - 1) != 1)[:1].tolist():
        raise ValueError(
            f"candidate lengths {example}: not one cost of 0; it marks the target count; give 0 to that and no other"
        )
