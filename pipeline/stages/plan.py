"""Stage 6: the plan: which example goes to which sequence of which shard.

A view of a group is planned by itself: each layout of it is packed (`packed`), and its bins are divided evenly over shards, by
their bytes and by their decoding; with `--balance-step W` in whole steps. What would only half fill a sequence is left over,
and the rests of 256 groups are one group more. All of it is counts and names; rows stay columns. Within 0.05 % of a global
plan, at any number of examples and any sequence length.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.report.arrangement import Arrangement
from patchpack.pipeline.report.sizes import count_sizes
from patchpack.pipeline.stages.packed import (
    Ints,
    Members,
    Packed,
    even_runs,
    in_order,
    pack_stream,
    slots_of,
    streams_of,
)
from patchpack.pipeline.stages.planned import plan_table
from patchpack.pipeline.stages.summary import Chunk, ShardPlan, ViewSummary
from patchpack.schemas.geometry import Layout, ceil_div
from patchpack.schemas.sequence import array_bytes

# A small dataset is cut into shards of a few hundred examples, or some five seconds of one core's decoding (at 90 million
# pixels a second, whatif.cost.DECODED_PX_PER_S), so that every core has work and none is lost to opening files: that takes
# some 10 ms each. Once a view has as many shards as the largest machines have cores, more would only be more files.
FEW_EXAMPLES = 256
FEW_PX = 450_000_000
ENOUGH_SHARDS = 256
# and whatever the dataset: five minutes of decoding are as much as a killed worker should lose
MOST_PX = 27_000_000_000

# Groups whose rests are planned together; fewer where steps are balanced, as a rest then has up to a step of bins.
GROUPS_OF_REST, GROUPS_OF_BALANCED_REST = 256, 16


class ViewPlan(NamedTuple):
    """What planning a view of a group gives: a table of `planned.PLAN_SCHEMA` for each shard, the summary, and its rest.

    The rest are references, at the sizes they ask for, that would only half fill a sequence here; those of many groups are
    planned together.
    """

    shards: list[pa.Table]
    summary: ViewSummary
    rest: pa.Table


def plan_view(
    group: int,
    view: int,
    references: pa.Table,
    config: PlanConfig,
    classes: tuple[str, ...] | None,
    num_groups: int = 1,
    *,
    of_rests: bool = False,
    generation: int = 0,
) -> ViewPlan:
    """Returns the plan of one view of a group; the order of its references does not matter.

    Args:
        group: its number.
        view: the number of the view.
        references: of that view whose keys fall into this group, rows of `tables.REFERENCE_SCHEMA`.
        config: of the build.
        classes: names of the labels in order, or None.
        num_groups: of the dataset; they share the number of shards that is enough, and where there are several, each has
            a rest.
        of_rests: whether the references are the rests of groups; it has none itself.
        generation: of the group.
    """
    numbers = None if classes is None else {name: number for number, name in enumerate(classes)}
    tables: list[pa.Table] = []
    shards: list[ShardPlan] = []
    chunks: list[Chunk] = []
    lengths: list[dict[int, int]] = []
    realised, rests, no_rows = [], [], references.slice(0, 0)
    layouts_N = references["layout"].to_numpy()
    for stream in streams_of(config, group, view):
        layout = stream.layout
        of_stream = references.take(np.flatnonzero(layouts_N == stream.layout_number))
        members = Members.of_table(of_stream)
        order = in_order(members, config)
        of_stream, members = of_stream.take(order), members.take(order)
        counts: Counter[int] = Counter()
        leaves_rest = num_groups > 1 and not of_rests
        for packed in pack_stream(stream, members, config, leaves_rest=leaves_rest):
            rests.append(of_stream.take(packed.rest))
            chunks += packed.records
            counts.update(slots_of(layout, packed.tokens).tolist())
            planned = _at_planned_sizes(of_stream, packed)
            realised.append(planned)
            for part_M, num_sequences in _parts(packed, source_px(planned), config, layout, num_groups):
                at = len(shards)
                totals = (num_sequences, len(part_M), int(packed.tokens[part_M].sum()))
                shards.append(ShardPlan(group, at, view, at, *totals, stream.layout_number, generation))
                sequences_M = packed.bins[part_M] - packed.bins[part_M[0]]
                tables.append(plan_table(planned.take(part_M), sequences_M, config, numbers))
        lengths.append({length: counts[length] for length in sorted(counts)})
    every = pa.concat_tables([no_rows, *realised])
    summary = ViewSummary(
        group=group,
        view=view,
        source_px=int(source_px(every).sum()),
        sizes=count_sizes(every, config.layouts, config.clip_frames),
        lengths=lengths,
        chunks=chunks,
        shards=shards,
        generation=generation,
    )
    return ViewPlan(tables, summary, pa.concat_tables([no_rows, *rests]))


def arrangement_of(plan: ViewPlan, config: PlanConfig) -> Arrangement:
    """Returns how a planned view is arranged, as the report will say of its shards."""
    arrangement = Arrangement(config.balance_step)
    for shard, rows in zip(plan.summary.shards, plan.shards, strict=True):
        lengths_M, rows_M = (rows[name].to_numpy().astype(np.int64) for name in ("num_tokens", "sequence"))
        names = rows.select(["key", "example_id"])
        listing = (shard.group, shard.view, shard.layout)
        arrangement.add_shard(listing, lengths_M, rows_M, names, shard.num_sequences, config.sequence_length)
    arrangement.end()
    return arrangement


def source_px(references: pa.Table) -> Ints:
    """Returns the pixels that decoding each of N views takes, (N,) int64."""
    height, width = (references[name].to_numpy().astype(np.int64) for name in ("source_height", "source_width"))
    frames = pc.list_value_length(references["frame_pts"]).to_numpy()
    px: Ints = height * width * np.maximum(1, frames.astype(np.int64))
    return px


def rest_group(group: int, num_groups: int, config: PlanConfig) -> int:
    """Returns the number of the group that the rest of a group is planned in: after all others."""
    return num_groups + group // (GROUPS_OF_BALANCED_REST if config.balance_step else GROUPS_OF_REST)


def sequence_bytes(layout: Layout) -> int:
    """Returns the bytes of one sequence, the small columns left out, before a codec makes them fewer."""
    return sum(array_bytes(layout).values())


def _at_planned_sizes(references: pa.Table, packed: Packed) -> pa.Table:
    """Returns the references that are packed, in stored order, at the sizes that they are packed at."""
    planned = references.take(packed.at)
    sizes = dict(zip(("grid_t", "grid_h", "grid_w"), packed.grids.T, strict=True)) | {"num_tokens": packed.tokens}
    for name, column in sizes.items():
        at = planned.schema.get_field_index(name)
        planned = planned.set_column(at, planned.schema.field(at), pa.array(column.astype(np.int32)))
    return planned


def _parts(
    packed: Packed, px_M: Ints, config: PlanConfig, layout: Layout, num_groups: int
) -> Iterator[tuple[Ints, int]]:
    """Yields the places of bins divided evenly over as many shards as they need, and how many bins each has.

    Steps of --balance-step stay whole. They need enough for their bytes and their decoding, and in a small dataset enough for many
    cores. Nothing here knows how many there are: the cut is part of the bytes.
    """
    size, num_bins, px = config.balance_step or 1, packed.num_bins, int(px_M.sum())
    by_bytes = ceil_div(num_bins * sequence_bytes(layout), config.shard_bytes)
    few = max(ceil_div(len(packed.at), FEW_EXAMPLES), ceil_div(px, FEW_PX))
    parts = max(by_bytes, ceil_div(px, MOST_PX), min(few, ceil_div(ENOUGH_SHARDS, num_groups)))
    for steps in even_runs(range(ceil_div(num_bins, size)), parts):
        first, end = steps[0] * size, min(num_bins, (steps[-1] + 1) * size)
        low, high = np.searchsorted(packed.bins, [first, end]).tolist()
        yield np.arange(low, high), end - first
