"""From pixels and frames to grids and token counts, in integers only.

A tubelet is the block of pixels that becomes one token. Tubelets are cut edge to edge, or overlap where the
stride is smaller (MViT): then they reach beyond the edges by a padding of (tubelet - 1) / 2, rounded down, or tubelet -
stride if that is less, so that n strides have n tubelets, as a convolution of that kernel, stride and padding has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, NotRequired, TypedDict

import numpy as np

from patchpack.schemas.errors import FormatError

Tubelet = tuple[int, int, int]  # (frames, height px, width px) of one token

# positions are stored as int16
MAX_GRID = 2**15 - 1
# wider fixed_size_binary columns are written by pyarrow (25) and refused when they are read: "byte width of
# FixedSizeBinaryType too large", at 2^28 and not at one byte less
MAX_ROW_BYTES = 2**28 - 1
# how tokens are stored, see schemas/codec.py
NO_CODEC, GRADIENT_ZSTD = CODECS = ("none", "gradient-zstd")


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

    sequence_length: Annotated[int, "tokens of a sequence, padding included (L)"]
    max_segments: Annotated[int, "most examples of a sequence (S)"]
    tubelet: Annotated[list[int], "frames, height in px, width in px of one token"]
    stride: Annotated[list[int], "frames, height in px, width in px from one tubelet to the next"]
    padding: Annotated[list[int], "frames, height in px, width in px that tubelets reach beyond the first edges"]
    channels: Annotated[int, "colour channels of a pixel, in the order RGB (C)"]
    token_dtype: Annotated[str, "numpy name of a token's values"]
    token_width: Annotated[int, "values of a token (P)"]
    grid_multiple: Annotated[list[int], "frames, rows, columns of tokens that every grid is a multiple of"]
    resize: Annotated[str, "filter that made the pixels"]
    mean: Annotated[list[float], "subtracted from value / 255, of each channel"]
    std: Annotated[list[float], "divided by after that, of each channel"]
    # only where they are not the default; earlier datasets have none of them
    align_tokens: NotRequired[Annotated[int, "every segment starts at a multiple of so many tokens; 1 where left out"]]
    keep_order: NotRequired[
        Annotated[bool, "whether each token has its rank in the order to keep them; false where left out"]
    ]
    text_length: NotRequired[Annotated[int, "text tokens beside a sequence, padding included (T); 0 where left out"]]
    codec: NotRequired[Annotated[str, "how tokens are stored; none where left out"]]


class Box(NamedTuple):
    """A part of an image, in px of it: rows top to top + height, columns left to left + width."""

    top: int
    left: int
    height: int
    width: int


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
        stride: (frames, height px, width px) from one tubelet to the next; left out, or 0 on an axis: the tubelet's.
        grid_multiple: rows and columns of every grid are multiples of it.
        align_tokens: every segment starts at a multiple of it; the tokens between two segments are padding.
        keep_order: whether tokens were dropped, and each that is left has its rank in the order to keep them.
        text_length: text tokens beside a sequence, padding included (T); 0: no text.
        codec: how the tokens of a sequence are stored, one of CODECS; those that are encoded are uint8.

    Raises:
        ValueError: there is no such codec, or it cannot store tokens of that type.
    """

    sequence_length: int
    max_segments: int
    tubelet: Tubelet
    channels: int = 3
    token_dtype: str = "uint8"  # noqa: S105 (no password)
    resize: str = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    stride: Tubelet = (0, 0, 0)
    grid_multiple: int = 1
    align_tokens: int = 1
    keep_order: bool = False
    text_length: int = 0
    codec: str = NO_CODEC

    def __post_init__(self) -> None:
        stride = tuple(step or side for step, side in zip(self.stride, self.tubelet, strict=True))
        object.__setattr__(self, "stride", stride)
        if self.codec not in CODECS:
            raise ValueError(
                f"codec {self.codec}: no such codec; it is {' or '.join(CODECS)}; correct it, or leave it out for {NO_CODEC}"
            )
        if self.codec != NO_CODEC and np.dtype(self.token_dtype) != np.uint8:
            raise ValueError(
                f"codec {self.codec}: tokens are {self.token_dtype}; it takes differences of pixels, which are uint8; leave it out for "
                f"{NO_CODEC}"
            )

    @property
    def padding(self) -> Tubelet:
        """How far the first tubelet reaches beyond the edge, (frames, height px, width px)."""
        frames, height, width = (
            max(0, min((side - 1) // 2, side - step)) for side, step in zip(self.tubelet, self.stride, strict=True)
        )
        return frames, height, width

    @property
    def cell(self) -> tuple[int, int]:
        """What a grid's sides are multiples of, (height, width) in px."""
        return self.stride[1] * self.grid_multiple, self.stride[2] * self.grid_multiple

    @property
    def features(self) -> list[str]:
        """Names of what a reader must know to read it; none of most layouts."""
        used = {
            "align_tokens": self.align_tokens > 1,
            "keep_order": self.keep_order,
            "text": self.text_length > 0,
            "codec": self.codec != NO_CODEC,
        }
        return [name for name, is_used in used.items() if is_used]

    def slots(self, num_tokens: int) -> int:
        """Returns how many tokens of a sequence an example of so many takes up."""
        return ceil_div(num_tokens, self.align_tokens) * self.align_tokens

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
        record: LayoutRecord = {
            "sequence_length": self.sequence_length,
            "max_segments": self.max_segments,
            "tubelet": list(self.tubelet),
            "stride": list(self.stride),
            "padding": list(self.padding),
            "channels": self.channels,
            "token_dtype": self.token_dtype,
            "token_width": self.token_width,
            "grid_multiple": [1, self.grid_multiple, self.grid_multiple],
            "resize": self.resize,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        if self.align_tokens > 1:
            record["align_tokens"] = self.align_tokens
        if self.keep_order:
            record["keep_order"] = True
        if self.text_length:
            record["text_length"] = self.text_length
        if self.codec != NO_CODEC:
            record["codec"] = self.codec
        return record

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
                stride=_three(data["stride"]),
                grid_multiple=int(data.get("grid_multiple", [1, 1, 1])[1]),
                align_tokens=int(data.get("align_tokens", 1)),
                keep_order=bool(data.get("keep_order", False)),
                text_length=int(data.get("text_length", 0)),
                codec=_known_codec(data.get("codec", NO_CODEC), where),
            )
            known = all(1 <= step <= side for step, side in zip(layout.stride, layout.tubelet, strict=True))
            known &= data["token_width"] == layout.token_width and list(data["padding"]) == list(layout.padding)
        except FormatError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{where}: broken layout ({error!r}); it holds what docs/format.md lists; rebuild the dataset"
            ) from error
        if not known:
            raise FormatError(
                f"{where}: token_width {data['token_width']}, stride {data['stride']}, padding {data['padding']} with tubelet "
                f"{layout.tubelet} x {layout.channels}; this reader knows strides up to the tubelet, tokens of {layout.token_width} values "
                f"and a padding of {list(layout.padding)} here; upgrade patchpack"
            )
        return layout


def ceil_div(value: int, divisor: int) -> int:
    """Returns value / divisor rounded up, for value >= 0 and divisor >= 1."""
    return -(-value // divisor)


def grid_of(num_frames: int, height: int, width: int, stride: Tubelet) -> Grid:
    """Returns the grid of an image or clip whose size is a whole number of strides.

    Frames are padded up to a whole stride by repeating the last one; height and width are not.

    Raises:
        ValueError: the size is not a positive multiple of the stride.
    """
    frames, down, across = stride
    if num_frames < 1 or height < 1 or width < 1 or height % down or width % across:
        raise ValueError(
            f"{num_frames} frames of {height}x{width}: no whole number of tubelets {stride}; "
            "height and width are positive multiples of the tubelet's; resize first"
        )
    return Grid(ceil_div(num_frames, frames), height // down, width // across)


def grid_positions(grid: Grid) -> np.ndarray:
    """Returns the positions of a grid's tokens in raster order, (N, 3) int16 as (t, y, x)."""
    return np.indices(grid, dtype=np.int16).reshape(3, -1).T


def _known_codec(codec: str, where: str) -> str:
    if codec not in CODECS:
        raise FormatError(f"{where}: codec {codec!r}; this reader knows {', '.join(CODECS)}; upgrade patchpack")
    return codec


def _three(values: Sequence[int]) -> Tubelet:
    one, two, three = values
    return int(one), int(two), int(three)
