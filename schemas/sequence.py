"""The packed row: its columns, padding values, digest and rules.

A row is one sequence: `tokens`, `segment_ids` and `positions` as raw little-endian bytes of fixed
width (a FixedSizeList of uint8 would be stored as INT32: four times larger, thirty times slower to
read), then counts, then one struct a segment that says what the tokens are. Where tokens were dropped, `keep_order` is one
raw column more, and where captions are packed beside them `text_ids` and `text_segment_ids` are. Where the layout has a codec,
`tokens` are as many bytes as it made of them, and `tokens_bytes` says how many.
"""

import math
from typing import NotRequired, TypedDict, cast

import numpy as np
import pyarrow as pa
import xxhash

from patchpack.schemas.errors import FormatError
from patchpack.schemas.geometry import NO_CODEC, Grid, Layout, grid_positions

SEGMENT_DTYPE = np.dtype("<i2")
POSITION_DTYPE = np.dtype("<i2")
KEEP_ORDER_DTYPE = np.dtype("<i4")
TEXT_DTYPE = np.dtype("<i4")
# the column of how many bytes encoded tokens are
TOKENS_BYTES = "tokens_bytes"
PADDING_TOKEN = 0
PADDING_SEGMENT = 0
PADDING_POSITION = 0
_PADDING = {"tokens": PADDING_TOKEN, "segment_ids": PADDING_SEGMENT, "positions": PADDING_POSITION}

# one row group: large enough to stream at full speed, small enough to hold a few in memory
ROW_GROUP_TOKEN_BYTES = 32 * 2**20
MAX_ROWS_PER_GROUP = 1024

SEGMENT_TYPE = pa.struct(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("labels", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False),
        pa.field("captions", pa.list_(pa.field("element", pa.string(), nullable=False)), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("grid_t", pa.int32(), nullable=False),
        pa.field("grid_h", pa.int32(), nullable=False),
        pa.field("grid_w", pa.int32(), nullable=False),
        pa.field("source_height", pa.int32(), nullable=False),
        pa.field("source_width", pa.int32(), nullable=False),
        pa.field("target_height", pa.int32(), nullable=False),
        pa.field("target_width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("timestamps_s", pa.list_(pa.field("element", pa.float64(), nullable=False)), nullable=False),
        pa.field("clip_start_s", pa.float64()),
        pa.field("clip_duration_s", pa.float64()),
        pa.field("fps", pa.float64()),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("num_repeated_frames", pa.int32(), nullable=False),
        pa.field("kept_fraction", pa.float32(), nullable=False),
        pa.field("extra", pa.string()),
        pa.field("crop_top", pa.int32(), nullable=False),
        pa.field("crop_left", pa.int32(), nullable=False),
        pa.field("crop_height", pa.int32(), nullable=False),
        pa.field("crop_width", pa.int32(), nullable=False),
        pa.field("valid_height", pa.int32(), nullable=False),
        pa.field("valid_width", pa.int32(), nullable=False),
        pa.field("flipped", pa.bool_(), nullable=False),
        pa.field("aspect_error", pa.float32(), nullable=False),
        pa.field("scale", pa.float32(), nullable=False),
        pa.field("text_start", pa.int32(), nullable=False),
        pa.field("num_text_tokens", pa.int32(), nullable=False),
        pa.field("caption", pa.int32(), nullable=False),
        pa.field(
            "boxes",
            pa.list_(pa.field("element", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False)),
            nullable=False,
        ),
    ]
)


# fields that datasets of earlier versions of patchpack do not have
LATER_FIELDS = frozenset(
    [
        "flipped",
        "aspect_error",
        "scale",
        "boxes",
        "valid_height",
        "valid_width",
        "text_start",
        "num_text_tokens",
        "caption",
    ]
    + [f"crop_{name}" for name in ("top", "left", "height", "width")]
)


class Segment(TypedDict):
    """The stored record of one segment, as SEGMENT_TYPE; docs/format.md says what each column means."""

    example_id: str
    view: int
    source: str
    member: str | None
    labels: list[int]
    captions: list[str]
    weight: float
    start: int
    num_tokens: int
    grid_t: int
    grid_h: int
    grid_w: int
    source_height: int
    source_width: int
    target_height: int
    target_width: int
    height: int
    width: int
    timestamps_s: list[float]
    clip_start_s: float | None
    clip_duration_s: float | None
    fps: float | None
    num_frames: int
    num_repeated_frames: int
    kept_fraction: float
    extra: str | None
    crop_top: int
    crop_left: int
    crop_height: int
    crop_width: int
    valid_height: int
    valid_width: int
    flipped: bool
    aspect_error: float
    scale: float
    text_start: int
    num_text_tokens: int
    caption: int
    boxes: list[list[float]]


class Row(TypedDict):
    """One sequence without its raw columns."""

    num_tokens: int
    num_segments: int
    max_segment_tokens: int
    attention_cost: int
    segments: list[Segment]
    digest: int


class Sequence(Row):
    """One sequence: `tokens` (L, P), `segment_ids` (L,), `positions` (L, 3), perhaps `keep_order` (L,), and the others."""

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    keep_order: NotRequired[np.ndarray]
    text_ids: NotRequired[np.ndarray]
    text_segment_ids: NotRequired[np.ndarray]


def sequence_schema(layout: Layout) -> pa.Schema:
    """Returns the Arrow schema of a shard of this layout; one row is one sequence."""
    raw = {name: pa.binary(width) for name, width in array_bytes(layout).items()}
    encoded = [] if layout.codec == NO_CODEC else [pa.field(TOKENS_BYTES, pa.int32(), nullable=False)]
    if encoded:
        raw["tokens"] = pa.binary()
    return pa.schema(
        [
            *(pa.field(name, kind, nullable=False) for name, kind in raw.items()),
            *encoded,
            pa.field("num_tokens", pa.int32(), nullable=False),
            pa.field("num_segments", pa.int32(), nullable=False),
            pa.field("max_segment_tokens", pa.int32(), nullable=False),
            pa.field("attention_cost", pa.int64(), nullable=False),
            pa.field("segments", pa.list_(pa.field("element", SEGMENT_TYPE, nullable=False)), nullable=False),
            pa.field("digest", pa.uint64(), nullable=False),
        ]
    )


def array_columns(layout: Layout) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Returns dtype and shape of one row of each raw column, in the order of the digest."""
    length = layout.sequence_length
    columns: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
        "tokens": (np.dtype(layout.token_dtype).newbyteorder("<"), (length, layout.token_width)),
        "segment_ids": (SEGMENT_DTYPE, (length,)),
        "positions": (POSITION_DTYPE, (length, 3)),
    }
    if layout.keep_order:
        columns["keep_order"] = (KEEP_ORDER_DTYPE, (length,))
    if layout.text_length:
        columns["text_ids"] = (TEXT_DTYPE, (layout.text_length,))
        columns["text_segment_ids"] = (SEGMENT_DTYPE, (layout.text_length,))
    return columns


def array_bytes(layout: Layout) -> dict[str, int]:
    """Returns the bytes of one row of each raw column, before it is encoded."""
    return {name: dtype.itemsize * math.prod(shape) for name, (dtype, shape) in array_columns(layout).items()}


def rows_per_group(layout: Layout) -> int:
    """Returns how many sequences make a row group: 32 MiB of tokens, 1 to 1,024."""
    return min(MAX_ROWS_PER_GROUP, max(1, ROW_GROUP_TOKEN_BYTES // layout.token_bytes))


class Measures(TypedDict):
    """What resizing did to an example: how far it is stretched, and how much larger it is than its source."""

    aspect_error: float
    scale: float


def measures(shown: tuple[int, ...], valid: tuple[int, ...]) -> Measures:
    """Returns how (height, width) in px of a source became those of a segment.

    The aspect error is the larger aspect over the smaller, minus 1; the scale is that of a side, over 1 where it grew.
    """
    one, other = shown[0] * valid[1], shown[1] * valid[0]
    return {
        "aspect_error": max(one, other) / min(one, other) - 1,
        "scale": math.sqrt(valid[0] * valid[1] / (shown[0] * shown[1])),
    }


def sequence_digest(
    tokens_LP: np.ndarray, segment_ids_L: np.ndarray, positions_L3: np.ndarray, *more: np.ndarray
) -> int:
    """Returns xxh3_64 over the stored bytes of tokens, segment ids, positions and further raw columns, in that order."""
    digest = xxhash.xxh3_64()
    for array in (tokens_LP, segment_ids_L, positions_L3, *more):
        digest.update(np.ascontiguousarray(array).data)
    return digest.intdigest()


def raw_arrays(row: Sequence, layout: Layout) -> list[np.ndarray]:
    """Returns the raw columns of a sequence, in the order of the digest."""
    values = cast(dict[str, np.ndarray], row)
    return [values[name] for name in array_columns(layout)]


def check_sequence(row: Sequence, layout: Layout, where: str) -> None:
    """Checks one stored row against every rule of the format that needs no other row.

    Args:
        row: column name to value.
        layout: the layout of the row's shard.
        where: how to name the row in the error, such as "shards/part-000-00000-00000.parquet row 3".

    Raises:
        FormatError: naming the row, the example where one is at fault, the value and the rule.
    """
    segments = row["segments"]
    _check_counts(row, segments, layout, where)
    is_padding_L, is_padding_T = np.ones(layout.sequence_length, bool), np.ones(layout.text_length, bool)
    start = text_start = 0
    for number, segment in enumerate(segments, start=1):
        _check_segment(segment, number, start, row, where)
        is_padding_L[start : start + segment["num_tokens"]] = False
        start += layout.slots(segment["num_tokens"])
        if layout.text_length:
            text_end = text_start + segment["num_text_tokens"]
            _check_text(segment, number, text_start, row, layout, where)
            is_padding_T[text_start:text_end] = False
            text_start = text_end
    arrays = raw_arrays(row, layout)
    for column, values in zip(array_columns(layout), arrays, strict=True):
        rule, is_padding = _PADDING.get(column, 0), is_padding_T if column.startswith("text_") else is_padding_L
        wrong_L = is_padding & (values.reshape(len(is_padding), -1) != rule).any(axis=1)
        if wrong_L.any():
            raise FormatError(
                f"{where}: {column} of padding is not {rule} at token {int(np.argmax(wrong_L))}; padding holds {rule}; rebuild this shard"
            )
    digest = sequence_digest(*arrays)
    if digest != row["digest"]:
        raise FormatError(
            f"{where}: digest is {digest:016x}, stored {row['digest']:016x}; tokens, segment_ids or positions changed; rebuild this shard"
        )


def _check_counts(row: Row, segments: list[Segment], layout: Layout, where: str) -> None:
    lengths = [segment["num_tokens"] for segment in segments]
    derived = {
        "num_tokens": (row["num_tokens"], sum(lengths)),
        "num_segments": (row["num_segments"], len(segments)),
        "max_segment_tokens": (row["max_segment_tokens"], max(lengths, default=0)),
        "attention_cost": (row["attention_cost"], sum(n * n for n in lengths)),
    }
    for column, (stored, value) in derived.items():
        if stored != value:
            raise FormatError(
                f"{where}: {column} is {stored}, the segments give {value}; they agree in a valid row; rebuild this shard"
            )
    if len(segments) > layout.max_segments:
        raise FormatError(
            f"{where}: {len(segments)} segments; the layout's max_segments is {layout.max_segments}; rebuild this shard"
        )
    if sum(map(layout.slots, lengths)) > layout.sequence_length:
        raise FormatError(
            f"{where}: {sum(map(layout.slots, lengths))} tokens; the layout's sequence_length is {layout.sequence_length}; rebuild this shard"
        )


def _check_segment(segment: Segment, number: int, start: int, row: Sequence, where: str) -> None:
    where = f"{where}, segment {number}, example {segment['example_id']} ({segment['source']})"
    length = segment["num_tokens"]
    grid = Grid(segment["grid_t"], segment["grid_h"], segment["grid_w"])
    if segment["start"] != start:
        raise FormatError(
            f"{where}: starts at token {segment['start']}; segments follow each other from 0, so {start} was due; rebuild this shard"
        )
    if length < 1 or min(grid) < 1:
        raise FormatError(
            f"{where}: {length} tokens, grid {tuple(grid)}; a segment has at least one token; rebuild this shard"
        )
    if (row["segment_ids"][start : start + length] != number).any():
        raise FormatError(
            f"{where}: segment_ids differ inside tokens {start} to {start + length}; all of them are {number}; rebuild this shard"
        )
    positions_N3 = row["positions"][start : start + length]
    if length > grid.num_tokens:
        raise FormatError(
            f"{where}: {length} tokens on grid {tuple(grid)}; a grid holds {grid.num_tokens}; rebuild this shard"
        )
    if length == grid.num_tokens:
        sound = np.array_equal(positions_N3, grid_positions(grid))
    else:  # tokens were dropped: what is left lies on the grid and stays in raster order
        inside = bool((positions_N3 >= 0).all() and (positions_N3 < np.array(grid)).all())
        sound = inside and bool((np.diff(np.ravel_multi_index(positions_N3.T.astype(np.int64), grid)) > 0).all())
    if not sound:
        raise FormatError(
            f"{where}: positions are not the raster of grid {tuple(grid)}; kept tokens keep (t, y, x) order; rebuild this shard"
        )
    if "keep_order" in row and not np.array_equal(
        np.sort(row["keep_order"][start : start + length]), np.arange(length)
    ):
        raise FormatError(
            f"{where}: keep_order is no order of its {length} tokens; each has a rank of its own from 0; rebuild this shard"
        )


def _check_text(segment: Segment, number: int, start: int, row: Sequence, layout: Layout, where: str) -> None:
    where = f"{where}, segment {number}, example {segment['example_id']} ({segment['source']})"
    length = segment["num_text_tokens"]
    if segment["text_start"] != start or length < 0 or start + length > layout.text_length:
        raise FormatError(
            f"{where}: {length} text tokens from {segment['text_start']} on; texts follow each other from 0, so {start} was due, up to "
            f"{layout.text_length}; rebuild this shard"
        )
    if (row["text_segment_ids"][start : start + length] != number).any():
        raise FormatError(
            f"{where}: text_segment_ids differ inside text tokens {start} to {start + length}; all of them are {number}; rebuild this shard"
        )
    if length and not 0 <= segment["caption"] < len(segment["captions"]):
        raise FormatError(
            f"{where}: text of caption {segment['caption']}; it has {len(segment['captions'])}; rebuild this shard"
        )
