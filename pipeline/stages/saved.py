"""The saved plan below an output: a Parquet file for each view of a group, one row group a shard, whose metadata holds a summary.

What is read of it is read a group at a time: there may be millions of shards.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any, TypedDict, cast

import pyarrow as pa
import pyarrow.parquet as pq

from patchpack.pipeline.names import (
    PLAN_NAME,
    arranged_name,
    bucket_digests_name,
    bucket_rejects_name,
    classes_name,
    listing_name,
    parts_name,
    view_plan_name,
)
from patchpack.pipeline.stages.planned import PLAN_SCHEMA, PlannedExample, from_table
from patchpack.pipeline.stages.records import Reject
from patchpack.pipeline.stages.summary import GroupId, Listing, ShardPlan, ViewSummary, check_numbers
from patchpack.pipeline.storage import files
from patchpack.schemas.errors import FormatError
from patchpack.schemas.manifest import REJECT_TABLE_SCHEMA, canonical_json
from patchpack.schemas.report import Arranged, Earlier, Totals
from patchpack.schemas.storage import join

SUMMARY_KEY = b"patchpack_plan"

# what reads a file whole: `files.read`, or that of readers, which need no Beam and know URIs with options at their end
Read = Callable[[str], bytes]


class PlanRecord(TypedDict):
    """plan.json: written last, for a plan that has it is whole.

    Attributes:
        config: options that decide bytes.
        inputs: of the last generation, as what names them wherever they stand.
        totals: of the last generation.
        earlier: what the dataset was after each generation before it.
    """

    config: dict[str, Any]
    inputs: list[str]
    totals: Totals
    earlier: list[Earlier]


def read_plan_record(folder: str, read: Read = files.read) -> PlanRecord:
    """Returns plan.json of an output folder.

    Raises:
        FormatError: the plan was damaged, or made by an earlier version.
    """
    path = join(folder, PLAN_NAME)
    with intact(path):
        record = json.loads(read(path))
        return cast(PlanRecord, {name: record[name] for name in PlanRecord.__annotations__})


def read_generations(folder: str, read: Read = files.read) -> range:
    """Returns the generations of the plan of an output folder; raises as `read_plan_record` does."""
    return range(len(read_plan_record(folder, read)["earlier"]) + 1)


def plan_path(folder: str, group: GroupId, view: int) -> str:
    """Returns the path of the plan of a view of a group in an output folder."""
    return files.join(folder, view_plan_name(*group, view))


def write_view_plan(folder: str, summary: ViewSummary, shards: list[pa.Table]) -> None:
    """Writes the plan of a view of a group below an output folder, whole or not at all."""
    with (
        files.writing(plan_path(folder, (summary.generation, summary.group), summary.view)) as file,
        pq.ParquetWriter(pa.PythonFile(file, mode="w"), PLAN_SCHEMA, compression="zstd") as writer,
    ):
        for rows in shards:
            writer.write_table(rows, row_group_size=max(1, len(rows)))
        writer.add_key_value_metadata({SUMMARY_KEY: summary.to_json()})


def write_rejects(folder: str, generation: int, bucket: int, rejects: list[Reject]) -> None:
    """Writes the rejects among the inputs of a bucket below an output folder, whole or not at all."""
    table = pa.Table.from_pylist([reject._asdict() for reject in rejects], schema=REJECT_TABLE_SCHEMA)
    with files.writing(files.join(folder, bucket_rejects_name(generation, bucket))) as file:
        pq.write_table(table, pa.PythonFile(file, mode="w"), compression="zstd")


def write_parts(folder: str, generation: int, parts: Iterable[tuple[int, int]]) -> None:
    """Writes which groups and views of them a generation's plan has: names are read from there, since a listing may lag."""
    files.write(files.join(folder, parts_name(generation)), canonical_json(sorted(parts)))


def read_parts(folder: str, generation: int, read: Read = files.read) -> list[tuple[int, int]]:
    """Returns the groups and their views of a generation's plan below an output folder, ascending.

    Raises:
        FormatError: the plan was damaged.
    """
    path = join(folder, parts_name(generation))
    with intact(path):
        parts = [(group, view) for group, view in json.loads(read(path))]
        check_numbers("group", [number for part in parts for number in part])
        return parts


def read_summaries(folder: str, generations: Iterable[int] | None = None) -> Iterator[ViewSummary]:
    """Yields the summary of every view of every group planned below an output folder, by group and view; shards by their names.

    Args:
        folder: the output.
        generations: which; None for all of a plan that is whole.

    Raises:
        FormatError: the plan was damaged.
    """
    for group, names in groupby(_plan_names(folder, generations), key=lambda name: name[0]):
        yield from numbered(_read_summary(folder, group, view) for _, view in names)


def planned_groups(folder: str, generations: Iterable[int]) -> list[GroupId]:
    """Returns the groups of some generations of the plan below an output folder, ascending."""
    return sorted({group for group, _ in _plan_names(folder, generations)})


def read_group(folder: str, group: GroupId, num_views: int) -> list[ViewSummary]:
    """Returns the summaries of one group's views, of those that have a plan; raises as `read_summaries` does."""
    views = (view for view in range(num_views) if files.exists(plan_path(folder, group, view)))
    return list(numbered(_read_summary(folder, group, view) for view in views))


def numbered(summaries: Iterable[ViewSummary]) -> Iterator[ViewSummary]:
    """Yields the summaries of a group's views with their shards numbered through the group."""
    first = 0
    for summary in summaries:
        shards = [dataclasses.replace(shard, index=first + shard.index) for shard in summary.shards]
        first += len(shards)
        yield dataclasses.replace(summary, shards=shards)


def plan_names(folder: str, generations: Iterable[int] | None = None, read: Read = files.read) -> Iterator[str]:
    """Yields the names of the plan files below an output folder, by group and view; arguments are those of `read_summaries`."""
    yield from (view_plan_name(*group, view) for group, view in _plan_names(folder, generations, read))


def generation_names(folder: str, generation: int) -> Iterator[str]:
    """Yields the names of all files of one generation of the plan below an output folder."""
    yield from (listing_name(generation), parts_name(generation), arranged_name(generation))
    if files.exists(files.join(folder, classes_name(generation))):
        yield classes_name(generation)
    listing = read_listing(folder, [generation])
    yield from (bucket_rejects_name(generation, bucket) for bucket in listing.rejects_in)
    yield from (bucket_digests_name(generation, bucket) for bucket in listing.digests_in)
    yield from plan_names(folder, [generation])


def _plan_names(
    folder: str, generations: Iterable[int] | None, read: Read = files.read
) -> Iterator[tuple[GroupId, int]]:
    for generation in read_generations(folder, read) if generations is None else generations:
        for group, view in read_parts(folder, generation, read):
            yield (generation, group), view


def _read_summary(folder: str, group: GroupId, view: int) -> ViewSummary:
    path = plan_path(folder, group, view)
    with files.open_read(path) as file, intact(path):
        return ViewSummary.from_json(pq.ParquetFile(file).metadata.metadata[SUMMARY_KEY])


def planned_shards(folder: str) -> Iterator[ShardPlan]:
    """Yields every shard of the plan below an output folder."""
    for summary in read_summaries(folder):
        yield from summary.shards


def read_listing(folder: str, generations: Iterable[int] | None = None, read: Read = files.read) -> Listing:
    """Returns what became of the inputs when the plan below an output folder was made; arguments are those of `read_summaries`.

    Raises:
        FormatError: the plan was damaged.
    """
    found = []
    for generation in read_generations(folder, read) if generations is None else generations:
        path = join(folder, listing_name(generation))
        with intact(path):
            found.append(Listing.from_json(read(path)))
    return Listing.merged(found)


def read_classes(folder: str, generation: int) -> tuple[str, ...]:
    """Returns the names of the classes of a generation, those of the ones before first.

    Raises:
        FormatError: the plan was damaged.
    """
    path = files.join(folder, classes_name(generation))
    with intact(path):
        return tuple(map(str, json.loads(files.read(path))))


def read_arranged(folder: str, generation: int) -> Arranged:
    """Returns how the plan of a generation below an output folder arranges examples and sequences.

    Raises:
        FormatError: the plan was damaged.
    """
    path = files.join(folder, arranged_name(generation))
    with intact(path):
        return cast(Arranged, json.loads(files.read(path)))


def read_rejects(folder: str, generations: Iterable[int] | None = None) -> Iterator[Reject]:
    """Yields the rejects of the plan below an output folder; arguments are those of `read_summaries`."""
    for generation in read_generations(folder) if generations is None else generations:
        for bucket in read_listing(folder, [generation]).rejects_in:
            with files.open_read(files.join(folder, bucket_rejects_name(generation, bucket))) as file:
                yield from (Reject(**row) for row in pq.read_table(file).to_pylist())


def read_shard_rows(folder: str, shard: ShardPlan) -> list[PlannedExample]:
    """Returns the planned examples of one shard, by sequence and segment.

    Raises:
        FormatError: the plan was damaged.
    """
    path = plan_path(folder, (shard.generation, shard.group), shard.view)
    with files.open_read(path) as file, intact(path):
        return from_table(pq.ParquetFile(file).read_row_group(shard.row_group))


@contextmanager
def intact(path: str) -> Iterator[None]:
    """Reports a file of the plan that cannot be read as one that was damaged."""
    try:
        yield
    except (pa.ArrowException, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path}: broken plan ({error}); it is as it was saved; start anew with build --overwrite"
        ) from error
