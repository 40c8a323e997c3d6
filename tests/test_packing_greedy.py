"""Best-fit, folding, largest first, exact fill and the dealing of examples to slots, each against something slower and plainer."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.packing_oracles import best_fit_one_by_one, questions

from patchpack.pipeline.packing import greedy, pack
from patchpack.pipeline.packing.exact.fill import fill
from patchpack.pipeline.packing.greedy import best_fit, best_fit_rows, decreasing_orders, fold, norm_fit_rows
from patchpack.pipeline.packing.instance import Histogram, histogram_of, read_instance
from patchpack.pipeline.packing.largest_first import largest_first
from patchpack.pipeline.packing.result import Packing, check_packing
from patchpack.pipeline.packing.slots import BLOCK_BITS, Patterns, assign


def assert_packs(histogram: Histogram, patterns: Patterns) -> None:
    """Checks that the patterns use every example once and keep within the limits of a bin."""
    assert patterns.repeats.min() >= 1
    used = np.bincount(patterns.length_classes, patterns.repeats[patterns.pattern], minlength=len(histogram.values))
    assert used.tolist() == histogram.counts.tolist()
    loads = np.bincount(patterns.pattern, histogram.values[patterns.length_classes], minlength=len(patterns.repeats))
    assert loads.min() > 0
    assert loads.max() <= histogram.capacity
    assert np.bincount(patterns.pattern).max() <= histogram.max_segments


def drawn(seed: int, low: int, high: int, count: int, capacity: int, max_segments: int | None = None) -> Histogram:
    """Returns the histogram of uniform lengths."""
    lengths = np.random.default_rng(seed).integers(low, high + 1, count)
    return histogram_of(read_instance(lengths, capacity, max_segments))


@settings(deadline=None, max_examples=300)
@given(question=questions(max_size=60, max_capacity=40))
def test_best_fit_on_the_histogram_opens_as_many_bins_as_one_by_one(question: Any) -> None:
    rows, capacity, max_segments = question
    histogram = histogram_of(read_instance(*question))
    patterns = best_fit(histogram)
    assert_packs(histogram, patterns)
    assert patterns.num_bins == best_fit_one_by_one([row[0] for row in rows], capacity[0], max_segments)


@pytest.mark.parametrize("seed", range(4))
def test_best_fit_on_a_large_histogram_opens_as_many_bins_as_one_by_one(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(3, 60 + 30 * seed, 1500)
    histogram = histogram_of(read_instance(lengths, 150, None))
    assert best_fit(histogram).num_bins == best_fit_one_by_one(lengths.tolist(), 150, None)


@settings(deadline=None)
@given(question=questions(max_size=30, max_capacity=40))
def test_best_fit_by_rows_is_best_fit_on_the_histogram_where_there_is_one_resource(question: Any) -> None:
    rows, capacity, _ = question
    instance = read_instance(rows, capacity, None)
    bin_index = best_fit_rows(instance, decreasing_orders(instance, seed=0)[0])
    assert bin_index.max() + 1 == best_fit(histogram_of(instance)).num_bins


@settings(deadline=None, max_examples=200)
@given(question=questions(max_size=30, max_capacity=40), seed=st.integers(0, 3), largest=st.booleans())
def test_norm_fit_keeps_every_limit_of_every_resource(question: Any, seed: int, largest: bool) -> None:
    rows, capacity, max_segments = question
    instance = read_instance(rows, capacity, max_segments)
    bin_index = norm_fit_rows(instance, seed, largest=largest)
    assert bin_index is not None
    check_packing(rows, capacity, Packing(bin_index, int(bin_index.max()) + 1, 0), max_segments)


def test_norm_fit_keeps_tokens_and_text_in_step() -> None:
    rng = np.random.default_rng(0)
    tokens, text = rng.integers(16, 2048, 1000), np.minimum(256, np.exp(rng.normal(4, 0.8, 1000))).astype(np.int64)
    rows, capacity = np.stack([tokens, text], axis=1), [8192, int(1.02 * 8192 * text.sum() / tokens.sum())]
    instance = read_instance(rows, capacity, None)
    by_size = best_fit_rows(instance, decreasing_orders(instance, seed=0)[0]).max() + 1
    in_step = norm_fit_rows(instance, 0, largest=True)
    assert in_step is not None
    bound = -(-int(tokens.sum()) // 8192)
    assert in_step.max() + 1 <= 1.02 * bound < 1.04 * bound < by_size
    assert pack(rows, capacity).num_bins <= in_step.max() + 1


def test_norm_fit_gives_up_where_it_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "MAX_LOOKS", 5)
    assert norm_fit_rows(read_instance([[1, 2], [2, 1], [3, 3]], [4, 4], None), 0, largest=True) is None


def test_best_fit_takes_the_fullest_bin_that_is_not_too_full() -> None:
    # 7 | 6 | 6 are open when 3 comes: it fits only into 7 exactly. Then 4 fills a 6.
    histogram = histogram_of(read_instance([7, 6, 6, 3, 4], 10, None))
    patterns = best_fit(histogram)
    contents = [sorted(histogram.values[patterns.length_classes[patterns.pattern == m]].tolist()) for m in range(3)]
    assert sorted(contents) == [[3, 7], [4, 6], [6]]


@settings(deadline=None, max_examples=200)
@given(question=questions(max_size=40, max_capacity=40), spare=st.integers(0, 5))
def test_a_fold_is_a_packing_or_nothing(question: Any, spare: int) -> None:
    histogram = histogram_of(read_instance(*question))
    num_bins = -(-histogram.num_examples // histogram.max_segments) + spare
    if patterns := fold(histogram, num_bins):
        assert_packs(histogram, patterns)
        assert patterns.num_bins == num_bins


def test_a_fold_meets_the_bound_where_best_fit_collapses() -> None:
    histogram = drawn(0, 10, 250, 5000, 1024, max_segments=6)
    assert best_fit(histogram).num_bins > 1.04 * 834
    patterns = fold(histogram, 834)
    assert patterns is not None
    assert_packs(histogram, patterns)


@settings(deadline=None, max_examples=300)
@given(question=questions(max_size=60, max_capacity=40), effort=st.sampled_from([0.0, 1e-6, 1.0]))
def test_largest_first_packs_every_example_within_the_limits(question: Any, effort: float) -> None:
    histogram = histogram_of(read_instance(*question))
    patterns = largest_first(histogram, effort)
    assert patterns is not None
    assert_packs(histogram, patterns)
    if effort == 1.0:  # a bin begins with the longest example that is left
        heads = np.maximum.reduceat(patterns.length_classes, np.flatnonzero(np.diff(patterns.pattern, prepend=-1)))
        assert (np.diff(heads) <= 0).all()


@pytest.mark.parametrize(
    ("space", "lengths"),
    [(10, [10]), (10, [7, 3]), (10, [6, 3, 1]), (9, [4, 3, 2]), (10, [5, 5])],
    ids=["one", "two", "three", "three of equals", "two of the same"],
)
def test_what_a_bin_still_holds_is_filled_exactly_by_up_to_three(space: int, lengths: list[int]) -> None:
    # the head leaves `space`; 8 is longer than anything in the sum and fits, but leaves a rest that nothing fills
    taken = [100 - space, *lengths]
    decoys = [8] if space > 8 and 8 not in lengths else []
    histogram = histogram_of(read_instance([*taken, *decoys], 100, None))
    patterns = largest_first(histogram)
    assert patterns is not None
    first = histogram.values[patterns.length_classes[patterns.pattern == 0]]
    assert sorted(first.tolist()) == sorted(taken)


@pytest.mark.parametrize("max_segments", [None, 64])
@pytest.mark.slow_beyond(1)
def test_largest_first_meets_the_bound_for_lengths_of_videos(max_segments: int | None) -> None:
    lengths = np.exp(np.random.default_rng(0).uniform(np.log(256), np.log(65_536), 16_384)).astype(np.int64)
    histogram = histogram_of(read_instance(lengths, 65_536, max_segments))
    patterns = largest_first(histogram)
    assert patterns is not None
    assert_packs(histogram, patterns)
    assert patterns.num_bins == -(-histogram.total // 65_536) <= best_fit(histogram).num_bins


def test_largest_first_takes_no_capacity_whose_table_would_be_too_large() -> None:
    assert largest_first(histogram_of(read_instance([2**22, 5], 2**22 + 1, None))) is None


@pytest.mark.parametrize(("capacity", "max_segments"), [(1000, None), (1000, 14), (4000, None), (500, None)])
def test_exact_fill_meets_the_sum_bound(capacity: int, max_segments: int | None) -> None:
    histogram = drawn(1, 10, 190, 20_000, capacity, max_segments)
    bound = -(-histogram.total // capacity)
    filled = fill(histogram, bound, seed=0, effort=1.0)
    assert filled is not None
    assert_packs(histogram, filled)
    assert filled.num_bins == bound


@settings(deadline=None, max_examples=100)
@given(question=questions(max_size=40, max_capacity=60), spare=st.integers(-1, 2), seed=st.integers(0, 3))
def test_exact_fill_claims_a_packing_only_where_it_has_one(question: Any, spare: int, seed: int) -> None:
    histogram = histogram_of(read_instance(*question))
    num_bins = max(1, -(-histogram.total // histogram.capacity) + spare)
    filled = fill(histogram, num_bins, seed=seed, effort=1.0)
    if filled:
        kinds, left = histogram.without(filled.used(len(histogram.values)))
        assert (left.counts > 0).all()
        alone = Patterns(kinds, np.arange(len(kinds)), left.counts)
        assert_packs(histogram, filled.joined(alone))
        assert filled.num_bins + bool(len(kinds)) <= num_bins


def test_exact_fill_gives_up_where_nothing_adds_up() -> None:
    # 3 and 6 fill no bin of 100; 33 examples of 3 leave a token over in each bin, more than the bound has to spare.
    histogram = histogram_of(read_instance([3] * 4000 + [6] * 2000, 100, None))
    assert fill(histogram, 240, seed=0, effort=1.0) is None


@settings(deadline=None, max_examples=100)
@given(question=questions(max_size=60, max_capacity=40), seed=st.integers(-5, 2**140))
def test_every_slot_is_taken_once_by_an_example_of_its_length(question: Any, seed: int) -> None:
    instance = read_instance(*question)
    histogram = histogram_of(instance)
    patterns = best_fit(histogram)
    lengths_N = instance.lengths[:, 0]
    bin_index = assign(lengths_N, histogram, patterns, seed)
    found = sorted(zip(bin_index.tolist(), lengths_N.tolist(), strict=True))
    first_bin = np.cumsum(patterns.repeats) - patterns.repeats
    expected = sorted(
        (int(first_bin[m]) + copy, int(histogram.values[kind]))
        for kind, m in zip(patterns.length_classes, patterns.pattern, strict=True)
        for copy in range(int(patterns.repeats[m]))
    )
    assert found == expected


def test_dealing_works_over_several_blocks_and_for_lengths_without_a_table() -> None:
    rng = np.random.default_rng(0)
    for lengths_N in (rng.integers(1, 40, 3 * 2**BLOCK_BITS + 17), rng.integers(1, 40, 500) * 10**7):
        capacity = 100 * int(lengths_N.max() // 39)
        instance = read_instance(lengths_N, capacity, None)
        histogram = histogram_of(instance)
        patterns = best_fit(histogram)
        bin_index = assign(lengths_N, histogram, patterns, seed=3)
        loads = np.bincount(bin_index, lengths_N)
        expected = np.bincount(patterns.pattern, histogram.values[patterns.length_classes])
        assert loads.astype(int).tolist() == np.repeat(expected.astype(int), patterns.repeats).tolist()


def test_which_example_of_a_length_takes_which_slot_is_a_seeded_shuffle() -> None:
    # Neighbours in the input do not meet: bins of two, whose members' places are far apart, differently for each seed.
    lengths_N = np.tile([60, 40], 5000)
    instance = read_instance(lengths_N, 100, None)
    histogram = histogram_of(instance)
    dealt = [assign(lengths_N, histogram, best_fit(histogram), seed) for seed in (1, 2)]
    for bin_index in dealt:
        long_at, short_at = (np.argsort(bin_index[kind::2]) for kind in (0, 1))
        assert 0.3 < np.abs(long_at - short_at).mean() / 5000 < 0.37  # a third, for independent places
        assert abs(np.corrcoef(long_at, short_at)[0, 1]) < 0.05
    assert not np.array_equal(*dealt)
