"""Stage 6: the plan: which example goes to which sequence of which shard.

A group's references of each view and layout are sorted (a shuffle delivers them in any order), cut into equal chunks of
at most `--group-size`, each chunk is packed alone (drawn sizes move a little where that saves sequences), its bins are
filled up with tokens that would be dropped, shuffled and divided evenly over shards, by their bytes and by their
decoding. With `--balance-step W` the bins of all chunks are put into steps of W of near-equal cost instead, and whole
steps are divided over shards.
What would only half fill a sequence, or makes no even step, is left over, and the rests of 256 groups are one group more.
All of it is counts and names. Within 0.05 % of a global plan, at any number of examples and any sequence length.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple, TypeVar

import numpy as np
import xxhash

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.packing import pack
from patchpack.pipeline.packing.balance.balance import balance
from patchpack.pipeline.packing.counts.candidates import Candidates
from patchpack.pipeline.packing.counts.planned import plan_counts, wastes_enough
from patchpack.pipeline.packing.streaming import num_in_whole_bins
from patchpack.pipeline.report.sizes import count_sizes
from patchpack.pipeline.sampling.draws import draw, shuffled
from patchpack.pipeline.sampling.dropping import fill_up
from patchpack.pipeline.stages.labels import label_gaps
from patchpack.pipeline.stages.planned import PlannedExample
from patchpack.pipeline.stages.records import Reference, Reject, Source
from patchpack.pipeline.stages.sample import candidate_lengths
from patchpack.pipeline.stages.saved import GroupPlan
from patchpack.pipeline.stages.summary import Chunk, GroupSummary, ShardPlan
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
# inputs of a dataset, and at least of each group, by which copies are estimated: within a few hundredths
HEADS, LEAST_HEADS = 4096, 64

# What a group leaves for the groups of rests: what is over whole bins; and of its bins one in a hundred, the emptiest. Measured
# over 16 to 64 groups: 0.006 % over the bound of all at L = 256 and none above it, where half a bin of each group was 0.13 % at
# L = 4,096 and 0.5 % at 16,384.
REST_BINS = 100
# Groups whose rests are planned together; fewer where steps are balanced, as a rest then has up to a step of bins.
GROUPS_OF_REST, GROUPS_OF_BALANCED_REST = 256, 16

Item = TypeVar("Item")


def plan_group(
    group: int,
    references: Iterable[Reference],
    rejects: Iterable[Reject],
    config: PlanConfig,
    classes: tuple[str, ...] | None,
    num_groups: int = 1,
    *,
    of_rests: bool = False,
) -> GroupPlan:
    """Returns the plan of one group; the order of its members does not matter.

    Args:
        group: its number.
        references: whose keys fall into this group.
        rejects: whose keys do; equal ones become one row.
        config: of the build.
        classes: names of the labels in order, or None.
        num_groups: of the dataset; they share the number of shards that is enough, and where there are several, each has
            a rest.
        of_rests: whether the references are the rests of groups, whose inputs are counted there; it has none itself.
    """
    references, rows_of_rejects = list(references), sorted(set(rejects))
    shards: list[list[PlannedExample]] = []
    shard_plans: list[ShardPlan] = []
    chunks: list[Chunk] = []
    lengths: list[dict[int, int]] = []
    numbers = None if classes is None else {name: number for number, name in enumerate(classes)}
    realised: list[Reference] = []
    rest: list[Reference] = []
    for stream, _, packed in pack_group(group, references, config, num_groups, of_rests=of_rests):
        view, layout = stream.view, stream.layout
        rest += [reference for chunk in packed for reference in chunk.rest]
        bins = [members for chunk in packed for members in chunk.bins]
        chunks += [record for chunk in packed for record in chunk.records]
        counts = Counter(layout.slots(reference.num_tokens) for members in bins for reference in members)
        lengths.append({length: counts[length] for length in sorted(counts)})
        realised += [reference for members in bins for reference in members]
        for part in (part for chunk in packed for part in _parts(chunk.bins, config, layout, num_groups)):
            rows = [
                PlannedExample.of(reference, config.framing(reference), sequence, numbers)
                for sequence, members in enumerate(part)
                for reference in members
            ]
            tokens = sum(reference.num_tokens for members in part for reference in members)
            number = len(shards)
            shard_plans.append(
                ShardPlan(group, number, view, number, len(part), len(rows), tokens, stream.layout_number)
            )
            shards.append(rows)
    sources = [] if of_rests else [reference.example.source for reference in references]
    keys = {source.key for source in sources}
    summary = GroupSummary(
        group=group,
        num_inputs=len(keys | {reject.key for reject in rows_of_rejects}),
        num_rejects=len(rows_of_rejects),
        source_px=sum(source_px(reference) for reference in realised),
        source_bytes=_source_bytes(sources),
        heads=sorted({source.key: source.head for source in sources}.values())[: max(LEAST_HEADS, HEADS // num_groups)],
        sizes=count_sizes(realised, config.layouts, config.clip_frames),
        lengths=lengths,
        chunks=chunks,
        shards=shard_plans,
        label_gaps=None if classes is None else label_gaps(sources, classes),
    )
    return GroupPlan(shards, rows_of_rejects, summary, rest)


def source_px(reference: Reference) -> int:
    """Returns the pixels that decoding this view takes."""
    example = reference.example
    return example.source_height * example.source_width * max(1, len(example.frame_pts))


def _source_bytes(sources: list[Source]) -> int | None:
    """Returns what inputs take up, each once; None where only reading would show it."""
    sizes = {source.key: source.size_bytes for source in sources}.values()
    return None if any(size < 0 for size in sizes) else sum(sizes)


class Stream(NamedTuple):
    """What is packed by itself: a group's examples of one view and layout; each has draws of its own, by `seed_number`."""

    group: int
    view: int
    layout_number: int
    layout: Layout
    seed_number: int


class Packed(NamedTuple):
    """Bins in the order to store them, examples at their planned grids; what is recorded of them; and what is left over."""

    bins: list[list[Reference]]
    records: list[Chunk]
    rest: list[Reference]


def pack_group(
    group: int,
    references: Iterable[Reference],
    config: PlanConfig,
    num_groups: int = 1,
    *,
    of_rests: bool = False,
    effort: float = 1.0,
) -> Iterator[tuple[Stream, list[Reference], list[Packed]]]:
    """Yields each stream of a group, its references as they were sampled, in an order of their own, and how they are packed.

    All that `plan_group` decides: a comparison asks here, and writes nothing. Arguments are those of `plan_group`, and `effort` is
    the packer's.
    """
    leaves_rest = num_groups > 1 and not of_rests
    by_stream: dict[tuple[int, int], list[Reference]] = defaultdict(list)
    for reference in references:
        by_stream[reference.view, reference.layout].append(reference)
    for stream in _streams(config, group):
        of_stream = _in_order(by_stream[stream.view, stream.layout_number], config)
        packed = [
            _pack_chunk(chunk, config, stream, number, leaves_rest, effort)
            for number, chunk in enumerate(even_runs(of_stream, ceil_div(len(of_stream), config.group_size)))
        ]
        if config.balance_step and packed:
            packed = [_balanced(packed, config.balance_step, config, stream, of_stream, leaves_rest)]
        if config.dropping.drops and config.drop_slack:
            packed = [_filled_up(chunk, config.drop_slack, stream.layout) for chunk in packed]
        yield stream, of_stream, packed


def rest_group(group: int, num_groups: int, config: PlanConfig) -> int:
    """Returns the number of the group that the rest of a group is planned in: after all others."""
    return num_groups + group // (GROUPS_OF_BALANCED_REST if config.balance_step else GROUPS_OF_REST)


def sequence_bytes(layout: Layout) -> int:
    """Returns the bytes of one sequence, the small columns left out, before a codec makes them fewer."""
    return sum(array_bytes(layout).values())


def _streams(config: PlanConfig, group: int) -> Iterator[Stream]:
    count = len(config.layouts)
    for view in range(config.views):
        for number, layout in enumerate(config.layouts):
            yield Stream(group, view, number, layout, view * count + number)


def _in_order(references: list[Reference], config: PlanConfig) -> list[Reference]:
    """Returns the references in an order of their own, which neither names nor the order of arrival decide."""

    def order(reference: Reference) -> tuple[int, str, int]:
        key = reference.example.source.key
        return xxhash.xxh3_64_intdigest(f"order\0{config.seed}\0{key}".encode()), key, reference.example.clip

    return sorted(references, key=order)


def _pack_chunk(
    chunk: list[Reference], config: PlanConfig, stream: Stream, number: int, leaves_rest: bool, effort: float
) -> Packed:
    """Returns a chunk's bins in shuffled order; its rest are the examples of what would be the last, emptiest bins."""
    capacity, limit, layout = config.sequence_length, config.max_segments, stream.layout
    all_tokens = [layout.slots(reference.num_tokens) for reference in chunk]
    num_kept = num_in_whole_bins(all_tokens, capacity, limit) if leaves_rest else len(chunk)
    chunk, rest = chunk[:num_kept], chunk[num_kept:]
    tokens = all_tokens[:num_kept]
    if layout.text_length and any(reference.num_text_tokens for reference in chunk):
        amounts = [(count, reference.num_text_tokens) for count, reference in zip(tokens, chunk, strict=True)]
        packing = pack(amounts, (capacity, layout.text_length), max_segments=limit, seed=config.seed, effort=effort)
    else:
        packing = pack(tokens, capacity, max_segments=limit, seed=config.seed, effort=effort)
    planned = chunk
    if config.moves_sizes and wastes_enough(packing, sum(tokens), capacity):
        slack = Fraction(config.resolution_slack).limit_denominator(10**6)
        options = [candidate_lengths(reference, slack, layout, config.rule, config.token_cap) for reference in chunk]
        candidates = Candidates.of([(count, cost) for count, (cost, _) in of_one.items()] for of_one in options)
        choice, packing = plan_counts(
            candidates, capacity, max_segments=limit, seed=config.seed, effort=effort, packing=packing
        )
        grids = [list(of_one.values())[at][1] for of_one, at in zip(options, choice.tolist(), strict=True)]
        planned = [
            reference._replace(grid=grid, num_tokens=grid.num_tokens)
            for reference, grid in zip(chunk, grids, strict=True)
        ]
    members = packing.members()
    tokens = [layout.slots(reference.num_tokens) for reference in planned]
    left = set(_emptiest(members, tokens, config) if leaves_rest else ())
    rest += [chunk[at] for bin_number in sorted(left) for at in members[bin_number]]
    # heuristics fill the first bins with the longest examples; sequences are drawn in stored order
    shuffle = shuffled(len(members), config.seed, "bins", stream.group, stream.seed_number, number)
    order = [at for at in shuffle if at not in left]
    bins = [[planned[at] for at in members[bin_number]] for bin_number in order]
    num_moved = sum(planned[at].grid != chunk[at].grid for bin_number in order for at in members[bin_number])
    # were there a packing of what is kept in fewer bins, there would be one of all
    bound = packing.bound - len(left)
    record = Chunk(stream.view, sum(map(len, bins)), len(bins), bound, num_moved, stream.layout_number)
    return Packed(bins, [record], rest)


def _emptiest(members: list[list[int]], tokens: list[int], config: PlanConfig) -> list[int]:
    """Returns the numbers of the emptiest bins, one in a hundred and at least one, those full of tokens or segments left out."""
    loads = [sum(tokens[at] for at in of_bin) for of_bin in members]
    order = np.argsort(np.array(loads), kind="stable")[: ceil_div(len(loads), REST_BINS)].tolist()
    return [at for at in order if loads[at] < config.sequence_length and len(members[at]) < config.max_segments]


def _balanced(
    packed: list[Packed],
    size: int,
    config: PlanConfig,
    stream: Stream,
    members_of: list[Reference],
    leaves_rest: bool,
) -> Packed:
    """Returns as many bins of the same examples, in steps of near-equal cost; its rest are the bins that make no such step.

    What is left over asks again for the size it asked for in `members_of`.
    """
    requested = {reference.example.example_id: reference for reference in members_of}
    bins = [members for chunk in packed for members in chunk.bins]
    members = [reference for references in bins for reference in references]
    balanced = balance(
        [stream.layout.slots(reference.num_tokens) for reference in members],
        np.repeat(np.arange(len(bins)), [len(references) for references in bins]),
        config.sequence_length,
        size,
        max_segments=config.max_segments,
        seed=draw(config.seed, "balance", stream.group, stream.seed_number),
    )
    order = balanced.order
    if leaves_rest:
        order = balanced.even_steps(size).ravel()
    kept = set(order.tolist())
    rest = [reference for chunk in packed for reference in chunk.rest]
    arranged: list[list[Reference]] = [[] for _ in bins]
    for reference, bin_number in zip(members, balanced.bin_index.tolist(), strict=True):
        arranged[bin_number].append(reference)
    left = [reference for number, of_bin in enumerate(arranged) if number not in kept for reference in of_bin]
    rest += [requested[reference.example.example_id] for reference in left]
    stored = [arranged[number] for number in order.tolist()]
    records = [record for chunk in packed for record in chunk.records]
    if len(stored) < len(bins):  # of which chunk they are says nothing after swaps
        bound = sum(record.bound for record in records) - (len(bins) - len(stored))
        num_moved = sum(one.grid != requested[one.example.example_id].grid for of_bin in stored for one in of_bin)
        number = stream.layout_number
        records = [Chunk(stream.view, sum(map(len, stored)), len(stored), bound, num_moved, number)]
    return Packed(stored, records, rest)


def _filled_up(packed: Packed, slack: float, layout: Layout) -> Packed:
    """Returns bins whose examples keep more of the tokens that would be dropped, so that none is padding.

    No example keeps more than its part more, and no bin is another: only what would be padding is used.
    """
    bins, num_moved = [], 0
    for members in packed.bins:
        kept = [reference.num_tokens for reference in members]
        most = [min(reference.grid.num_tokens, math.floor(reference.num_tokens * (1 + slack))) for reference in members]
        filled = fill_up(kept, most, layout.sequence_length, layout.align_tokens)
        num_moved += sum(now != before for now, before in zip(filled, kept, strict=True))
        bins.append([reference._replace(num_tokens=now) for reference, now in zip(members, filled, strict=True)])
    first, *others = packed.records
    return Packed(bins, [dataclasses.replace(first, num_moved=first.num_moved + num_moved), *others], packed.rest)


def _parts(
    bins: list[list[Reference]], config: PlanConfig, layout: Layout, num_groups: int
) -> Iterator[list[list[Reference]]]:
    """Yields bins divided evenly over as many shards as they need; steps of --balance-step stay whole.

    They need enough for their bytes and their decoding, and in a small dataset enough for many cores. Nothing here knows
    how many there are: the cut is part of the bytes.
    """
    size = config.balance_step or 1
    steps = [bins[start : start + size] for start in range(0, len(bins), size)]
    px = sum(source_px(reference) for members in bins for reference in members)
    by_bytes = ceil_div(len(bins) * sequence_bytes(layout), config.shard_bytes)
    few = max(ceil_div(sum(map(len, bins)), FEW_EXAMPLES), ceil_div(px, FEW_PX))
    for part in even_runs(steps, max(by_bytes, ceil_div(px, MOST_PX), min(few, ceil_div(ENOUGH_SHARDS, num_groups)))):
        yield [members for step in part for members in step]


def even_runs(items: list[Item], parts: int) -> Iterator[list[Item]]:
    """Yields the items in `parts` runs whose lengths differ by at most one; empty runs are left out."""
    parts = min(parts, len(items))
    for part in range(parts):
        yield items[len(items) * part // parts : len(items) * (part + 1) // parts]
