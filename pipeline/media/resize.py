"""Antialiased bicubic resize of uint8 pixels, by Pillow or by torch.

Both are Pillow's filter (a = -0.5, widened by the ratio; rows first, uint8 between the passes); torch's kernel has AVX
code and takes about a quarter of the time. They differ by one level in some 0.3 % of the samples. An image may be
handed over in strips of rows: then neither backend holds a second copy of it, and the result is the same to the bit.
"""

import functools
import importlib.util
import types
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from patchpack.extras import install


class Pixels(NamedTuple):
    """Decoded pixels, (H, W, C) uint8, and what they show: `extent` (height, width) of them, fractions included.

    A JPEG of 1001 rows decoded at 1/2 has 501 rows, which show 500.5: resizing all 501 would stretch the image.
    `mode` is L, RGB or CMYK; RGB may have a fourth channel, which means nothing and is left out of results.
    """

    pixels_HWC: np.ndarray
    extent: tuple[float, float]
    mode: str


def resolved(backend: str) -> str:
    """Returns the backend that --media-backend means on this machine, "pillow" or "fast".

    Raises:
        ValueError: torch is asked for and not there.
    """
    if backend == "auto":
        # without AVX2 torch's kernel is slower than Pillow's. Arrow says what there is: torch itself takes a second to import,
        # and 180 MB of a process that resizes nothing
        has_avx2 = pa.runtime_info().detected_simd_level in ("avx2", "avx512")
        return "fast" if has_avx2 and importlib.util.find_spec("torch") is not None else "pillow"
    if backend == "fast":
        try:
            _torch()
        except ImportError as error:
            raise ValueError(
                f"--media-backend fast: torch cannot be imported ({error}); fast resizes with torch; "
                f"{install('fast')}, or use pillow"
            ) from error
    return backend


def load(backend: str) -> None:
    """Loads what a backend needs, where the first image is not to wait for it."""
    if backend == "fast":
        _torch()


def resize(pixels: Pixels, height: int, width: int, backend: str) -> np.ndarray:
    """Returns pixels at another size, (height, width, C) uint8.

    Args:
        pixels: what is resized.
        height: of the result, in px.
        width: of the result, in px.
        backend: "fast", or Pillow.
    """
    return _by_torch(pixels, height, width) if backend == "fast" else _by_pillow(pixels, height, width)


def resize_strips(
    strips: Iterable[np.ndarray], mode: str, size: tuple[int, int], height: int, width: int, backend: str
) -> np.ndarray:
    """Returns what `resize` makes of an image of a (height, width) that comes in strips of rows, (n, W, C) uint8."""
    # rows are the first pass of both backends, so cutting them apart changes nothing
    narrow = [
        resize(Pixels(strip, (len(strip), size[1]), mode), len(strip), width, backend) if width != size[1] else strip
        for strip in strips
    ]
    return resize(Pixels(np.concatenate(narrow), (size[0], width), mode), height, width, backend)


def _by_pillow(pixels: Pixels, height: int, width: int) -> np.ndarray:
    rows, columns, channels = pixels.pixels_HWC.shape
    size = (columns, rows)
    if pixels.mode == "RGB" and channels == 4:
        # as Pillow keeps RGB itself: taken over without a copy, which would be a tenth of the whole path
        bytes_ = pa.Array.from_buffers(pa.uint8(), pixels.pixels_HWC.size, [None, pa.py_buffer(pixels.pixels_HWC)])
        image = Image.fromarrow(pa.FixedSizeListArray.from_arrays(bytes_, 4), "RGB", size)
    else:
        image = Image.frombuffer(pixels.mode, size, pixels.pixels_HWC, "raw", pixels.mode, 0, 1)
    extent = pixels.extent
    small = image.resize((width, height), Image.Resampling.BICUBIC, box=(0, 0, extent[1], extent[0]))
    return np.asarray(small).reshape(height, width, -1)


def _by_torch(pixels: Pixels, height: int, width: int) -> np.ndarray:
    torch, extent = _torch(), pixels.extent
    # the batch's dimension first, otherwise torch does not see that channels are last, and makes planes of the result
    pixels_NCHW = torch.from_numpy(pixels.pixels_HWC)[None].permute(0, 3, 1, 2)
    # not nn.functional.interpolate: only the operator takes the size and the true ratio. On one image it runs on
    # one thread, whatever torch is set to
    small_NCHW = torch.ops.aten._upsample_bicubic2d_aa(
        pixels_NCHW, [height, width], False, height / extent[0], width / extent[1]
    )
    small_HWC: np.ndarray = small_NCHW[0].permute(1, 2, 0).numpy()
    return small_HWC


@functools.cache
def _torch() -> types.ModuleType:
    # a second and 180 MB: only where it is used
    import torch

    return torch
