"""Which part of a source is shown, and where: random crops and flips, and what becomes of the remainder of a grid.

A grid is a whole number of cells, and an image seldom is. `--fit resize` stretches it by the little that is missing,
`pad` keeps its aspect to the pixel and leaves the rest of the grid empty, `crop` keeps it by leaving out an edge.
`--crop inception:LO-HI` takes a random part of LO to HI of the area and of an aspect 3/4 to 4/3 times that of the
source (Szegedy et al., arXiv 1409.4842, section 6, relative to the source since aspects are kept here).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from patchpack.pipeline.sampling.draws import fraction
from patchpack.schemas.geometry import Box

# JPEG is decoded smaller in steps of up to 8: a box that begins at a multiple of it is cut out without a shift
CORNER_PX = 8
# Szegedy et al., section 6
MOST_ASPECT = 4 / 3


class Framing(NamedTuple):
    """The part of a source that is taken, and the (height, width) in px it is resized to, from the grid's corner on."""

    box: Box
    valid_height: int
    valid_width: int


@dataclass(frozen=True)
class Crop:
    """A rule of --crop: the least and the largest part of the area; the whole image if they are 1."""

    low: float = 1.0
    high: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Crop":
        """Returns the rule that `none` or `inception:0.3-1` stands for.

        Raises:
            ValueError: it is neither.
        """
        if text == "none":
            return cls()
        kind, _, span = text.partition(":")
        low, dash, high = span.partition("-")
        try:
            rule = cls(float(low), float(high))
        except ValueError:
            rule = cls(0.0, 0.0)
        if kind != "inception" or not dash or not 0 < rule.low <= rule.high <= 1:
            raise ValueError(
                f"--crop {text}: no such rule; it is inception:LO-HI with 0 < LO <= HI <= 1, parts of the area, or none; "
                "leave it out for none"
            )
        return rule

    def box(self, height: int, width: int, words: list[int]) -> Box:
        """Returns the part of a source of (height, width) in px that a view takes, from four random words."""
        if self.low == 1:
            return Box(0, 0, height, width)
        area, aspect, down, across = map(fraction, words)
        part = self.low + area * (self.high - self.low)
        # log-uniform; what does not fit is as long as the source, as in most implementations
        stretch = math.exp((2 * aspect - 1) * math.log(MOST_ASPECT))
        tall = min(height, max(1, math.floor(height * math.sqrt(part * stretch) + 0.5)))
        wide = min(width, max(1, math.floor(width * math.sqrt(part / stretch) + 0.5)))
        return Box(_corner(down * (height - tall)), _corner(across * (width - wide)), tall, wide)


def framed(fit: str, box: Box, height: int, width: int, *, keeps_size: bool) -> Framing:
    """Returns what is shown in a grid of (height, width) in px.

    Args:
        fit: resize, pad or crop.
        box: the part of the source that the view takes.
        height: of the grid, in px.
        width: of the grid, in px.
        keeps_size: whether the rule asked for the source's own pixels, which are then neither enlarged nor shrunk.
    """
    if fit == "pad":
        if keeps_size and box.height <= height and box.width <= width:
            return Framing(box, box.height, box.width)
        scale = min(Fraction(height, box.height), Fraction(width, box.width))
        tall, wide = (max(1, math.floor(side * scale + Fraction(1, 2))) for side in (box.height, box.width))
        return Framing(box, min(tall, height), min(wide, width))
    if fit == "crop":
        if keeps_size and box.height >= height and box.width >= width:
            return Framing(_middle(box, height, width), height, width)
        scale = min(Fraction(box.height, height), Fraction(box.width, width))
        tall, wide = (max(1, math.floor(side * scale + Fraction(1, 2))) for side in (height, width))
        return Framing(_middle(box, min(tall, box.height), min(wide, box.width)), height, width)
    return Framing(box, height, width)


def moved_boxes(
    boxes: Sequence[Sequence[float]],
    source: tuple[int, int],
    shown: Box,
    valid: tuple[int, int],
    grid: tuple[int, int],
    flip: bool,
) -> list[tuple[float, float, float, float]]:
    """Returns boxes where they are after crop, resize and flip, each (x0, y0, x1, y1) in fractions of the grid.

    A box is cut at the edge of what is shown; one that lies beyond it has no area, so that order and number stay.

    Args:
        boxes: each (x0, y0, x1, y1) in fractions of the upright source.
        source: its (height, width) in px.
        shown: the part of it that is shown.
        valid: (height, width) in px that the part is resized to, from the grid's corner on.
        grid: (height, width) in px.
        flip: whether it is mirrored.
    """

    def moved(at: float, size: int, first: int, length: int, valid_size: int, grid_size: int, mirrored: bool) -> float:
        inside = min(1.0, max(0.0, (at * size - first) / length))
        return (1 - inside if mirrored else inside) * valid_size / grid_size

    across = (source[1], shown.left, shown.width, valid[1], grid[1], flip)
    down = (source[0], shown.top, shown.height, valid[0], grid[0], False)
    made = []
    for x0, y0, x1, y1 in boxes:
        left, right = sorted((moved(x0, *across), moved(x1, *across)))
        top, bottom = sorted((moved(y0, *down), moved(y1, *down)))
        made.append((left, top, right, bottom))
    return made


def _middle(box: Box, height: int, width: int) -> Box:
    """Returns the middle part of a box, of (height, width) in px, to a few pixels."""
    top, left = (_corner((have - want) / 2) for have, want in ((box.height, height), (box.width, width)))
    return Box(box.top + top, box.left + left, height, width)


def _corner(offset: float) -> int:
    return int(offset // CORNER_PX) * CORNER_PX
