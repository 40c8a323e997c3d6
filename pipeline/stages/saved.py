"""The saved plan below an output: a Parquet file a group, one row group a shard, whose metadata holds the group's summary."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from patchpack.pipeline.names import LISTING_NAME, PLAN_FOLDER, group_plan_name, group_rejects_name
from patchpack.pipeline.stages.planned import PLAN_SCHEMA, PlannedExample, from_table, to_table
from patchpack.pipeline.stages.records import Reference, Reject
from patchpack.pipeline.stages.summary import GroupSummary, Listing, ShardPlan
from patchpack.pipeline.storage import files
from patchpack.schemas.errors import FormatError
from patchpack.schemas.manifest import REJECT_TABLE_SCHEMA

SUMMARY_KEY = b"patchpack_plan"


class GroupPlan(NamedTuple):
    """What planning a group gives: rows for each shard, its rejects, the summary that is saved with them, and its rest.

    The rest are references that would only half fill a sequence here; those of many groups are planned together.
    """

    shards: list[list[PlannedExample]]
    rejects: list[Reject]
    summary: GroupSummary
    rest: list[Reference]


def plan_path(folder: str, group: int) -> str:
    """Returns the path of a group's plan file in an output folder."""
    return files.join(folder, group_plan_name(group))


def write_group_plan(plan: GroupPlan, folder: str) -> None:
    """Writes a group's plan and rejects below an output folder, whole or not at all."""
    group = plan.summary.group
    with (
        files.writing(plan_path(folder, group)) as file,
        pq.ParquetWriter(pa.PythonFile(file, mode="w"), PLAN_SCHEMA, compression="zstd") as writer,
    ):
        for rows in plan.shards:
            writer.write_table(to_table(rows), row_group_size=max(1, len(rows)))
        writer.add_key_value_metadata({SUMMARY_KEY: plan.summary.to_json()})
    write_rejects(folder, group, plan.rejects)


def write_rejects(folder: str, group: int, rejects: list[Reject]) -> None:
    """Writes a group's rejects below an output folder, whole or not at all."""
    table = pa.Table.from_pylist([reject._asdict() for reject in rejects], schema=REJECT_TABLE_SCHEMA)
    with files.writing(files.join(folder, group_rejects_name(group))) as file:
        pq.write_table(table, pa.PythonFile(file, mode="w"), compression="zstd")


def read_summaries(folder: str) -> Iterator[GroupSummary]:
    """Yields the summary of every group planned below an output folder, by group number.

    Raises:
        FormatError: the plan was damaged.
    """
    for name in files.names(files.join(folder, PLAN_FOLDER)):
        if name.startswith("part-"):
            path = files.join(folder, f"{PLAN_FOLDER}/{name}")
            with files.open_read(path) as file, intact(path):
                yield GroupSummary.from_json(pq.ParquetFile(file).metadata.metadata[SUMMARY_KEY])


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


def read_rejects(folder: str) -> Iterator[Reject]:
    """Yields the rejects of every group planned below an output folder."""
    for name in files.names(files.join(folder, PLAN_FOLDER)):
        if name.startswith("rejects-"):
            with files.open_read(files.join(folder, f"{PLAN_FOLDER}/{name}")) as file:
                yield from (Reject(**row) for row in pq.read_table(file).to_pylist())


def read_shard_rows(folder: str, shard: ShardPlan) -> list[PlannedExample]:
    """Returns the planned examples of one shard, by sequence and segment.

    Raises:
        FormatError: the plan was damaged.
    """
    path = plan_path(folder, shard.group)
    with files.open_read(path) as file, intact(path):
        return from_table(pq.ParquetFile(file).read_row_group(shard.row_group))


@contextmanager
def intact(path: str) -> Iterator[None]:
    """Reports a file of the plan that cannot be read as one that was damaged."""
    try:
        yield
    except (pa.ArrowException, KeyError, IndexError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path}: broken plan ({error}); it is as it was saved; start anew with build --overwrite"
        ) from error
