"""Crops, flips and remainders: which part of a source is shown and where, and boxes that move with it."""

import io
import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.planned import make_example, make_row, policy, reference_of

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.sampling.draws import words
from patchpack.pipeline.sampling.framing import Crop, framed, moved_boxes
from patchpack.pipeline.stages.records import Reference
from patchpack.pipeline.stages.sample import sample
from patchpack.pipeline.stages.write import placed
from patchpack.schemas.geometry import Box, Layout

sides = st.integers(1, 700)


@given(height=sides, width=sides, low=st.floats(0.01, 1), number=st.integers(0, 99))
def test_a_crop_lies_in_the_source_and_its_corner_where_jpegs_can_be_cut(
    height: int, width: int, low: float, number: int
) -> None:
    top, left, tall, wide = Crop(low, 1.0).box(height, width, words(4, 0, f"{number}"))
    assert 0 <= top <= top + tall <= height and 0 <= left <= left + wide <= width and min(tall, wide) >= 1
    assert top % 8 == left % 8 == 0


def test_crops_have_the_parts_and_aspects_of_inception() -> None:
    boxes = [Crop.parse("inception:0.2-0.6").box(900, 900, words(4, 1, f"{n}")) for n in range(4000)]
    areas = [box.height * box.width / 810_000 for box in boxes]
    stretches = [math.log(box.height / box.width) for box in boxes]
    assert min(areas) >= 0.198 and max(areas) <= 0.602
    assert statistics.fmean(areas) == pytest.approx(0.4, abs=0.01)
    # log-uniform between 3/4 and 4/3
    assert max(map(abs, stretches)) <= math.log(4 / 3) + 0.01
    assert statistics.fmean(stretches) == pytest.approx(0, abs=0.01)
    assert statistics.pstdev(stretches) == pytest.approx(math.log(4 / 3) / math.sqrt(3), rel=0.05)
    assert Crop.parse("none").box(30, 40, []) == Box(0, 0, 30, 40)


def test_each_view_has_its_own_crop_and_flip_and_the_size_is_that_of_the_crop() -> None:
    how = policy("native", crop=Crop(0.1, 0.5), flips=True, num_views=4)
    views = [sample(make_example("a", height=640, width=480), view, how) for view in range(4)]
    found = [view for view in views if isinstance(view, Reference)]
    assert len({view.box for view in found}) == 4
    for view in found:
        assert (view.target_height, view.target_width) == view.box[2:]
        assert view.grid[1:] == tuple(max(1, math.floor(side / 16 + 0.5)) for side in view.box[2:])
    many = [sample(make_example(f"{n}"), 0, how).flip for n in range(2000)]  # type: ignore[union-attr]
    assert sum(many) == pytest.approx(1000, abs=100)
    assert not sample(make_example("a"), 0, policy("native")).flip  # type: ignore[union-attr]


@given(height=sides, width=sides, h=st.integers(1, 30), w=st.integers(1, 30))
def test_padding_keeps_the_aspect_and_fills_one_side(height: int, width: int, h: int, w: int) -> None:
    box, grid = Box(0, 0, height, width), (16 * h, 16 * w)
    found = framed("pad", box, *grid, keeps_size=False)
    assert found.box == box
    tall, wide = found.valid_height, found.valid_width
    assert tall <= grid[0] and wide <= grid[1] and (tall == grid[0] or wide == grid[1])
    scale = min(Fraction(grid[0], height), Fraction(grid[1], width))
    assert abs(tall - height * scale) <= Fraction(1, 2) or tall == 1
    assert abs(wide - width * scale) <= Fraction(1, 2) or wide == 1


@given(height=sides, width=sides, h=st.integers(1, 30), w=st.integers(1, 30))
def test_cropping_keeps_the_aspect_and_most_of_the_image(height: int, width: int, h: int, w: int) -> None:
    grid = (16 * h, 16 * w)
    found = framed("crop", Box(0, 0, height, width), *grid, keeps_size=False)
    box = found.box
    assert (found.valid_height, found.valid_width) == grid
    assert box.top + box.height <= height and box.left + box.width <= width
    assert box.height == height or box.width == width
    # to half a pixel of the source
    scale = min(Fraction(height, grid[0]), Fraction(width, grid[1]))
    assert abs(box.height - grid[0] * scale) <= Fraction(1, 2) or box.height == 1
    assert abs(box.width - grid[1] * scale) <= Fraction(1, 2) or box.width == 1


@pytest.mark.parametrize(
    ("fit", "size", "box", "valid", "grid"),
    [
        ("pad", (100, 70), (0, 0, 100, 70), (100, 70), (7, 5)),
        ("crop", (100, 70), (0, 0, 96, 64), (96, 64), (6, 4)),
        ("crop", (250, 1030), (0, 0, 240, 1024), (240, 1024), (15, 64)),
        ("crop", (286, 286), (0, 0, 272, 272), (272, 272), (17, 17)),
        ("crop", (9, 40), (0, 8, 9, 18), (16, 32), (1, 2)),
        ("resize", (100, 70), (0, 0, 100, 70), (96, 64), (6, 4)),
    ],
)
def test_native_sizes_keep_their_very_pixels(
    fit: str, size: tuple[int, int], box: tuple[int, ...], valid: tuple[int, int], grid: tuple[int, int]
) -> None:
    config = PlanConfig(resolution="native", fit=fit, sequence_length=4096)
    found = sample(make_example("a", height=size[0], width=size[1]), 0, config.policy)
    assert isinstance(found, Reference) and found.grid[1:] == grid
    _, down, across = config.layouts[0].stride
    framing = config.framing(found.box, found.grid.h * down, found.grid.w * across, is_shrunk=False)
    assert (framing.box, (framing.valid_height, framing.valid_width)) == (box, valid)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


ORIENTATIONS = range(1, 9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("backend", ["pillow", "fast"])
def test_a_part_of_an_upright_image_is_cut_out_wherever_it_is_stored(
    orientation: int, format: str, backend: str
) -> None:
    stored, exif = Image.fromarray(noise(48, 64)), Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    stored.save(data, format, exif=exif, quality=95)
    whole, size = image.decode(data.getvalue(), *((64, 48) if orientation > 4 else (48, 64)), backend=backend)
    box = Box(8, 16, 24, 16)
    part, again = image.decode(data.getvalue(), 24, 16, backend=backend, box=box)
    assert size == again == whole.shape[1:3]
    assert np.array_equal(part, whole[:, 8:32, 16:32])


def test_parts_of_large_jpegs_are_decoded_smaller_without_a_shift() -> None:
    smooth = np.linspace(0, 255, 1600)[:, None, None] * np.ones((1600, 1200, 3))
    smooth[:, :, 1] = np.linspace(0, 255, 1200)[None, :]
    data = io.BytesIO()
    Image.fromarray(smooth.astype(np.uint8)).save(data, "JPEG", quality=95)
    box = Box(400, 240, 960, 640)
    (part,), _ = image.decode(data.getvalue(), 48, 32, box=box)
    (exact,), _ = image.decode(data.getvalue(), 48, 32, "exact", box=box)
    assert np.abs(part.astype(int) - exact.astype(int)).max() <= 2
    # a row of the part stands for 20 of the source: 3.2 levels, so a shift of a third of one would show
    expected = np.linspace(0, 255, 1600)[400:1360].reshape(48, 20).mean(1)
    assert np.abs(exact[:, 5, 0] - expected).max() < 1.5


def test_what_is_padded_and_mirrored_stands_in_the_corner_of_its_grid() -> None:
    layout = Layout(20, 4, (1, 4, 4), mean=(0.1, 0.2, 0.3))
    frames_THWC = noise(6, 5)[None]
    row = make_row(0, "a", (1, 2, 2), valid_height=6, valid_width=5, flip=True)
    canvas = placed(frames_THWC, row, layout)
    assert canvas.shape == (1, 8, 8, 3)
    assert np.array_equal(canvas[:, :6, :5], frames_THWC[:, :, ::-1])
    # round(255 x mean)
    assert (canvas[:, 6:] == [26, 51, 77]).all() and (canvas[:, :, 5:] == [26, 51, 77]).all()


corners = st.floats(0, 1)


@settings(max_examples=100)
@given(points=st.lists(st.tuples(corners, corners, corners, corners), max_size=4), flip=st.booleans())
def test_boxes_follow_a_drawn_rectangle(points: list[tuple[float, float, float, float]], flip: bool) -> None:
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in points]
    source, shown, valid, grid = (200, 100), Box(40, 8, 120, 72), (96, 64), (96, 80)
    moved = moved_boxes(boxes, source, shown, valid, grid, flip)
    assert len(moved) == len(boxes)
    for (x0, y0, x1, y1), (left, top, right, bottom) in zip(boxes, moved, strict=True):
        # in px of the grid, by hand: cut, scaled by 64 / 72 and 96 / 120, mirrored inside the valid part
        across = [min(72.0, max(0.0, x * 100 - 8)) * 64 / 72 for x in (x0, x1)]
        across = [64 - x for x in across[::-1]] if flip else across
        down = [min(120.0, max(0.0, y * 200 - 40)) * 96 / 120 for y in (y0, y1)]
        assert (left * 80, right * 80) == pytest.approx(tuple(across), abs=1e-6)
        assert (top * 96, bottom * 96) == pytest.approx(tuple(down), abs=1e-6)


def test_the_plan_says_what_is_shown() -> None:
    config = PlanConfig(tubelet=(1, 4, 4), fit="crop")
    reference = reference_of(make_example("a", height=40, width=90), (1, 4, 4))
    assert config.framing(reference.box, 16, 16, is_shrunk=False) == (Box(0, 24, 40, 40), 16, 16)
