"""Animated GIF, WebP, PNG and AVIF: when each frame begins, and the frames as they are shown.

Pillow composes the frames. Times are in milliseconds from the first frame; loops are not followed. Only reading the
file to its end gives the times (GIF and PNG state a frame's duration beside the frame), so probing an animation costs
one decode of it.
"""

from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

FORMATS = ("GIF", "WEBP", "PNG", "AVIF")

# a frame of no duration would share its time with the next; browsers show such frames for this long
_UNTOLD_DURATION_MS = 100


class Timing(NamedTuple):
    """An animation's size in px, when each of its frames begins, and when the last one ends, in ms."""

    height: int
    width: int
    begins_ms: tuple[int, ...]
    ends_ms: int


def timing(image: Image.Image) -> Timing | None:
    """Returns the timing of an opened image, or None if it has one frame only."""
    # the pages of a TIFF and the images of an MPO are no animation
    if image.format not in FORMATS or num_frames(image) < 2:
        return None
    times_ms = [(begin_ms, end_ms) for begin_ms, end_ms, _ in _timed(image)]
    if len(times_ms) < 2:
        return None
    return Timing(image.height, image.width, tuple(begin_ms for begin_ms, _ in times_ms), times_ms[-1][1])


def num_frames(image: Image.Image) -> int:
    """Returns how many frames an opened image has."""
    return int(getattr(image, "n_frames", 1))


def frames(image: Image.Image, target_ms: set[int]) -> Iterator[tuple[int, Image.Image]]:
    """Yields the composed frames that begin at the target times, up to the last of them."""
    last_ms = max(target_ms)
    for begin_ms, _, frame in _timed(image):
        if begin_ms in target_ms:
            yield begin_ms, frame
        if begin_ms >= last_ms:
            return


def _timed(image: Image.Image) -> Iterator[tuple[int, int, Image.Image]]:
    """Yields when each frame begins and ends, and the frame."""
    # PNG: an image for readers that know no animation, which is no part of it
    first = 1 if image.info.get("default_image") else 0
    begin_ms = end = 0
    for number in range(first, num_frames(image)):
        image.seek(number)
        # some plugins say the duration only once the frame is decoded
        image.load()
        # PNG's durations are fractions of a millisecond; sums are rounded, not what is summed
        end = end + (image.info.get("duration") or _UNTOLD_DURATION_MS)
        end_ms = max(begin_ms + 1, int(end + 0.5))
        yield begin_ms, end_ms, image
        begin_ms = end_ms
