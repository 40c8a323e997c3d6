"""JPEG to pixels, strictly, and no larger than the resize needs.

libjpeg-turbo can leave out the high frequencies: at 1/2, 1/4 or 1/8 its inverse DCT yields the mean of each 2x2, 4x4
or 8x8 block of pixels for a fraction of the work. Only these powers of two are used (the others have no SIMD code, and
truncate). The entropy-coded data is read in full at every scale, so strict mode reports the same damage.

It gives up the means' blur and the clipping that full decoding does to each pixel of saturated colours:
`benchmarks/media.py --only quality` shows how much. Where a full image is that much larger than its target, chroma
stored at half resolution is repeated rather than interpolated, scaled or not: the resize averages it anyway.
"""

import numpy as np
import simplejpeg

from patchpack.pipeline.media.errors import DecodeError
from patchpack.pipeline.media.resize import Pixels
from patchpack.schemas.geometry import Box, ceil_div

# least ratio of the scaled image to the target, by --decode-quality; None: never scaled. Against the exact bicubic
# resize of the full image 3 keeps about 50 dB and 2 about 45 (docs/decisions.md); below 2 the filter's own taps are cut
LEAST_RATIO = {"exact": None, "default": 3, "fast": 2}

# least pixels of an image decoded at 1/4 or 1/8. Smaller ones are often screenshots or web images, sharp to the pixel,
# which lose up to 5 dB more there, and gain little time over 1/2 (docs/decisions.md)
LEAST_PX_BELOW_HALF = 3_000_000

# Pillow's name of a JPEG's mode -> libjpeg's of the same components
COLOUR_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


def scale_for(source: tuple[int, int], target: tuple[int, int], quality: str, box: Box | None = None) -> int:
    """Returns the divisor, 1, 2, 4 or 8, at which an image is decoded: the largest that leaves enough of it.

    Args:
        source: stored (height, width) in px.
        target: (height, width) in px of the resize, not yet turned upright.
        quality: a key of LEAST_RATIO.
        box: the part that is resized, as stored; None: the whole.
    """
    divisors = (2, 4, 8) if source[0] * source[1] >= LEAST_PX_BELOW_HALF else (2,)
    top, left, *shown = box or (0, 0, *source)
    # a part whose corner is no whole number of scaled pixels would be shifted
    return max(
        (
            divisor
            for divisor in divisors
            if not top % divisor and not left % divisor and _is_enough((shown[0], shown[1]), target, quality, divisor)
        ),
        default=1,
    )


def _is_enough(source: tuple[int, int], target: tuple[int, int], quality: str, divisor: int) -> bool:
    ratio = LEAST_RATIO[quality]
    # the true scaled size is source / divisor, however libjpeg rounds it
    return ratio is not None and all(have >= ratio * divisor * want for have, want in zip(source, target, strict=True))


def can_decode(data: bytes, strict: bool = True) -> bool:
    """Returns whether libjpeg-turbo's interface takes a JPEG; it refuses rare valid ones, as CMYK with 4:2:0.

    Raises:
        ValueError: the header is damaged.
    """
    try:
        simplejpeg.decode_jpeg_header(data, strict=strict)
    except ValueError as error:
        if "subsampling" in str(error):
            return False
        raise
    return True


def decode(
    data: bytes,
    mode: str,
    source: tuple[int, int],
    target: tuple[int, int],
    quality: str,
    padded: bool = False,
    strict: bool = True,
    box: Box | None = None,
) -> Pixels:
    """Returns a JPEG's pixels, or those of a part of it, at the scale that the target needs; CMYK with 0 as no ink.

    Args:
        data: the whole file.
        mode: a key of COLOUR_SPACES.
        source: stored (height, width) by the header that planning saw.
        target: (height, width) of the resize, not yet turned upright.
        quality: a key of LEAST_RATIO.
        padded: whether RGB is requested in four bytes a pixel, as Pillow keeps it.
        strict: whether a warning of libjpeg's is an error; otherwise what it fills in is taken.
        box: the part, as stored; None: the whole.

    Raises:
        DecodeError: the file shows another size than its header.
        ValueError: any other damage.
    """
    if simplejpeg.decode_jpeg_header(data, strict=strict)[:2] != source:
        raise DecodeError("broken", "two headers of different sizes")
    divisor = scale_for(source, target, quality, box)
    # libjpeg rounds up
    height, width = (-(-size // divisor) for size in source)
    pixels_HWC = simplejpeg.decode_jpeg(
        data,
        colorspace="RGBX" if padded and mode == "RGB" else COLOUR_SPACES[mode],
        fastupsample=_is_enough(source if box is None else box[2:], target, quality, 1),
        min_height=height if divisor > 1 else 0,
        min_width=width if divisor > 1 else 0,
        strict=strict,
    )
    if pixels_HWC.shape[:2] != (height, width):
        raise DecodeError("broken", f"decoded to {pixels_HWC.shape[0]}x{pixels_HWC.shape[1]}, not {height}x{width}")
    if box is None:
        return Pixels(pixels_HWC, (source[0] / divisor, source[1] / divisor), mode)
    top, left, tall, wide = box
    rows = slice(top // divisor, ceil_div(top + tall, divisor))
    columns = slice(left // divisor, ceil_div(left + wide, divisor))
    part_HWC = np.ascontiguousarray(pixels_HWC[rows, columns])
    return Pixels(part_HWC, (tall / divisor, wide / divisor), mode)
