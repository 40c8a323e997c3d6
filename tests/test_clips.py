"""Which frames clips take: rates, strides, policies for slow sources, and drawn places."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.planned import policy

from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.media.video.clips import Clip, ClipRule, is_slow, take_clip
from patchpack.pipeline.media.video.timeline import VideoHeader
from patchpack.pipeline.stages.probe import clips_of
from patchpack.pipeline.stages.records import Example, Reference, Source
from patchpack.pipeline.stages.sample import sample


def header_of(pts: list[int], base: int = 1000, last: int | None = None, entries: tuple[int, ...] = ()) -> VideoHeader:
    """Returns a header of frames at these times, in units of 1/base seconds."""
    last = last or (pts[-1] - pts[-2] if len(pts) > 1 else 40)
    return VideoHeader(48, 64, tuple(pts), pts[-1] + last, (1, base), entries)


def steady(count: int, rate: int, start: int = 0) -> VideoHeader:
    """Returns a header of a constant rate."""
    return header_of([start + 600 * n // rate for n in range(count)], 600)


TIMES = st.lists(st.integers(1, 300), min_size=1, max_size=60).map(
    lambda steps: header_of([sum(steps[:n]) - 500 for n in range(1, len(steps) + 1)])
)
RULES = st.builds(
    ClipRule,
    num_clips=st.integers(1, 5),
    num_frames=st.integers(1, 20),
    fps=st.sampled_from([0.5, 1.0, 7.5, 8.0, 30.0]),
    stride=st.none() | st.integers(1, 9),
    slow=st.sampled_from(["repeat", "native"]),
)


@given(TIMES, RULES, st.none() | st.integers(0, 2**64 - 1))
def test_every_clip_has_frames_of_its_video_in_order(header: VideoHeader, rule: ClipRule, word: int | None) -> None:
    for number in range(rule.num_clips):
        clip = take_clip(header, rule, number, word)
        assert 1 <= len(clip.pts) <= rule.num_frames
        assert set(clip.pts) <= set(header.pts) and list(clip.pts) == sorted(clip.pts)
        assert clip.fps > 0


def test_every_nth_frame_of_the_source_whatever_its_rate() -> None:
    # MViT's 16 x 4 of 100 frames: 61 frames wide, (100 - 61) // 2 = 19
    for rate in (5, 25, 60):
        header = steady(100, rate)
        clip = take_clip(header, ClipRule(num_frames=16, stride=4), 0)
        assert clip.pts == header.pts[19 : 19 + 61 : 4]
        assert clip.fps == pytest.approx(rate / 4)
    assert take_clip(steady(10, 25), ClipRule(num_frames=16, stride=4), 0).pts == steady(10, 25).pts[0:10:4]


def test_variable_rates_do_not_matter_to_strides() -> None:
    header = header_of([0, 1, 5, 100, 101, 900, 901, 902])
    assert take_clip(header, ClipRule(num_frames=3, stride=3), 0).pts == (0, 100, 901)
    assert take_clip(header, ClipRule(num_frames=2, stride=2, num_clips=2), 1).pts == (101, 901)


def test_slow_sources_repeat_or_keep_their_rate_or_are_rejected() -> None:
    header = steady(20, 5)
    repeated = take_clip(header, ClipRule(num_frames=8), 0)
    assert len(set(repeated.pts)) < 8 and repeated.fps == 8.0
    native = take_clip(header, ClipRule(num_frames=8, slow="native"), 0)
    assert native == Clip(header.pts[6:14], (), pytest.approx(5.0))
    with pytest.raises(DecodeError, match="5 frames a second; --fps is 8") as caught:
        take_clip(header, ClipRule(num_frames=8, slow="reject"), 0)
    assert caught.value.reason == "slow_source"
    fast = steady(60, 24)
    assert len({take_clip(fast, ClipRule(num_frames=8, slow=slow), 0) for slow in ("repeat", "native", "reject")}) == 1


def test_rounded_times_do_not_make_a_source_slow() -> None:
    # 24 and 30 frames a second in milliseconds, as Matroska stores them
    for rate in (8, 24, 30):
        for count in (2, 3, 50, 5000):
            header = header_of([round(Fraction(1000 * n, rate)) for n in range(count)])
            assert not is_slow(header, float(rate)), (rate, count)
            assert is_slow(header, rate * 1.2)
    assert not is_slow(header_of([0]), 1000.0)


@given(TIMES, st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**64 - 1))
def test_drawn_clips_stay_in_their_part_and_reach_its_ends(
    header: VideoHeader, num_clips: int, num_frames: int, word: int
) -> None:
    rule = ClipRule(num_clips, num_frames, stride=1)
    count = len(header.pts)
    for number in range(num_clips):
        begin, end = count * number // num_clips, count * (number + 1) // num_clips
        drawn = header.pts.index(take_clip(header, rule, number, word).pts[0])
        assert drawn <= max(begin, end - num_frames) and drawn >= min(begin, count - 1)
        first, last = (header.pts.index(take_clip(header, rule, number, w).pts[0]) for w in (0, 2**64 - 1))
        assert (first, last) == (min(begin, count - 1), min(max(begin, end - num_frames), count - 1))


def test_entries_are_the_last_before_each_frame_or_none_where_one_lacks() -> None:
    header = header_of(list(range(0, 1000, 40)), entries=(80, 240, 400, 800))
    assert header.random_access_points_for((80, 120, 399, 400)) == (80, 240, 400)
    assert header.random_access_points_for((999, 80)) == (80, 800)
    assert header.random_access_points_for((40, 400)) == ()
    assert header_of([0, 40]).random_access_points_for((0,)) == ()


def test_drawn_clips_depend_on_seed_example_and_view_alone() -> None:
    source = Source("a.mp4", 0, "a.mp4", 1)
    header = steady(1000, 25)
    rule = ClipRule(2, 4, placement="random", num_views=3)

    def starts(seed: int, rule: ClipRule = rule, source: Source = source) -> list[list[int]]:
        examples = [example for example in clips_of(source, header, rule, seed) if isinstance(example, Example)]
        return [[example.of_view(view).frame_pts[0] for view in range(rule.num_views)] for example in examples]

    assert starts(0) == starts(0)
    assert len({start for clip in starts(0) + starts(1) for start in clip}) == 12
    assert [clip[:2] for clip in starts(0)] == starts(0, rule._replace(num_views=2)), "more views change none"
    assert starts(0) != starts(0, source=source._replace(key="b.mp4"))
    even = starts(0, rule._replace(placement="uniform"))
    assert all(len(set(clip)) == 1 for clip in even)


def test_each_view_is_planned_with_its_own_frames() -> None:
    rule = ClipRule(1, 4, placement="random", num_views=3)
    [example] = clips_of(Source("a.mp4", 0, "a.mp4", 1), steady(1000, 25), rule, 0)
    assert isinstance(example, Example)
    for view in range(3):
        reference = sample(example, view, policy("side:64-64", cap=1024))
        assert isinstance(reference, Reference)
        assert reference.example.frame_pts == example.views[view][0] and reference.example.views == ()
        assert reference.grid[0] == 4
