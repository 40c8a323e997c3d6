"""Elastic fill: bins exactly full, nothing lost or moved without need, never more bins than best-fit decreasing."""

import itertools
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchpack.pipeline.packing import Packing, check_packing, pack
from patchpack.pipeline.packing.counts.closing import CandidateLengths, choose
from patchpack.pipeline.packing.counts.elastic import DEBT, Candidates, ElasticPacking, fill
from patchpack.pipeline.stages.sample import nearest_grid

CAPACITY = 24


def candidate_lengths_of(most: int) -> Any:
    """Draws a candidate lengths of up to four counts, one of them requested."""
    counts = st.lists(st.integers(1, most), min_size=1, max_size=4, unique=True).map(sorted)
    return counts.flatmap(lambda found: st.integers(0, len(found) - 1).map(lambda at: priced(found, at)))


def priced(counts: list[int], at: int) -> CandidateLengths:
    """Returns a candidate lengths whose costs are the distances from one of its counts."""
    return [(count, abs(count - counts[at])) for count in counts]


def loads(candidates: Candidates, packing: ElasticPacking) -> np.ndarray:
    """Returns the tokens of each bin."""
    return np.bincount(packing.bin_index, weights=candidates.at(packing.choice)).astype(np.int64)


@cache
def navit_menu(aspect: tuple[int, int], side: int) -> tuple[tuple[int, int], ...]:
    """Returns the counts of all sides within 5 %, priced in ten-thousandths of the side."""

    def tokens(of_side: int) -> int:
        h, w = nearest_grid(*aspect, Fraction(of_side * of_side, 256), 256, (16, 16))
        return h * w

    costs = {tokens(side): 0}
    for other in range(-(-side * 100 // 105), side * 105 // 100 + 1):
        costs.setdefault(tokens(other), abs(other - side) * 10_000 // side)
    return tuple(sorted(costs.items()))


@cache
def navit_menus(num_examples: int, seed: int = 0) -> Candidates:
    """Returns candidate lengths for sides U(64,256)."""
    rng = np.random.default_rng(seed)
    aspects = [(3, 4), (4, 3), (9, 16), (1, 1), (333, 517), (640, 427)]
    draws = zip(rng.integers(len(aspects), size=num_examples), rng.integers(64, 257, num_examples), strict=True)
    return Candidates.of([list(navit_menu(aspects[kind], int(side))) for kind, side in draws])


@settings(deadline=None, max_examples=150)
@given(
    candidates=st.lists(candidate_lengths_of(CAPACITY), max_size=30),
    max_segments=st.none() | st.integers(1, 9),
    seed=st.integers(0, 2**70),
    lookahead=st.integers(0, 8),
)
def test_nothing_is_lost_moved_without_need_or_over_a_limit(
    candidates: list[CandidateLengths], max_segments: int | None, seed: int, lookahead: int
) -> None:
    all_menus = Candidates.of(candidates)
    found = fill(all_menus, CAPACITY, max_segments=max_segments, seed=seed, lookahead=lookahead)
    counts = [
        candidate_lengths[choice][0]
        for candidate_lengths, choice in zip(candidates, found.choice.tolist(), strict=True)
    ]
    # each example once, at a count of its candidate lengths, and no bin over a limit or empty
    check_packing(counts, CAPACITY, Packing(found.bin_index, found.num_bins, 0), max_segments)
    wanted = [next(count for count, cost in candidate_lengths if not cost) for candidate_lengths in candidates]
    assert found.num_bins <= pack(wanted, CAPACITY, max_segments=max_segments, method="best-fit").num_bins
    # a count is moved only where the bin is then full
    full = CAPACITY - CAPACITY % int(
        np.gcd.reduce([count for candidate_lengths in candidates for count, _ in candidate_lengths] or [1])
    )
    changes = [0] * found.num_bins
    for number, count, before in zip(found.bin_index.tolist(), counts, wanted, strict=True):
        changes[number] += count - before
        assert count == before or loads(all_menus, found)[number] == full
    # and the last change before the debt stops it is that of one bin
    assert abs(sum(changes)) <= max(1, sum(wanted) // DEBT) + max(map(abs, changes), default=0)
    again = fill(all_menus, CAPACITY, max_segments=max_segments, seed=seed, lookahead=lookahead)
    assert (again.choice.tolist(), again.bin_index.tolist()) == (found.choice.tolist(), found.bin_index.tolist())


@settings(deadline=None, max_examples=300)
@given(
    heads=st.lists(candidate_lengths_of(9), max_size=3),
    free=st.lists(candidate_lengths_of(9), max_size=4),
    places=st.integers(0, 5),
    exact=st.booleans(),
)
def test_a_bin_is_closed_at_the_least_cost_of_all_ways(
    heads: list[CandidateLengths], free: list[CandidateLengths], places: int, exact: bool
) -> None:
    ways = []
    for taken in itertools.product(*heads, *([(0, 0), *candidate_lengths] for candidate_lengths in free)):
        total = sum(count for count, _ in taken)
        if total <= CAPACITY and sum(count > 0 for count, _ in taken[len(heads) :]) <= places:
            ways.append((-total, sum(cost for _, cost in taken)))
    best = min(ways, default=None)
    found = choose(heads, free, CAPACITY, places, exact=exact)
    if best is None or (exact and best[0] != -CAPACITY):
        assert found is None
        return
    assert found is not None
    prices = [
        dict(candidate_lengths)[count] for candidate_lengths, count in zip(heads + free, found, strict=True) if count
    ]
    assert len(prices) - len(heads) <= places and all(found[: len(heads)])
    assert (-sum(found), sum(prices)) == best


def fewest_bins(counts: tuple[int, ...], capacity: int) -> int:
    """Returns the optimum by trying every way to split the examples into bins."""
    if not counts:
        return 0
    first, others = counts[0], range(1, len(counts))
    best = len(counts)
    for size in range(len(counts)):
        for chosen in itertools.combinations(others, size):
            if first + sum(counts[i] for i in chosen) <= capacity:
                rest = tuple(counts[i] for i in others if i not in chosen)
                best = min(best, 1 + fewest_bins(rest, capacity))
    return best


@settings(deadline=None, max_examples=60)
@given(candidates=st.lists(candidate_lengths_of(CAPACITY), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_a_handful_is_never_below_the_optimum_of_all_choices_nor_above_best_fit(
    candidates: list[CandidateLengths], seed: int
) -> None:
    optimum = min(
        fewest_bins(counts, CAPACITY) for counts in itertools.product(*([c for c, _ in m] for m in candidates))
    )
    wanted = tuple(next(count for count, cost in candidate_lengths if not cost) for candidate_lengths in candidates)
    found = fill(Candidates.of(candidates), CAPACITY, seed=seed)
    assert optimum <= found.num_bins <= pack(wanted, CAPACITY, method="best-fit").num_bins
    if sum(wanted) <= CAPACITY:
        assert found.num_bins == 1
        # a single bin is full if any choice that the debt allows fills it
        sums = {sum(counts) for counts in itertools.product(*([c for c, _ in m] for m in candidates))}
        full = CAPACITY - CAPACITY % int(
            np.gcd.reduce([count for candidate_lengths in candidates for count, _ in candidate_lengths])
        )
        assert (loads(Candidates.of(candidates), found)[0] == full) == (full in sums)


@pytest.mark.parametrize(("capacity", "share"), [(512, 0.989), (1024, 1.0), (2048, 1.0), (4096, 1.0)])
def test_navit_draws_fill_their_bins_exactly_up_to_the_last(capacity: int, share: float) -> None:
    candidates = navit_menus(4096)
    wanted = candidates.at(candidates.target())
    found = fill(candidates, capacity, seed=1)
    full = loads(candidates, found) == capacity
    assert full.sum() >= np.floor(share * (found.num_bins - 1))
    assert found.num_bins <= -(-int(wanted.sum()) // capacity)  # no packing of the target counts has fewer
    costs = candidates.costs[candidates.offsets[:-1] + found.choice]
    assert costs.mean() < 60  # 0.6 % of the side
    assert abs(candidates.at(found.choice).sum() / wanted.sum() - 1) < 0.005


def test_two_to_a_bin_keeps_the_bins_of_the_packing_and_closes_some() -> None:
    candidates = navit_menus(2048)
    wanted = candidates.at(candidates.target())
    packing = pack(wanted, 256, method="best-fit")
    found = fill(candidates, 256, packing=packing)
    assert found.num_bins == packing.num_bins
    before = np.bincount(packing.bin_index, weights=wanted)
    assert (loads(candidates, found) == 256).sum() > (before == 256).sum()


def test_where_max_segments_binds_no_bin_is_lost() -> None:
    candidates = navit_menus(1024)
    found = fill(candidates, 4096, max_segments=8)
    assert found.num_bins == 128
    assert np.bincount(found.bin_index).max() == 8


def test_clips_of_one_length_fill_the_largest_multiple_of_it() -> None:
    candidates = Candidates.of([priced([7 * n, 7 * n + 7], n % 2) for n in range(2, 60)])
    found = fill(candidates, 1024)
    assert sorted(loads(candidates, found))[1:] == [1022] * (found.num_bins - 1)


def test_full_is_the_largest_multiple_of_a_shared_divisor() -> None:
    found = fill(Candidates.of([[(7, 0)], [(7, 0), (14, 1)]]), 22)
    assert (found.choice.tolist(), found.num_bins) == ([0, 1], 1)


def test_the_cheaper_of_two_ways_is_taken() -> None:
    # 5 + 5 = 10 by growing either; the second is nearer to what was requested
    candidates = Candidates.of([[(4, 0), (5, 9)], [(5, 0), (6, 2)]])
    assert fill(candidates, 10).choice.tolist() == [0, 1]


def test_another_seed_mixes_differently_and_neighbours_are_not_kept_together() -> None:
    candidates = navit_menus(1024)
    one, two = fill(candidates, 1024, seed=1), fill(candidates, 1024, seed=2)
    assert (one.bin_index != two.bin_index).mean() > 0.9
    together = one.bin_index[1:] == one.bin_index[:-1]
    assert together.mean() < 0.05


@pytest.mark.parametrize(
    ("candidates", "capacity", "message"),
    [
        ([[(5, 0)], []], 9, "candidate lengths 1: empty"),
        ([[(5, 0), (10, 3)]], 9, "candidate lengths 0: count 10; it is 1 to the capacity, 9"),
        ([[(0, 0)]], 9, "candidate lengths 0: count 0"),
        ([[(5, 0), (4, 1)]], 9, "candidate lengths 0: 5 before 4; counts ascend"),
        ([[(4, 0)], [(4, 1), (5, 2)]], 9, "candidate lengths 1: not one cost of 0"),
        ([[(4, 0), (5, 0)]], 9, "candidate lengths 0: not one cost of 0"),
        ([[(4, 0), (5, -1)]], 9, "candidate lengths 0: cost -1"),
        ([[(4, 0)]], 2.5, "capacity: 2.5"),
    ],
)
def test_wrong_menus_are_named(candidates: list[CandidateLengths], capacity: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill(Candidates.of(candidates), capacity)


def test_wrong_arrays_and_limits_are_named() -> None:
    one = np.array([1], dtype=np.int64)
    with pytest.raises(ValueError, match="counts: shape .* int64"):
        fill(Candidates(np.array([0, 1]), one.astype(float), one * 0), 9)
    with pytest.raises(ValueError, match="offsets: .* run from 0 to the 1 counts"):
        fill(Candidates(np.array([0, 2]), one, one * 0), 9)
    with pytest.raises(ValueError, match="lookahead: -1; the least is 0"):
        fill(Candidates.of([[(1, 0)]]), 9, lookahead=-1)
    with pytest.raises(ValueError, match="bin 0: 10; the capacity is 9"):
        fill(Candidates.of([[(5, 0)], [(5, 0)]]), 9, packing=Packing(np.array([0, 0]), 1, 1))


def test_what_can_only_grow_grows_by_the_debt_and_no_more() -> None:
    # a hundred examples and five tokens fill a bin: without a limit 20 bins would grow by five each
    num_examples, capacity = 2_050, 1_005
    candidates = Candidates.of([[(10, 0), (11, 1)]] * num_examples)
    filled = fill(candidates, capacity)
    grown = int(candidates.at(filled.choice).sum()) - 10 * num_examples
    most = 10 * num_examples // 400
    assert most // 2 <= grown <= most + 5
