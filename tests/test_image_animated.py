"""Animated images: their first image, or clips with their own frame times."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.media_files import animated_gif, photo, pixels, saved
from support.planned import planned_of

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.video.clips import ClipRule
from patchpack.pipeline.stages.probe import probe
from patchpack.pipeline.stages.records import Example, Source
from patchpack.pipeline.stages.write import decode_example

SIZE = (40, 60)


def animation(format: str, durations: list[float], **options: Any) -> bytes:
    """Returns an animation whose frames are plain greys: 20, 40, 60 and so on."""
    frames = [Image.new("RGB", SIZE[::-1], (20 * (number + 1),) * 3) for number in range(len(durations))]
    return saved(frames[0], format, save_all=True, append_images=frames[1:], duration=durations, **options)


def probed(path: Path, animated: str, **more: Any) -> list[Any]:
    source = Source(path.name, 0, path.name, path.stat().st_size)
    rule = ClipRule(**{"num_frames": 6, "fps": 10.0} | more)
    return probe(source, str(path), rule, max_pixels=10**6, animated=animated)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_frame_times_are_the_sums_of_their_durations(format: str) -> None:
    timing = image.probe_animation(io.BytesIO(animation(format, [100, 50, 200, 30])))
    assert timing == (*SIZE, (0, 100, 150, 350), 380)


def test_a_frame_of_no_duration_is_shown_as_browsers_do() -> None:
    timing = image.probe_animation(io.BytesIO(animation("GIF", [0, 0, 50])))
    assert timing is not None and timing.begins_ms == (0, 100, 200) and timing.ends_ms == 250


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_the_frames_asked_for_are_those_shown_then(format: str) -> None:
    data = animation(format, [100] * 6)
    frames_THWC, size = image.decode_animation(data, (100, 100, 400), 16, 32)
    assert frames_THWC.shape == (3, 16, 32, 3) and frames_THWC.dtype == np.uint8 and size == SIZE
    # AVIF and WebP keep nearly the grey
    assert np.abs(frames_THWC.astype(int) - np.array([40, 40, 100])[:, None, None, None]).max() <= 4
    with pytest.raises(DecodeError, match="1 of 2 frames"):
        image.decode_animation(data, (100, 450), 16, 32)


def test_an_animation_is_its_first_frame() -> None:
    first = Image.fromarray(pixels(40, 60, seed=0))
    # a palette of 256 colours stands between them
    shown = image.decode(animated_gif((40, 60)), 40, 60)[0][0].astype(int)
    assert np.abs(shown - np.asarray(first).astype(int)).mean() < 6


def test_what_stands_still_is_no_animation() -> None:
    pages = [Image.fromarray(pixels(40, 60, seed=seed)) for seed in range(3)]
    for data in (
        photo(SIZE, "GIF", "P"),
        photo(SIZE, "WEBP"),
        photo(SIZE),
        saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]),
        saved(pages[0], "MPO", save_all=True, append_images=pages[1:]),
        # a still for readers without animation, and one frame
        saved(pages[0], "PNG", save_all=True, append_images=pages[1:2], default_image=True),
    ):
        assert image.probe_animation(io.BytesIO(data)) is None


def test_animated_pictures_become_clips_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(animation("GIF", [100, 200, 100, 100, 100]))
    (first,) = probed(path, "first")
    assert isinstance(first, Example) and first.frame_pts == ()
    one, two = probed(path, "clip", num_clips=2, num_frames=3)
    assert one.frame_pts == (0, 100, 100) and two.frame_pts == (300, 400, 500) and one.time_base == (1, 1000)
    assert (one.source_height, one.source_width) == SIZE
    row = planned_of(one, (3, 2, 3), PlanConfig())
    frames_THWC = decode_example(row, [str(tmp_path)], PlanConfig())
    assert frames_THWC.shape == (3, 32, 48, 3)
    assert np.abs(frames_THWC.astype(int) - np.array([20, 40, 40])[:, None, None, None]).max() <= 2


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_a_broken_animation_is_refused_or_shorter_never_filled_in(format: str) -> None:
    frames = [Image.fromarray(pixels(*SIZE, seed=seed)) for seed in range(5)]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], duration=100)
    whole, _ = image.decode_animation(data, (0, 100, 200, 300, 400), 16, 16)
    for end in range(40, len(data) - 1, max(1, len(data) // 25)):
        try:
            timing = image.probe_animation(io.BytesIO(data[:end]))
            times = (0,) if timing is None else timing.begins_ms
            shown, _ = image.decode_animation(data[:end], times, 16, 16)
        except DecodeError:
            continue
        assert np.array_equal(shown, whole[: len(shown)]), end


@pytest.mark.parametrize("number", [0, 1])
def test_a_frame_far_larger_than_its_image_is_refused_before_it_is_made(number: int) -> None:
    # a frame of 65535x65535 px, which Pillow would fill (4 GB) so as to dispose of it later, alone and behind a sound one
    sound = saved(Image.new("P", (4, 4)), "GIF").removesuffix(b";")
    huge = b"!\xf9\x04\x09\0\0\0\0," + struct.pack("<4H", 0, 0, 65535, 65535) + b"\0\x02\x02\x4c\x01\0"
    data = (sound if number else sound[: sound.index(b",")]) + huge + b";"
    with pytest.raises(DecodeError, match="65535x65535 is 4294836225 pixels; --max-pixels is 1000") as caught:
        image.probe_animation(io.BytesIO(data), 1000)
    assert caught.value.reason == "too_large"


def test_pillow_is_as_it_was_behind_an_image() -> None:
    before = Image._decompression_bomb_check
    image.probe(io.BytesIO(animated_gif()), 10**6)
    assert Image._decompression_bomb_check is before
