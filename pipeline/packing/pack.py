"""Who is asked, and when to stop: the one way into the packers.

From cheap to costly, on the histogram of lengths: bounds in closed form; best-fit decreasing; a fold where max_segments
binds; exact fill of a kept mixture; largest first, exactly; what the former leaves closed by column generation; and column
generation on the whole (`columns`, imported only then: ortools takes longer to import than most groups take to pack).
The first that meets the bound ends it; the answer is always the best packing so far with the best bound proven so far.
Several resources: best-fit in several orders, each resource's own bound. A pure function of its arguments: one thread,
no clock, ties broken explicitly.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.bounds import closed_form_bound, rounded_bound
from patchpack.pipeline.packing.exact.fill import Filled, fill
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
CLOSINGS, LEAST_OPENED = 4, 20

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
    seed: int = 0,
    effort: float = 1.0,
) -> Certificate:
    """Returns the best proven bound on the bins for `counts[i]` examples of length `values[i]`, with its proof.

    Bounds of groups do not add up to a bound: merge their histograms and ask here.

    Args:
        values: (K,) integers, none twice.
        counts: (K,) integers.
        capacity: what a bin holds.
        max_segments: most examples in one bin; None for no limit.
        seed: of the packers' draws.
        effort: scale of the deterministic work limits, as in `pack`.

    Raises:
        ValueError: a value is out of its range; the message names it (and its index).
    """
    return solve(read_histogram(values, counts, capacity, max_segments), seed=seed, effort=effort)[1]


def solve(histogram: Histogram, *, seed: int, effort: float, fast: bool = False) -> tuple[Patterns, Certificate]:
    """Returns the best packing of a histogram and the best bound; where they meet, nothing costlier is asked."""
    best, proven = best_fit(histogram), closed_form_bound(histogram)
    if fast or best.num_bins == proven.bound:
        return best, proven
    proven = max(proven, rounded_bound(histogram), key=lambda certificate: certificate.bound)
    if best.num_bins > proven.bound:
        best = _folded(histogram, best, proven.bound) or best
    # exact fill before largest first: it keeps the mixture of lengths alike in all bins, which steps of near-equal cost need
    filled = fill(histogram, proven.bound, seed=seed, effort=effort) if best.num_bins > proven.bound else None
    if filled and not filled.left_K.any():
        return filled.patterns, proven
    known = largest_first(histogram, effort) if best.num_bins > proven.bound else None
    if known and known.num_bins < best.num_bins:
        best = known
    if best.num_bins > proven.bound and histogram.capacity <= MAX_COLUMNS_CAPACITY:
        if filled and (closed := _closed(histogram, filled, proven.bound, seed, effort)):
            return closed, proven
        best, proven = _improved(histogram, best, proven, seed, effort, known)
    return best, proven


def _folded(histogram: Histogram, best: Patterns, bound: int) -> Patterns | None:
    """Returns a fold into fewer bins where max_segments is what binds: the bound's, or some per mille above it."""
    if histogram.max_segments >= histogram.capacity // int(histogram.values[0]):
        return None
    num_bins = bound
    while num_bins < best.num_bins:
        if folded := fold(histogram, num_bins):
            return folded
        num_bins += max(1, bound >> 10, num_bins - bound)
    return None


def _closed(histogram: Histogram, filled: Filled, bound: int, seed: int, effort: float) -> Patterns | None:
    """Returns a packing that meets the bound: the filled bins, and column generation's for the rest, or None.

    What is left may be a bad mixture; then some filled bins are destroyed and repaired, more and more of them.
    """
    opened = 0
    for _ in range(CLOSINGS):
        rest = np.flatnonzero(filled.left_K)
        left = Histogram(
            histogram.values[rest], filled.left_K[rest], histogram.capacity, histogram.max_segments, histogram.resource
        )
        most = bound - filled.patterns.num_bins
        if most > MAX_CLOSED_BINS or not filled.patterns.num_bins:
            return None
        best, proven = best_fit(left), closed_form_bound(left)
        if best.num_bins > most >= proven.bound:
            best, proven = _improved(left, best, proven, seed, effort / 10, None, most)
        if best.num_bins <= most:
            return filled.patterns.joined(Patterns(rest[best.length_classes], best.pattern, best.repeats))
        opened = max(LEAST_OPENED, 2 * opened, most // 2)
        filled = filled.opened(opened, seed)
    return None


def _improved(
    histogram: Histogram,
    best: Patterns,
    proven: Certificate,
    seed: int,
    effort: float,
    known: Patterns | None,
    enough: int | None = None,
) -> tuple[Patterns, Certificate]:
    """Returns the better packing and the better bound of column generation's and those known."""
    # Imported here: ortools takes longer to import than most groups take to pack.
    from patchpack.pipeline.packing.exact.columns import improve

    patterns, proven = improve(
        histogram, proven, num_bins=best.num_bins, seed=seed, effort=effort, known=known, enough=enough
    )
    return patterns or best, proven


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
        bounds = [
            # a knapsack of nothing has no length to begin with
            solve(histogram, seed=seed, effort=share)[1] if histogram.values[0] else rounded_bound(histogram)
            for histogram in histograms
        ]
        proven = max([proven, *bounds], key=lambda certificate: certificate.bound)
    return best, proven


def _check_request(effort: float, method: str) -> None:
    """Raises ValueError for a method or an effort that cannot be used."""
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; it is one of {', '.join(METHODS)}; leave it out for auto")
    if not effort > 0:  # also true of nan
        raise ValueError(f"effort: {effort}; it is above 0; leave it out for 1.0")
