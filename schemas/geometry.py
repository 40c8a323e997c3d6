"""From pixels and frames to grids and token counts, in integers only.

A tubelet is the block of pixels that becomes one token. Version 1 of the format cuts tubelets
edge to edge (stride = tubelet, no padding); the manifest names stride and padding all the same,
so that overlapping tubelets (MViT) can be added without a new version.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np

from patchpack.schemas.errors import FormatError

Tubelet = tuple[int, int, int]  # (frames, height px, width px) of one token

# positions are stored as int16
MAX_GRID = 2**15 - 1
# wider fixed_size_binary columns are written by pyarrow (25) and refused when they are read: "byte width of
# FixedSizeBinaryType too large", at 2^28 and not at one byte less
MAX_ROW_BYTES = 2**28 - 1


class Grid(NamedTuple):
    """Tubelets along time, height and width."""

    t: int
    h: int
    w: int

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole grid."""
        return self.t * self.h * self.w


class LayoutRecord(TypedDict):
    """A layout as it stands in the manifest and in every shard's record."""

    sequence_length: int
    max_segments: int
    tubelet: list[int]
    stride: list[int]
    padding: list[int]
    channels: int
    token_dtype: str
    token_width: int
    grid_multiple: list[int]
    resize: str
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class Layout:
    """What fixes the shape of a sequence and the width of a token; a shard has exactly one.

    Attributes:
        sequence_length: tokens in a sequence, padding included (L).
        max_segments: most examples in one sequence (S).
        tubelet: (frames, height px, width px) of one token.
        channels: colour channels of a pixel (C), RGB order.
        token_dtype: numpy name of the stored type.
        resize: the filter that made the pixels.
        mean: what to subtract per channel from pixels scaled to 0..1.
        std: what to divide by per channel after that.
    """

    sequence_length: int
    max_segments: int
    tubelet: Tubelet
    channels: int = 3
    token_dtype: str = "uint8"  # noqa: S105 (no password)
    resize: str = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def token_width(self) -> int:
        """Values in one token (P): frames x height x width x channels of a tubelet."""
        frames, height, width = self.tubelet
        return frames * height * width * self.channels

    @property
    def token_bytes(self) -> int:
        """Bytes of one sequence's tokens: L x P x itemsize."""
        return self.sequence_length * self.token_width * np.dtype(self.token_dtype).itemsize

    def to_json(self) -> LayoutRecord:
        """Returns the record of the layout."""
        return {
            "sequence_length": self.sequence_length,
            "max_segments": self.max_segments,
            "tubelet": list(self.tubelet),
            "stride": list(self.tubelet),
            "padding": [0, 0, 0],
            "channels": self.channels,
            "token_dtype": self.token_dtype,
            "token_width": self.token_width,
            "grid_multiple": [1, 1, 1],
            "resize": self.resize,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_json(cls, data: LayoutRecord, where: str) -> "Layout":
        """Returns the layout written by `to_json`; unknown keys are ignored.

        Args:
            data: the JSON object.
            where: the file it came from, for the error.

        Raises:
            FormatError: a key is missing, or the values contradict each other.
        """
        try:
            layout = cls(
                sequence_length=int(data["sequence_length"]),
                max_segments=int(data["max_segments"]),
                tubelet=_three(data["tubelet"]),
                channels=int(data["channels"]),
                token_dtype=str(np.dtype(data["token_dtype"])),
                resize=str(data["resize"]),
                mean=tuple(float(x) for x in data["mean"]),
                std=tuple(float(x) for x in data["std"]),
            )
            token_width, stride, padding = data["token_width"], list(data["stride"]), list(data["padding"])
            known = token_width == layout.token_width and stride == list(layout.tubelet) and not any(padding)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{where}: broken layout ({error!r}); it holds what docs/format.md lists; rebuild the dataset"
            ) from error
        if not known:
            raise FormatError(
                f"{where}: token_width {token_width}, stride {stride}, padding {padding} with tubelet {layout.tubelet} x {layout.channels}; "
                f"this reader knows edge-to-edge tubelets, {layout.token_width} wide here; upgrade patchpack"
            )
        return layout


def ceil_div(value: int, divisor: int) -> int:
    """Returns value / divisor rounded up, for value >= 0 and divisor >= 1."""
    return -(-value // divisor)


def grid_of(num_frames: int, height: int, width: int, tubelet: Tubelet) -> Grid:
    """Returns the grid of an image or clip whose size is a whole number of tubelets.

    Frames are padded up to a whole tubelet by repeating the last one; height and width are not.

    Raises:
        ValueError: the size is not a positive multiple of the tubelet.
    """
    frames, tubelet_height, tubelet_width = tubelet
    if num_frames < 1 or height < 1 or width < 1 or height % tubelet_height or width % tubelet_width:
        raise ValueError(
            f"{num_frames} frames of {height}x{width}: no whole number of tubelets {tubelet}; "
            "height and width are positive multiples of the tubelet's; resize first"
        )
    return Grid(ceil_div(num_frames, frames), height // tubelet_height, width // tubelet_width)


def grid_positions(grid: Grid) -> np.ndarray:
    """Returns the positions of a grid's tokens in raster order, (N, 3) int16 as (t, y, x)."""
    return np.indices(grid, dtype=np.int16).reshape(3, -1).T


def _three(values: Sequence[int]) -> Tubelet:
    one, two, three = values
    return int(one), int(two), int(three)
