"""Patchify: every value lands where the format says, and comes back."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planned import slow_tokens

from patchpack.pipeline.media.patchify import patchify, unpatchify

side = st.integers(1, 4)
tubelets = st.tuples(st.integers(1, 3), side, side)


def make_frames(frames: int, height: int, width: int, channels: int) -> np.ndarray:
    """Returns frames whose values are all different, (T, H, W, C) int64."""
    return np.arange(frames * height * width * channels).reshape(frames, height, width, channels)


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(1, 7), h=side, w=side, channels=st.integers(1, 4), tubelet=tubelets)
def test_every_value_stands_where_the_loops_put_it(frames: int, h: int, w: int, channels: int, tubelet: Any) -> None:
    frames_THWC = make_frames(frames, h * tubelet[1], w * tubelet[2], channels)
    assert patchify(frames_THWC, tubelet).tolist() == slow_tokens(frames_THWC, tubelet)


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 7),
    h=side,
    w=side,
    channels=st.integers(1, 4),
    tubelet=tubelets,
    dtype=st.sampled_from(["u1", "f2", "i8"]),
)
def test_unpatchify_is_the_exact_inverse(frames: int, h: int, w: int, channels: int, tubelet: Any, dtype: str) -> None:
    frames_THWC = make_frames(frames, h * tubelet[1], w * tubelet[2], channels).astype(dtype)
    tokens_NP = patchify(frames_THWC, tubelet)
    grid = (len(range(0, frames, tubelet[0])), h, w)
    back_THWC = unpatchify(tokens_NP, grid, tubelet, channels, frames)
    assert tokens_NP.dtype == back_THWC.dtype == frames_THWC.dtype
    assert np.array_equal(back_THWC, frames_THWC)


def test_an_image_under_a_deep_tubelet_stands_still() -> None:
    image_THWC = make_frames(1, 4, 4, 3)
    still_THWC = np.repeat(image_THWC, 4, axis=0)
    assert np.array_equal(patchify(image_THWC, (4, 2, 2)), patchify(still_THWC, (4, 2, 2)))


def test_tokens_are_written_into_the_slice_that_was_given() -> None:
    frames_THWC = make_frames(2, 4, 6, 3).astype(np.uint8)
    buffer_LP = np.full((20, 12), 255, np.uint8)
    given_NP = buffer_LP[3:15]
    assert patchify(frames_THWC, (1, 2, 2), given_NP) is given_NP
    assert buffer_LP[3:15].tolist() == slow_tokens(frames_THWC, (1, 2, 2))
    assert (buffer_LP[:3] == 255).all() and (buffer_LP[15:] == 255).all()


def test_frames_need_not_be_contiguous_and_are_not_changed() -> None:
    frames_THWC = make_frames(2, 4, 6, 3)[:, ::-1, ::-1]
    kept_THWC = frames_THWC.copy()
    frames_THWC.flags.writeable = False
    assert patchify(frames_THWC, (2, 2, 3)).tolist() == slow_tokens(kept_THWC, (2, 2, 3))


def test_a_size_that_is_no_whole_grid_is_refused() -> None:
    with pytest.raises(ValueError) as refused:
        patchify(make_frames(1, 5, 4, 3), (1, 2, 2))
    assert str(refused.value) == (
        "1 frames of 5x4: no whole number of tubelets (1, 2, 2); "
        "height and width are positive multiples of the tubelet's; resize first"
    )


@pytest.mark.parametrize(
    "out_NP", [np.zeros((3, 12)), np.zeros((4, 11)), np.zeros((8, 12))[::2], np.zeros((4, 24))[:, :12], np.zeros(48)]
)
def test_a_wrong_buffer_is_refused(out_NP: np.ndarray) -> None:
    with pytest.raises(ValueError) as refused:
        patchify(make_frames(1, 4, 4, 3), (1, 2, 2), out_NP)
    assert str(refused.value) == (f"out_NP: {out_NP.shape}; the tokens are (4, 12), contiguous; give such an array")
    assert not out_NP.any()


@pytest.mark.parametrize(("shape", "frames"), [((7, 24), 4), ((8, 23), 4), ((8, 24), 2), ((8, 24), 5), ((8, 24), 0)])
def test_tokens_that_do_not_fill_the_grid_are_refused(shape: tuple[int, int], frames: int) -> None:
    with pytest.raises(ValueError) as refused:
        unpatchify(np.zeros(shape), (2, 2, 2), (2, 2, 2), 3, frames)
    assert str(refused.value) == (
        f"tokens_NP: {shape} for {frames} frames; grid (2, 2, 2) of tubelets (2, 2, 2) x 3 takes "
        "(8, 24) and 3 to 4 frames; give matching ones"
    )
