"""Guided fill: what it fills is what its guide says, and very many lengths are packed near their bound."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchpack.pipeline.packing.bounds import closed_form_bound
from patchpack.pipeline.packing.exact import guided as module
from patchpack.pipeline.packing.exact.guided import guided
from patchpack.pipeline.packing.greedy import best_fit
from patchpack.pipeline.packing.instance import Histogram, histogram_of, read_instance
from patchpack.pipeline.packing.left import Left
from patchpack.pipeline.packing.slots import Patterns


def assert_packs(histogram: Histogram, patterns: Patterns) -> None:
    assert np.array_equal(patterns.used(len(histogram.values)), histogram.counts)
    for classes_E in patterns.each():
        assert histogram.values[classes_E].sum() <= histogram.capacity
        assert len(classes_E) <= histogram.max_segments


def histogram(lengths: npt.ArrayLike, capacity: int, max_segments: int | None = None) -> Histogram:
    return histogram_of(read_instance(lengths, capacity, max_segments))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_guided_fill_packs_every_example_within_the_limits(data: st.DataObject) -> None:
    capacity = data.draw(st.integers(20, 400))
    lengths = data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=120))
    question = histogram(lengths, capacity, data.draw(st.none() | st.integers(1, 12)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FEW", 2)
        patch.setattr(module, "GROUPS", data.draw(st.integers(1, 20)))
        patterns = guided(question, 0, seed=0, effort=0.01)
    assert patterns is not None
    assert_packs(question, patterns)


@pytest.mark.parametrize(
    ("least", "most", "capacity", "max_segments", "over"),
    [(4_096, 32_768, 32_768, None, 4), (6_500, 12_500, 32_768, 16, 2), (256, 32_768, 32_768, 32, 2)],
)
@pytest.mark.slow
def test_thousands_of_lengths_are_packed_near_their_bound(
    least: int, most: int, capacity: int, max_segments: int | None, over: int
) -> None:
    lengths = np.exp(np.random.default_rng(0).uniform(np.log(least), np.log(most), 8_192)).astype(np.int64)
    question = histogram(lengths, capacity, max_segments)
    bound = closed_form_bound(question).bound
    patterns = guided(question, bound, seed=0, effort=1.0)
    assert patterns is not None
    assert_packs(question, patterns)
    assert patterns.num_bins <= bound + over < best_fit(question).num_bins


def test_groups_keep_neighbours_together_and_no_large_group_is_left_whole() -> None:
    question = histogram(np.repeat([10, 11, 12, 500, 501, 900], [5000, 1, 1, 40, 40, 300]), 1000)
    group_K, above_K = module._groups(question)
    assert (np.diff(group_K) >= 0).all()
    assert group_K[0] != group_K[1], "most of the examples have this length"
    assert above_K.min() == 0 <= above_K.max() <= 1
    assert all(above_K[np.flatnonzero(group_K == group)[0]] == 0 for group in set(group_K.tolist()))


def test_bins_like_a_pattern_are_full_and_take_what_is_nearest() -> None:
    left = Left(histogram([700, 690, 310, 300, 250, 60, 40], 1000), 0)
    assert module._like(left, [695, 250, 55]) == [690, 250, 60]
    assert module._like(left, [700, 300]) == [700, 300]
    assert module._like(left, [310, 690]) is None, "nothing is left that makes it full"
    assert left.left_V[310] == 1, "what was taken is given back"
    assert module._like(left, [300]) == [310]


def test_what_a_capacity_has_no_table_for_is_left_to_others() -> None:
    assert guided(histogram([2**22, 5], 2**22 + 1), 0, seed=0, effort=1.0) is None


def test_without_work_left_nothing_is_guided_and_no_solver_complains(capfd: pytest.CaptureFixture[str]) -> None:
    question = histogram(np.random.default_rng(0).integers(100, 5000, 4000), 10_000)
    patterns = guided(question, 0, seed=0, effort=1e-9)
    assert patterns is not None
    assert_packs(question, patterns)
    assert capfd.readouterr().err == ""
