"""Which frames of a video its clips are: target rate, every tau-th frame, evenly placed or drawn.

A video is cut into `num_clips` equal parts, and each clip lies in its part: in the middle, or at a place drawn from
(seed, example_id, view); at the beginning where it is longer than the part. Clips that would run past the end of the video
are shorter. Only times and integers: nothing is decoded.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from patchpack.pipeline.media.errors import DecodeError
from patchpack.pipeline.media.video.timeline import VideoHeader

SLOW_POLICIES = ("repeat", "native", "reject")
PLACEMENTS = ("uniform", "random")


class ClipRule(NamedTuple):
    """How clips are taken; see the options of the same names.

    `slow` is what happens where the source has fewer frames a second than `fps`: "repeat" shows frames several times,
    "native" takes every frame of the source, "reject" refuses the video. With `stride`, every stride-th frame of the
    source is taken, whatever its rate (T x tau of MViT, arXiv 2104.11227, section 4), and `fps` has no meaning.
    """

    num_clips: int = 1
    num_frames: int = 16
    fps: float = 8.0
    stride: int | None = None
    slow: str = "repeat"
    placement: str = "uniform"
    num_views: int = 1


class Clip(NamedTuple):
    """The frames of one clip: their times, the entries that decoding takes, and frames a second as taken."""

    pts: tuple[int, ...]
    entries: tuple[int, ...]
    fps: float


def take_clip(header: VideoHeader, rule: ClipRule, number: int, word: int | None = None) -> Clip:
    """Returns one clip of a video.

    Args:
        header: as probed.
        rule: how clips are taken.
        number: of the clip, below `rule.num_clips`.
        word: 64 random bits that place the clip in its part; None places it in the middle.

    Raises:
        DecodeError: the video is too slow, and the rule says to reject it.
    """
    stride, fps = rule.stride, rule.fps
    if stride is None and rule.slow != "repeat" and is_slow(header, fps):
        if rule.slow == "reject":
            raise DecodeError("slow_source", f"{float(header.rate or 0):.6g} frames a second; --fps is {fps:g}")
        stride = 1
    if stride is None:
        pts = _on_screen(header, rule, number, word)
    else:
        pts = _every(header, rule, stride, number, word)
        fps = float(header.rate / stride) if header.rate else fps
    return Clip(pts, header.random_access_points_for(pts), fps)


def clip_times(header: VideoHeader, clip: int, num_clips: int, num_frames: int, fps: float) -> tuple[int, ...]:
    """Returns the presentation times of one clip's frames, (<= num_frames,) in units of the time base.

    For each requested time the frame on screen is taken, so sources slower than `fps` repeat frames.
    """
    return _on_screen(header, ClipRule(num_clips, num_frames, fps), clip, None)


def is_slow(header: VideoHeader, fps: float) -> bool:
    """Returns whether a video has fewer frames a second than `fps`; its times are whole ticks, so one is allowed for."""
    ticks = header.pts[-1] - header.pts[0] - 1
    numerator, denominator = header.time_base
    return ticks > 0 and Fraction((len(header.pts) - 1) * denominator, ticks * numerator) < Fraction(fps)


def _on_screen(header: VideoHeader, rule: ClipRule, number: int, word: int | None) -> tuple[int, ...]:
    """Returns the times of the frames on screen at each requested time."""
    numerator, denominator = header.time_base
    first, end = header.pts[0], max(header.end_pts, header.pts[-1] + 1)
    step = Fraction(denominator, numerator) / Fraction(rule.fps)
    part = (end - first) // rule.num_clips
    start = first + part * number + _offset(part - math.floor(rule.num_frames * step), word)
    requested = [start + math.floor(i * step) for i in range(rule.num_frames)]
    pts = np.asarray(header.pts, np.int64)
    indices = np.searchsorted(pts, [time for time in requested if time < end], side="right") - 1
    return tuple(int(time) for time in pts[np.maximum(indices, 0)])


def _every(header: VideoHeader, rule: ClipRule, stride: int, number: int, word: int | None) -> tuple[int, ...]:
    """Returns the times of every stride-th frame."""
    count = len(header.pts)
    begin, end = (count * part // rule.num_clips for part in (number, number + 1))
    start = min(begin, count - 1) + _offset(end - begin - (rule.num_frames - 1) * stride - 1, word)
    return header.pts[start : start + (rule.num_frames - 1) * stride + 1 : stride]


def _offset(span: int, word: int | None) -> int:
    """Returns how far into its part a clip begins, of 0..room: the middle, or as drawn."""
    span = max(0, span)
    return span // 2 if word is None else word * (span + 1) >> 64
