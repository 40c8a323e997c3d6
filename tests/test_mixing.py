"""Mixing: both figures against their definitions in plain Python, and at their ends."""

import random
import statistics
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.packing_oracles import slow_correlation

from patchpack.pipeline.packing.balance.mixing import Mixing

Bins = list[list[tuple[int, int]]]


def mixing_of(listings: list[Bins]) -> Mixing:
    """Returns the figures of listings given as bins of (length, rank)."""
    mixing = Mixing()
    for bins in listings:
        flat = [(number, length, rank) for number, members in enumerate(bins) for length, rank in members]
        random.Random(0).shuffle(flat)
        numbers, lengths, ranks = zip(*flat, strict=True) if flat else ((), (), ())
        mixing.add(lengths, [3 * number for number in numbers], ranks)
    return mixing


@st.composite
def listings(draw: Any) -> list[Bins]:
    """Draws listings of bins; ranks are a permutation of each listing's examples."""
    found = []
    for lengths in draw(
        st.lists(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=5), max_size=6), max_size=3)
    ):
        ranks = iter(draw(st.permutations(range(sum(map(len, lengths))))))
        found.append([[(length, next(ranks)) for length in members] for members in lengths])
    return found


@settings(max_examples=150, deadline=None)
@given(listings())
def test_length_correlation_is_the_intraclass_correlation(found: list[Bins]) -> None:
    expected = slow_correlation([[length for length, _ in members] for bins in found for members in bins])
    value = mixing_of(found).length_correlation()
    assert value == (None if expected is None else pytest.approx(float(expected)))


@settings(max_examples=150, deadline=None)
@given(listings())
def test_source_span_is_the_mean_share_of_the_listing(found: list[Bins]) -> None:
    shares = []
    for bins in found:
        last = sum(map(len, bins)) - 1
        for ranks in ([rank for _, rank in members] for members in bins if len(members) > 1):
            shares.append((max(ranks) - min(ranks)) / last)
    span = mixing_of(found).source_span()
    assert (None if span is None else span[0]) == (pytest.approx(statistics.fmean(shares)) if shares else None)


def test_the_span_due_at_random_is_the_mean_over_all_ways_to_deal() -> None:
    shapes, spans = [3, 2, 1], []
    for dealt in permutations(range(6)):
        ranks = iter(dealt)
        span = mixing_of([[[(1, next(ranks)) for _ in range(size)] for size in shapes]]).source_span()
        assert span is not None
        spans.append(span[0])
    assert span[1] == pytest.approx(statistics.fmean(spans))


def test_one_length_a_bin_is_1_and_a_random_deal_about_0() -> None:
    drawn = random.Random(1)
    alike = [[(length, 0) for _ in range(4)] for length in (5, 9, 40, 3)]
    ranks = iter(range(16))
    assert mixing_of([[[(n, next(ranks)) for n, _ in members] for members in alike]]).length_correlation() == 1
    places = list(range(8000))
    drawn.shuffle(places)
    ranks = iter(places)
    dealt = [[(drawn.randint(1, 256), next(ranks)) for _ in range(8)] for _ in range(1000)]
    mixing = mixing_of([dealt])
    assert abs(mixing.length_correlation() or 1) < 0.03
    span, at_random = mixing.source_span() or (0, 1)
    assert abs(span - at_random) < 0.01 and at_random == pytest.approx(7 / 9, abs=0.001)


def test_neighbours_in_the_listing_span_next_to_nothing() -> None:
    ranks = iter(range(1000))
    neighbours = [[(7, next(ranks)) for _ in range(5)] for _ in range(200)]
    mixing = mixing_of([neighbours])
    assert mixing.source_span() == (pytest.approx(4 / 999), pytest.approx(2 / 3, abs=0.002))
    assert mixing.length_correlation() is None, "one length only: nothing to compare"
