"""One decoded frame to upright RGB at a size: one pass of swscale, which resizes and converts at once.

Against a float64 reference the flags here give 52-58 dB, FFmpeg's defaults 42 (`benchmarks/video.py`). Matrix,
range and place of the chroma samples are the stream's. What is not done: tone mapping, and conversion of the primaries
(BT.2020 and HDR come out pale).
"""

import struct
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

# FFmpeg's default flags lose 14 dB against these: chroma is interpolated, and rounding is exact
_SCALER = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND

# AVColorSpace (ITU-T H.273, table 4)
_UNTAGGED = 2
_MATRICES = {
    0: "rgb", 1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 8: "ycgco", 9: "bt2020", 10: "bt2020",
}  # fmt: skip
_FULL_RANGE = 2


class Display(NamedTuple):
    """How a stored frame becomes the upright one: rows and columns swapped, then each flipped or not."""

    swap: bool = False
    flip_rows: bool = False
    flip_columns: bool = False


class Colour(NamedTuple):
    """How YUV becomes RGB: the matrix, whether the stream tells it or the size decides, and the range."""

    matrix: str
    tagged: bool
    full_range: bool


def colour_of(frame: av.VideoFrame) -> Colour:
    """Returns how a frame is converted. Untagged ones: BT.709 from 1280 columns or 720 lines on, else BT.601.

    That rule is mpv's and most players'; FFmpeg's own converter takes BT.601 for everything.
    """
    name = frame.format.name
    full_range = frame.color_range == _FULL_RANGE or name.startswith("yuvj")
    if frame.format.is_rgb:
        return Colour("rgb", True, True)
    if frame.colorspace == _UNTAGGED:
        return Colour("bt709" if frame.width >= 1280 or frame.height >= 720 else "bt601", False, full_range)
    return Colour(_MATRICES.get(frame.colorspace, "bt601"), True, full_range)


def oriented_size(frame: av.VideoFrame, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Returns the upright (height, width) on screen, in square pixels.

    Pixels wider than high are stretched in width, others in height, so that no line or column is lost.
    """
    height, width = frame.height, frame.width
    if pixel_aspect is not None and pixel_aspect > 0:
        if pixel_aspect > 1:
            width = int(width * pixel_aspect + Fraction(1, 2))
        else:
            height = int(height / pixel_aspect + Fraction(1, 2))
    return (width, height) if _display(frame).swap else (height, width)


def upright_pixels(frame: av.VideoFrame, reformatter: VideoReformatter, height: int, width: int) -> np.ndarray:
    """Returns a frame as (height, width, 3) uint8, upright, RGB.

    Args:
        frame: as decoded.
        reformatter: to be used again for the same size.
        height: of the result, in px.
        width: of the result, in px.
    """
    display = _display(frame)
    if display.swap:
        height, width = width, height
    colour = colour_of(frame)
    small = reformatter.reformat(
        frame,
        width=width,
        height=height,
        format="rgb24",
        interpolation=_SCALER,
        src_colorspace=Colorspace.ITU709 if colour == ("bt709", False, colour.full_range) else None,
        threads=1,
    )
    pixels_HWC = small.to_ndarray()
    if display.swap:
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    return pixels_HWC[:: -1 if display.flip_rows else 1, :: -1 if display.flip_columns else 1]


def _display(frame: av.VideoFrame) -> Display:
    """Returns what a frame's display matrix asks for, to the nearest quarter turn, mirrored ones included."""
    data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return Display()
    # libavutil/display.h: x' = a x + c y, y' = b x + d y
    a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Display(False, d < 0, a < 0)
    return Display(True, b < 0, c < 0)
