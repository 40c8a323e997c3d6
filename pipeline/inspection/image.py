"""Lays out the image that `inspect --image` writes: a strip of the sequence, then every segment."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from patchpack.pipeline.report.text import fitted

WIDTH_PX = 1280
MARGIN_PX = 24
GAP_PX = 16
STRIP_PX = 36
TEXT_PX = 14
LINE_PX = 18
# a caption has room for a file name even under a thumbnail
LEAST_CELL_PX = 290
_INK, _SOFT, _PAPER, _HATCH = (28, 32, 36), (96, 100, 108), (255, 255, 255), (190, 194, 200)

# dark and light in turn, hues far apart
_COLOURS = (
    *((45, 93, 176), (244, 186, 84), (20, 116, 98), (243, 166, 150)),
    *((104, 74, 156), (166, 208, 120), (160, 58, 88), (132, 198, 232)),
)

# red, green, blue, or a name
Colour = tuple[int, int, int] | str


class SegmentImage(NamedTuple):
    """One segment: frames (T, H, W, C) uint8 with C of 1 or 3, and lines of text below it."""

    frames: np.ndarray
    captions: tuple[str, ...]


def compose(title: str, images: list[SegmentImage], spans: list[tuple[int, int]], sequence_length: int) -> Image.Image:
    """Returns the whole image.

    Args:
        title: its first line.
        images: the segments, in order.
        spans: first token and number of tokens of each.
        sequence_length: tokens of the sequence, padding included.
    """
    cells = [_cell(number, shown) for number, shown in enumerate(images, start=1)]
    corners, bottom = _flow([cell.size for cell in cells], MARGIN_PX + LINE_PX + STRIP_PX + 3 * GAP_PX)
    image = Image.new("RGB", (WIDTH_PX, bottom + MARGIN_PX), _PAPER)
    pen = ImageDraw.Draw(image)
    _text(pen, (MARGIN_PX, MARGIN_PX), title, WIDTH_PX - 2 * MARGIN_PX, _INK)
    _draw_strip(pen, (MARGIN_PX, MARGIN_PX + LINE_PX + GAP_PX), spans, sequence_length)
    for cell, corner in zip(cells, corners, strict=True):
        image.paste(cell, corner)
    return image


def colour(number: int) -> tuple[int, int, int]:
    """Returns the colour of segment `number`: of neighbours one is dark and one is light, so that nobody needs to see hues."""
    return _COLOURS[(number - 1) % len(_COLOURS)]


def text_colour(number: int) -> tuple[int, int, int]:
    """Returns what is legible on the colour of segment `number`: a contrast of at least 4.5."""
    return _INK if number % 2 == 0 else _PAPER


def _draw_strip(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], spans: list[tuple[int, int]], sequence_length: int
) -> None:
    """Draws how a sequence is filled: a coloured block a segment, padding hatched."""
    (left, top), width = corner, WIDTH_PX - 2 * MARGIN_PX
    bottom = top + STRIP_PX
    for x in range(left - STRIP_PX, left + width, 8):
        # 45 degrees, cut at the strip's ends
        low, high = max(x, left), min(x + STRIP_PX, left + width)
        pen.line((low, bottom - (low - x), high, bottom - (high - x)), fill=_HATCH)
    for number, (start, length) in enumerate(spans, start=1):
        x0, x1 = (left + width * tokens // sequence_length for tokens in (start, start + length))
        pen.rectangle((x0, top, max(x0, x1 - 1), bottom), fill=colour(number))
        label = str(number)
        if x1 - x0 > pen.textlength(label, _font()) + 4:
            pen.text(((x0 + x1) / 2, (top + bottom) / 2), label, fill=text_colour(number), font=_font(), anchor="mm")
    pen.rectangle((left, top, left + width, bottom), outline=_SOFT)


def _cell(number: int, shown: SegmentImage) -> Image.Image:
    """Returns one segment with its number, its frames and its captions."""
    most = WIDTH_PX - 2 * MARGIN_PX
    frames = [_image(frame) for frame in shown.frames]
    if frames[0].width > most:
        size = most, max(1, frames[0].height * most // frames[0].width)
        frames = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
    step = frames[0].width + 2
    columns = max(1, min(len(frames), (most + 2) // step))
    rows = -(-len(frames) // columns)
    height = rows * (frames[0].height + 2)
    width = min(most, max(columns * step, LEAST_CELL_PX))
    image = Image.new("RGB", (width, 4 + height + LINE_PX * len(shown.captions) + 6), _PAPER)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, min(width, columns * step) - 3, 2), fill=colour(number))
    for index, frame in enumerate(frames):
        image.paste(frame, (index % columns * step, 4 + index // columns * (frame.height + 2)))
    for line, caption in enumerate(shown.captions):
        text = f"{number}  {caption}" if line == 0 else caption
        _text(pen, (0, 4 + height + 2 + line * LINE_PX), text, width, _SOFT if line else _INK)
    return image


def _image(frame_HWC: np.ndarray) -> Image.Image:
    return Image.fromarray(frame_HWC[:, :, 0] if frame_HWC.shape[2] == 1 else frame_HWC).convert("RGB")


def _flow(sizes: list[tuple[int, int]], top: int) -> tuple[list[tuple[int, int]], int]:
    """Returns a place for each cell, in lines from the left like words, and where the last line ends."""
    corners, left, height = [], MARGIN_PX, 0
    for cell_width, cell_height in sizes:
        if left > MARGIN_PX and left + cell_width > WIDTH_PX - MARGIN_PX:
            left, top, height = MARGIN_PX, top + height + GAP_PX, 0
        corners.append((left, top))
        left, height = left + cell_width + GAP_PX, max(height, cell_height)
    return corners, top + height


def _text(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, width: int, fill: Colour) -> None:
    """Writes one line, shortened in the middle until it fits."""
    columns = len(text)
    line = fitted(text, columns)
    while columns > 8 and pen.textlength(line, _font()) > width:
        columns -= 1
        line = fitted(text, columns)
    pen.text(corner, line, fill=fill, font=_font())


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    # Pillow's own: the same on every machine
    return ImageFont.load_default(TEXT_PX)
