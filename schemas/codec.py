"""Tokens as fewer bytes and back, without loss: differences of neighbouring pixels, compressed by zstd.

Algorithm `gradient-zstd`, on the L tokens of a sequence, each (pt, ph, pw, C) bytes; all differences are modulo 256:

1. each frame of a tubelet but the first, minus the frame before it;
2. each pixel row of a frame but the first, minus the row above it; in the first, each pixel minus the one to its left;
3. of three channels, the first and the last minus the second (green);
4. the same pixel row of all tokens side by side, (pt ph, L, pw C), as one zstd frame of level 1, which states its size.

Undoing it is prefix sums over whole rows of all tokens, a few passes of vector additions, and one copy of pixel rows to their
tokens. Padding is zeros before and after. `benchmarks/codec.py` measures size and speed; docs/decisions.md has what was given
up: differences along rows everywhere, 1 to 4 % smaller and a third slower, since additions inside a row are no additions of rows.
"""

import functools

import numpy as np
import pyarrow as pa

from patchpack.schemas.errors import FormatError
from patchpack.schemas.geometry import Layout

_ZSTD = pa.Codec("zstd", compression_level=1)
# RFC 8878, section 3.1.1: the magic number, and by the two low bits of the frame header the bytes of a dictionary's number
_MAGIC = b"\x28\xb5\x2f\xfd"
_DICTIONARY_BYTES = (0, 1, 2, 4)


def most_bytes(layout: Layout) -> int:
    """Returns what no frame of a sequence is larger than: zstd stores noise as it is, and a few bytes for each 128 KiB."""
    return layout.token_bytes + layout.token_bytes // 256 + 128


def encode(tokens_LP: np.ndarray, layout: Layout) -> bytes:
    """Returns one sequence's tokens, (L, P) uint8, as a frame; equal tokens give equal bytes under one version of zstd."""
    frames = _rows_first(tokens_LP, layout).T.copy().view(np.uint8).reshape(*layout.tubelet[:2], -1)
    frames[1:] -= frames[:-1]
    frames[:, 1:] -= frames[:, :-1]
    first = frames[:, 0].reshape(layout.tubelet[0], -1, layout.tubelet[2], layout.channels)
    first[:, :, 1:] -= first[:, :, :-1]
    if layout.channels == 3:
        for row_M in frames.reshape(_num_rows(layout), -1):
            _onto_neighbours(np.subtract, row_M, np.empty_like(row_M))
    compressed: bytes = _ZSTD.compress(frames, asbytes=True)
    return compressed


def decode(frame: bytes | pa.Buffer, layout: Layout, out_LP: np.ndarray, where: str) -> None:
    """Writes the tokens of a frame into (L, P) uint8, which is contiguous.

    Nothing is allocated but what a sequence takes, whatever the frame claims. Bytes that were changed may decode to other tokens, which
    the digest of the row finds.

    Args:
        frame: as `encode` gives it.
        layout: of the sequence.
        out_LP: memory for it.
        where: how to name the row in the error.

    Raises:
        FormatError: it is no frame of such a sequence.
    """
    size = _content_size(bytes(memoryview(frame)[:18]))
    if size != out_LP.nbytes:
        states = "no zstd frame that states its size" if size is None else f"a zstd frame of {size} bytes"
        raise FormatError(
            f"{where}: tokens are {states}; the layout has {out_LP.nbytes} a sequence; rebuild or copy again this shard"
        )
    try:
        content = _ZSTD.decompress(frame, decompressed_size=size)
    except (OSError, pa.ArrowException) as error:
        raise FormatError(
            f"{where}: tokens cannot be decompressed ({error}); their bytes changed after they were written; "
            "rebuild or copy again this shard"
        ) from error
    rows_RM = np.require(np.frombuffer(content, np.uint8), requirements="W").reshape(_num_rows(layout), -1)
    _add_up(rows_RM, layout)
    tokens_LR = _rows_first(out_LP, layout)
    np.copyto(tokens_LR, rows_RM.view(tokens_LR.dtype).T)


def _num_rows(layout: Layout) -> int:
    """Returns the pixel rows of a token (R)."""
    return layout.tubelet[0] * layout.tubelet[1]


def _rows_first(tokens_LP: np.ndarray, layout: Layout) -> np.ndarray:
    """Returns a view of tokens whose values are whole pixel rows, (L, R)."""
    return tokens_LP.view(f"V{layout.tubelet[2] * layout.channels}")


def _add_up(rows_RM: np.ndarray, layout: Layout) -> None:
    """Undoes the differences, in place, one pixel row of all tokens after the other, so that they stay in the cache."""
    height, channels = layout.tubelet[1], layout.channels
    scratch_M = np.empty_like(rows_RM[0])
    for number, row_M in enumerate(rows_RM):
        if channels == 3:
            _onto_neighbours(np.add, row_M, scratch_M)
        if number % height:
            row_M += rows_RM[number - 1]
        else:
            _add_along(row_M.reshape(-1, layout.tubelet[2] * channels), channels)
    for number in range(height, len(rows_RM)):
        rows_RM[number] += rows_RM[number - height]


def _onto_neighbours(change: np.ufunc, row_M: np.ndarray, green_M: np.ndarray) -> None:
    """Adds the second of three channels to the others of its pixel, or subtracts it, in place; `green_M` is memory for it.

    As three operations on contiguous bytes: every third byte alone takes twice the time.
    """
    np.bitwise_and(row_M, _is_green(len(row_M)), out=green_M)
    change(row_M[:-1], green_M[1:], out=row_M[:-1])
    change(row_M[1:], green_M[:-1], out=row_M[1:])


def _add_along(pixels_LW: np.ndarray, channels: int) -> None:
    """Adds to each pixel of a row the one before it, in place; turned, so that each step is one addition over all tokens."""
    columns_WL = pixels_LW.T.copy()
    for place in range(channels, len(columns_WL), channels):
        columns_WL[place : place + channels] += columns_WL[place - channels : place]
    pixels_LW[...] = columns_WL.T


@functools.lru_cache(maxsize=8)
def _is_green(num_bytes: int) -> np.ndarray:
    """Returns what masks the second of three channels."""
    return np.tile(np.array([0, 255, 0], np.uint8), num_bytes // 3)


def _content_size(header: bytes) -> int | None:
    """Returns the size that a zstd frame states, or None where it states none, or is none."""
    if header[:4] != _MAGIC or len(header) < 5:
        return None
    descriptor = header[4]
    is_single_segment, width_flag = bool(descriptor & 0x20), descriptor >> 6
    start = 5 + (not is_single_segment) + _DICTIONARY_BYTES[descriptor & 3]
    width = 1 << width_flag if width_flag or is_single_segment else 0
    field = header[start : start + width]
    if not width or len(field) < width:
        return None
    # two bytes count from 256 on
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)
