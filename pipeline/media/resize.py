"""Antialiased bicubic resize of uint8 pixels, by Pillow or by torch.

Both are Pillow's filter (a = -0.5, widened by the ratio; rows first, uint8 between the passes); torch's kernel has AVX
code and takes about a quarter of the time. They differ by one level in some 0.3 % of the samples. A picture may be
handed over in strips of rows: then neither backend holds a second copy of it, and the result is the same to the bit.
"""

import functools
import importlib.util
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

# Pillow's modes by channels; CMYK: four channels that are all alike, which RGBA are not
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}

# rows handed to Pillow at once: its own copy of them then stays in the cache
_STRIP_BYTES = 2**22


class Pixels(NamedTuple):
    """Decoded pixels, (H, W, C) uint8, and what they show: `extent` (height, width) of them, fractions included.

    A JPEG of 1001 rows decoded at 1/2 has 501 rows, which show 500.5: resizing all 501 would stretch the picture.
    """

    pixels_HWC: np.ndarray
    extent: tuple[float, float]


def resolved(backend: str) -> str:
    """Returns the backend that --media-backend means on this machine, "pillow" or "fast".

    Raises:
        ValueError: torch is asked for and not there.
    """
    if backend == "pillow" or (backend == "auto" and importlib.util.find_spec("torch") is None):
        return "pillow"
    try:
        torch = _torch()
    except ImportError as error:
        if backend == "auto":
            return "pillow"
        raise ValueError(
            f"--media-backend fast: torch cannot be imported ({error}); fast resizes with torch; "
            "pip install 'patchpack[fast]', or use pillow"
        ) from error
    # without AVX2 torch's kernel is slower than Pillow's
    has_avx2 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return "fast" if backend == "fast" or has_avx2 else "pillow"


def resize(pixels: Pixels, height: int, width: int, backend: str) -> np.ndarray:
    """Returns pixels at another size, (height, width, C) uint8.

    Args:
        pixels: what is resized.
        height: of the result, in px.
        width: of the result, in px.
        backend: "fast", or Pillow.
    """
    if backend == "fast":
        return _by_torch(*pixels, height, width)
    pixels_HWC, extent = pixels
    rows = max(1, _STRIP_BYTES // (pixels_HWC.shape[1] * pixels_HWC.shape[2]))
    if rows >= len(pixels_HWC):
        return _by_pillow(pixels_HWC, extent, height, width)
    strips = (pixels_HWC[top : top + rows] for top in range(0, len(pixels_HWC), rows))
    return resize_strips(strips, extent, height, width, backend)


def resize_strips(
    strips: Iterable[np.ndarray], extent: tuple[float, float], height: int, width: int, backend: str
) -> np.ndarray:
    """Returns what `resize` makes of a picture that comes in strips of rows, (n, W, C) uint8 each."""
    one = _by_torch if backend == "fast" else _by_pillow
    # the first pass of both backends, so cutting the rows apart changes nothing
    narrow_HwC = np.concatenate([one(strip, (len(strip), extent[1]), len(strip), width) for strip in strips])
    return one(narrow_HwC, (extent[0], width), height, width)


def _by_pillow(pixels_HWC: np.ndarray, extent: tuple[float, float], height: int, width: int) -> np.ndarray:
    rows, columns, channels = pixels_HWC.shape
    mode = _MODES[channels]
    picture = Image.frombuffer(mode, (columns, rows), np.ascontiguousarray(pixels_HWC), "raw", mode, 0, 1)
    small = picture.resize((width, height), Image.Resampling.BICUBIC, box=(0, 0, extent[1], extent[0]))
    return np.asarray(small).reshape(height, width, channels)


def _by_torch(pixels_HWC: np.ndarray, extent: tuple[float, float], height: int, width: int) -> np.ndarray:
    torch = _torch()
    pixels_NCHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
    # not nn.functional.interpolate: only the operator takes the size and the true ratio. On one picture it runs on
    # one thread, whatever torch is set to
    small_NCHW = torch.ops.aten._upsample_bicubic2d_aa(
        pixels_NCHW, [height, width], False, height / extent[0], width / extent[1]
    )
    return small_NCHW[0].permute(1, 2, 0).numpy()


@functools.cache
def _torch() -> Any:
    # a second and 180 MB: only where it is used
    import torch

    return torch
