"""Overlapping tubelets: as a convolution of that kernel, stride and padding sees them, and back to the very frames."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchpack.pipeline.media.patchify import mean_colour, patchify, patchify_layout, unpatchify_layout
from patchpack.schemas import FormatError
from patchpack.schemas.geometry import Grid, Layout, grid_of

# a mean of whole levels, so that padding is exactly 0 for the model
MEAN = (51 / 255, 102 / 255, 153 / 255)


def layout_of(tubelet: Any, stride: Any, **more: Any) -> Layout:
    return Layout(4096, 8, tubelet, stride=stride, mean=MEAN, std=(0.25, 0.5, 0.2), **more)


def frames_of(grid: tuple[int, int, int], layout: Layout, missing: int = 0) -> np.ndarray:
    t, h, w = (cells * step for cells, step in zip(grid, layout.stride, strict=True))
    return np.random.default_rng(0).integers(0, 256, (t - missing, h, w, 3), np.uint8)


def slow_tokens(frames: np.ndarray, layout: Layout) -> np.ndarray:
    """Returns the tokens pixel by pixel: what lies outside is the mean colour, frames behind the last repeat it."""
    t, h, w = grid_of(len(frames), *frames.shape[1:3], layout.stride)
    whole = t * layout.stride[0]
    fill, tokens = mean_colour(layout), []
    for cell in np.ndindex(t, h, w):
        for offset in np.ndindex(*layout.tubelet):
            at = [c * s - q + o for c, s, q, o in zip(cell, layout.stride, layout.padding, offset, strict=True)]
            inside = 0 <= at[0] < whole and 0 <= at[1] < frames.shape[1] and 0 <= at[2] < frames.shape[2]
            tokens.append(frames[min(at[0], len(frames) - 1), at[1], at[2]] if inside else fill)
    return np.array(tokens, np.uint8).reshape(t * h * w, -1)


SHAPES = [
    ((3, 7, 7), (2, 4, 4)),
    ((1, 5, 5), (1, 4, 4)),
    ((2, 4, 6), (1, 2, 3)),
    ((3, 3, 3), (1, 1, 1)),
    ((2, 4, 4), (2, 3, 1)),
]


@settings(max_examples=25, deadline=None)
@given(shape=st.sampled_from(SHAPES), grid=st.tuples(*[st.integers(1, 3)] * 3), missing=st.integers(0, 1))
def test_tokens_are_those_of_a_loop_and_the_way_back_is_exact(shape: Any, grid: Any, missing: int) -> None:
    layout = layout_of(*shape)
    frames = frames_of(grid, layout, min(missing, grid[0] * layout.stride[0] - 1, layout.stride[0] - 1))
    tokens = patchify_layout(frames, layout)
    assert np.array_equal(tokens, slow_tokens(frames, layout))
    back = unpatchify_layout(tokens, Grid(*grid), layout)
    assert np.array_equal(back[: len(frames)], frames)
    assert (back[len(frames) :] == frames[-1]).all()


def test_the_cubes_of_mvit_are_its_convolution() -> None:
    # MViT, table 2: 3 x 7 x 7, stride 2 x 4 x 4; padding 1 x 3 x 3 as in the published configuration
    layout = layout_of((3, 7, 7), (2, 4, 4))
    assert layout.padding == (1, 3, 3)
    frames = frames_of((3, 8, 8), layout)
    convolution = torch.nn.Conv3d(3, 6, (3, 7, 7), (2, 4, 4), (1, 3, 3), bias=False)
    mean, std = torch.tensor(layout.mean), torch.tensor(layout.std)
    pixels = (torch.from_numpy(frames) / 255 - mean) / std
    theirs = convolution(pixels.permute(3, 0, 1, 2)[None])[0].flatten(1).T
    tokens = torch.from_numpy(patchify_layout(frames, layout)).reshape(-1, 3 * 7 * 7, 3)
    kernel = convolution.weight.permute(2, 3, 4, 1, 0).reshape(-1, 6)
    ours = ((tokens / 255 - mean) / std).flatten(1) @ kernel
    assert ours.shape == theirs.shape == (3 * 8 * 8, 6)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_mean_of_changed_tokens_is_taken_where_they_overlap() -> None:
    layout = layout_of((1, 3, 3), (1, 2, 2))
    frames = np.full((1, 4, 4, 3), 100, np.float32)
    tokens = patchify_layout(frames, layout)
    tokens[0] += 30
    back = unpatchify_layout(tokens, Grid(1, 2, 2), layout)
    # pixel (1, 1) is in four tokens, one of them changed; (0, 0) in the changed one alone; (0, 1) in two
    assert back[0, 1, 1].tolist() == [107.5] * 3
    assert back[0, 0, 0].tolist() == [130.0] * 3
    assert back[0, 0, 1].tolist() == [115.0] * 3


def test_edge_to_edge_tubelets_are_cut_as_before() -> None:
    layout = layout_of((2, 4, 4), (0, 0, 0))
    frames = frames_of((2, 3, 2), layout)
    assert layout.stride == (2, 4, 4) and layout.padding == (0, 0, 0)
    assert np.array_equal(patchify_layout(frames, layout), patchify(frames, (2, 4, 4)))


def test_layouts_of_every_kind_come_back_from_their_record() -> None:
    for layout in (
        layout_of((3, 7, 7), (2, 4, 4), grid_multiple=8),
        layout_of((1, 4, 4), (0, 0, 0), align_tokens=64, keep_order=True),
        layout_of((1, 4, 4), (0, 0, 0), text_length=77),
    ):
        assert Layout.from_json(layout.to_json(), "here") == layout
    assert layout_of((1, 4, 4), (0, 0, 0), align_tokens=2, keep_order=True, text_length=3).features == [
        *("align_tokens", "keep_order", "text")
    ]
    plain = layout_of((1, 4, 4), (0, 0, 0))
    assert plain.features == [] and not {"align_tokens", "keep_order", "text_length"} & plain.to_json().keys()
    with pytest.raises(FormatError, match="padding"):
        Layout.from_json(layout_of((3, 7, 7), (2, 4, 4)).to_json() | {"padding": [0, 0, 0]}, "here")


def test_a_wrong_buffer_or_wrong_tokens_are_refused() -> None:
    layout = layout_of((3, 7, 7), (2, 4, 4))
    with pytest.raises(ValueError, match="out_NP"):
        patchify_layout(frames_of((1, 2, 2), layout), layout, np.empty((3, 3), np.uint8))
    with pytest.raises(ValueError, match="tokens_NP"):
        unpatchify_layout(np.empty((3, 3), np.uint8), Grid(1, 2, 2), layout)
