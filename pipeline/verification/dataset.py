"""Re-reads a dataset and finds what is wrong with it: every file, every row, every total.

Passes over what is named: the tables against each other, each shard's bytes against its digest, each row
against the rules of the format, each bound against its proof. A broken file is a finding like any other, so this goes on after it. Costs two
reads of every shard; memory: one shard's small columns, and 16 bytes (in Python about 100) an example.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple, cast

import pyarrow as pa
import xxhash

from patchpack.pipeline.storage.files import open_read
from patchpack.pipeline.verification.bounds import bound_problems
from patchpack.pipeline.verification.rows import Seen, row_problems
from patchpack.schemas import FormatError, Layout, Manifest, Shard, read_manifest, read_shard_table, sequence_schema
from patchpack.schemas.manifest import (
    MANIFEST_NAME,
    REJECT_TABLE_NAME,
    REJECT_TABLE_SCHEMA,
    SEQUENCES_FOLDER,
    SHARD_TABLE_NAME,
    ShardRow,
    dataset_digest,
    read_table,
)
from patchpack.schemas.report import CountName
from patchpack.schemas.sequence import LATER_FIELDS, array_columns
from patchpack.schemas.storage import is_uri, join, list_names, read_blocks

# more than anyone reads; a dataset of ten thousand broken shards should still end soon
LIMIT = 200
_TOTALS: tuple[CountName, ...] = ("num_sequences", "num_segments", "num_tokens")
_BLOCK_BYTES = 2**22
# as Python values a row takes about a hundred times its Arrow size
_BATCH_ROWS = 1024


def verify(folder: str, progress: Callable[[int], None] | None = None, limit: int = LIMIT) -> list[str]:
    """Returns every problem found, one line each, naming the file and where it applies the row and example.

    Args:
        folder: of the dataset.
        progress: called with how many sequences are done, after each shard.
        limit: stop after so many problems, and say so.
    """
    problems = list(islice(_problems(folder, progress or (lambda done: None)), limit + 1))
    if len(problems) > limit:
        problems[limit:] = [f"{folder}: more than {limit} problems; the others are not listed; build the dataset again"]
    return problems


class _Tables(NamedTuple):
    """The tables of a dataset."""

    folder: str
    manifest: Manifest
    shards: list[ShardRow]
    rejects: list[tuple[str, ...]]
    known_rejects: frozenset[tuple[str, ...]]


def _problems(folder: str, progress: Callable[[int], None]) -> Iterator[str]:
    try:
        manifest, shards = read_manifest(folder), read_shard_table(folder).to_pylist()
        table = read_table(folder, REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA)
    except FormatError as error:
        yield str(error)
        return
    rejects = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    tables = _Tables(folder, manifest, shards, rejects, frozenset(rejects))
    try:
        yield from _total_problems(tables)
        num_inputs = tables.manifest.totals["num_inputs"]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        yield (
            f"{join(folder, MANIFEST_NAME)}: broken totals or bounds ({error!r}); it holds what docs/format.md lists; "
            "write it again with build --resume"
        )
        num_inputs = None
    yield from _step_problems(tables)
    yield from _stray_problems(tables)
    seen = Seen()
    done = 0
    for shard in shards:
        try:
            yield from _shard_problems(shard, tables, seen)
        # whatever a damaged file makes a library raise is a finding, and the others still count
        except Exception as error:  # noqa: BLE001 (a broken file may raise anything, and is a problem)
            yield f"{join(folder, shard['path'])}: cannot be read ({error!r}); the shard is broken; rebuild it"
        done += shard["num_sequences"]
        progress(done)
    # rows that could not be read are a problem already, and what they hold is not known
    if num_inputs is not None and seen.num_rows == done:
        yield from _input_problems(tables, num_inputs, seen)
    if num_inputs is not None:
        yield from bound_problems(folder, manifest, seen.lengths if seen.num_rows == done else None)


def _total_problems(tables: _Tables) -> Iterator[str]:
    """Yields where the manifest, the shard table and the reject table contradict each other."""
    manifest, shards = tables.manifest, tables.shards
    where = join(tables.folder, MANIFEST_NAME)
    planned, stored = manifest.totals["planned"], manifest.totals["stored"]
    sums: dict[str, int] = {name: sum(shard[name] for shard in shards) for name in _TOTALS}
    sums |= {"bytes": sum(shard["bytes"] for shard in shards), "num_shards": len(shards)}
    for name, value in sums.items():
        if cast(dict[str, int], stored)[name] != value:
            yield f"{where}: stored {name} is {cast(dict[str, int], stored)[name]}; {SHARD_TABLE_NAME} gives {value}; rebuild the dataset"
    digest = dataset_digest(manifest.layouts, [shard["digest"] for shard in shards])
    if digest != manifest.dataset_digest:
        yield f"{where}: dataset_digest is {manifest.dataset_digest}; {SHARD_TABLE_NAME} gives {digest}; rebuild the dataset"
    for one in manifest.earlier:
        digest = dataset_digest(manifest.layouts, [shard["digest"] for shard in shards[: one["num_shards"]]])
        if digest != one["dataset_digest"]:
            yield (
                f"{where}: the dataset was {one['dataset_digest']} with its first {one['num_shards']} shards; {SHARD_TABLE_NAME} gives "
                f"{digest}; shards that inputs are added to stay as they are; rebuild the dataset"
            )
    if manifest.totals["num_rejects"] != len(tables.rejects):
        yield (
            f"{where}: num_rejects is {manifest.totals['num_rejects']}; {REJECT_TABLE_NAME} has {len(tables.rejects)} rows; "
            "rebuild the dataset"
        )
    # an example that fails after planning leaves its sequence: no sequence goes, and each missing example is a reject
    lost = sum(shard["num_rejects"] for shard in shards)
    if planned["num_sequences"] != stored["num_sequences"] or planned["num_segments"] - stored["num_segments"] != lost:
        yield (
            f"{where}: {planned['num_sequences']} sequences of {planned['num_segments']} examples planned, "
            f"{stored['num_sequences']} of {stored['num_segments']} stored; the shards' {lost} rejects explain as many "
            "examples and no sequence; rebuild the dataset"
        )
    missing = planned["num_tokens"] - stored["num_tokens"]
    if missing < lost or (missing > 0 and not lost):
        yield (
            f"{where}: {planned['num_tokens']} tokens planned, {stored['num_tokens']} stored; with {lost} rejects in shards "
            f"{f'at least {lost}' if lost else 'none'} are missing; rebuild the dataset"
        )
    sequences: Counter[tuple[int, int]] = Counter()
    for shard in shards:
        sequences[shard["view"], shard["layout"]] += shard["num_sequences"]
    for entry in manifest.bounds:
        view, layout, number = entry["view"], entry["layout"], entry["num_sequences"]
        if number != sequences[view, layout] or not entry["bound"] <= number:
            yield (
                f"{where}: bounds give view {view}, layout {layout} {number} sequences and a bound of {entry['bound']}; "
                f"{SHARD_TABLE_NAME} has {sequences[view, layout]}, and no bound is larger; rebuild the dataset"
            )


def _step_problems(tables: _Tables) -> Iterator[str]:
    """Yields shards that cut a step of sequences of near-equal cost: only the last of a group of inputs may."""
    size = tables.manifest.balance_step
    if size is None:
        return
    last = {(shard["group"], shard["view"], shard["layout"]): shard["path"] for shard in tables.shards}
    for shard in tables.shards:
        if shard["num_sequences"] % size and shard["path"] != last[shard["group"], shard["view"], shard["layout"]]:
            yield (
                f"{join(tables.folder, shard['path'])}: {shard['num_sequences']} sequences, balance_step is {size}; "
                "a shard holds whole steps, but the last of a group, view and layout; rebuild the dataset"
            )


def _stray_problems(tables: _Tables) -> Iterator[str]:
    """Yields shards that no table knows, and those that are listed twice."""
    counts = Counter(shard["path"] for shard in tables.shards)
    for name, count in counts.items():
        if count > 1:
            yield (
                f"{join(tables.folder, SHARD_TABLE_NAME)}: {name} is listed {count} times; a shard is listed once; "
                "rebuild the dataset"
            )
    for name in list_names(join(tables.folder, SEQUENCES_FOLDER)):
        path = join(tables.folder, f"{SEQUENCES_FOLDER}/{name}")
        if name.startswith(".part-") and name.endswith(".tmp"):
            yield f"{path}: left by a write that was killed; readers ignore it; delete it, or run build --resume"
        elif name.startswith("part-") and name.endswith(".parquet") and f"{SEQUENCES_FOLDER}/{name}" not in counts:
            yield f"{path}: not in {SHARD_TABLE_NAME}; a dataset has no other shards; delete it, or rebuild the dataset"


def _input_problems(tables: _Tables, num_inputs: int, seen: Seen) -> Iterator[str]:
    """Yields inputs that got lost: each is packed or a reject."""
    for key, *_ in tables.rejects:
        seen.add_source(key)
    if num_inputs != seen.num_sources:
        yield (
            f"{join(tables.folder, MANIFEST_NAME)}: num_inputs is {num_inputs}; {seen.num_sources} different keys are packed "
            f"or in {REJECT_TABLE_NAME}; each input is one or the other; rebuild the dataset"
        )


def _shard_problems(shard: ShardRow, tables: _Tables, seen: Seen) -> Iterator[str]:
    path = join(tables.folder, shard["path"])
    try:
        size, digest = _file_digest(path)
    except FileNotFoundError:
        yield f"{path}: no such file; {SHARD_TABLE_NAME} lists it; write it again with build --resume"
        return
    if size != shard["bytes"]:
        yield f"{path}: {size} bytes; {SHARD_TABLE_NAME} says {shard['bytes']}; the file was changed; rebuild this shard"
    if digest != shard["digest"]:
        yield f"{path}: digest is {digest}; {SHARD_TABLE_NAME} says {shard['digest']}; the file was changed; rebuild this shard"
    try:
        with Shard(path) as opened:
            yield from _metadata_problems(opened, shard, tables)
            yield from _content_problems(opened, shard, tables, seen)
    except FormatError as error:
        yield str(error)


def _file_digest(path: str) -> tuple[int, str]:
    digest, size = xxhash.xxh3_128(), 0
    for block in read_blocks(path) if is_uri(path) else _local_blocks(path):
        digest.update(block)
        size += len(block)
    return size, digest.hexdigest()


def _local_blocks(path: str) -> Iterator[bytes]:
    # pyarrow would wait for ever for what comes through a pipe
    with open_read(path) as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _metadata_problems(opened: Shard, shard: ShardRow, tables: _Tables) -> Iterator[str]:
    """Yields where a shard's own record contradicts the tables."""
    path, own = opened.path, opened.metadata
    layouts = tables.manifest.layouts
    if not 0 <= shard["layout"] < len(layouts) or opened.layout != layouts[shard["layout"]]:
        yield f"{path}: its layout is not layout {shard['layout']} of {MANIFEST_NAME}; shards keep to theirs; rebuild this shard"
    said: dict[str, object] = {
        "view": own.get("view"),
        "group": own.get("group"),
        "fingerprint": own.get("fingerprint"),
    }
    said |= {name: own["totals"].get(name) for name in _TOTALS}
    said |= {"num_rejects": len(own["rejects"]), "num_sequences": opened.num_sequences}
    for name, value in said.items():
        listed = cast(dict[str, object], shard)[name]
        if value != listed:
            yield f"{path}: {name} is {value}; {SHARD_TABLE_NAME} says {listed}; the tables are not of this file; rebuild the dataset"
    for reject in own["rejects"]:
        if tuple(reject.get(name) for name in REJECT_TABLE_SCHEMA.names) not in tables.known_rejects:
            yield (
                f"{path}: its reject {reject.get('key')} ({reject.get('reason')}) is not in {REJECT_TABLE_NAME}; "
                "no input is lost silently; rebuild the dataset"
            )


def _content_problems(opened: Shard, shard: ShardRow, tables: _Tables, seen: Seen) -> Iterator[str]:
    """Yields what is wrong with a shard's columns and rows."""
    path, own = opened.path, opened.metadata
    table = opened.read_metadata()
    wrong = list(_column_problems(table.schema, opened.layout, path))
    if wrong:
        yield from wrong
        return
    sums: Counter[str] = Counter()
    most_labels = 0
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        for row in batch.to_pylist():
            row_index = sums["num_sequences"]
            sums.update({"num_sequences": 1, **{name: row[name] for name in _TOTALS[1:]}})
            seen.lengths[shard["view"], shard["layout"]].update(
                opened.layout.slots(segment["num_tokens"] or 0) for segment in row["segments"] or ()
            )
            most_labels = max([most_labels, *(len(segment["labels"] or ()) for segment in row["segments"] or ())])
            yield from row_problems(opened, row_index, row, tables.manifest.classes, own.get("view"), seen)
    for name in _TOTALS:
        if sums[name] != own["totals"].get(name):
            yield f"{path}: its totals say {name} {own['totals'].get(name)}; its rows give {sums[name]}; rebuild this shard"
    limits = tables.manifest.limits[shard["layout"]]
    largest = {name: max(table[name].to_pylist(), default=0) for name in ("num_segments", "max_segment_tokens")}
    for name, value, most in (
        ("num_segments", largest["num_segments"], limits["max_segments"]),
        ("max_segment_tokens", largest["max_segment_tokens"], limits["max_segment_tokens"]),
        ("labels of a segment", most_labels, limits["max_labels"] or most_labels),
    ):
        if value > most:
            yield f"{path}: {name} {value}; the limit in {MANIFEST_NAME} is {most}; rebuild the dataset"


def _column_problems(schema: pa.Schema, layout: Layout, path: str) -> Iterator[str]:
    """Yields small columns and fields of segments that are missing or of another type; more of them are no problem."""
    present = _types(schema)
    for name, due in _types(sequence_schema(layout)).items():
        # the raw columns were checked when the shard was opened; earlier versions do not have every field
        is_later = name.removeprefix("segments.") in LATER_FIELDS and name not in present
        if name in array_columns(layout) or is_later:
            continue
        if name not in present or not _alike(present[name], due):
            yield f"{path}: column {name} is {present.get(name, 'missing')}; the format has {due}; rebuild this shard"


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Returns type by column name; a list of structs counts as its fields."""
    types: dict[str, pa.DataType] = {}
    for field in schema:
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
            types |= {f"{field.name}.{inner.name}": inner.type for inner in field.type.value_type}
        else:
            types[field.name] = field.type
    return types


def _alike(one: pa.DataType, other: pa.DataType) -> bool:
    # writers differ in how they call the element of a list
    if pa.types.is_list(one) and pa.types.is_list(other):
        return _alike(one.value_type, other.value_type)
    return bool(one == other)
