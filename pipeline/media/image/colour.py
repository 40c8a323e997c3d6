"""From what a file stores to sRGB.

Before the resize whatever cannot be averaged is made so: palettes become colours, transparent pixels are composited on
white (they carry arbitrary colours), 16 bits become 8. After it, where there are the fewest pixels, colours are
brought to sRGB through the file's ICC profile; the transforms are kept by the profile's digest, and a profile that is
sRGB itself costs only that digest. A profile that cannot be used (broken, or of another colour space than the
image) is passed over, as viewers do, and the image taken for sRGB; PNG's gAMA and cHRM are, too.
"""

import io
from collections import OrderedDict

import numpy as np
import xxhash
from PIL import Image, ImageCms

from patchpack.pipeline.media.errors import DecodeError

# stored mode -> the mode that is resized; every other is RGB
_RESIZED = {"1": "L", "L": "L", "LA": "L", "La": "L", "I": "L", "CMYK": "CMYK", "LAB": "LAB"}

# Pillow gives a and b as signed bytes, which cannot be averaged as they stand
_LAB_SIGNS = np.array([0, 128, 128], np.uint8)

# cameras and agencies use a handful of profiles; a transform of CMYK takes half a megabyte
_MAX_TRANSFORMS = 32
_transforms: OrderedDict[tuple[bytes, str], ImageCms.ImageCmsTransform | None] = OrderedDict()


def resized_mode(image: Image.Image) -> str:
    """Returns the mode in which an image is resized: L, RGB, CMYK or LAB.

    Raises:
        DecodeError: its pixels are floats, of a range that nobody states.
    """
    if image.mode == "F":
        raise DecodeError("unknown_format", "pixels are floating-point numbers of unknown range")
    return "L" if image.mode.startswith("I;16") else _RESIZED.get(image.mode, "RGB")


def flat(image: Image.Image, mode: str) -> np.ndarray:
    """Returns an image's pixels without palette or alpha, (H, W, C) uint8.

    Args:
        image: or some rows of it.
        mode: as `resized_mode` says.
    """
    if image.mode.startswith("I"):
        pixels = _eight_bits(image)
    elif image.has_transparency_data and mode in ("L", "RGB"):
        with_alpha = image.convert(f"{mode}A")
        on_white = Image.new(mode, image.size, "white")
        on_white.paste(with_alpha.convert(mode), mask=with_alpha.getchannel("A"))
        pixels = np.asarray(on_white)
    else:
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        pixels = pixels ^ _LAB_SIGNS if mode == "LAB" else pixels
    return pixels.reshape(image.height, image.width, -1)


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Returns 16-bit greys scaled to 8 bits; Pillow's own conversion clips them at 255."""
    grey_HW = np.asarray(image)
    if image.mode == "I":
        # signed or 32-bit: read as 16 bits
        grey_HW = grey_HW.clip(0, 65535)
    eight_HW = (grey_HW >> 8).astype(np.uint8)
    if isinstance(image.info.get("transparency"), int):
        eight_HW[grey_HW == image.info["transparency"]] = 255
    return eight_HW


def to_srgb(pixels_HWC: np.ndarray, mode: str, profile: bytes | None) -> np.ndarray:
    """Returns pixels as sRGB, (H, W, 3) uint8.

    Args:
        pixels_HWC: resized, (H, W, C) uint8.
        mode: as `resized_mode` says.
        profile: the file's ICC profile, if it has one.
    """
    transform = _transform(profile or b"", mode) if profile or mode == "LAB" else None
    if transform is None and mode == "RGB":
        return pixels_HWC
    if transform is None and mode == "L":
        return np.repeat(pixels_HWC, 3, axis=2)
    height, width, _ = pixels_HWC.shape
    pixels_HWC = pixels_HWC ^ _LAB_SIGNS if mode == "LAB" else pixels_HWC
    image = Image.frombytes(mode, (width, height), pixels_HWC.tobytes())
    shown = image.convert("RGB") if transform is None else transform.apply(image)
    return np.asarray(shown)


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns what brings colours of a profile to sRGB; None where nothing must or can be done."""
    key = (xxhash.xxh3_128_digest(profile), mode)
    if key in _transforms:
        _transforms.move_to_end(key)
        return _transforms[key]
    try:
        source = ImageCms.createProfile("LAB") if mode == "LAB" else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # perceptual: what viewers use, and the only intent that printing profiles must have
        transform: ImageCms.ImageCmsTransform | None = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL
        )
        if mode == "RGB" and transform is not None and _changes_nothing(transform):
            transform = None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        transform = None
    _transforms[key] = transform
    if len(_transforms) > _MAX_TRANSFORMS:
        _transforms.popitem(last=False)
    return transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Returns whether a transform moves no colour by more than a level: the profile is sRGB by another name."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    colours_N13 = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 1, 3)
    moved = np.asarray(transform.apply(Image.fromarray(colours_N13))).astype(int) - colours_N13
    return bool(np.abs(moved).max() <= 1)
