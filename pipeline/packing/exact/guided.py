"""Guided fill: very many lengths are packed as the solution of a small linear programme over groups of them says.

Column generation has a row for each length, and thousands of them are slow. Here neighbouring lengths are a group, of which
there are some hundred, each with two rows: how many examples it has, and how many tokens those are above its shortest. The
programme chooses how often each pattern is used, so that every group is used up in the right mixture; patterns are those of
packings that are known (largest first, best fit) and of a few rounds of pricing in which some lengths stand for all.
Then most of that is done: bins are filled with lengths near those of a pattern, the last two such that the bin is exactly full.
What is left has the same mixture and fewer lengths; it is guided again, until it is small enough for column generation.

Measured: 16,384 lengths drawn log-uniformly from 8,192 to 65,536 (13,660 distinct, capacity 65,536) end 2 bins above the bound
in 7 s; column generation on the whole 44 above in 21 s. 16,384 from 26,000 to 50,000 at capacity 131,072 meet the bound in 8 s
(largest first: 141 above). Gives up a proof: the bound is another's.
"""

import numpy as np
import numpy.typing as npt
from ortools.linear_solver import pywraplp

from patchpack.pipeline.packing.bounds import closed_form_bound
from patchpack.pipeline.packing.exact.columns import Prices, improve
from patchpack.pipeline.packing.exact.master import solve
from patchpack.pipeline.packing.exact.pricing import ONE, Meter, price, shape_of
from patchpack.pipeline.packing.greedy import best_fit
from patchpack.pipeline.packing.instance import Histogram
from patchpack.pipeline.packing.largest_first import largest_first
from patchpack.pipeline.packing.left import BLOCK, Left
from patchpack.pipeline.packing.slots import Patterns

# Groups of lengths (200 to 800 do about as well), and lengths of each that stand for it.
GROUPS, OF_EACH = 400, 3
# So many lengths are left to column generation: some seconds.
FEW = 2500
# Work of a programme at effort 1, in cells: five seconds. Passes of a pricing; and the part of a programme's value that its bound
# may be off.
WORK, PASSES, ENOUGH = 1.5e10, 4, 5000
# Percent of the programme's bins that are filled: what is left has to make good for those that were not found.
SHARE = 80
# Bins of a pattern that are not found, one after the other, before it is given up.
MISSES = 3
# A round that fills less than one bin in so many ends it.
LEAST = 4
# Patterns of known packings that the programme begins with, evenly chosen.
MOST_KNOWN = 10_000


def guided(histogram: Histogram, bound: int, *, seed: int, effort: float) -> Patterns | None:
    """Returns a packing of all examples, or None where the capacity is too large for it; ends early where one meets the bound."""
    bins, kinds, left = Patterns.none(), np.arange(len(histogram.values)), histogram
    while True:
        known, short = largest_first(left, effort), best_fit(left)
        if known is None:
            return None
        best = min(known, short, key=lambda patterns: patterns.num_bins)
        if bins.num_bins + best.num_bins <= bound or len(left.values) <= FEW:
            break
        filled = _filled(left, _guide(left, [known, short], effort))
        if LEAST * filled.num_bins < best.num_bins:
            break
        bins = bins.joined(filled.of(kinds))
        rest, left = left.without(filled.used(len(left.values)))
        kinds = kinds[rest]
    if bins.num_bins and bins.num_bins + best.num_bins > bound and len(left.values) <= 2 * FEW:
        proven, most = closed_form_bound(left), best.num_bins
        found, _ = improve(left, proven, num_bins=most, seed=seed, effort=effort / 4, known=known, aim="packing")
        best = found or best
    return bins.joined(best.of(kinds))


def _guide(histogram: Histogram, packings: list[Patterns], effort: float) -> list[tuple[list[int], float]]:
    """Returns patterns, the longest length first, and how often the programme uses each."""
    programme = _Programme(histogram)
    for patterns in packings:
        programme.add(patterns.each()[:: 1 + len(patterns.repeats) // MOST_KNOWN])
    num_lengths = len(histogram.values)
    some = np.unique(np.linspace(0, num_lengths - 1, min(num_lengths, OF_EACH * GROUPS)).astype(np.int64))
    before = np.cumsum(histogram.counts) - histogram.counts
    num_S = np.diff(before[some], append=histogram.num_examples)  # examples that each stands for
    shape, meter = shape_of(histogram.values[some], histogram.capacity, histogram.max_segments), Meter(effort * WORK)
    bound = closed_form_bound(histogram).bound
    prices = Prices(num_S, histogram.values[some] * ONE // histogram.capacity)
    priced_cells = 2 * PASSES * len(some) * histogram.capacity * (shape.slots or 1)
    used: list[tuple[list[int], float]] = []
    while solve(programme.solver, meter):
        used = programme.used()
        if programme.value() <= bound or meter.done + priced_cells > meter.allowed:
            break
        duals_S = prices.between(programme.duals(ONE)[some])
        priced = price(shape, duals_S, num_S, PASSES, meter)
        prices.take(duals_S, priced.most)
        near = (programme.value() - prices.bound) * ENOUGH < programme.value()
        if near or not prices.go_on(len(priced.improving)):
            break
        programme.add(
            [np.repeat(some[[k for k, _ in pattern]], [n for _, n in pattern]) for pattern in priced.improving]
        )
    return used


class _Programme:
    """The linear programme over groups of lengths and the patterns so far."""

    def __init__(self, histogram: Histogram) -> None:
        self.values_K = histogram.values
        self.group_K, self.above_K = _groups(histogram)
        self.solver = pywraplp.Solver.CreateSolver("GLOP")
        demands = [
            np.bincount(self.group_K, weights=of_K) for of_K in (histogram.counts, histogram.counts * self.above_K)
        ]
        self.rows = [
            [self.solver.Constraint(demand, self.solver.infinity()) for demand in of.tolist()] for of in demands
        ]
        self.objective = self.solver.Objective()
        self.objective.SetMinimization()
        self.columns: list[tuple[npt.NDArray[np.int64], pywraplp.Variable]] = []

    def add(self, patterns: list[npt.NDArray[np.int64]]) -> None:
        """Adds patterns, given as the lengths' numbers of each."""
        for classes_E in patterns:
            column = self.solver.NumVar(0.0, self.solver.infinity(), "")
            self.objective.SetCoefficient(column, 1.0)
            groups, inverse, copies = np.unique(self.group_K[classes_E], return_inverse=True, return_counts=True)
            above = np.bincount(inverse, weights=self.above_K[classes_E])
            for group, number, tokens in zip(groups.tolist(), copies.tolist(), above.tolist(), strict=True):
                self.rows[0][group].SetCoefficient(column, float(number))
                if tokens:
                    self.rows[1][group].SetCoefficient(column, tokens)
            self.columns.append((classes_E, column))

    def value(self) -> float:
        """Returns the bins of the solution."""
        return float(self.objective.Value())

    def duals(self, one: int) -> npt.NDArray[np.int64]:
        """Returns the price of each length, (K,) int64 in units of 1 / one."""
        of_group, of_above = (np.array([row.dual_value() for row in of_group]) for of_group in self.rows)
        prices_K = of_group[self.group_K] + of_above[self.group_K] * self.above_K
        return np.maximum(np.floor(prices_K * one), 0.0).astype(np.int64)

    def used(self) -> list[tuple[list[int], float]]:
        """Returns the patterns in use, the longest length first, and how often."""
        used = [(classes_E, float(column.solution_value())) for classes_E, column in self.columns]
        return [(np.sort(self.values_K[classes_E])[::-1].tolist(), times) for classes_E, times in used if times > 1e-6]


def _groups(histogram: Histogram) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Returns the group of each length, (K,) int64, and how far it is from its shortest, 0 to 1, (K,) float64.

    No group has more than its part of the examples, the tokens and the lengths together, but for single lengths.
    """
    values_K, counts_K = histogram.values, histogram.counts
    # integers below 2**40 each
    weight_K = sum(
        (of_K << 40) // int(of_K.sum()) for of_K in (counts_K, counts_K * values_K // 2**10 + 1, counts_K * 0 + 1)
    )
    ends_K = np.cumsum(weight_K)
    part_K = (ends_K - weight_K // 2) * GROUPS // (int(ends_K[-1]) + 1)
    _, first, group_K = np.unique(part_K, return_index=True, return_inverse=True)
    last = np.append(first[1:], len(values_K)) - 1
    width = np.maximum(values_K[last] - values_K[first], 1)
    return group_K, (values_K - values_K[first][group_K]) / width[group_K]


def _filled(histogram: Histogram, guide: list[tuple[list[int], float]]) -> Patterns:
    """Returns the bins that could be filled as the guide says."""
    left = Left(histogram, 0)
    due = 0.0
    for pattern, times in guide:
        due += times * SHARE / 100  # what is below one bin is the next pattern's
        most, missed = int(due), 0
        due -= most
        while most > 0 and missed < MISSES:
            lengths = _like(left, pattern)
            if lengths is None:
                missed += 1
            else:
                most -= left.close(lengths, most)
    return left.patterns()


def _like(left: Left, pattern: list[int]) -> list[int] | None:
    """Takes and returns lengths near those of a pattern that fill a bin exactly; a single one need not."""
    taken: list[int] = []
    space = left.capacity
    for length in pattern[:-2] or pattern[: len(pattern) == 1]:
        near = left.nearest(length)
        if near is None or near > space:
            break
        left.left_V[near] -= 1
        taken.append(near)
        space -= near
    else:
        if len(pattern) == 1:
            return taken
        at = int(np.searchsorted(left.alive, pattern[-2]))
        (low,), (high,) = left.longer_halves(np.array([space]))
        pair = left.pair(space, max(int(low), at - BLOCK // 2), min(int(high), at + BLOCK // 2), pattern[-2])
        if pair:
            for length in pair:
                left.left_V[length] -= 1
            return [*taken, *pair]
    for length in taken:
        left.left_V[length] += 1
    return None
