"""The saved plan below an output: a Parquet file for each view of a group, one row group a shard, whose metadata holds a summary.

What is read of it is read a group at a time: there may be millions of shards.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from patchpack.pipeline.names import ARRANGED_NAME, LISTING_NAME, PLAN_FOLDER, bucket_rejects_name, view_plan_name
from patchpack.pipeline.stages.planned import PLAN_SCHEMA, PlannedExample, from_table
from patchpack.pipeline.stages.records import Reject
from patchpack.pipeline.stages.summary import Listing, ShardPlan, ViewSummary
from patchpack.pipeline.storage import files
from patchpack.schemas.errors import FormatError
from patchpack.schemas.manifest import REJECT_TABLE_SCHEMA
from patchpack.schemas.report import Arranged

SUMMARY_KEY = b"patchpack_plan"


def plan_path(folder: str, group: int, view: int) -> str:
    """Returns the path of the plan of a view of a group in an output folder."""
    return files.join(folder, view_plan_name(group, view))


def write_view_plan(folder: str, summary: ViewSummary, shards: list[pa.Table]) -> None:
    """Writes the plan of a view of a group below an output folder, whole or not at all."""
    with (
        files.writing(plan_path(folder, summary.group, summary.view)) as file,
        pq.ParquetWriter(pa.PythonFile(file, mode="w"), PLAN_SCHEMA, compression="zstd") as writer,
    ):
        for rows in shards:
            writer.write_table(rows, row_group_size=max(1, len(rows)))
        writer.add_key_value_metadata({SUMMARY_KEY: summary.to_json()})


def write_rejects(folder: str, bucket: int, rejects: list[Reject]) -> None:
    """Writes the rejects among the inputs of a bucket below an output folder, whole or not at all."""
    table = pa.Table.from_pylist([reject._asdict() for reject in rejects], schema=REJECT_TABLE_SCHEMA)
    with files.writing(files.join(folder, bucket_rejects_name(bucket))) as file:
        pq.write_table(table, pa.PythonFile(file, mode="w"), compression="zstd")


def read_summaries(folder: str) -> Iterator[ViewSummary]:
    """Yields the summary of every view of every group planned below an output folder, by group and view; shards by their names.

    Raises:
        FormatError: the plan was damaged.
    """
    for _, summaries in groupby(plan_names(folder), key=lambda name: name.rpartition("-")[0]):
        yield from numbered(_read_summary(folder, name) for name in summaries)


def planned_groups(folder: str) -> list[int]:
    """Returns the numbers of the groups of the plan below an output folder, ascending."""
    return sorted({int(name.split("-")[2]) for name in plan_names(folder)})


def read_group(folder: str, group: int, num_views: int) -> list[ViewSummary]:
    """Returns the summaries of one group's views, of those that have a plan; raises as `read_summaries` does."""
    names = (view_plan_name(group, view) for view in range(num_views))
    return list(numbered(_read_summary(folder, name) for name in names if files.exists(files.join(folder, name))))


def numbered(summaries: Iterable[ViewSummary]) -> Iterator[ViewSummary]:
    """Yields the summaries of a group's views with their shards numbered through the group."""
    first = 0
    for summary in summaries:
        shards = [dataclasses.replace(shard, index=first + shard.index) for shard in summary.shards]
        first += len(shards)
        yield dataclasses.replace(summary, shards=shards)


def plan_names(folder: str) -> list[str]:
    """Returns the names of the plan files below an output folder, by group and view."""
    return [
        f"{PLAN_FOLDER}/{name}" for name in files.names(files.join(folder, PLAN_FOLDER)) if name.startswith("part-")
    ]


def _read_summary(folder: str, name: str) -> ViewSummary:
    path = files.join(folder, name)
    with files.open_read(path) as file, intact(path):
        return ViewSummary.from_json(pq.ParquetFile(file).metadata.metadata[SUMMARY_KEY])


def planned_shards(folder: str) -> Iterator[ShardPlan]:
    """Yields every shard of the plan below an output folder."""
    for summary in read_summaries(folder):
        yield from summary.shards


def read_listing(folder: str) -> Listing:
    """Returns what was ignored when the plan below an output folder was made.

    Raises:
        FormatError: the plan was damaged.
    """
    path = files.join(folder, LISTING_NAME)
    with intact(path):
        return Listing.from_json(files.read(path))


def read_arranged(folder: str) -> Arranged:
    """Returns how the plan below an output folder arranges examples and sequences.

    Raises:
        FormatError: the plan was damaged.
    """
    path = files.join(folder, ARRANGED_NAME)
    with intact(path):
        return cast(Arranged, json.loads(files.read(path)))


def read_rejects(folder: str) -> Iterator[Reject]:
    """Yields the rejects of the plan below an output folder."""
    for name in files.names(files.join(folder, PLAN_FOLDER)):
        if name.startswith("rejects-"):
            with files.open_read(files.join(folder, f"{PLAN_FOLDER}/{name}")) as file:
                yield from (Reject(**row) for row in pq.read_table(file).to_pylist())


def read_shard_rows(folder: str, shard: ShardPlan) -> list[PlannedExample]:
    """Returns the planned examples of one shard, by sequence and segment.

    Raises:
        FormatError: the plan was damaged.
    """
    path = plan_path(folder, shard.group, shard.view)
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
