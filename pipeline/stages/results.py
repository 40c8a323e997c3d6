"""What writing gave, beside the plan: a small file a shard, written when it is whole, and one a group, when all of its shards are.

A run that goes on reads the first instead of the shard itself; the end of a build reads the second, of which there are as many
as groups and not as shards.
"""

import json
from collections.abc import Iterator

from patchpack.pipeline.names import RESULTS_FOLDER, group_result_name, shard_result_name
from patchpack.pipeline.stages.records import Reject
from patchpack.pipeline.stages.summary import GroupId, ShardPlan
from patchpack.pipeline.stages.write import ShardResult
from patchpack.pipeline.storage import files
from patchpack.schemas.manifest import canonical_json


def save_result(folder: str, shard: ShardPlan, result: ShardResult) -> None:
    """Writes what a shard gave, which is whole."""
    files.make_folder(files.join(folder, RESULTS_FOLDER))
    files.write(
        files.join(folder, shard_result_name(shard.generation, shard.group, shard.index)),
        canonical_json(result.to_json()),
    )


def read_result(folder: str, shard: ShardPlan) -> ShardResult | None:
    """Returns what a shard gave, or None where nothing is kept of it, or it was damaged."""
    path = files.join(folder, shard_result_name(shard.generation, shard.group, shard.index))
    try:
        return _result(json.loads(files.read(path)))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def save_group(folder: str, group: GroupId, results: list[ShardResult]) -> None:
    """Writes what the shards of a group gave, in their order."""
    files.make_folder(files.join(folder, RESULTS_FOLDER))
    path = files.join(folder, group_result_name(*group))
    files.write(path, canonical_json([result.to_json() for result in results]))


def read_groups(folder: str, groups: list[GroupId]) -> Iterator[ShardResult]:
    """Yields what the shards of some groups gave, in their order."""
    for group in groups:
        yield from map(_result, json.loads(files.read(files.join(folder, group_result_name(*group)))))


def _result(row: dict[str, object]) -> ShardResult:
    rejects = [Reject(**reject) for reject in row["rejects"]]  # type: ignore[attr-defined]
    return ShardResult(**row | {"rejects": rejects})  # type: ignore[arg-type]
