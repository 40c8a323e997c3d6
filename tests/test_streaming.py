"""Streaming: every example leaves once and in time, with few bins open."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchpack.pipeline.packing.streaming import Stream

LIMITS = st.fixed_dictionaries(
    {
        "max_segments": st.none() | st.integers(1, 4),
        "lookback": st.integers(1, 5),
        "max_delay": st.none() | st.integers(0, 9),
    }
)


def run(lengths: list[int], capacity: int, limits: dict[str, Any]) -> tuple[list[list[int]], dict[int, int]]:
    """Returns the bins of a stream, and the push with which each example left (the last one for close)."""
    stream = Stream(capacity, **limits)
    bins, left = [], {}
    for now, length in enumerate(lengths):
        closed = stream.push(length)
        assert stream.num_open <= limits["lookback"]
        bins += closed
        left |= {example: now for members in closed for example in members}
    rest = stream.close()
    assert stream.num_open == 0
    return bins + rest, left | {example: len(lengths) - 1 for members in rest for example in members}


@settings(deadline=None, max_examples=200)
@given(lengths=st.lists(st.integers(1, 20), max_size=60), capacity=st.integers(20, 30), limits=LIMITS)
def test_every_example_leaves_exactly_once_within_the_limits(
    lengths: list[int], capacity: int, limits: dict[str, Any]
) -> None:
    bins, left = run(lengths, capacity, limits)
    assert sorted(example for members in bins for example in members) == list(range(len(lengths)))
    for members in bins:
        assert members  # no empty bin
        assert sum(lengths[example] for example in members) <= capacity
        assert limits["max_segments"] is None or len(members) <= limits["max_segments"]
    if limits["max_delay"] is not None:
        assert all(now - example <= limits["max_delay"] for example, now in left.items())
    assert run(lengths, capacity, limits) == (bins, left)


@settings(deadline=None, max_examples=100)
@given(lengths=st.lists(st.integers(1, 20), max_size=40), capacity=st.integers(20, 30), limits=LIMITS)
def test_it_is_bounded_best_fit(lengths: list[int], capacity: int, limits: dict[str, Any]) -> None:
    """The same rules, looked up in plain lists."""
    bins: list[list[int]] = []
    open_bins: list[list[int]] = []

    def capacity_left(members: list[int]) -> int:
        return capacity - sum(lengths[example] for example in members)

    for now, length in enumerate(lengths):
        fitting = [members for members in open_bins if capacity_left(members) >= length]
        if fitting:
            chosen = min(fitting, key=lambda members: (capacity_left(members), members[0]))
        else:
            if len(open_bins) == limits["lookback"]:
                fullest = min(open_bins, key=lambda members: (capacity_left(members), members[0]))
                open_bins.remove(fullest)
                bins.append(fullest)
            chosen = []
            open_bins.append(chosen)
        chosen.append(now)
        for members in list(open_bins):
            full = capacity_left(members) == 0 or len(members) == limits["max_segments"]
            if full or (limits["max_delay"] is not None and now - members[0] >= limits["max_delay"]):
                open_bins.remove(members)
                bins.append(members)
    assert sorted(run(lengths, capacity, limits)[0]) == sorted(bins + open_bins)


def test_a_full_bin_leaves_with_the_push_that_fills_it() -> None:
    stream = Stream(10, lookback=2)
    assert [stream.push(length) for length in (6, 7, 3, 4)] == [[], [], [[1, 2]], [[0, 3]]]


def test_no_room_closes_the_fullest_and_keeps_the_others() -> None:
    stream = Stream(10, lookback=2)
    assert [stream.push(length) for length in (6, 8, 9)] == [[], [], [[1]]]
    assert stream.close() == [[0], [2]]


def test_a_delay_of_none_at_all_packs_each_alone_and_one_of_two_closes_with_the_second_next() -> None:
    alone = Stream(10, max_delay=0)
    assert [alone.push(1) for _ in range(3)] == [[[0]], [[1]], [[2]]]
    late = Stream(10, max_delay=2)
    assert [late.push(1) for _ in range(4)] == [[], [], [[0, 1, 2]], []]


def test_numbers_go_on_after_close() -> None:
    stream = Stream(10)
    stream.push(3)
    assert stream.close() == [[0]]
    stream.push(3)
    assert stream.close() == [[1]]


def test_a_refused_length_leaves_the_stream_as_it_was() -> None:
    stream = Stream(10)
    stream.push(3)
    for length, message in ((0, "length: 0; the least is 1"), (11, "length: 11; the capacity is 10")):
        with pytest.raises(ValueError, match=message):
            stream.push(length)
    stream.push(4)
    assert stream.close() == [[0, 1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "capacity: 0; the least is 1"),
        ({"capacity": 2**31}, "capacity: 2147483648; the most is 2147483647"),
        ({"capacity": 2.5}, "capacity: 2.5; it is an integer"),
        ({"capacity": 9, "max_segments": 0}, "max_segments: 0; the least is 1"),
        ({"capacity": 9, "lookback": 0}, "lookback: 0; the least is 1"),
        ({"capacity": 9, "max_delay": -1}, "max_delay: -1; the least is 0"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stream(**arguments)
