"""Certificates: what they prove is true, and what is not true they do not prove."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.packing_oracles import fewest_bins, questions

from patchpack.pipeline.packing import Certificate, Packing, check_certificate, pack
from patchpack.pipeline.packing.bounds import closed_form_bound, rounded_bound, threshold_bound
from patchpack.pipeline.packing.certificate import bound_of
from patchpack.pipeline.packing.instance import Histogram, histogram_of, read_instance


def most_valuable(histogram: Histogram, duals: list[int]) -> int:
    """Returns what a bin can be worth at most, by trying every content."""
    limits = [range(min(count, histogram.capacity // value) + 1) for value, count in zip(
        histogram.values.tolist(), histogram.counts.tolist(), strict=True
    )]  # fmt: skip
    value = 0
    for copies in itertools.product(*limits):
        held = sum(c * v for c, v in zip(copies, histogram.values.tolist(), strict=True))
        if held <= histogram.capacity and sum(copies) <= histogram.max_segments:
            value = max(value, sum(c * u for c, u in zip(copies, duals, strict=True)))
    return value


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_certificate_passes_exactly_if_no_bin_is_worth_more_than_its_scale(data: st.DataObject) -> None:
    capacity = data.draw(st.integers(1, 14))
    lengths = data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=7))
    max_segments = data.draw(st.none() | st.integers(1, 4))
    histogram = histogram_of(read_instance(lengths, capacity, max_segments))
    duals = data.draw(st.lists(st.integers(0, 12), min_size=len(histogram.values), max_size=len(histogram.values)))
    value = most_valuable(histogram, duals)
    slot_dual = data.draw(st.integers(0, 12))  # a hint: whatever it says, the verdict is the same
    for scale in {max(1, value - 1), max(1, value), value + 1}:
        bound = bound_of(histogram.counts, np.array(duals), scale)
        certificate = Certificate(bound, histogram.values, np.array(duals), scale, slot_dual)
        if scale >= value:
            check_certificate(lengths, capacity, certificate, max_segments)
        else:
            with pytest.raises(ValueError, match=f"^certificate: a bin may have a dual value over {scale}; "):
                check_certificate(lengths, capacity, certificate, max_segments)


@settings(deadline=None, max_examples=200)
@given(question=questions(max_size=9, max_capacity=25))
def test_every_bound_in_closed_form_is_proven_and_never_above_the_optimum(question: Any) -> None:
    rows, capacity, max_segments = question
    histogram = histogram_of(read_instance(rows, capacity, max_segments))
    optimum = fewest_bins(rows, capacity, max_segments)
    for bound in (closed_form_bound, threshold_bound, rounded_bound):
        certificate = bound(histogram)
        assert certificate.bound <= optimum
        check_certificate(rows, capacity, certificate, max_segments)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=30), capacity=st.integers(30, 40))
def test_the_closed_form_is_martello_toth_with_every_threshold(lengths: list[int], capacity: int) -> None:
    def with_threshold(a: int) -> int:
        first = [n for n in lengths if n > capacity - a]
        second = [n for n in lengths if capacity - a >= n and 2 * n > capacity]
        third = [n for n in lengths if capacity >= 2 * n and n >= a]
        overflow = sum(third) - (len(second) * capacity - sum(second))
        return len(first) + len(second) + max(0, -(-overflow // capacity))

    expected = max(with_threshold(a) for a in range(capacity // 2 + 1))
    assert closed_form_bound(histogram_of(read_instance(lengths, capacity, None))).bound == expected


@pytest.mark.parametrize(
    ("lengths", "capacity", "max_segments", "bound"),
    [
        ([1] * 9, 10, 4, 3),  # segments
        ([5, 5, 1], 10, None, 2),  # sum
        ([6, 6, 6, 1], 10, None, 3),  # above half
        ([7, 7, 3, 4, 4, 4], 10, None, 4),  # L2 with threshold 4: nothing of dual value beside a 7
    ],
)
def test_each_bound_counts_what_it_says(lengths: list[int], capacity: int, max_segments: Any, bound: int) -> None:
    packing = pack(lengths, capacity, max_segments=max_segments, method="best-fit")
    assert packing.bound == bound
    check_certificate(lengths, capacity, packing, max_segments)


def test_rounding_sees_what_the_sum_does_not() -> None:
    histogram = histogram_of(read_instance([3] * 7, 8, None))
    assert (closed_form_bound(histogram).bound, rounded_bound(histogram).bound) == (3, 4)


# Lengths 4, 5, 5, 6 in bins of 10: two, by their sum.
VALID = Certificate(2, np.array([4, 5, 6]), np.array([4, 5, 6]), 10)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"bound": 3}, "bound: 3; its certificate proves 2; do not use this bound"),
        (
            {"bound": 3, "scale": 9},
            "certificate: a bin may have a dual value over 9; it proves no bound; do not use it",
        ),
        (
            {"duals": np.array([5, 5, 6])},
            "certificate: a bin may have a dual value over 10; it proves no bound; do not use it",
        ),
        (
            {"values": np.array([4, 5, 7])},
            "certificate: made for other lengths; it proves nothing about these; do not use it",
        ),
        (
            {"values": np.array([4, 5])},
            "certificate: values of shape (2,), dtype int64; (3,), int64, are needed; do not use it",
        ),
        (
            {"duals": np.array([4.0, 5.0, 6.0])},
            "certificate: duals of shape (3,), dtype float64; (3,), int64, are needed; do not use it",
        ),
        ({"duals": np.array([4, -5, 6])}, "certificate: a negative dual; the least is 0; do not use it"),
        ({"slot_dual": -1}, "certificate: a negative dual; the least is 0; do not use it"),
        ({"scale": 0}, f"certificate: scale 0; it is 1 to {2**61}; do not use it"),
        ({"scale": 2**62}, f"certificate: scale {2**62}; it is 1 to {2**61}; do not use it"),
        ({"resource": 1}, "certificate: resource 1; there are 1; do not use it"),
        (
            {"duals": np.array([2**62, 2**62, 2**62]), "scale": 2**61},
            f"certificate: a bin may have a dual value over {2**61}; it proves no bound; do not use it",
        ),
    ],
)
def test_a_wrong_certificate_is_rejected(broken: dict[str, Any], message: str) -> None:
    lengths = [4, 5, 6, 5]
    check_certificate(lengths, 10, VALID)
    with pytest.raises(ValueError) as caught:
        check_certificate(lengths, 10, replace(VALID, **broken))
    assert str(caught.value) == message


def test_a_packing_is_judged_by_the_bound_it_claims() -> None:
    packing = Packing(np.array([0, 1, 0, 1]), 2, 2, VALID)
    check_certificate([4, 5, 6, 5], 10, packing)
    with pytest.raises(ValueError, match="^bound: 3; its certificate proves 2; "):
        check_certificate([4, 5, 6, 5], 10, replace(packing, bound=3))
    with pytest.raises(ValueError, match="^certificate: none; "):
        check_certificate([4, 5, 6, 5], 10, replace(packing, certificate=None))


def test_a_proof_that_counts_copies_and_segments_is_accepted() -> None:
    # One 3 and two 4: no bin of 10 holds three 3, so a 3 may be worth half a bin, if copies count.
    lengths = [3, 4, 4]
    certificate = Certificate(2, np.array([3, 4]), np.array([2, 2]), 4)
    with pytest.raises(ValueError, match="dual value over 4"):
        check_certificate(lengths, 11, certificate)
    check_certificate(lengths, 10, certificate)
    # With two segments to a bin every example is half of one, whatever its length.
    check_certificate([1] * 5, 10, Certificate(3, np.array([1]), np.array([1]), 2), 2)
    with pytest.raises(ValueError, match="dual value over 2"):
        check_certificate([1] * 5, 10, Certificate(3, np.array([1]), np.array([1]), 2), 3)


def test_a_proof_too_large_to_check_is_not_accepted() -> None:
    lengths = np.arange(1, 4000) * 500_000
    certificate = Certificate(1, lengths, np.full(3999, 7), 100)
    with pytest.raises(ValueError, match="it cannot be checked here$"):
        check_certificate(lengths, 2**31 - 1, certificate)
