"""Sequences in steps of near-equal attention cost, so that ranks that step together finish together.

A step of W ranks lasts as long as its most expensive sequence: in random order 1.2 to 2 times the mean cost. Here bins are
sorted by cost (the sum of n^2 over their examples) and cut into runs of W; what does not divide by W is left out
where that helps most (dynamic programming over the cut). A run whose maximum is over 1.02 times its mean is then
repaired by swapping examples, bins kept within capacity and max_segments, their number unchanged: first between
the most expensive and the cheapest bin of the run, best swap of a few hundred subsets of each; then with bins of other
runs, which have cost to spare, through an index of all examples and pairs of examples by their tokens. Cut and
repaired a few times over, the best cut is kept.

0.1 to 3 s for 100,000 examples, and then at most 1 % of the steps of 64 are over 1.02, at most at 1.03. Of 16,384
examples, which make 5 to 190 steps, up to 7 steps are over (14 at two examples to a bin; 11 of 30 where bins hold
anything between one clip and 446 images), at most at 1.10 (`benchmarks/balance.py`). Gives up a guarantee: nobody
can repair the run of the most expensive bins where one example fills most of each.
"""

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.balance.swap import (
    LIMIT,
    ORDER,
    PER,
    Bins,
    Ints,
    Repair,
    attention_costs,
    over_limit,
    words,
)
from patchpack.pipeline.packing.instance import Lengths, read_instance, read_integer
from patchpack.pipeline.packing.result import Packing, check_packing

# Steps left over 1.02 after 1, 3, 6 and 10 passes: 16, 11, 5, 5 of 89 (native_photos_16384), 6, 3, 2, 1 of 88
# (images_and_clips_4096), 15, 14, 14, 12 of 112 (elastic, 256 tokens), each of 16,384 examples.
PASSES = 6


@dataclass(frozen=True, eq=False)
class Balanced:
    """A packing whose bins stand in steps of near-equal cost.

    Attributes:
        bin_index: (N,) int64, the bin of each example after the repairs.
        order: (num_bins,) int64, the bins in the order to store them: whole steps, shuffled as steps and inside,
            then the num_bins % size bins that are in none.
        costs: (num_bins,) int64, attention cost of each bin.
    """

    bin_index: Ints
    order: Ints
    costs: Ints

    def even_steps(self, size: int) -> Ints:
        """Returns the bins of the steps that are within the limit, (steps, size)."""
        steps_SW = self.order[: len(self.order) // size * size].reshape(-1, size)
        costs_SW = self.costs[steps_SW]
        within: Ints = steps_SW[~over_limit(costs_SW.sum(axis=1), costs_SW.max(axis=1, initial=0), size)]
        return within


def in_steps(costs: npt.ArrayLike, size: int, *, seed: int = 0) -> Ints:
    """Returns bins in steps of near-equal cost, (num_bins,) int64, as `Balanced.order`, without any swap.

    Args:
        costs: (num_bins,) integers, each at least 1.
        size: bins in a step.
        seed: of the order of the steps, inside them, and of the rest.

    Raises:
        ValueError: the size is below 1 or not an integer.
    """
    steps_SW, rest = _cut(np.asarray(costs, dtype=np.int64), _read_size(size))
    return _arranged(steps_SW, rest, read_integer("seed", seed))


def balance(
    lengths: Lengths,
    bin_index: npt.ArrayLike,
    capacity: int,
    size: int,
    *,
    max_segments: int | None = None,
    seed: int = 0,
) -> Balanced:
    """Returns as many bins in steps of near-equal cost, examples swapped where that takes it.

    The same arguments give the same answer.

    Args:
        lengths: (N,) integers, tokens of each example.
        bin_index: (N,) int64, a valid packing of them.
        capacity: tokens of a bin.
        size: bins in a step (W).
        max_segments: most examples in one bin; None for no limit.
        seed: of the order of steps, and of the subsets that are tried.

    Raises:
        ValueError: an argument is out of its range; the message names it (and its index).
    """
    size, seed = _read_size(size), read_integer("seed", seed)
    instance = read_instance(lengths, capacity, max_segments)
    if instance.num_resources > 1:
        raise ValueError(f"lengths: {instance.num_resources} resources; attention costs one; give one of them")
    given = np.asarray(bin_index)
    check_packing(lengths, capacity, Packing(given, int(given.max(initial=-1)) + 1, 0), max_segments)
    tokens_N = instance.lengths[:, 0].astype(np.int64)
    bins = Bins(tokens_N, given, int(instance.capacity[0]), instance.max_segments, seed)
    steps_SW, rest = _cut(bins.costs, size)
    best = _excess(bins.costs[steps_SW]), bins.bin_index.copy(), steps_SW, rest
    for number in range(PASSES):
        if not best[0] or bins.work_left < 1:
            break
        Repair(bins, steps_SW, number).run()
        for cut in ((steps_SW, rest), _cut(bins.costs, size)):
            steps_SW, rest = cut
            arranged = _excess(bins.costs[steps_SW]), bins.bin_index.copy(), steps_SW, rest
            best = min(best, arranged, key=lambda candidate: candidate[0])
    _, bin_index_N, steps_SW, rest = best
    return Balanced(bin_index_N, _arranged(steps_SW, rest, seed), attention_costs(tokens_N, bin_index_N))


@dataclass
class Steps:
    """How much longer the steps of W sequences take than their mean sequence.

    Attributes:
        size: sequences that step together (W).
        num_steps: how many steps were seen.
        num_within: how many are within the limit that `balance` aims at.
        ratio_sum: of maximum / mean, exact, so that parts add up in any order.
        worst: the largest of them, 0 before the first step.
    """

    size: int
    num_steps: int = 0
    num_within: int = 0
    ratio_sum: Fraction = Fraction(0)
    worst: float = 0.0

    def add(self, costs: npt.ArrayLike) -> None:
        """Adds the steps that cutting costs, in the order of the sequences, into whole runs of W gives."""
        costs_R = np.asarray(costs, dtype=np.int64)
        costs_SW = costs_R[: len(costs_R) // self.size * self.size].reshape(-1, self.size)
        sums, most = costs_SW.sum(axis=1), costs_SW.max(axis=1, initial=0)
        # a step of empty sequences alone waits for nobody
        ratios = [
            top * self.size / total if total else 1.0 for top, total in zip(most.tolist(), sums.tolist(), strict=True)
        ]
        self.num_steps += len(ratios)
        self.num_within += len(ratios) - int(over_limit(sums, most, self.size).sum())
        self.ratio_sum += sum(map(Fraction, ratios), Fraction(0))
        self.worst = max([self.worst, *ratios])

    def merge(self, other: "Steps") -> None:
        """Adds the steps of another."""
        self.num_steps += other.num_steps
        self.num_within += other.num_within
        self.ratio_sum += other.ratio_sum
        self.worst = max(self.worst, other.worst)


def random_ratio(counts: Counter[int], size: int) -> float | None:
    """Returns the mean of maximum / mean over steps of W sequences drawn at random; None where there is no cost.

    Args:
        counts: how many sequences have each cost, in any unit.
        size: sequences that step together (W).
    """
    total = sum(cost * count for cost, count in counts.items())
    if not total:
        return None
    # the maximum of W draws is at most v with probability (rank of v / n)^W; in whole numbers until the last division
    rank = below = most = 0
    for cost, count in sorted(counts.items()):
        rank += count
        reached = rank**size
        most += cost * (reached - below)
        below = reached
    return most * rank / (below * total)


def _read_size(size: int) -> int:
    size = read_integer("size", size)
    if size < 1:
        raise ValueError(f"size: {size}; a step holds at least 1 bin; give 1 or more")
    return size


def _excess(costs_SW: Ints) -> int:
    """Returns how far over the limit steps are, all together, in thousandths of their means."""
    return int(_excesses(costs_SW.sum(axis=1), costs_SW.max(axis=1, initial=0), costs_SW.shape[1]).sum())


def _excesses(sums: Ints, most: Ints, size: int) -> Ints:
    thousandths = most * size * 1000 // sums - 1000 * LIMIT // PER
    return np.where(over_limit(sums, most, size), np.maximum(1, thousandths), 0)


def _cut(costs: Ints, size: int) -> tuple[Ints, Ints]:
    """Returns the bins in runs of ascending cost, (G, W), and the fewer than W bins that are in none.

    Of all cuts of the sorted bins the one of least excess, then of least idle time relative to each run: state k, s
    is k runs cut and s bins left out so far, so run k begins at k * W + s.
    """
    order = np.argsort(costs, kind="stable")
    num_steps, num_rest = divmod(len(costs), size)
    if not num_steps:
        return np.empty((0, size), dtype=np.int64), order
    ends = np.concatenate([[0], np.cumsum(costs[order])])
    sums, most = ends[size:] - ends[:-size], costs[order][size - 1 :]
    idle = (most * size - sums) * 1000 // sums
    # which is below 1,000 times the size in each run, so the excess decides first
    price = _excesses(sums, most, size) * (1000 * size * num_steps) + idle
    skips = np.arange(num_rest + 1)
    least = np.zeros(num_rest + 1, dtype=np.int64)
    came_from = np.empty((num_steps, num_rest + 1), dtype=np.int64)
    for step in range(num_steps):
        running = np.minimum.accumulate(least)
        falls = np.concatenate([[True], least[1:] < running[:-1]])
        came_from[step] = np.maximum.accumulate(np.where(falls, skips, 0))
        least = running + price[step * size : step * size + num_rest + 1]
    skipped = int(np.argmin(least))
    starts = np.empty(num_steps, dtype=np.int64)
    for step in reversed(range(num_steps)):
        starts[step] = step * size + skipped
        skipped = int(came_from[step, skipped])
    chosen_SW = starts[:, None] + np.arange(size)
    return order[chosen_SW], np.delete(order, chosen_SW.ravel())


def _arranged(steps_SW: Ints, rest: Ints, seed: int) -> Ints:
    """Returns steps in shuffled order, each shuffled, then the rest shuffled."""
    num_steps, size = steps_SW.shape
    drawn = words(num_steps + steps_SW.size + len(rest), seed, ORDER)
    steps_SW = steps_SW[np.argsort(drawn[:num_steps], kind="stable")]
    inside_SW = np.argsort(drawn[num_steps : num_steps + steps_SW.size].reshape(-1, size), axis=1, kind="stable")
    steps_SW = np.take_along_axis(steps_SW, inside_SW, axis=1)
    return np.concatenate([steps_SW.ravel(), rest[np.argsort(drawn[len(drawn) - len(rest) :], kind="stable")]])
