"""Column generation in parts: prices against every pattern there is, the master against itself, whole searches."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchpack.pipeline.packing import check_certificate
from patchpack.pipeline.packing.bounds import closed_form_bound
from patchpack.pipeline.packing.exact.columns import improve
from patchpack.pipeline.packing.exact.master import Master
from patchpack.pipeline.packing.exact.pricing import (
    ONE,
    Meter,
    Pattern,
    Shape,
    Table,
    first_fit,
    price,
    shape_of,
)
from patchpack.pipeline.packing.greedy import best_fit
from patchpack.pipeline.packing.instance import Histogram, histogram_of, read_instance


def meter() -> Meter:
    return Meter(1e12)


def every_pattern(shape: Shape, counts: list[int]) -> Iterator[Pattern]:
    """Yields every bin that holds something, by trying all numbers of copies."""
    for copies in itertools.product(*(range(count + 1) for count in counts)):
        load = sum(number * value for number, value in zip(copies, shape.values, strict=True))
        if any(copies) and load <= shape.capacity and (shape.slots is None or sum(copies) <= shape.slots):
            yield tuple((index, number) for index, number in enumerate(copies) if number)


def value(pattern: Pattern, duals: list[int]) -> int:
    return sum(copies * duals[index] for index, copies in pattern)


@st.composite
def priced(draw: st.DrawFn) -> tuple[Shape, list[int], list[int]]:
    """Returns a shape, dual values and counts."""
    capacity = draw(st.integers(3, 30))
    values = sorted(draw(st.sets(st.integers(1, capacity), min_size=1, max_size=5)))
    size = len(values)
    duals = draw(st.lists(st.integers(0, 2 * ONE), min_size=size, max_size=size))
    counts = draw(st.lists(st.integers(1, 4), min_size=size, max_size=size))
    slots = draw(st.none() | st.integers(1, 6))
    return shape_of(np.array(values), capacity, slots), duals, counts


@settings(deadline=None, max_examples=200)
@given(priced())
def test_the_table_finds_the_best_bin_of_each_length_and_short_ones(question: tuple) -> None:
    shape, duals, _ = question
    most_of_each = [shape.most(index) for index in range(len(duals))]
    if np.prod([most + 1 for most in most_of_each]) > 5000:
        most_of_each = [min(most, 4) for most in most_of_each]
        shape = shape_of(shape.values_K, shape.capacity, 4)
    table = Table(shape, np.array(duals), meter())
    heads = np.arange(len(duals))
    patterns = list(every_pattern(shape, most_of_each))
    assert table.most == max(value(p, duals) for p in patterns)
    for head, found in zip(heads.tolist(), table.patterns(heads, meter()), strict=True):
        assert found in patterns
        assert head in dict(found)
        assert value(found, duals) == table.value_K[head]
        beside = [{**dict(p), head: dict(p)[head] - 1} for p in patterns if head in dict(p)]
        short = [b for b in beside if all(2 * shape.values[i] <= shape.capacity for i, copies in b.items() if copies)]
        assert table.value_K[head] == duals[head] + max(value(tuple(b.items()), duals) for b in short)


@settings(deadline=None, max_examples=100)
@given(priced())
def test_pricing_packs_side_by_side_and_says_what_no_bin_is_worth_more_than(question: tuple) -> None:
    shape, duals, counts = question
    found = price(shape, np.array(duals), np.array(counts), 4, meter())
    assert found.most >= max(value(p, duals) for p in every_pattern(shape, counts))
    assert all(value(p, duals) > ONE for p in found.improving)
    used = np.array(counts) - found.left_K
    for pattern, times in found.used:
        assert pattern in set(every_pattern(shape, counts))
        for index, copies in pattern:
            used[index] -= times * copies
    assert not used.any()


@settings(deadline=None, max_examples=100)
@given(priced())
def test_the_master_with_every_pattern_is_the_linear_programme(question: tuple) -> None:
    shape, _, counts = question
    master = Master(np.array(counts), meter())
    master.add(every_pattern(shape, counts))
    assert master.solve()
    # by strong duality its prices are worth as much, and by feasibility no bin is worth more than 1
    prices = master.duals(ONE)
    assert master.value() == pytest.approx(int(prices @ np.array(counts)) / ONE, rel=1e-6)
    assert max(value(p, prices.tolist()) for p in every_pattern(shape, counts)) <= ONE * (1 + 1e-6)
    assert np.all(np.diff(prices) >= -ONE // 10**6), "a longer length is worth no less"


@settings(deadline=None, max_examples=100)
@given(question=priced(), left=st.data())
def test_a_narrowed_master_has_the_value_of_the_whole_one(question: tuple, left: st.DataObject) -> None:
    shape, _, counts = question
    left_K = np.array([left.draw(st.integers(0, count)) for count in counts])
    if not left_K.any():
        left_K[0] = 1
    master = Master(np.array(counts), meter())
    master.add(every_pattern(shape, counts))
    assert master.solve()
    narrow = master.narrowed(left_K)
    master.demand(left_K)
    assert master.solve()
    assert narrow.solve()
    assert narrow.value() == pytest.approx(master.value(), abs=1e-6)
    assert all(left_K[index] for pattern, _ in narrow.solution() for index, _ in pattern)


@settings(deadline=None, max_examples=200)
@given(priced())
def test_first_fit_uses_every_example_once(question: tuple) -> None:
    shape, _, counts = question
    left = list(counts)
    for pattern, times in first_fit(shape, np.array(counts), meter()):
        assert pattern in set(every_pattern(shape, counts))
        for index, copies in pattern:
            left[index] -= times * copies
    assert not any(left)


def cut(num_bins: int, capacity: int, pieces: int, seed: int) -> Histogram:
    """Returns lengths that fill `num_bins` bins exactly: each cut at random places."""
    rng = np.random.default_rng(seed)
    places = np.sort(rng.integers(capacity // 8, capacity - capacity // 8, (num_bins, pieces - 1)), axis=1)
    lengths = np.diff(np.pad(places, ((0, 0), (1, 1)), constant_values=((0, 0), (0, capacity))), axis=1).ravel()
    return histogram_of(read_instance(lengths[lengths > 0], capacity, None))


@pytest.mark.parametrize(("num_bins", "capacity", "pieces"), [(20, 100, 3), (60, 1000, 3)])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.slow_beyond(1)
def test_bins_that_were_cut_to_pieces_are_found_again(num_bins: int, capacity: int, pieces: int, seed: int) -> None:
    histogram = cut(num_bins, capacity, pieces, seed)
    known = best_fit(histogram).num_bins
    assert known > num_bins
    patterns, proven = improve(histogram, closed_form_bound(histogram), num_bins=known, seed=0, effort=1.0)
    assert patterns is not None
    assert patterns.num_bins == proven.bound == num_bins


def test_the_bound_of_the_programme_is_proven_where_sums_say_less() -> None:
    # two of these leave a fifth of a bin that nothing fits, and three fit nowhere
    lengths = [40, 41, 42, 43] * 25
    histogram = histogram_of(read_instance(lengths, 100, None))
    weak = closed_form_bound(histogram)
    _, proven = improve(histogram, weak, num_bins=60, seed=0, effort=0.1)
    assert weak.bound < proven.bound == 50
    check_certificate(lengths, 100, proven)


def test_no_more_work_is_done_than_the_effort_allows() -> None:
    histogram = cut(60, 1000, 3, 0)
    known = best_fit(histogram).num_bins
    bound = closed_form_bound(histogram)
    assert improve(histogram, bound, num_bins=known, seed=0, effort=1e-9)[0] is None
    assert improve(histogram, bound, num_bins=known, seed=0, effort=1.0)[0] is not None


def test_a_search_ends_where_enough_is_out_of_reach() -> None:
    histogram = histogram_of(read_instance([40, 41, 42, 43] * 25, 100, None))
    patterns, proven = improve(histogram, closed_form_bound(histogram), num_bins=60, seed=0, effort=100.0, enough=45)
    assert proven.bound > 45
    assert patterns is None or patterns.num_bins >= 50
