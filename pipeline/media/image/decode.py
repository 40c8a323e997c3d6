"""Images: the header for planning, the pixels for the shard.

JPEG is decoded by simplejpeg (libjpeg-turbo) in strict mode, which reports damage that Pillow passes over, and no larger
than needed (see `jpeg`); where only its header is odd, without the oddity (`jpeg_header`). Everything else is decoded by
Pillow. Order of the steps, each where it touches the fewest pixels that it may: decode, palette and alpha
(`colour.flat`), resize, profile (`colour.to_srgb`), orientation (EXIF). Images that Pillow decodes are resized in strips
of rows, so that what Pillow holds of them is the only whole copy.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from patchpack.pipeline.media.errors import DecodeError
from patchpack.pipeline.media.image import animated, colour, damage, heif, jpeg, jpeg_header
from patchpack.pipeline.media.reader import Reader
from patchpack.pipeline.media.resize import resize, resize_strips
from patchpack.schemas.geometry import Box

# what Pillow may open: never formats that run other programs (EPS) or that nobody keeps photos in
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# most bytes a pixel while a format is decoded (measured: benchmarks/media.py --only memory), where they are not the
# four of Pillow's images. HEIC of 8064x6048: 7.4 with 8 bits, 7.8 with 10, and a worker of 870 MB at most with torch
# and two decodes one after another; 9 lets phones' 48 and 50 megapixels pass by default. --max-pixels counts pixels of
# four bytes, so that it bounds memory
_BYTES_A_PIXEL = {"WEBP": 17, "AVIF": 10, "HEIF": 9, "TIFF": 10}
_BASELINE_BYTES_A_PIXEL = 4

# rows of an image that are made flat and resized at once, in pixels: 12 MB of RGBA
_STRIP_PX = 3 * 2**20

_JPEG_START = b"\xff\xd8\xff"
_ORIENTATION_TAG = 0x0112
# EXIF 2.32, section 4.6.4, tag Orientation: whether rows and columns change places, then which of them are turned round
_UPRIGHT = {
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}
# orientations that swap height and width
_SIDEWAYS = frozenset({5, 6, 7, 8})


def probe(file: IO[bytes], max_pixels: int | None = None) -> tuple[int, int]:
    """Returns the oriented (height, width) in px from the header alone.

    Args:
        file: the image.
        max_pixels: most pixels of four bytes that decoding may hold, if that is limited.

    Raises:
        DecodeError: there is no readable header, or decoding would hold more.
    """
    with _opened(file, max_pixels) as image:
        _check_pixels(image, max_pixels)
        return _oriented_size(image, _orientation(image))


def turn(file: IO[bytes]) -> tuple[bool, int, int]:
    """Returns how the stored image becomes upright: whether rows and columns change places, then the step along each.

    Raises:
        DecodeError: there is no readable header.
    """
    with _opened(file) as image:
        return _UPRIGHT.get(_orientation(image), (False, 1, 1))


def probe_animation(file: IO[bytes], max_pixels: int | None = None) -> animated.Timing | None:
    """Returns size and frame times of an animated image, or None for one that stands still.

    Raises:
        DecodeError: a frame is broken, or decoding would hold more than `max_pixels` pixels of four bytes.
    """
    with _opened(file, max_pixels) as image:
        _check_pixels(image, max_pixels)
        return animated.timing(image)


def decode(
    data: bytes,
    height: int,
    width: int,
    quality: str = "default",
    backend: str = "pillow",
    max_pixels: int | None = None,
    warned: list[str] | None = None,
    box: Box | None = None,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns an image, or a part of it, as (1, height, width, 3) uint8, upright, sRGB, and its oriented source size.

    Args:
        data: the whole file.
        height: of the result, in px.
        width: of the result, in px.
        quality: how far JPEGs may be decoded smaller, a key of `jpeg.LEAST_RATIO`.
        backend: what resizes, see `resize`.
        max_pixels: as for `probe`.
        warned: where a JPEG's decoder warns of damage, its words go here and the image is what it made of it; without,
            that is an error.
        box: the part, in px of the upright image; None: the whole.

    Raises:
        DecodeError: decoding would hold more, or the decoder reports any error; damaged data is filled in only for `warned`.
    """
    how = (height, width, quality, backend, max_pixels)
    try:
        return _decoded(data, *how, box=box)
    except DecodeError as error:
        if error.reason != "broken" or not data.startswith(_JPEG_START):
            raise
        first = error
    clean = jpeg_header.cleaned(data)
    if clean is not None:
        try:
            return _decoded(clean, *how, box=box)
        except DecodeError as error:
            first = error
    if warned is None:
        raise first
    # simplejpeg takes no odd header, however lenient
    decoded = _decoded(clean or data, *how, box=box, strict=False)
    warned.append(str(first))
    return decoded


def _decoded(
    data: bytes,
    height: int,
    width: int,
    quality: str,
    backend: str,
    max_pixels: int | None,
    *,
    box: Box | None,
    strict: bool = True,
) -> tuple[np.ndarray, tuple[int, int]]:
    with _opened(io.BytesIO(data), max_pixels) as image:
        _check_pixels(image, max_pixels)
        orientation = _orientation(image)
        damage.check_pixels(image, data)
        source_size = _oriented_size(image, orientation)
        target = (width, height) if orientation in _SIDEWAYS else (height, width)
        part = _as_stored(box, source_size, orientation)
        mode = colour.resized_mode(image)
        if image.format in ("JPEG", "MPO") and jpeg.can_decode(data, strict):
            source = (image.height, image.width)
            pixels = jpeg.decode(data, mode, source, target, quality, backend != "fast", strict, part)
            small_HWC = resize(pixels, *target, backend)
            # Adobe's convention, which Pillow takes for granted: CMYK is stored inverted
            small_HWC = 255 - small_HWC if mode == "CMYK" else small_HWC
        else:
            small_HWC = _resized(image, mode, target, backend, part)
        small_HWC = colour.to_srgb(small_HWC, mode, image.info.get("icc_profile"))
    return _upright(small_HWC, orientation)[None], source_size


def decode_animation(
    data: bytes,
    times_ms: tuple[int, ...],
    height: int,
    width: int,
    backend: str = "pillow",
    max_pixels: int | None = None,
    box: Box | None = None,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns frames of an animated image, (len(times_ms), height, width, 3) uint8, sRGB, and its source size.

    Args:
        data: the whole file.
        times_ms: when the frames begin, as `probe_animation` says; equal ones repeat a frame.
        height: of the result, in px.
        width: of the result, in px.
        backend: what resizes, see `resize`.
        max_pixels: as for `probe`.
        box: the part of them that is shown, in px; None: the whole.

    Raises:
        DecodeError: decoding would hold more, the decoder reports any error, or no frame begins at one of the times.
    """
    with _opened(io.BytesIO(data), max_pixels) as image:
        _check_pixels(image, max_pixels)
        damage.check_pixels(image, data)
        profile = image.info.get("icc_profile")
        frames = {}
        for begins_ms, frame in animated.frames(image, set(times_ms)):
            mode = colour.resized_mode(frame)
            resized_HWC = _resized(frame, mode, (height, width), backend, box)
            frames[begins_ms] = colour.to_srgb(resized_HWC, mode, profile)
        if missing := set(times_ms) - set(frames):
            raise DecodeError("broken", f"{len(missing)} of {len(set(times_ms))} frames did not decode")
        return np.stack([frames[time] for time in times_ms]), (image.height, image.width)


def _resized(image: Image.Image, mode: str, target: tuple[int, int], backend: str, box: Box | None) -> np.ndarray:
    image.load()
    first, left, tall, wide = box or (0, 0, image.height, image.width)
    rows = max(1, _STRIP_PX // wide)
    strips = (
        colour.flat(image.crop((left, top, left + wide, min(top + rows, first + tall))), mode)
        for top in range(first, first + tall, rows)
    )
    # of LAB, too, the three channels are resized alike
    return resize_strips(strips, mode if mode != "LAB" else "RGB", (tall, wide), *target, backend)


def _as_stored(box: Box | None, upright: tuple[int, int], orientation: int) -> Box | None:
    """Returns a part of the upright image of (height, width) in the rows and columns that are stored; None: the whole.

    What lies beyond the image is of another one; whoever asks for it compares sizes.
    """
    if box is None or box == (0, 0, *upright):
        return None
    if box.top + box.height > upright[0] or box.left + box.width > upright[1]:
        return None
    swap, rows, columns = _UPRIGHT.get(orientation, (False, 1, 1))
    top = box.top if rows > 0 else upright[0] - box.top - box.height
    left = box.left if columns > 0 else upright[1] - box.left - box.width
    return Box(left, top, box.width, box.height) if swap else Box(top, left, box.height, box.width)


def _upright(pixels_HWC: np.ndarray, orientation: int) -> np.ndarray:
    if orientation not in _UPRIGHT:
        return pixels_HWC
    swap, rows, columns = _UPRIGHT[orientation]
    # three bytes moved as one: half the time of moving each, and `patchify` reads in order
    pixels_HW = np.ascontiguousarray(pixels_HWC).view("V3")[:, :, 0]
    turned_HW = np.ascontiguousarray((pixels_HW.T if swap else pixels_HW)[::rows, ::columns])
    return turned_HW.view(np.uint8).reshape(*turned_HW.shape, 3)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation still to be applied; 1 where there is none, or none that can be read."""
    if isinstance(image, TiffImageFile):
        # Pillow itself turns these when it loads them, and gives the turned size
        return 1
    try:
        # not image.getexif(): a PNG's decodes the whole image to look for EXIF behind it
        return int(Image.Image.getexif(image).get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 (broken EXIF raises anything, and says nothing against the pixels)
        return 1


def _oriented_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    return image.size if orientation in _SIDEWAYS else (image.height, image.width)


def _check_pixels(image: Image.Image, max_pixels: int | None) -> None:
    """Refuses an image that decoding would blow up beyond what --max-pixels allows."""
    bytes_a_pixel = _BYTES_A_PIXEL.get(image.format or "", _BASELINE_BYTES_A_PIXEL)
    if image.info.get("progressive"):
        # a JPEG's: all coefficients of 16 bits are kept to the last scan
        bytes_a_pixel = max(bytes_a_pixel, 3 * len(image.getbands()))
    pixels = image.width * image.height
    if max_pixels is not None and pixels * bytes_a_pixel > max_pixels * _BASELINE_BYTES_A_PIXEL:
        height, width = _oriented_size(image, _orientation(image))
        counted = (
            "" if bytes_a_pixel == _BASELINE_BYTES_A_PIXEL else f" at {bytes_a_pixel} bytes a pixel while it is decoded"
        )
        raise DecodeError(
            "too_large", f"{height}x{width} is {pixels} pixels{counted}; --max-pixels is {max_pixels} of 4 bytes"
        )


@contextmanager
def _opened(file: IO[bytes], max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Opens an image without decoding it; nothing of more than `max_pixels` pixels is made of it.

    Raises:
        DecodeError: whatever a decoder raises over bad bytes, then or later.
        OSError: the storage failed.
    """
    reader = Reader(file)
    try:
        with warnings.catch_warnings(), damage.guarded_pillow(max_pixels):
            # Pillow's plugins warn about odd metadata and go on
            warnings.simplefilter("ignore")
            damage.check_start(reader)
            with Image.open(cast(IO[bytes], reader), formats=(*FORMATS, *heif.formats(reader))) as image:
                damage.check_header(image)
                yield image
    except Exception as error:  # plugins raise OSError, SyntaxError, struct.error, IndexError, zlib.error and more
        if reader.error is not None:
            raise reader.error from error
        if isinstance(error, DecodeError | MemoryError):
            raise
        if isinstance(error, UnidentifiedImageError):
            raise DecodeError("broken", "the header cannot be read") from error
        raise DecodeError("broken", str(error) or type(error).__name__) from error
    if reader.error is not None:
        raise reader.error
