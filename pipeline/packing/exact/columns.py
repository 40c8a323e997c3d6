"""Column generation on the length histogram: the bound of the linear programme, and a packing that meets it.

Gilmore and Gomory's set-covering programme (Operations Research 9, 1961): a variable for each pattern of one bin, a
row for each distinct length. Its size knows nothing of the number of examples. `master` holds the patterns found so
far and GLOP solves it; `pricing` answers its prices with better patterns. Then
- the bound: with prices as integer dual values and `scale` = the most that any bin has of them, no packing has fewer than
  ceil(total dual value / scale) bins (Farley, "A note on bounding a class of linear programming problems, including
  cutting stock problems", Operations Research 38, 1990). Integers alone, right for any prices whatever GLOP got
  wrong, and the certificate that `check_certificate` proves again.
- the packing: the whole part of the solution is fixed; what is left is a smaller problem of the same kind, priced
  and solved on (a dive), until nothing is left; its pricing is a packer as well, so that most dives end early.
  Nothing is fixed beyond what the programme's bound allows; where a dive misses the bound, the next keeps a random
  part of the whole part free, until the work is done.

The master's own prices jump about while it knows few patterns; patterns are sought at prices between them and those
of the best bound so far, length over capacity at first (Wentges, "Weighted Dantzig-Wolfe decomposition for linear
mixed-integer programming", International Transactions in Operational Research 4, 1997). Measured: lengths drawn
evenly from 2,731 to 6,000, capacity 16,384: programme solved after 15 rounds; without it not after 60.

Costs what `effort` allows: table cells and simplex iterations are counted, no clock is read, one thread. Typical:
0.1 s where capacities are 1,024 and below, 10 s for 3,700 lengths at capacity 16,384. Gives up the proof of
non-integer gaps: where no packing meets the programme's bound, the work limit ends the search.
"""

import math
import random
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.certificate import bound_of, total_dual
from patchpack.pipeline.packing.exact.master import Master
from patchpack.pipeline.packing.exact.pricing import ONE, Meter, Pattern, Shape, fill_up, first_fit, price, shape_of
from patchpack.pipeline.packing.instance import Histogram
from patchpack.pipeline.packing.result import Certificate
from patchpack.pipeline.packing.slots import Patterns

# Work at effort 1, in table cells of 0.4 ns, for each square of the capacity: a second up to capacity 1,024, half a
# minute from 5,000 on.
WORK, LEAST_WORK, MOST_WORK = 2400, 2.5e9, 7e10
# Passes of one pricing: beyond, further patterns repeat what the first ones said.
PASSES = 8
ROUNDS = 200
# Prices without so many tables of patterns lead nowhere.
LEAST_TABLES = 8
# A dive is tried where the programme is within a part of 2**-17 of its bound, or would need more rounds for the next bin at its
# pace: the last rounds are the slowest.
NEAR, PACE = 17, 8
# Percent of the prices that are those of the best bound; 50 to 95 do about as well.
SMOOTH = 90

Bins = list[tuple[Pattern, int]]


def improve(
    histogram: Histogram,
    proven: Certificate,
    *,
    num_bins: int,
    seed: int,
    effort: float,
    known: Patterns | None = None,
    enough: int | None = None,
    aim: Literal["both", "bound", "packing"] = "both",
) -> tuple[Patterns | None, Certificate]:
    """Returns a packing in fewer than `num_bins` bins where one is found, and the best bound with its proof.

    The same arguments give the same answer.

    Args:
        histogram: the question; lengths at most the capacity.
        proven: the best bound known.
        num_bins: of the best packing known.
        seed: of the dives' draws.
        effort: scale of the work limit.
        known: patterns that are good to know from the start.
        enough: a packing with so many bins will do, and nothing else; None for the bound, wherever it goes.
        aim: what is asked for; the last rounds are for the bound alone.
    """
    work = effort * min(max(WORK * histogram.capacity**2, LEAST_WORK), MOST_WORK)
    search = _Search(histogram, proven, num_bins, enough, Meter(work))
    if search.table_cells * LEAST_TABLES > work:
        return None, proven
    search.start(known)
    search.relax(hurried=aim != "bound")
    if aim != "bound":
        search.dive_until_done(random.Random(seed), proof=aim == "both")  # noqa: S311 (seeded draws)
    return (None if search.best is None else _patterns(search.best)), search.proven


class Prices:
    """Prices between the master's own and those of the best bound, which jump about less; the master's own where they find nothing.

    Attributes:
        centre_K: (K,) int64, prices of the best bound in units of 1 / ONE.
        smooth: percent of them that is the centre's.
    """

    def __init__(self, counts_K: npt.NDArray[np.int64], centre_K: npt.NDArray[np.int64]) -> None:
        self.counts_K, self.centre_K, self.smooth = counts_K, centre_K, SMOOTH

    @property
    def bound(self) -> float:
        """The bins that the centre's prices prove."""
        return total_dual(self.counts_K, self.centre_K) / ONE

    def between(self, duals_K: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns prices between the master's and the centre's, (K,) int64."""
        return (self.smooth * self.centre_K + (100 - self.smooth) * duals_K) // 100

    def take(self, duals_K: npt.NDArray[np.int64], most: int) -> bool:
        """Makes prices, of which no bin has more than `most`, the centre where they prove more; returns whether they do."""
        scale = max(most, 1)
        better = total_dual(self.counts_K, duals_K) * ONE > total_dual(self.counts_K, self.centre_K) * scale
        if better:
            self.centre_K = at_scale(duals_K, scale)
        return better

    def go_on(self, num_found: int) -> bool:
        """Returns whether there is another round to try, after one that found so many patterns."""
        own, self.smooth = not self.smooth, SMOOTH if num_found else 0
        return bool(num_found) or not own


class _Search:
    """The state of one improvement: the master, the best packing, the best bound."""

    def __init__(
        self, histogram: Histogram, proven: Certificate, num_bins: int, enough: int | None, meter: Meter
    ) -> None:
        limit = histogram.max_segments if histogram.max_segments < histogram.num_examples else None
        self.shape, self.counts_K = shape_of(histogram.values, histogram.capacity, limit), histogram.counts
        self.proven, self.num_bins, self.enough, self.meter = proven, num_bins, enough, meter
        self.best: Bins | None = None
        self.target = proven.bound if enough is None else enough  # as many bins as a dive may have
        self.prices = Prices(self.counts_K, at_scale(proven.duals, proven.scale))
        self.master = Master(self.counts_K, meter)

    @property
    def table_cells(self) -> int:
        """Work of one pricing, without the logarithm."""
        return 2 * len(self.counts_K) * self.shape.capacity * (self.shape.slots or 1)

    @property
    def bound(self) -> int:
        """The best proven bound."""
        return self.proven.bound

    @property
    def done(self) -> bool:
        """Whether the best packing is proven optimal; or good enough, or never will be."""
        if self.enough is None:
            return self.num_bins <= self.bound
        return not self.bound <= self.enough < self.num_bins

    def start(self, known: Patterns | None) -> None:
        """Gives the master patterns to begin with: a packing of all examples, and those that are known."""
        packed = first_fit(self.shape, self.counts_K, self.meter)
        self.offer(packed)
        self.master.add(pattern for pattern, _ in packed)
        if known is not None:
            self.master.add(_counted(known))

    def offer(self, bins: Bins) -> None:
        """Keeps a packing of all examples where it is better than the best."""
        num_bins = sum(times for _, times in bins)
        if num_bins < self.num_bins:
            _check_exact(self.shape, bins, self.counts_K)
            self.best, self.num_bins = bins, num_bins

    def relax(self, *, hurried: bool) -> None:
        """Solves the linear programme until it meets the bound, to whole bins, or is down to what is enough.

        In a hurry until a dive is the better try: it is near the bound, or at this pace it will be long before the next bin.
        """
        value, self.prices.smooth = math.inf, SMOOTH
        near = self.bound >> NEAR if hurried else 0
        for _ in range(ROUNDS):
            if self.done or not self.meter.left or not self.master.solve():
                return
            whole = self.master.whole_bins()
            if self.enough is None:
                self.target = max(whole, self.bound)
            if whole <= (self.bound + near if self.enough is None else self.enough):
                return
            value, before = self.master.value(), value
            if hurried and self.prices.smooth and (before - value) * PACE < value - (whole - 1):
                return
            duals_K = self.prices.between(self.master.duals(ONE))
            priced = price(self.shape, duals_K, self.counts_K, PASSES, self.meter)
            if self.prices.take(duals_K, priced.most):
                self._take_bound(duals_K, max(priced.most, 1))
            self.offer(priced.used + first_fit(self.shape, priced.left_K, self.meter))
            if not self.prices.go_on(self.master.add(priced.improving)):
                return

    def _take_bound(self, duals_K: npt.NDArray[np.int64], scale: int) -> None:
        """Keeps a proof where it proves more than the best one."""
        bound = bound_of(self.counts_K, duals_K, scale)
        if bound > self.bound:
            self.proven = Certificate(bound, self.proven.values, duals_K, scale, resource=self.proven.resource)

    def dive_until_done(self, draws: random.Random, *, proof: bool) -> None:
        """Dives again and again, keeping a larger random part free each time, while there is work left."""
        freed = 0.0
        while not self.done and self.meter.left:
            self._dive(freed, draws)
            freed = min(0.5, freed + 0.05)
            if self.num_bins <= self.target:
                if not proof:
                    return
                before = self.num_bins, self.bound
                self.relax(hurried=False)
                if self.num_bins <= self.target and before == (self.num_bins, self.bound):
                    return  # the programme's own bound, to whole bins: its proof is short of the last digits

    def _dive(self, freed: float, draws: random.Random) -> None:
        """Fixes patterns until nothing is left or the bound can no longer be met."""
        fixed: list[tuple[Pattern, int]] = []
        left_K, root = self.counts_K.copy(), self.master
        first = True
        while left_K.any() and self.meter.left:
            used = sum(times for _, times in fixed)
            if not self._relax_rest(left_K, fixed, self.target - used) or self.done:
                break
            values = self.master.solution()
            whole = [(pattern, int(value + 1e-6)) for pattern, value in values if value + 1e-6 >= 1]
            if first and freed:
                whole = [
                    (pattern, times - sum(draws.random() < freed for _ in range(min(times, 64))))
                    for pattern, times in whole
                ]
                whole = [(pattern, times) for pattern, times in whole if times > 0]
            if not whole:
                whole = self._rounded_up(values, left_K, draws if freed else None)
            first = False
            for pattern, times in whole:
                fixed.extend(_place(self.shape, pattern, times, left_K))
            self._demand(left_K)
        self.offer(fixed + first_fit(self.shape, left_K, self.meter))
        self.master = root
        self.master.demand(self.counts_K)

    def _demand(self, left_K: npt.NDArray[np.int64]) -> None:
        """Asks the master for what is left; a new, smaller one where few lengths are."""
        if 2 * np.count_nonzero(left_K) >= len(self.master.live):
            self.master.demand(left_K)
            return
        self.master = self.master.narrowed(left_K)
        self.master.add(pattern for pattern, _ in first_fit(self.shape, left_K, self.meter))

    def _relax_rest(self, left_K: npt.NDArray[np.int64], fixed: Bins, target: int) -> bool:
        """Prices until the rest may fit into `target` bins; False where it provably does not or pricing ends."""
        for _ in range(ROUNDS):
            if not self.master.solve():
                return False
            if self.master.whole_bins() <= target:
                return True
            if not self.meter.left:
                return False
            duals_K = self.master.duals(ONE)
            priced = price(self.shape, duals_K, left_K, PASSES, self.meter)
            self.offer(fixed + priced.used + first_fit(self.shape, priced.left_K, self.meter))
            total = int((left_K * duals_K).sum())
            if self.done or -(-total // max(priced.most, 1)) > target:
                return self.done
            if not self.master.add(priced.improving):
                return False
        return False

    def _rounded_up(
        self, values: list[tuple[Pattern, float]], left_K: npt.NDArray[np.int64], draws: random.Random | None
    ) -> Bins:
        """Returns patterns of large fractions that the rest can hold side by side, a tenth of its bins at most."""
        noise = 0.0 if draws is None else 0.3
        ranked = sorted(
            (
                (-value - (noise * draws.random() if draws else 0.0), number, pattern)
                for number, (pattern, value) in enumerate(values)
            ),
        )
        most = max(1, int(sum(value for _, value in values)) // 10)
        free = left_K.copy()
        chosen: Bins = []
        for _, _, pattern in ranked:
            if all(free[index] >= copies for index, copies in pattern):
                for index, copies in pattern:
                    free[index] -= copies
                chosen.append((pattern, 1))
                if len(chosen) == most:
                    break
        return chosen or [(ranked[0][2], 1)]


def _place(shape: Shape, pattern: Pattern, times: int, left_K: npt.NDArray[np.int64]) -> Bins:
    """Returns `times` bins of a pattern and takes their examples from `left_K`.

    The master may cover a length by the place of a longer one: where a length has run out, its places go to the
    longest shorter ones that are left, and what stays free is filled up.
    """
    placed: Bins = []
    while times > 0:
        fits = min(int(left_K[index]) // copies for index, copies in pattern)
        if fits:
            actual, number = pattern, min(fits, times)
        else:
            actual = _downgraded(shape, pattern, left_K)
            if not actual:
                break
            number = min(times, min(int(left_K[index]) // copies for index, copies in actual))
        for index, copies in actual:
            left_K[index] -= number * copies
        placed.append((actual, number))
        times -= number
    return placed


def _downgraded(shape: Shape, pattern: Pattern, left_K: npt.NDArray[np.int64]) -> Pattern:
    """Returns the pattern with lengths that are left in place of those that are not."""
    held: dict[int, int] = {}
    live = np.flatnonzero(left_K)
    for index, copies in reversed(pattern):
        at = int(np.searchsorted(live, index, side="right")) - 1
        while copies and at >= 0:
            other = int(live[at])
            taken = min(copies, int(left_K[other]) - held.get(other, 0))
            if taken > 0:
                held[other] = held.get(other, 0) + taken
                copies -= taken
            at -= 1
    return fill_up(shape, left_K, held, live)


def _check_exact(shape: Shape, bins: Bins, counts_K: npt.NDArray[np.int64]) -> None:
    """Raises RuntimeError for a packing that is not one: a bug of ours, never a question's."""
    left = counts_K.tolist()
    for pattern, times in bins:
        load = sum(shape.values[index] * copies for index, copies in pattern)
        slots = sum(copies for _, copies in pattern)
        if load > shape.capacity or (shape.slots is not None and slots > shape.slots) or times < 1:
            raise RuntimeError(f"pattern {pattern}: {load} tokens, {slots} examples, {times} times")
        for index, copies in pattern:
            left[index] -= times * copies
    if any(left):
        raise RuntimeError("patterns: they do not hold every example exactly once")


def at_scale(duals_K: npt.NDArray[np.int64], scale: int) -> npt.NDArray[np.int64]:
    """Returns dual values as parts of `ONE`, rounded down, (K,) int64: no bin has more than `ONE`."""
    return np.array([dual * ONE // scale for dual in duals_K.tolist()], dtype=np.int64)


def _counted(patterns: Patterns) -> Iterator[Pattern]:
    """Yields the patterns as pairs (length index, number), indices ascending."""
    for length_classes in np.split(patterns.length_classes, np.flatnonzero(np.diff(patterns.pattern)) + 1):
        yield tuple(zip(*(part.tolist() for part in np.unique(length_classes, return_counts=True)), strict=True))


def _patterns(bins: Bins) -> Patterns:
    """Returns bins in the form the engine deals examples to; equal patterns are one."""
    times_of: dict[Pattern, int] = {}
    for pattern, times in bins:
        times_of[pattern] = times_of.get(pattern, 0) + times
    length_classes = [index for pattern in times_of for index, copies in pattern for _ in range(copies)]
    numbers = [row for row, pattern in enumerate(times_of) for _, copies in pattern for _ in range(copies)]
    return Patterns(*(np.array(part, dtype=np.int64) for part in (length_classes, numbers, list(times_of.values()))))
