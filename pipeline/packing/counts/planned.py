"""Planned counts: which token count each example gets of those it may have, so that fewer bins are needed.

A bin of a packing that is proven optimal may still be far from full: an example that fills most of a bin finds none that fits
beside it. Where examples may have other counts near the target (a size drawn a little smaller or larger, some tokens
dropped), one linear programme over the histogram says how many examples of each count should move to which other one. It is
column generation's, with one column more for each move:

    least sum x_p + sum cost_ab z_ab   with   sum_p copies_kp x_p + sum_b z_kb - sum_a z_ak >= count_k,   z_ab <= movable_ab

Then the cheapest examples of each count move, and `pack` packs what comes of it. A move costs more than the tokens by
which it changes the total, so nothing shrinks but for padding that this saves. In each bin that is not full then one example
grows as far as it may. Where all moves together gain less than 1 of 1,000 bins, none is made; where the packing of the
target counts wastes less than half of that, nothing is even asked: then this costs nothing.

Measured (`benchmarks/planned.py`). Costs the programme's rounds. Gives up its optimum: counts are whole numbers, and rounds
end when they save too little.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.counts.candidates import Candidates, Moves, check_candidates
from patchpack.pipeline.packing.instance import read_integer
from patchpack.pipeline.packing.pack import MAX_COLUMNS_CAPACITY, pack
from patchpack.pipeline.packing.result import Packing, check_packing
from patchpack.pipeline.packing.slots import random_words

# Moves that save less than one of so many bins are not made.
LEAST_SAVED = 1000
# Of the examples that may make a move the cheapest do: the programme knows them in so many parts.
TIERS = 4


class PlannedCounts(NamedTuple):
    """Which count each example gets, and which bin it goes to.

    Attributes:
        choice: (N,) int64, index into the candidates of each example.
        packing: of the chosen counts.
    """

    choice: npt.NDArray[np.int64]
    packing: Packing


def wastes_enough(packing: Packing, num_tokens: int, capacity: int) -> bool:
    """Returns whether other counts may save one of 1,000 bins: at most what is wasted, and as many tokens again that shrink."""
    wasted = packing.num_bins * capacity - num_tokens
    return 2 * wasted * LEAST_SAVED > packing.num_bins * capacity


def plan_counts(
    candidates: Candidates,
    capacity: int,
    *,
    max_segments: int | None = None,
    seed: int = 0,
    effort: float = 1.0,
    packing: Packing | None = None,
) -> PlannedCounts:
    """Returns counts and bins: the target counts, or others near them where that saves bins.

    The same arguments give the same answer.

    Args:
        candidates: the counts that each example may have, and what they cost, in tokens.
        capacity: tokens of a bin.
        max_segments: most examples in one bin; None for no limit.
        seed: of which of equal examples move, and of the packers' draws.
        effort: scale of the deterministic work limits, as in `pack`.
        packing: of the target counts, where it is known.

    Raises:
        ValueError: an argument is out of its range; the message names it (and its index).
    """
    capacity, seed = read_integer("capacity", capacity), read_integer("seed", seed)
    check_candidates(candidates, capacity)
    target = candidates.target()
    counts_N = candidates.at(target)
    packing = packing or pack(counts_N, capacity, max_segments=max_segments, seed=seed, effort=effort)
    check_packing(counts_N, capacity, packing, max_segments)
    unmoved = PlannedCounts(target, packing)
    if not wastes_enough(packing, int(counts_N.sum()), capacity) or capacity > MAX_COLUMNS_CAPACITY:
        return unmoved
    moves = _moves(candidates, counts_N, random_words(seed, 5, len(counts_N)))
    if not len(moves.source):
        return unmoved
    # imported here, as by `pack`
    from patchpack.pipeline.packing.exact.moves import best_moves

    times_M = best_moves(counts_N, capacity, max_segments, moves, effort)
    choice = _chosen(candidates, moves, times_M)
    moved = pack(candidates.at(choice), capacity, max_segments=max_segments, seed=seed, effort=effort)
    if (packing.num_bins - moved.num_bins) * LEAST_SAVED <= packing.num_bins:
        choice, moved = target, packing
    grown = _grown(candidates, choice, moved, capacity)
    filled = (
        int(candidates.at(grown).sum() - candidates.at(choice).sum()) + (packing.num_bins - moved.num_bins) * capacity
    )
    return PlannedCounts(grown, moved) if filled * LEAST_SAVED > packing.num_bins * capacity else unmoved


def _moves(candidates: Candidates, counts_N: npt.NDArray[np.int64], words_N: npt.NDArray[np.uint64]) -> Moves:
    """Returns the moves between counts that some example may make, the cheapest of each pair apart from those of higher cost."""
    of_entry = np.repeat(np.arange(len(counts_N)), np.diff(candidates.offsets))
    source_E = counts_N[of_entry]
    order = np.lexsort((words_N[of_entry], candidates.costs, candidates.counts, source_E))
    order = order[candidates.costs[order] > 0]
    source_E, to_E, costs_E = source_E[order], candidates.counts[order], candidates.costs[order]
    new_pair = (np.diff(source_E, prepend=-1) != 0) | (np.diff(to_E, prepend=-1) != 0)
    firsts = np.flatnonzero(new_pair)
    sizes = np.diff(firsts, append=len(order))
    rank_E = np.arange(len(order)) - np.repeat(firsts, sizes)
    tier_E = TIERS * rank_E // np.repeat(sizes, sizes)
    firsts = np.flatnonzero(new_pair | (np.diff(tier_E, prepend=-1) != 0))
    movable = np.diff(firsts, append=len(order))
    costs = np.add.reduceat(costs_E, firsts) / movable if len(order) else np.zeros(0)
    return Moves(source_E[firsts], to_E[firsts], movable, costs, order)


def _chosen(candidates: Candidates, moves: Moves, times_M: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns the choice of each example, (N,) int64: of those that may make a move, the cheapest make it."""
    choice = candidates.target()
    example_of = np.repeat(np.arange(len(choice)), np.diff(candidates.offsets))
    free_N = np.ones(len(choice), dtype=bool)
    pair_M = np.cumsum((np.diff(moves.source, prepend=-1) != 0) | (np.diff(moves.to, prepend=-1) != 0)) - 1
    movable_P, times_P = (np.bincount(pair_M, of_M).astype(np.int64) for of_M in (moves.movable, times_M))
    ends_P = np.cumsum(movable_P)
    # the move that fewest can make chooses first
    for pair in np.argsort(movable_P, kind="stable").tolist():
        entries = moves.entries[ends_P[pair] - movable_P[pair] : ends_P[pair]] if times_P[pair] else moves.entries[:0]
        entries = entries[free_N[example_of[entries]]][: times_P[pair]]
        free_N[example_of[entries]] = False
        choice[example_of[entries]] = entries - candidates.offsets[example_of[entries]]
    return choice


def _grown(
    candidates: Candidates, choice: npt.NDArray[np.int64], packing: Packing, capacity: int
) -> npt.NDArray[np.int64]:
    """Returns the choice with, in each bin that is not full, the example that fills most of it at a larger count."""
    counts_N = candidates.at(choice)
    room_B = np.full(packing.num_bins, capacity) - np.bincount(packing.bin_index, counts_N).astype(np.int64)
    example_of = np.repeat(np.arange(len(choice)), np.diff(candidates.offsets))
    more_E = candidates.counts - counts_N[example_of]
    entries = np.flatnonzero((more_E > 0) & (more_E <= room_B[packing.bin_index[example_of]]))
    bins = packing.bin_index[example_of[entries]]
    # of each bin the largest growth, then the cheapest
    order = np.lexsort((entries, candidates.costs[entries], -more_E[entries], bins))
    best = entries[order[np.flatnonzero(np.diff(bins[order], prepend=-1))]]
    grown = choice.copy()
    grown[example_of[best]] = best - candidates.offsets[example_of[best]]
    return grown
