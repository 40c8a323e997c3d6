"""Column generation on the length histogram: the bound of the linear programme, and a packing that meets it.

Gilmore and Gomory's set-covering programme (Operations Research 9, 1961): a variable for each pattern of one bin, a
row for each distinct length. Its size knows nothing of the number of examples. `master` holds the patterns found so
far and GLOP solves it; `pricing` answers its prices with better patterns. Then
- the bound: with the master's prices as integer worths and `scale` = the most that any bin is worth, no packing has
  fewer than ceil(total worth / scale) bins (Farley, "A note on bounding a class of linear programming problems,
  including cutting stock problems", Operations Research 38, 1990). Integers alone, right for any prices whatever GLOP
  got wrong, and the certificate that `check_certificate` proves again.
- the packing: the whole part of the solution is fixed; what is left is a smaller problem of the same kind, priced
  and solved on (a dive), until nothing is left; its pricing is a packer as well, so that most dives end early.
  Nothing is fixed beyond what the programme's bound allows; where a dive misses the bound, the next keeps a random
  part of the whole part free, until the work is done.

Costs what `effort` allows: table cells and simplex iterations are counted, no clock is read, one thread. Typical:
0.1 s where capacities are 1,024 and below, seconds for 3,700 lengths at capacity 16,384. Gives up the proof of
non-integer gaps: where no packing meets the programme's bound, the work limit ends the search.
"""

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.packing.master import Master
from pipeline.packing.pricing import ONE, Meter, Pattern, Shape, fill_up, first_fit, price, shape_of

# Table cells (a nanosecond each) at effort 1.
WORK = 2.5e10
# Passes of one pricing: beyond, further patterns repeat what the first ones said.
PASSES = 8
ROUNDS = 200

Bins = list[tuple[Pattern, int]]


@dataclass(frozen=True, eq=False)
class ColumnsResult:
    """What column generation found.

    Attributes:
        patterns_MK: (M, K) int64, how many examples of each length a bin of this pattern holds; None where no
            packing with fewer bins than known was found.
        repeats_M: (M,) int64, how many bins of each pattern; they sum to the counts exactly. None as above.
        bound: the best proven bound, no less than the one given.
        duals_K: (K,) int64, at least 0, the worth of each length: the sum of counts * duals over `scale`, rounded up,
            proves `own_bound`.
        scale: no bin within capacity and max_segments is worth more.
        slot_dual: always 0: the worths are of whole examples.
        own_bound: what duals_K and scale prove; below `bound` where the bound given was better.
    """

    patterns_MK: npt.NDArray[np.int64] | None
    repeats_M: npt.NDArray[np.int64] | None
    bound: int
    duals_K: npt.NDArray[np.int64]
    scale: int
    slot_dual: int
    own_bound: int


def improve(
    values_K: npt.NDArray[np.int64],
    counts_K: npt.NDArray[np.int64],
    capacity: int,
    max_segments: int | None,
    *,
    num_bins: int,
    bound: int,
    seed: int,
    effort: float,
) -> ColumnsResult:
    """Returns a packing in fewer than `num_bins` bins where one is found, and the best bound with its proof.

    The same arguments give the same answer.

    Args:
        values_K: (K,) int64, distinct lengths ascending, at most the capacity.
        counts_K: (K,) int64, how many examples of each, at least 1.
        capacity: what a bin holds.
        max_segments: most examples in a bin, None for no limit.
        num_bins: of the best packing known.
        bound: the best proven bound known.
        seed: of the dives' draws.
        effort: scale of the work limit.
    """
    search = _Search(shape_of(values_K, capacity, max_segments), counts_K, num_bins, bound, Meter(effort * WORK))
    search.relax()
    search.dive_until_done(random.Random(seed))  # of Python: `random` draws alike in all versions
    globals()["LAST"] = search.meter.done
    patterns_MK = repeats_M = None
    if search.best is not None:
        patterns_MK, repeats_M = _dense(search.best, counts_K)
    return ColumnsResult(patterns_MK, repeats_M, search.bound, search.duals_K, search.scale, 0, search.own_bound)


class _Search:
    """The state of one improvement: the master, the best packing, the best bound."""

    def __init__(self, shape: Shape, counts_K: npt.NDArray[np.int64], num_bins: int, bound: int, meter: Meter) -> None:
        self.shape, self.counts_K, self.num_bins, self.bound, self.meter = shape, counts_K, num_bins, bound, meter
        self.best: Bins | None = None
        self.duals_K, self.scale, self.own_bound = np.zeros_like(counts_K), 1, 0
        self.master = Master(counts_K, meter)
        start = first_fit(shape, counts_K, meter)
        self.offer(start)
        self.master.add(pattern for pattern, _ in start)

    @property
    def done(self) -> bool:
        """Whether the best packing is proven optimal."""
        return self.num_bins <= self.bound

    def offer(self, bins: Bins) -> None:
        """Keeps a packing of all examples where it is better than the best."""
        num_bins = sum(times for _, times in bins)
        if num_bins < self.num_bins:
            _check_exact(self.shape, bins, self.counts_K)
            self.best, self.num_bins = bins, num_bins

    def relax(self) -> None:
        """Solves the linear programme until its bound is as high as it gets, to whole bins."""
        for _ in range(ROUNDS):
            if self.done or not self.meter.left:
                return
            if not self.master.solve():
                return
            duals_K = self.master.duals(ONE)
            priced = price(self.shape, duals_K, self.counts_K, PASSES, self.meter)
            self._take_bound(duals_K, max(priced.most, 1))
            self.offer(priced.used + first_fit(self.shape, priced.left_K, self.meter))
            # The master's value rounded up is no less than the programme's bound: it is reached.
            if self.master.whole_bins() <= self.bound or not self.master.add(priced.improving):
                return

    def _take_bound(self, duals_K: npt.NDArray[np.int64], scale: int) -> None:
        """Keeps a proof where it proves more than the best one."""
        total = sum(count * dual for count, dual in zip(self.counts_K.tolist(), duals_K.tolist(), strict=True))
        own_bound = -(-total // scale)
        if own_bound > self.own_bound:
            self.duals_K, self.scale, self.own_bound = duals_K, scale, own_bound
            self.bound = max(self.bound, own_bound)

    def dive_until_done(self, draws: random.Random) -> None:
        """Dives again and again, keeping a larger random part free each time, while there is work left."""
        freed = 0.0
        while not self.done and self.meter.left:
            self._dive(freed, draws)
            freed = min(0.5, freed + 0.05)

    def _dive(self, freed: float, draws: random.Random) -> None:
        """Fixes patterns until nothing is left or the bound can no longer be met."""
        left_K, fixed = self.counts_K.copy(), []
        self.master.demand(left_K)
        first = True
        while left_K.any() and self.meter.left:
            used = sum(times for _, times in fixed)
            if not self._relax_rest(left_K, fixed, self.bound - used) or self.done:
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
            self.master.demand(left_K)
        self.offer(fixed + first_fit(self.shape, left_K, self.meter))
        self.master.demand(self.counts_K)

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


def _dense(bins: Bins, counts_K: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the packing as (M, K) counts and (M,) repeats; equal patterns are one."""
    times_of: dict[Pattern, int] = {}
    for pattern, times in bins:
        times_of[pattern] = times_of.get(pattern, 0) + times
    patterns_MK = np.zeros((len(times_of), len(counts_K)), dtype=np.int64)
    for row, pattern in enumerate(times_of):
        for index, copies in pattern:
            patterns_MK[row, index] = copies
    return patterns_MK, np.array(list(times_of.values()), dtype=np.int64)
