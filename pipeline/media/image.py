"""Images: the header for planning, the pixels for the shard.

JPEG is decoded by simplejpeg (libjpeg-turbo) in strict mode, which reports damage that Pillow passes
over; everything else by Pillow. The resize is Pillow's antialiased bicubic. Orientation (EXIF) is applied
after the resize, where it touches the fewest pixels; alpha is composited on white before it, since
transparent pixels carry arbitrary colours.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
import simplejpeg
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.media import damage
from pipeline.media.errors import DecodeError
from pipeline.media.reader import Reader

# what Pillow may open: never formats that run other programs (EPS) or that nobody keeps photos in
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# --max-pixels judges the size by the header; Pillow's own limit would stand in the way of a higher one
Image.MAX_IMAGE_PIXELS = None

_ORIENTATION_TAG = 0x0112
# EXIF 2.32, section 4.6.4, tag Orientation: what brings the stored picture upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# orientations that swap height and width
_SIDEWAYS = frozenset({5, 6, 7, 8})


def probe(file: IO[bytes]) -> tuple[int, int]:
    """Returns the oriented (height, width) in px from the header alone.

    Raises:
        DecodeError: there is no readable header.
    """
    with _opened(file) as picture:
        return _oriented_size(picture)


def decode(data: bytes, height: int, width: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns a picture as (1, height, width, 3) uint8, upright, RGB, and its oriented source size.

    Args:
        data: the whole file.
        height: of the result, in px.
        width: of the result, in px.

    Raises:
        DecodeError: the decoder reports any error; damaged data is never filled in.
    """
    with _opened(io.BytesIO(data)) as picture:
        source_size = _oriented_size(picture)
        orientation = _orientation(picture)
        damage.check_pixels(picture, data)
        pixels = _pixels(picture, data)
        size = (height, width) if orientation in _SIDEWAYS else (width, height)
        small = pixels.resize(size, Image.Resampling.BICUBIC)
        if orientation in _UPRIGHT:
            small = small.transpose(_UPRIGHT[orientation])
    return np.asarray(small)[None], source_size


def _pixels(picture: Image.Image, data: bytes) -> Image.Image:
    """Returns the decoded picture in mode RGB, alpha composited on white."""
    if picture.format in ("JPEG", "MPO") and picture.mode in ("RGB", "L"):
        return Image.fromarray(simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True))
    if picture.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        # 16-bit greys: Pillow's own conversion clips at 255
        grey_HW = np.asarray(picture)
        if picture.mode == "I":
            grey_HW = grey_HW.clip(0, 65535)
        return Image.fromarray((grey_HW >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        coloured = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    """Returns the EXIF orientation still to be applied; 1 where there is none, or none that can be read."""
    if isinstance(picture, TiffImageFile):
        # Pillow itself turns these when it loads them, and tells the turned size
        return 1
    try:
        # not picture.getexif(): a PNG's decodes the whole picture to look for EXIF behind it
        return int(Image.Image.getexif(picture).get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF raises anything, and says nothing against the pixels
        return 1


def _oriented_size(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    return (width, height) if _orientation(picture) in _SIDEWAYS else (height, width)


@contextmanager
def _opened(file: IO[bytes]) -> Iterator[Image.Image]:
    """Opens a picture without decoding it.

    Raises:
        DecodeError: whatever a decoder raises over bad bytes, then or later.
        OSError: the storage failed.
    """
    reader = Reader(file)
    try:
        with warnings.catch_warnings():
            # Pillow's plugins warn about odd metadata and go on
            warnings.simplefilter("ignore")
            damage.check_start(reader)
            with Image.open(reader, formats=FORMATS) as picture:
                damage.check_header(picture)
                yield picture
    except Exception as error:  # plugins raise OSError, SyntaxError, struct.error, IndexError, zlib.error and more
        if reader.error is not None:
            raise reader.error from error
        if isinstance(error, DecodeError | MemoryError):
            raise
        if isinstance(error, Image.UnidentifiedImageError):
            raise DecodeError("broken", "the header cannot be read") from error
        raise DecodeError("broken", str(error) or type(error).__name__) from error
    if reader.error is not None:
        raise reader.error
