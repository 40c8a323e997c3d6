"""Who is asked, and when to stop: the one way into the packers.

From cheap to costly, on the histogram of lengths: best-fit decreasing and bounds in closed form; the rounded bound; a fold where
max_segments binds; exact fill that keeps the mixture, its rest by column generation; largest first and guided fill; and column
generation on the whole (imported only then: ortools takes longer to import than most groups take to pack). The first that
meets the bound ends it; the answer is always the best packing so far with the best bound proven so far. At effort 1 all of
them together end within half a minute for a million examples at capacities up to 131,072.
Several resources: best-fit in several orders and by norms, each resource's own bound. A pure function of its arguments: one
thread, no clock, ties broken explicitly.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.bounds import closed_form_bound, rounded_bound
from patchpack.pipeline.packing.exact.fill import fill
from patchpack.pipeline.packing.greedy import best_fit, best_fit_rows, decreasing_orders, fold, norm_fit_rows
from patchpack.pipeline.packing.instance import (
    Capacity,
    Histogram,
    Instance,
    Lengths,
    histogram_of,
    read_histogram,
    read_instance,
    read_integer,
)
from patchpack.pipeline.packing.largest_first import largest_first
from patchpack.pipeline.packing.result import Certificate, Packing
from patchpack.pipeline.packing.slots import Patterns, assign

# Column generation and the check of its proof need tables of this size.
MAX_COLUMNS_CAPACITY = 2**20
# What exact fill leaves is closed by itself up to so many bins; more of them are as hard as the whole.
MAX_CLOSED_BINS = 500
# Of column generation on the whole, a length each: the first solution of so many takes ten seconds and more.
MAX_ROWS = 8192

METHODS = ("auto", "best-fit", "exact")


def pack(
    lengths: Lengths,
    capacity: Capacity,
    *,
    max_segments: int | None = None,
    seed: int = 0,
    effort: float = 1.0,
    method: Literal["auto", "best-fit", "exact"] = "auto",
) -> Packing:
    """Returns which example goes to which bin, in few bins, with a proven bound on how few.

    The same arguments give the same answer.

    Args:
        lengths: (N,) integers, or (N, R) where an example uses R resources; each at least 1 of the first and at
            least 0 of the others.
        capacity: what a bin holds: one integer, or R of them.
        max_segments: most examples in one bin; None for no limit.
        seed: of the shuffle of examples of equal length, and of the packers' draws.
        effort: scale of the deterministic work limits; 1 is a second for a few hundred distinct lengths, half
            a minute for thousands.
        method: "auto" takes the best it can prove or find; "best-fit" is best-fit decreasing and the bounds in closed
            form: less time than sorting the lengths takes; "exact" is "auto" that refuses an answer it cannot prove.

    Raises:
        ValueError: an argument is out of its range; the message names it (and its index). Or "exact" proved nothing.
    """
    instance = read_instance(lengths, capacity, max_segments)
    _check_request(effort, method)
    seed = read_integer("seed", seed)
    if instance.num_resources > 1:
        bin_index, certificate = _pack_rows(instance, seed, effort, several=method != "best-fit")
        packing = Packing(bin_index, int(bin_index.max(initial=-1)) + 1, certificate.bound, certificate)
        why = "several resources: heuristics, and the best bound of one resource alone"
    else:
        histogram = histogram_of(instance)
        patterns, certificate = solve(histogram, seed=seed, effort=effort, fast=method == "best-fit")
        bin_index = assign(instance.lengths[:, 0], histogram, patterns, seed)
        packing = Packing(bin_index, patterns.num_bins, certificate.bound, certificate)
        why = f"the work allowed by effort {effort:g} is done"
        if histogram.capacity > MAX_COLUMNS_CAPACITY:
            why = f"capacity {histogram.capacity}: no solver is asked above {MAX_COLUMNS_CAPACITY}"
    if method == "exact" and not packing.proven_optimal:
        raise ValueError(
            f"method 'exact': {packing.num_bins} bins against a bound of {packing.bound} at effort {effort};"
            " it returns proven optima only; raise the effort or use method 'auto'"
        )
    if packing.proven_optimal:
        return packing
    return replace(packing, why_open="method best-fit: nothing better was asked" if method == "best-fit" else why)


def bound_of_histogram(
    values: Lengths,
    counts: npt.ArrayLike,
    capacity: int,
    max_segments: int | None = None,
    *,
    num_bins: int | None = None,
    effort: float = 1.0,
) -> Certificate:
    """Returns the best proven bound on the bins for `counts[i]` examples of length `values[i]`, with its proof.

    Bounds of groups do not add up to a bound: merge their histograms and ask here.

    Args:
        values: (K,) integers, none twice.
        counts: (K,) integers.
        capacity: what a bin holds.
        max_segments: most examples in one bin; None for no limit.
        num_bins: of a packing that is known: a bound that meets it is the last; None for best-fit decreasing's.
        effort: scale of the deterministic work limits, as in `pack`.

    Raises:
        ValueError: a value is out of its range; the message names it (and its index).
    """
    histogram = read_histogram(values, counts, capacity, max_segments)
    best = best_fit(histogram)
    known = best.num_bins if num_bins is None else num_bins
    proven = closed_form_bound(histogram)
    for attempt in (_rounded, partial(_improved, num_bins=known, aim="bound")):
        if proven.bound < known:
            proven = attempt(histogram, best, proven, 0, effort)[1]
    return proven


def solve(histogram: Histogram, *, seed: int, effort: float, fast: bool = False) -> tuple[Patterns, Certificate]:
    """Returns the best packing of a histogram and the best bound; where they meet, nothing costlier is asked."""
    best, proven = best_fit(histogram), closed_form_bound(histogram)
    if 0 < best.num_bins == proven.bound and not fast:
        # best-fit puts equal lengths into one bin; exact fill mixes them, and often needs no more bins
        filled = fill(histogram, proven.bound, seed=seed, effort=effort)
        return (filled if filled and filled.holds_all_of(histogram.counts) else best), proven
    for attempt in () if fast else (_rounded, _folded, _mixed, _guided, _improved):
        if best.num_bins == proven.bound:
            break
        patterns, proven = attempt(histogram, best, proven, seed, effort)
        if patterns and patterns.num_bins < best.num_bins:
            best = patterns
    return best, proven


Answer = tuple[Patterns | None, Certificate]


def _rounded(histogram: Histogram, best: Patterns, proven: Certificate, seed: int, effort: float) -> Answer:
    """Returns the better bound where lengths are rounded to multiples."""
    return None, max(proven, rounded_bound(histogram), key=lambda certificate: certificate.bound)


def _folded(histogram: Histogram, best: Patterns, proven: Certificate, seed: int, effort: float) -> Answer:
    """Returns a fold into fewer bins where max_segments is what binds: the bound's, or some per mille above it."""
    num_bins = proven.bound
    while histogram.segments_bind and num_bins < best.num_bins:
        if folded := fold(histogram, num_bins):
            return folded, proven
        num_bins += max(1, proven.bound >> 10, num_bins - proven.bound)
    return None, proven


def _mixed(histogram: Histogram, best: Patterns, proven: Certificate, seed: int, effort: float) -> Answer:
    """Returns exact fill's bins and column generation's for the rest, where both together meet the bound.

    It comes before what is more certain: it keeps the mixture of lengths alike in all bins, which steps of near-equal cost
    need.
    """
    filled = fill(histogram, proven.bound, seed=seed, effort=effort)
    if filled is None:
        return None, proven
    kinds, left = histogram.without(filled.used(len(histogram.values)))
    most = proven.bound - filled.num_bins
    rest, bound = best_fit(left), closed_form_bound(left)
    if rest.num_bins > most >= bound.bound and most <= MAX_CLOSED_BINS:
        rest = _columns(left, rest, bound, seed, effort / 10, enough=most)[0] or rest
    return (filled.joined(rest.of(kinds)) if rest.num_bins <= most else None), proven


def _guided(histogram: Histogram, best: Patterns, proven: Certificate, seed: int, effort: float) -> Answer:
    """Returns largest first's packing, or where that misses the bound and lengths are many, guided fill's."""
    if histogram.capacity > MAX_COLUMNS_CAPACITY:
        return largest_first(histogram, effort), proven
    from patchpack.pipeline.packing.exact.guided import guided

    return guided(histogram, proven.bound, seed=seed, effort=effort), proven


def _improved(
    histogram: Histogram, best: Patterns, proven: Certificate, seed: int, effort: float, **options: Any
) -> Answer:
    """Returns column generation's packing and bound."""
    if histogram.capacity > MAX_COLUMNS_CAPACITY or len(histogram.values) > MAX_ROWS:
        return None, proven
    return _columns(histogram, best, proven, seed, effort, **options)


def _columns(
    histogram: Histogram,
    best: Patterns,
    proven: Certificate,
    seed: int,
    effort: float,
    *,
    num_bins: int | None = None,
    enough: int | None = None,
    aim: Literal["both", "bound", "packing"] = "both",
) -> Answer:
    # Imported here: ortools takes longer to import than most groups take to pack.
    from patchpack.pipeline.packing.exact.columns import improve

    most = best.num_bins if num_bins is None else num_bins
    # largest first's patterns beside those of the best: a programme with both is nearer its end
    known = best.joined(largest_first(histogram, effort) or Patterns.none())
    return improve(histogram, proven, num_bins=most, seed=seed, effort=effort, known=known, enough=enough, aim=aim)


def _pack_rows(
    instance: Instance, seed: int, effort: float, several: bool
) -> tuple[npt.NDArray[np.int64], Certificate]:
    """Returns the bins of examples that use several resources, (N,) int64, and the best bound of one resource alone."""
    histograms = [histogram_of(instance, resource) for resource in range(instance.num_resources)]
    proven = max(map(closed_form_bound, histograms), key=lambda certificate: certificate.bound)
    first, *others = decreasing_orders(instance, seed)
    best = best_fit_rows(instance, first)
    if not several:
        return best, proven
    attempts: list[Callable[[], npt.NDArray[np.int64] | None]] = [
        partial(norm_fit_rows, instance, seed, largest=largest) for largest in (True, False)
    ]
    attempts += [partial(best_fit_rows, instance, order) for order in others]
    for attempt in attempts:
        if best.max(initial=-1) + 1 == proven.bound:
            return best, proven
        bin_index = attempt()
        if bin_index is not None and bin_index.max(initial=-1) < best.max(initial=-1):
            best = bin_index
    if best.max(initial=-1) + 1 > proven.bound:
        share = effort / len(histograms)
        # a knapsack of nothing has no length to begin with
        bounds = [solve(histogram, seed=seed, effort=share)[1] for histogram in histograms if histogram.values[0]]
        proven = max([proven, *bounds], key=lambda certificate: certificate.bound)
    return best, proven


def _check_request(effort: float, method: str) -> None:
    """Raises ValueError for a method or an effort that cannot be used."""
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; it is one of {', '.join(METHODS)}; leave it out for auto")
    if not effort > 0:  # also true of nan
        raise ValueError(f"effort: {effort}; it is above 0; leave it out for 1.0")
