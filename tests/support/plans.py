"""Plans of groups whose references are given as objects: what planning does with tables, for tests that think in rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.names import parts_name
from patchpack.pipeline.stages.plan import ViewPlan, plan_view
from patchpack.pipeline.stages.planned import PlannedExample, from_table
from patchpack.pipeline.stages.records import Reference
from patchpack.pipeline.stages.saved import numbered, read_parts, write_parts, write_view_plan
from patchpack.pipeline.stages.summary import Chunk, ShardPlan
from patchpack.pipeline.stages.tables import example_table, reference_table


@dataclass
class GroupPlan:
    """The plans of all views of a group, one after the other."""

    group: int
    views: list[ViewPlan] = field(compare=False)
    shards: list[list[PlannedExample]]
    listed: list[ShardPlan]
    chunks: list[Chunk]
    lengths: list[dict[int, int]]
    rest: list[Reference]


def table_of(references: Iterable[Reference]) -> pa.Table:
    """Returns references as planning takes them."""
    listed = list(references)
    return reference_table(example_table([one.example for one in listed]), range(len(listed)), listed)


def plan_group(
    group: int,
    references: Sequence[Reference],
    config: PlanConfig,
    classes: tuple[str, ...] | None = None,
    num_groups: int = 1,
    *,
    of_rests: bool = False,
) -> GroupPlan:
    """Returns the plan of a group."""
    table = table_of(references)
    by_name = {(one.example.example_id, one.view): one for one in references}
    views = []
    for view in range(config.views):
        of_view = table.filter(pa.compute.equal(table["view"], view))
        views.append(plan_view(group, view, of_view, config, classes, num_groups, of_rests=of_rests))
    summaries = list(numbered(plan.summary for plan in views))
    left = (zip(*(plan.rest[name].to_pylist() for name in ("example_id", "view")), strict=True) for plan in views)
    return GroupPlan(
        group,
        views,
        [from_table(rows) for plan in views for rows in plan.shards],
        [shard for summary in summaries for shard in summary.shards],
        [chunk for summary in summaries for chunk in summary.chunks],
        [lengths for summary in summaries for lengths in summary.lengths],
        [by_name[name] for names in left for name in names],
    )


def save_group(folder: str, plan: GroupPlan) -> None:
    """Writes the plan of a group below an output."""
    (Path(folder) / "_plan").mkdir(parents=True, exist_ok=True)
    for view in plan.views:
        write_view_plan(folder, view.summary, view.shards)
    before = read_parts(folder, 0) if (Path(folder) / parts_name(0)).exists() else []
    write_parts(folder, 0, [*before, *((plan.group, view.summary.view) for view in plan.views)])
