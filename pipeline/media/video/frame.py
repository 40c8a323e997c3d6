"""One decoded frame to upright RGB at a size, by swscale: resized as 16-bit YUV 4:4:4, then converted.

Resizing and converting at once costs 1.5 to 2 times as much for the same pixels: swscale writes packed RGB without SIMD. It
also resizes chroma on its own, sharper than luma where a frame shrinks less than four times; natural chroma is smooth
and keeps 52 dB, but saturated test patterns fall to 34. Where chroma has sharp edges it is therefore brought to the size of luma
first, which doubles the cost. Against a float64 reference this gives 47 dB and more, FFmpeg's defaults 28 to 49
(`benchmarks/video.py`). Matrix, range and place of the chroma samples are the stream's. What is not done: tone mapping, and
conversion of the primaries (BT.2020 and HDR come out pale).
"""

import struct
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple, cast

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from patchpack.schemas.geometry import Box

_BETWEEN = "yuv444p16le"

# mean squared step between neighbours of both chroma planes together, in 8-bit levels. The squared error of a resize on
# its own was at most 1/60 of it, so 60 stands for 48 dB; our natural clips have up to 26, test patterns from 560 on
_SHARP = 60

# from four times on, chroma shrinks twice at least, and costs no quality (measured on test patterns: 45 dB at 3, 50 at 4)
_FAR = 4

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
    """How YUV becomes RGB: the matrix, whether the stream says it or the size decides, and the range."""

    matrix: str
    tagged: bool
    full_range: bool


def colour_of(frame: av.VideoFrame) -> Colour:
    """Returns how a frame is converted. Untagged ones: BT.709 from 1280 columns or 720 lines on, otherwise BT.601.

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


class Scaler:
    """Frames of one video to one size; its swscale contexts are made once."""

    def __init__(self, height: int, width: int, box: Box | None = None) -> None:
        """Takes the (height, width) of the result in px, upright, and the part of a frame that is shown."""
        self._size, self._box = (height, width), box
        self._chroma, self._resize, self._convert = VideoReformatter(), VideoReformatter(), VideoReformatter()

    def pixels(self, frame: av.VideoFrame, source_size: tuple[int, int] | None = None) -> np.ndarray:
        """Returns a frame, or the part of it, as (height, width, 3) uint8, upright, RGB.

        Args:
            frame: as decoded.
            source_size: its upright (height, width), by `oriented_size`; needed for parts alone.
        """
        box = self._box
        if box is None or source_size is None or box == (0, 0, *source_size):
            return self._resized(frame, self._size)
        if box.top + box.height > source_size[0] or box.left + box.width > source_size[1]:
            # of another video; whoever asks for it compares sizes
            return self._resized(frame, self._size)
        # swscale takes whole frames: of the one that is resized alike the part is cut out, to the nearest pixel
        parts = list(zip(self._size, box[2:], source_size, box[:2], strict=True))
        whole = [max(size, round(Fraction(full * size, part))) for size, part, full, _ in parts]
        corner = [
            min(whole_side - size, round(Fraction(first * size, part)))
            for whole_side, (size, part, _, first) in zip(whole, parts, strict=True)
        ]
        pixels_HWC = self._resized(frame, (whole[0], whole[1]))
        return pixels_HWC[corner[0] :, corner[1] :][: self._size[0], : self._size[1]]

    def _resized(self, frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
        display = _display(frame)
        height, width = size[::-1] if display.swap else size
        colour, layout = colour_of(frame), frame.format
        if not layout.is_rgb and len(layout.components) >= 3:
            if (frame.height < _FAR * height or frame.width < _FAR * width) and _has_sharp_chroma(frame):
                frame = self._chroma.reformat(frame, format=_BETWEEN, interpolation=_SCALER, threads=1)
            frame = self._resize.reformat(frame, width, height, _BETWEEN, interpolation=_SCALER, threads=1)
        small = self._convert.reformat(
            frame,
            width,
            height,
            "rgb24",
            src_colorspace=Colorspace.ITU709 if colour.matrix == "bt709" and not colour.tagged else None,
            interpolation=_SCALER,
            threads=1,
        )
        pixels_HWC = small.to_ndarray()
        if display.swap:
            pixels_HWC = pixels_HWC.transpose(1, 0, 2)
        return pixels_HWC[:: -1 if display.flip_rows else 1, :: -1 if display.flip_columns else 1]


def _has_sharp_chroma(frame: av.VideoFrame) -> bool:
    """Returns whether subsampled chroma has sharp edges, from every fourth row; True where planes are mixed."""
    layout = frame.format
    if layout.chroma_width(64) == 64 and layout.chroma_height(64) == 64:
        return False
    if len(frame.planes) < 3:
        return True
    bits = layout.components[1].bits
    steps = 0.0
    for plane in frame.planes[1:3]:
        dtype = np.dtype("<u2" if bits > 8 else np.uint8)
        plane_HW = np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)[
            : plane.height // 4 * 4, : plane.width
        ]
        rows_HW, next_HW = plane_HW[::4].astype(np.int32), plane_HW[1::4].astype(np.int32)
        for step_HW in (np.diff(rows_HW), next_HW - rows_HW):
            steps += float(np.square(step_HW).mean()) / 4 ** (bits - 8) if step_HW.size else 0.0
    return steps > _SHARP


def _display(frame: av.VideoFrame) -> Display:
    """Returns what a frame's display matrix asks for, to the nearest quarter turn, mirrored ones included."""
    # keyed by type, which its annotation does not say
    data = cast(Mapping[SideDataType, bytes], frame.side_data).get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return Display()
    # libavutil/display.h: x' = a x + c y, y' = b x + d y
    a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Display(False, d < 0, a < 0)
    return Display(True, b < 0, c < 0)
