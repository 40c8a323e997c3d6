"""Geometry: grids count whole tubelets, positions are raster order, a layout survives its JSON and nothing else does."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchpack.schemas import FormatError, Layout
from patchpack.schemas.geometry import ceil_div, grid_of, grid_positions

LAYOUT = Layout(sequence_length=24, max_segments=5, tubelet=(2, 4, 8), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))

sides = st.integers(1, 5)


@given(value=st.integers(0, 200), divisor=st.integers(1, 20))
def test_ceil_div_is_the_least_number_of_divisors_that_covers(value: int, divisor: int) -> None:
    covering = [count for count in range(value + 1) if count * divisor >= value]
    assert ceil_div(value, divisor) == covering[0]


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(1, 12), h=sides, w=sides, tubelet=st.tuples(sides, sides, sides))
def test_a_grid_counts_the_tubelets_that_tile_the_frames(frames: int, h: int, w: int, tubelet: Any) -> None:
    pt, ph, pw = tubelet
    starts = [range(0, frames, pt), range(0, h * ph, ph), range(0, w * pw, pw)]
    assert grid_of(frames, h * ph, w * pw, tubelet) == tuple(len(list(axis)) for axis in starts)


@pytest.mark.parametrize("size", [(0, 4, 8), (1, 0, 8), (1, 4, 0), (1, 5, 8), (1, 4, 9), (1, -4, 8)])
def test_a_size_that_is_no_whole_grid_is_refused(size: tuple[int, int, int]) -> None:
    frames, height, width = size
    with pytest.raises(ValueError) as refused:
        grid_of(frames, height, width, (2, 4, 8))
    assert str(refused.value) == (
        f"{frames} frames of {height}x{width}: no whole number of tubelets (2, 4, 8); "
        "height and width are positive multiples of the tubelet's; resize first"
    )


@settings(max_examples=40, deadline=None)
@given(grid=st.tuples(sides, sides, sides))
def test_positions_stand_in_raster_order(grid: tuple[int, int, int]) -> None:
    raster = [(t, y, x) for t in range(grid[0]) for y in range(grid[1]) for x in range(grid[2])]
    positions_N3 = grid_positions(grid)
    assert positions_N3.dtype == np.int16
    assert positions_N3.tolist() == [list(position) for position in raster]


def test_the_width_of_a_token_counts_every_value_of_its_tubelet() -> None:
    tubelet = np.zeros((2, 4, 8, 3), np.uint16)
    layout = Layout(sequence_length=7, max_segments=1, tubelet=(2, 4, 8), token_dtype="uint16")
    assert layout.token_width == tubelet.size
    assert layout.token_bytes == 7 * tubelet.nbytes


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 5000),
    segments=st.integers(1, 100),
    tubelet=st.tuples(sides, sides, sides),
    dtype=st.sampled_from(["uint8", "uint16", "float16"]),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
)
def test_a_layout_survives_its_json(length: int, segments: int, tubelet: Any, dtype: str, mean: Any) -> None:
    layout = Layout(length, segments, tubelet, token_dtype=dtype, resize="nearest", mean=mean)
    assert Layout.from_json(json.loads(json.dumps(layout.to_json())), "a file") == layout


def test_unknown_keys_of_a_layout_are_ignored() -> None:
    assert Layout.from_json(LAYOUT.to_json() | {"colour_space": "sRGB"}, "a file") == LAYOUT


KEYS = [
    "sequence_length",
    "max_segments",
    "tubelet",
    "stride",
    "padding",
    "channels",
    "token_dtype",
    "token_width",
    "resize",
    "mean",
    "std",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_layout_without_a_key_is_refused(key: str) -> None:
    data = LAYOUT.to_json()
    del data[key]
    with pytest.raises(FormatError) as refused:
        Layout.from_json(data, "set/manifest.json")
    assert str(refused.value) == (
        f"set/manifest.json: broken layout (KeyError('{key}')); it holds what docs/format.md lists; rebuild the dataset"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"sequence_length": "many"},
        {"tubelet": [4, 8]},
        {"tubelet": 16},
        {"stride": 4},
        {"padding": 0},
        {"token_dtype": "colour"},
        {"mean": None},
        {"std": ["dark"]},
    ],
    ids=str,
)
def test_values_of_the_wrong_kind_are_refused_in_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as refused:
        Layout.from_json(LAYOUT.to_json() | change, "set/manifest.json")
    message = str(refused.value)
    assert message.startswith("set/manifest.json: broken layout (") and "\n" not in message
    assert message.endswith("); it holds what docs/format.md lists; rebuild the dataset")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"token_width": 100}, "token_width 100, stride [2, 4, 8], padding [0, 0, 0]"),
        ({"stride": [2, 5, 8]}, "token_width 192, stride [2, 5, 8], padding [0, 0, 0]"),
        ({"padding": [0, 0, 1]}, "token_width 192, stride [2, 4, 8], padding [0, 0, 1]"),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(FormatError) as refused:
        Layout.from_json(LAYOUT.to_json() | change, "set/manifest.json")
    assert str(refused.value) == (
        f"set/manifest.json: {told} with tubelet (2, 4, 8) x 3; "
        "this reader knows strides up to the tubelet, tokens of 192 values and a padding of [0, 0, 0] here; upgrade patchpack"
    )
