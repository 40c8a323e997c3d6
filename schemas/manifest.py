"""manifest.json and the tables beside it: what a dataset is, and which shards are in it.

The manifest is written last: a folder without one is unfinished, and readers say so.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import IO, TypedDict, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from patchpack.schemas.errors import FormatError, without_secrets
from patchpack.schemas.figures import Options
from patchpack.schemas.geometry import Layout
from patchpack.schemas.report import Bound, DatasetTotals, Earlier
from patchpack.schemas.storage import join, read_bytes

FORMAT_VERSION = 1
# of a table: some ten MB
ROWS_AT_ONCE = 65_536
# names of optional features this reader understands
UNDERSTOOD = frozenset({"align_tokens", "codec", "keep_order", "text"})

MANIFEST_NAME = "manifest.json"
# sequences alone, so that other readers of Parquet can be given the folder
SEQUENCES_FOLDER = "sequences"
SHARD_TABLE_NAME = "shards.parquet"
REJECT_TABLE_NAME = "rejects.parquet"
BOUND_TABLE_NAME = "bounds.parquet"
# the first file of a build: a folder without it was never one
RUN_NAME = "_run.json"

SHARD_TABLE_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("group", pa.int32(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("layout", pa.int32(), nullable=False),
        pa.field("num_sequences", pa.int64(), nullable=False),
        pa.field("num_segments", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("num_rejects", pa.int64(), nullable=False),
    ]
)
# columns that count something, or number it
_COUNTS = [field.name for field in SHARD_TABLE_SCHEMA if pa.types.is_integer(field.type)]


class ShardRow(TypedDict):
    """A row of the shard table."""

    path: str
    digest: str
    fingerprint: str
    bytes: int
    group: int
    view: int
    layout: int
    num_sequences: int
    num_segments: int
    num_tokens: int
    num_rejects: int


class Limits(TypedDict):
    """The most that the stored sequences of a layout have: examples in one; tokens, each side of the grid and labels of one example.

    Labels: 0 where a dataset of an earlier version does not say.
    """

    max_segments: int
    max_segment_tokens: int
    max_grid: list[int]
    max_labels: int


def largest_limits(limits: Iterable[Limits]) -> Limits:
    """Returns limits that hold for all; at least 1 each, as a model's shapes follow from them."""
    found = list(limits)
    return {
        "max_segments": max([1, *(each["max_segments"] for each in found)]),
        "max_segment_tokens": max([1, *(each["max_segment_tokens"] for each in found)]),
        "max_grid": [max(sides) for sides in zip([1, 1, 1], *(each["max_grid"] for each in found), strict=True)],
        "max_labels": max([0, *(each.get("max_labels", 0) for each in found)]),
    }


# the proof of each bound: how many examples of each length were planned, and the dual value of one
BOUND_TABLE_SCHEMA = pa.schema(
    [
        pa.field("view", pa.int32(), nullable=False),
        pa.field("layout", pa.int32(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("num_examples", pa.int64(), nullable=False),
        pa.field("dual", pa.int64(), nullable=False),
    ]
)

REJECT_TABLE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


def canonical_json(data: object) -> bytes:
    """Returns JSON that is equal for equal data: sorted keys, no spaces, UTF-8."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def check_version(version: object, requires: Iterable[str], where: str) -> None:
    """Checks that this reader understands a file.

    Raises:
        FormatError: the format is newer than this reader, or needs a feature it does not have.
    """
    if version != FORMAT_VERSION:
        raise FormatError(f"{where}: format version {version}; this reader knows {FORMAT_VERSION}; upgrade patchpack")
    missing = sorted(set(requires) - UNDERSTOOD)
    if missing:
        raise FormatError(f"{where}: requires {', '.join(missing)}; this reader has no such feature; upgrade patchpack")


def dataset_digest(layouts: Iterable[Layout], shard_digests: Iterable[str]) -> str:
    """Returns the identity of a dataset, 32 hex digits: xxh3_128 over format version, layouts and shard digests in order."""
    identity = {"format_version": FORMAT_VERSION, "layouts": [layout.to_json() for layout in layouts], "shards": []}
    # its canonical JSON, a shard at a time: there may be millions
    digest = xxhash.xxh3_128(canonical_json(identity).removesuffix(b"]}"))
    for number, shard_digest in enumerate(shard_digests):
        digest.update(b"," * (number > 0) + canonical_json(shard_digest))
    digest.update(b"]}")
    return digest.hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds.

    Attributes:
        dataset_digest: identity of the dataset, see `dataset_digest`.
        layouts: the layouts its shards refer to by index.
        classes: class names by label number, or None where the dataset has no labels.
        totals: counts of inputs, rejects, and planned and stored sequences, examples and tokens.
        bounds: for each (view, layout) the proven least number of sequences, and how many were planned.
        config: every option of the build that affects the output, but for passwords of URIs in them.
        recipe: name of the recipe that its options come from, or None.
        limits: of each layout, what its sequences have at most; as much as the layout allows in datasets of before.
        balance_step: how many sequences make a group of near-equal cost, or None: every shard is whole groups, but
            the last shard of a (group, view, layout) may end with less than one.
        earlier: what the dataset was before each time that inputs were added, the first one first.
    """

    dataset_digest: str
    layouts: tuple[Layout, ...]
    classes: tuple[str, ...] | None
    totals: DatasetTotals
    bounds: tuple[Bound, ...]
    config: Options
    balance_step: int | None = None
    recipe: str | None = None
    limits: tuple[Limits, ...] = ()
    earlier: tuple[Earlier, ...] = ()

    def __post_init__(self) -> None:
        if len(self.limits) != len(self.layouts):
            object.__setattr__(self, "limits", tuple(map(_allowed, self.layouts)))
        if (shown := without_secrets(options := json.dumps(self.config))) != options:
            # here, since reports are made of it too
            object.__setattr__(self, "config", json.loads(shown))

    def to_bytes(self) -> bytes:
        """Returns the content of manifest.json."""
        data: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "requires": sorted({feature for layout in self.layouts for feature in layout.features}),
            "dataset_digest": self.dataset_digest,
            "layouts": [layout.to_json() for layout in self.layouts],
            "limits": list(self.limits),
            "classes": None if self.classes is None else list(self.classes),
            "totals": self.totals,
            "bounds": list(self.bounds),
            "config": self.config,
        }
        if self.balance_step is not None:
            data["balance_step"] = self.balance_step
        if self.recipe is not None:
            data["recipe"] = self.recipe
        if self.earlier:
            data["earlier"] = list(self.earlier)
        data["manifest_digest"] = _content_digest(json.loads(json.dumps(data)))
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_manifest(folder: str) -> Manifest:
    """Returns the manifest of a dataset.

    Args:
        folder: the dataset's folder, a local path or a URI that pyarrow can read.

    Raises:
        FormatError: there is none, it is not JSON, or this reader is too old for it.
    """
    path = join(folder, MANIFEST_NAME)
    try:
        data = json.loads(read_bytes(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FormatError(f"{folder}: {_why_no_manifest(folder)}") from error
    except ValueError as error:
        raise FormatError(
            f"{path}: not JSON ({error}); the manifest is broken; write it again with build --resume"
        ) from error
    if not isinstance(data, dict) or "format_version" not in data:
        raise FormatError(f"{path}: no format_version; a manifest of patchpack has one; check the path")
    try:
        check_version(data["format_version"], data.get("requires", ()), path)
        _check_content(data, path)
        return Manifest(
            dataset_digest=data["dataset_digest"],
            layouts=tuple(Layout.from_json(layout, path) for layout in data["layouts"]),
            classes=None if data["classes"] is None else tuple(data["classes"]),
            totals=cast(DatasetTotals, dict(data["totals"])),
            bounds=tuple(cast(Bound, dict(bound)) for bound in data["bounds"]),
            config=cast(Options, dict(data["config"])),
            balance_step=_balance_step(data.get("balance_step")),
            recipe=None if data.get("recipe") is None else str(data["recipe"]),
            limits=tuple(_limits(limits) for limits in data.get("limits", ())),
            earlier=tuple(map(_earlier, data.get("earlier", ()))),
        )
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path}: broken manifest ({error!r}); it holds what docs/format.md lists; write it again with build --resume"
        ) from error


def _content_digest(data: Mapping[str, object]) -> str:
    """Returns xxh3_128, 32 hex digits, over canonical JSON of a manifest, but of its own digest."""
    return xxhash.xxh3_128_hexdigest(
        canonical_json({name: value for name, value in data.items() if name != "manifest_digest"})
    )


def _check_content(data: Mapping[str, object], path: str) -> None:
    """Checks a manifest against its own digest; those of before have none. Raises FormatError where they differ."""
    due = data.get("manifest_digest")
    if due is not None and due != (digest := _content_digest(data)):
        raise FormatError(
            f"{path}: manifest_digest is {due}, its content gives {digest}; it changed after it was written; copy it again, or write it again "
            "with build --resume"
        )


def _why_no_manifest(folder: str) -> str:
    try:
        read_bytes(join(folder, RUN_NAME))
    except OSError:
        return f"no dataset; a dataset is a folder with {MANIFEST_NAME}; check the path"
    return f"no {MANIFEST_NAME}; the dataset is not finished, and a finished one has it; finish it with build --resume"


def _allowed(layout: Layout) -> Limits:
    """Returns the limits that a layout sets by itself."""
    length = layout.sequence_length
    return {
        "max_segments": layout.max_segments,
        "max_segment_tokens": length,
        "max_grid": [length] * 3,
        "max_labels": 0,
    }


def _limits(data: Mapping[str, object]) -> Limits:
    grid = data["max_grid"]
    sides: list[object] = grid if isinstance(grid, list) and len(grid) == 3 else [None]
    found = {"max_labels": 0, **data}
    values = [found["max_segments"], found["max_segment_tokens"], *sides]
    values = [*values, 1 if found["max_labels"] == 0 else found["max_labels"]]
    if not all(isinstance(value, int) and not isinstance(value, bool) and value >= 1 for value in values):
        raise ValueError(f"limits {dict(data)}")
    return cast(Limits, {name: found[name] for name in Limits.__annotations__})


def _earlier(data: Mapping[str, object]) -> Earlier:
    digest, counts = data["dataset_digest"], [data["num_shards"], data["num_sequences"]]
    if not isinstance(digest, str) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"earlier {dict(data)}")
    return cast(Earlier, {name: data[name] for name in Earlier.__annotations__})


def _balance_step(size: object) -> int | None:
    if size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 1):
        return size
    raise ValueError(f"balance_step {size!r}")


def read_table(folder: str, name: str, schema: pa.Schema) -> pa.Table:
    """Returns a table of a dataset, the schema's columns in the schema's order.

    Raises:
        FormatError: the file is missing, broken or lacks a column.
    """
    path = join(folder, name)
    try:
        # whole: parts would be a request each
        file = pa.BufferReader(read_bytes(path))
        return pq.read_table(file, page_checksum_verification=True).select(schema.names).cast(schema)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise FormatError(
            f"{path}: cannot be read ({error}); a finished dataset has this table; write it again with build --resume"
        ) from error


def read_shard_table(folder: str) -> pa.Table:
    """Returns shards.parquet: one row a shard; its order numbers the sequences.

    Its paths name files in `SEQUENCES_FOLDER` and nothing else, since files of these names are opened, and deleted by --overwrite.

    Raises:
        FormatError: as `read_table`, or a path or a number is none of a shard's.
    """
    table = read_table(folder, SHARD_TABLE_NAME, SHARD_TABLE_SCHEMA)
    where = join(folder, SHARD_TABLE_NAME)
    for name in SHARD_TABLE_SCHEMA.names:
        if table[name].null_count:
            raise FormatError(f"{where}: no {name} in a row; every row has one; write it again with build --resume")
    is_name = pc.match_substring_regex(table["path"], rf"\A{SEQUENCES_FOLDER}/[A-Za-z0-9][A-Za-z0-9._-]*\z")
    if not pc.all(is_name, min_count=0).as_py():
        path = table["path"][pc.index(is_name, False).as_py()].as_py()
        raise FormatError(
            f"{where}: path {path!r}; a shard is a file in {SEQUENCES_FOLDER}/, named by letters, digits, '.', '_' and '-'; "
            "take the dataset from who made it, or write it again with build --resume"
        )
    for name in _COUNTS:
        if (least := pc.min(table[name]).as_py() or 0) < 0:
            raise FormatError(f"{where}: {name} is {least}; counts are 0 or more; write it again with build --resume")
    return table


def table_bytes(rows: Iterable[Mapping[str, object]], schema: pa.Schema) -> bytes:
    """Returns a small table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    write_rows(sink, rows, schema)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def write_rows(sink: IO[bytes] | pa.NativeFile, rows: Iterable[Mapping[str, object]], schema: pa.Schema) -> None:
    """Writes rows as a Parquet file, some at a time."""
    iterator = iter(rows)
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        while True:
            batch = list(islice(iterator, ROWS_AT_ONCE))
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            if len(batch) < ROWS_AT_ONCE:
                return
