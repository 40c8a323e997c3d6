"""Planned counts against every choice there is, and by what they promise."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchpack.pipeline.packing import check_packing, pack
from patchpack.pipeline.packing.counts import planned as module
from patchpack.pipeline.packing.counts.candidates import CandidateLengths, Candidates
from patchpack.pipeline.packing.counts.planned import plan_counts


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[CandidateLengths], int, int | None]:
    """Returns candidates of each example, the capacity, and the most in a bin."""
    capacity = draw(st.integers(5, 40))
    candidates = []
    for _ in range(draw(st.integers(1, 30))):
        counts = sorted(draw(st.sets(st.integers(1, capacity), min_size=1, max_size=4)))
        target = draw(st.sampled_from(counts))
        candidates.append([(count, 2 * abs(count - target)) for count in counts])
    return candidates, capacity, draw(st.none() | st.integers(1, 5))


@settings(deadline=None, max_examples=150)
@given(questions(), st.integers(0, 3))
@pytest.mark.slow
def test_nothing_is_lost_nor_over_a_limit_and_bins_are_never_more(question: Any, seed: int) -> None:
    listed, capacity, limit = question
    candidates = Candidates.of(listed)
    planned = plan_counts(candidates, capacity, max_segments=limit, seed=seed)
    counts = candidates.at(planned.choice)
    assert all(count in dict(of_one) for count, of_one in zip(counts.tolist(), listed, strict=True))
    check_packing(counts, capacity, planned.packing, limit)
    alone = pack(candidates.at(candidates.target()), capacity, max_segments=limit, seed=seed)
    assert planned.packing.num_bins <= alone.num_bins
    again = plan_counts(Candidates.of(listed), capacity, max_segments=limit, seed=seed)
    assert np.array_equal(again.choice, planned.choice)


def test_a_pair_that_is_just_too_long_is_made_to_fit() -> None:
    # 40 pairs of 52 need 80 bins; shrunk by two tokens each they need 40
    candidates = Candidates.of([[(50, 3), (52, 0)]] * 80)
    planned = plan_counts(candidates, 100)
    assert planned.packing.num_bins == 40
    assert set(candidates.at(planned.choice).tolist()) == {50}


def test_the_cheapest_examples_move_and_no_more_than_help() -> None:
    # 20 bins of 60 and 45: one of each pair has to lose 5; some examples lose them for less
    cheap, costly = [(40, 6), (45, 0)], [(40, 15), (45, 0)]
    candidates = Candidates.of([[(60, 0)]] * 20 + [costly, cheap] * 20)
    planned = plan_counts(candidates, 100)
    moved = candidates.at(planned.choice)[20:] == 40
    assert planned.packing.num_bins == 30
    assert moved.sum() == 20
    assert moved[1::2].all()


def test_nothing_moves_where_it_gains_nothing() -> None:
    full = Candidates.of([[(24, 2), (25, 0), (26, 2)]] * 400)
    assert np.array_equal(plan_counts(full, 100).choice, full.target())
    # three of 30 leave ten tokens; nobody may take them
    rigid = Candidates.of([[(29, 2), (30, 0)]] * 300)
    assert np.array_equal(plan_counts(rigid, 100).choice, rigid.target())


def test_what_stays_empty_is_filled_by_those_that_may_grow() -> None:
    candidates = Candidates.of([[(30, 0), (35, 6), (38, 9), (43, 15)]] * 300)
    planned = plan_counts(candidates, 100)
    counts = candidates.at(planned.choice)
    loads = np.bincount(planned.packing.bin_index, counts)
    assert planned.packing.num_bins == 100
    assert set(loads.tolist()) == {98}, "38 is the most that fits beside two of 30"


@pytest.mark.parametrize("capacity", [9, 12])
def test_small_sets_need_no_more_bins_than_any_choice(capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_SAVED", 10**6)
    rng = np.random.default_rng(capacity)
    met = 0
    for _ in range(12):
        targets = rng.integers(3, capacity, 5).tolist()
        # dropping a token costs next to nothing
        listed = [[(count - 1, 1), (count, 0)] for count in targets]
        fewest = min(
            pack([option[0] for option in options], capacity).num_bins for options in itertools.product(*listed)
        )
        planned = plan_counts(Candidates.of(listed), capacity).packing.num_bins
        assert fewest <= planned <= fewest + 1, "a linear programme, rounded"
        met += planned == fewest
    assert met >= 9


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([[(5, 0)], []], "candidate lengths 1: empty"),
        ([[(0, 0)]], "count 0; it is 1 to the capacity, 10"),
        ([[(11, 0)]], "count 11; it is 1 to the capacity, 10"),
        ([[(5, 0), (6, -1)]], "cost -1"),
        ([[(6, 0), (5, 1)]], "6 before 5; counts ascend"),
        ([[(5, 1), (6, 1)]], "not one cost of 0"),
        ([[(5, 0), (6, 0)]], "not one cost of 0"),
    ],
)
def test_wrong_candidates_are_named(listed: list[CandidateLengths], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_counts(Candidates.of(listed), 10)


def test_without_work_left_nothing_moves_and_no_solver_complains(capfd: pytest.CaptureFixture[str]) -> None:
    candidates = Candidates.of([[(50, 3), (52, 0)]] * 80)
    assert np.array_equal(plan_counts(candidates, 100, effort=1e-12).choice, candidates.target())
    assert capfd.readouterr().err == ""
