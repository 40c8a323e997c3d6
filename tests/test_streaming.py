"""A stream packed in windows: nothing is lost, nothing waits for long, and it is packed nearly as well as all at once."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchpack.pipeline.packing import pack, pack_stream
from patchpack.pipeline.packing.streaming import num_in_whole_bins


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_every_example_leaves_once_within_the_limits_and_two_windows(data: st.DataObject) -> None:
    capacity = data.draw(st.integers(1, 60))
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=80))
    limit, window = data.draw(st.none() | st.integers(1, 6)), data.draw(st.integers(1, 30))
    came = 0

    def coming() -> Iterator[int]:
        nonlocal came
        for length in lengths:
            came += 1
            yield length

    left: list[int] = []
    for members in pack_stream(coming(), capacity, max_segments=limit, window=window, seed=3):
        assert sum(lengths[number] for number in members) <= capacity
        assert 1 <= len(members) <= (limit or len(members))
        assert all(came <= (number // window + 2) * window for number in members), "it waited too long"
        left += members
    assert sorted(left) == list(range(len(lengths)))


def test_windows_of_a_thousand_are_close_to_all_at_once() -> None:
    lengths = np.random.default_rng(0).integers(16, 257, 20_000).tolist()
    best = pack(lengths, 1024).num_bins
    bins = list(pack_stream(lengths, 1024))
    assert best <= len(bins) <= 1.002 * best
    assert bins == list(pack_stream(iter(lengths), 1024)), "equal streams, equal bins"
    assert bins != list(pack_stream(lengths, 1024, seed=1))


def test_what_half_fills_a_bin_waits_for_the_next_window() -> None:
    bins = list(pack_stream([40] * 6, 80, window=3))
    assert [len(members) for members in bins] == [2, 2, 2]
    assert bins[0] == [0, 1] and 2 in bins[1] + bins[2]


def test_what_waits_is_packed_with_the_next_window_even_where_that_leaves_a_bin_half_full() -> None:
    came = 0

    def coming() -> Iterator[int]:
        nonlocal came
        for length in [1, 5, 1, 1, 1, 1, 1]:
            came += 1
            yield length

    for members in pack_stream(coming(), 5, window=3):
        assert all(came <= (number // 3 + 2) * 3 for number in members), members


def test_what_makes_no_bin_in_its_window_does_not_wait() -> None:
    assert list(pack_stream([1, 2, 3], 100, window=1)) == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([], 0), ([40, 40, 40], 2), ([40, 39], 2), ([40] * 4, 4), ([40] * 21, 19), ([8] * 101, 99)],
)
def test_whole_bins_are_counted_with_a_tenth_to_spare_where_they_are_ten(lengths: list[int], expected: int) -> None:
    assert num_in_whole_bins(lengths, 80) == expected


def test_whole_bins_are_full_of_tokens_or_of_segments() -> None:
    assert num_in_whole_bins([8] * 100, 1000, 30) == 90
    assert num_in_whole_bins([8] * 100, 80, 30) == 89, "tokens run out first"
    assert num_in_whole_bins([8] * 20, 1000, 30) == 20


def test_an_unbounded_stream_is_read_a_window_at_a_time() -> None:
    stream = itertools.repeat(30)
    bins = pack_stream(stream, 90, window=10)
    assert [len(members) for members in itertools.islice(bins, 40)] == [3] * 40
    assert next(stream) == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window: 0; the least is 1"),
        ({"window": 2.0}, "window: 2.0; it is an integer"),
        ({"capacity": 0}, "capacity: 0; the least is 1"),
        ({"max_segments": 0}, "max_segments: 0; the least is 1"),
        ({"lengths": [5] * 20 + [0], "window": 3}, r"lengths\[20\]: 0; it is 1 to the capacity, 100"),
        ({"lengths": [5, 101]}, r"lengths\[1\]: 101; it is 1 to the capacity, 100"),
        ({"lengths": [5, 1.5]}, r"lengths\[1\]: 1.5; it is an integer"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(pack_stream(**{"lengths": [5], "capacity": 100} | arguments))
