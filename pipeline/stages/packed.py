"""How the references of one stream (a group's of one view and layout) become bins: all of planning that is numbers alone.

They are put into an order of their own (a shuffle delivers them in any), cut into equal chunks of at most `--group-size`,
each chunk is packed alone (drawn sizes move a little where that saves sequences), its bins are filled up with tokens that
would be dropped, and shuffled. With `--balance-step W` the bins of all chunks are put into steps of W of near-equal cost
instead. What would only half fill a sequence, or makes no even step, is left over. A build and a comparison of settings both
ask here.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Self, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.packing import pack
from patchpack.pipeline.packing.balance.balance import balance
from patchpack.pipeline.packing.counts.candidates import Candidates
from patchpack.pipeline.packing.counts.planned import plan_counts, wastes_enough
from patchpack.pipeline.packing.streaming import num_in_whole_bins
from patchpack.pipeline.sampling.draws import draw, permutation
from patchpack.pipeline.sampling.dropping import fill_up
from patchpack.pipeline.stages.records import Reference
from patchpack.pipeline.stages.sample import candidate_lengths
from patchpack.pipeline.stages.summary import Chunk
from patchpack.schemas.geometry import Grid, Layout, ceil_div

# What a group leaves for the groups of rests: what is over whole bins; and of its bins one in a hundred, the emptiest. Measured
# over 16 to 64 groups: 0.006 % over the bound of all at L = 256 and none above it, where half a bin of each group was 0.13 % at
# L = 4,096 and 0.5 % at 16,384.
REST_BINS = 100

Ints = npt.NDArray[np.int64]
Item = TypeVar("Item")


class Effort(TypedDict):
    """What every packer is given."""

    max_segments: int
    seed: int
    effort: float


class Stream(NamedTuple):
    """What is packed by itself: a group's examples of one view and layout; each has draws of its own, by `seed_number`."""

    group: int
    view: int
    layout_number: int
    layout: Layout
    seed_number: int


@dataclass(frozen=True, eq=False)
class Members:
    """What packing needs of N references, at the sizes that they ask for.

    Attributes:
        keys: (N,) of their sources.
        clips: (N,) int64.
        tokens: (N,) int64, how many of the grid's are kept.
        text_tokens: (N,) int64.
        grids: (N, 3) int64, t, h, w.
        boxes: (N, 2) int64, height and width in px of the part of the source that is shown.
        is_drawn: (N,) bool, whether planned counts may depart from them.
    """

    keys: list[str]
    clips: Ints
    tokens: Ints
    text_tokens: Ints
    grids: Ints
    boxes: Ints
    is_drawn: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def grid_tokens(self) -> Ints:
        """(N,) int64, those of the grids, dropped ones too."""
        product: Ints = self.grids.prod(axis=1)
        return product

    @classmethod
    def of_table(cls, table: pa.Table) -> Self:
        """Returns the members of a table of `tables.REFERENCE_SCHEMA`, in its order."""

        def column(name: str) -> Ints:
            found: Ints = table[name].to_numpy().astype(np.int64)
            return found

        return cls(
            table["key"].to_pylist(),
            column("clip"),
            column("num_tokens"),
            column("num_text_tokens"),
            np.stack([column(name) for name in ("grid_t", "grid_h", "grid_w")], axis=1),
            np.stack([column(name) for name in ("box_height", "box_width")], axis=1),
            table["is_drawn"].to_numpy(),
        )

    @classmethod
    def of_references(cls, references: Sequence[Reference]) -> Self:
        """Returns references as members, in their order."""
        numbers = np.array(
            [
                (one.example.clip, one.num_tokens, one.num_text_tokens, *one.grid, *one.box[2:], one.is_drawn)
                for one in references
            ],
            dtype=np.int64,
        ).reshape(-1, 9)
        keys, (clips, tokens, text_tokens) = [one.example.source.key for one in references], numbers[:, :3].T
        return cls(keys, clips, tokens, text_tokens, numbers[:, 3:6], numbers[:, 6:8], numbers[:, 8].astype(bool))

    def take(self, at: Ints) -> Self:
        """Returns the members at some places."""
        return type(self)(
            [self.keys[place] for place in at.tolist()],
            self.clips[at],
            self.tokens[at],
            self.text_tokens[at],
            self.grids[at],
            self.boxes[at],
            self.is_drawn[at],
        )


@dataclass(frozen=True, eq=False)
class Packed:
    """Bins in the order to store them: M members in B bins, at their planned sizes; what is recorded of them; what is left over.

    Attributes:
        at: (M,) int64, their places among the members; in order of bins, then of segments.
        bins: (M,) int64, ascending from 0 to B - 1, none of which is empty.
        grids: (M, 3) int64.
        tokens: (M,) int64.
        rest: (R,) int64, places of those that are left over.
        records: of the chunks.
    """

    at: Ints
    bins: Ints
    grids: Ints
    tokens: Ints
    rest: Ints
    records: list[Chunk]

    @property
    def num_bins(self) -> int:
        """How many bins there are."""
        return int(self.bins[-1]) + 1 if len(self.bins) else 0

    def moved(self, members: Members) -> npt.NDArray[np.bool_]:
        """Returns whose grid is another than the one it asked for, (M,) bool."""
        changed: npt.NDArray[np.bool_] = (self.grids != members.grids[self.at]).any(axis=1)
        return changed


def streams_of(config: PlanConfig, group: int, view: int) -> Iterator[Stream]:
    """Yields the streams of a view of a group, a layout each."""
    count = len(config.layouts)
    for number, layout in enumerate(config.layouts):
        yield Stream(group, view, number, layout, view * count + number)


def in_order(members: Members, config: PlanConfig) -> Ints:
    """Returns the places of members in an order of their own, which neither names nor the order of arrival decide."""
    seed = f"order\0{config.seed}\0"
    hashes = [xxhash.xxh3_64_intdigest((seed + key).encode()) for key in members.keys]
    order = sorted(zip(hashes, members.keys, members.clips.tolist(), range(len(members)), strict=True))
    return np.array([place for *_, place in order], dtype=np.int64)


def pack_stream(
    stream: Stream, members: Members, config: PlanConfig, *, leaves_rest: bool, effort: float = 1.0
) -> list[Packed]:
    """Returns how a stream is packed: a chunk each, or all of it as one where steps are balanced.

    Args:
        stream: which one.
        members: of it, in an order of their own (`in_order`).
        config: of the build.
        leaves_rest: whether what fills no sequence is left over for a group of rests.
        effort: of the packer.
    """
    packed = [
        _pack_chunk(np.array(chunk), members, config, stream, number, leaves_rest, effort)
        for number, chunk in enumerate(even_runs(range(len(members)), ceil_div(len(members), config.group_size)))
    ]
    if config.balance_step and packed:
        packed = [_balanced(packed, config.balance_step, config, stream, members, leaves_rest)]
    if config.dropping.drops and config.drop_slack:
        packed = [_filled_up(chunk, members, config.drop_slack, stream.layout) for chunk in packed]
    return packed


def slots_of(layout: Layout, tokens_N: Ints) -> Ints:
    """Returns how many tokens of a sequence examples of so many take up, (N,) int64."""
    return -(-tokens_N // layout.align_tokens) * layout.align_tokens


def even_runs(items: Sequence[Item], parts: int) -> Iterator[Sequence[Item]]:
    """Yields the items in `parts` runs whose lengths differ by at most one; empty runs are left out."""
    parts = min(parts, len(items))
    for part in range(parts):
        yield items[len(items) * part // parts : len(items) * (part + 1) // parts]


def _pack_chunk(
    at_N: Ints, members: Members, config: PlanConfig, stream: Stream, number: int, leaves_rest: bool, effort: float
) -> Packed:
    """Returns a chunk's bins in shuffled order; its rest are the examples of what would be the last, emptiest bins."""
    capacity, limit, layout = config.sequence_length, config.max_segments, stream.layout
    how = Effort(max_segments=limit, seed=config.seed, effort=effort)
    slots_N = slots_of(layout, members.tokens[at_N])
    num_kept = num_in_whole_bins(slots_N, capacity, limit) if leaves_rest else len(at_N)
    rest, at_N, slots_N = at_N[num_kept:], at_N[:num_kept], slots_N[:num_kept]
    texts_N = members.text_tokens[at_N]
    if layout.text_length and texts_N.any():
        packing = pack(np.stack([slots_N, texts_N], axis=1), (capacity, layout.text_length), **how)
    else:
        packing = pack(slots_N, capacity, **how)
    grids_N3, tokens_N = members.grids[at_N], members.tokens[at_N]
    if config.moves_sizes and wastes_enough(packing, int(slots_N.sum()), capacity):
        slack = Fraction(config.resolution_slack).limit_denominator(10**6)
        options = _options(members, at_N, slack, layout, config)
        candidates = Candidates.of([(count, cost) for count, (cost, _) in of_one.items()] for of_one in options)
        choice, packing = plan_counts(candidates, capacity, packing=packing, **how)
        grids = [list(of_one.values())[place][1] for of_one, place in zip(options, choice.tolist(), strict=True)]
        grids_N3 = np.array(grids, dtype=np.int64).reshape(-1, 3)
        tokens_N = grids_N3.prod(axis=1)
    bin_N = packing.bin_index
    loads_B = np.bincount(bin_N, slots_of(layout, tokens_N), packing.num_bins).astype(np.int64)
    left_B = _emptiest(loads_B, np.bincount(bin_N, minlength=packing.num_bins), config) if leaves_rest else loads_B[:0]
    # by bin, and in it as they came
    by_bin = np.argsort(bin_N, kind="stable")
    is_left_M = np.isin(bin_N[by_bin], left_B)
    rest = np.concatenate([rest, at_N[by_bin[is_left_M]]])
    # heuristics fill the first bins with the longest examples; sequences are drawn in stored order
    shuffle = permutation(packing.num_bins, config.seed, "bins", stream.group, stream.seed_number, number)
    kept = by_bin[~is_left_M]
    place_B = np.full(packing.num_bins, -1)
    stored = shuffle[~np.isin(shuffle, left_B)]
    place_B[stored] = np.arange(len(stored))
    kept = kept[np.argsort(place_B[bin_N[kept]], kind="stable")]
    # were there a packing of what is kept in fewer bins, there would be one of all
    bound = packing.bound - len(left_B)
    made = Packed(at_N[kept], place_B[bin_N[kept]], grids_N3[kept], tokens_N[kept], rest, [])
    num_moved = int(made.moved(members).sum())
    record = Chunk(stream.view, len(kept), len(stored), bound, num_moved, stream.layout_number)
    return dataclasses.replace(made, records=[record])


def _options(
    members: Members, at_N: Ints, slack: Fraction, layout: Layout, config: PlanConfig
) -> list[dict[int, tuple[int, Grid]]]:
    """Returns what `candidate_lengths` says of each member."""
    columns = (members.grids[at_N].tolist(), members.boxes[at_N].tolist(), members.is_drawn[at_N].tolist())
    return [
        candidate_lengths(Grid(*grid), tuple(box), slack, layout, config.rule, config.token_cap)
        if is_drawn
        # native sizes and budgets stay, and those that were shrunk
        else {tokens: (0, Grid(*grid))}
        for grid, box, is_drawn, tokens in zip(*columns, members.tokens[at_N].tolist(), strict=True)
    ]


def _emptiest(loads_B: Ints, sizes_B: Ints, config: PlanConfig) -> Ints:
    """Returns the numbers of the emptiest bins, one in a hundred and at least one, those full of tokens or segments left out."""
    order = np.argsort(loads_B, kind="stable")[: ceil_div(len(loads_B), REST_BINS)]
    emptiest: Ints = order[(loads_B[order] < config.sequence_length) & (sizes_B[order] < config.max_segments)]
    return emptiest


def _balanced(
    packed: list[Packed], size: int, config: PlanConfig, stream: Stream, members: Members, leaves_rest: bool
) -> Packed:
    """Returns as many bins of the same members, in steps of near-equal cost; its rest are the bins that make no such step."""
    firsts = np.cumsum([0, *(chunk.num_bins for chunk in packed)])
    at_M, grids_M3, tokens_M = (
        np.concatenate([getattr(chunk, name) for chunk in packed]) for name in ("at", "grids", "tokens")
    )
    bins_M = np.concatenate([chunk.bins + first for chunk, first in zip(packed, firsts[:-1], strict=True)])
    num_bins = int(firsts[-1])
    balanced = balance(
        slots_of(stream.layout, tokens_M),
        bins_M,
        config.sequence_length,
        size,
        max_segments=config.max_segments,
        seed=draw(config.seed, "balance", stream.group, stream.seed_number),
    )
    order = balanced.even_steps(size).ravel() if leaves_rest else balanced.order
    place_B = np.full(num_bins, -1)
    place_B[order] = np.arange(len(order))
    place_M = place_B[balanced.bin_index]
    stored = np.flatnonzero(place_M >= 0)
    stored = stored[np.argsort(place_M[stored], kind="stable")]
    left = np.flatnonzero(place_M < 0)
    left = left[np.argsort(balanced.bin_index[left], kind="stable")]
    rest = np.concatenate([*(chunk.rest for chunk in packed), at_M[left]])
    made = Packed(at_M[stored], place_M[stored], grids_M3[stored], tokens_M[stored], rest, [])
    records = [record for chunk in packed for record in chunk.records]
    if len(order) < num_bins:  # of which chunk they are says nothing after swaps
        bound = sum(record.bound for record in records) - (num_bins - len(order))
        num_moved = int(made.moved(members).sum())
        records = [Chunk(stream.view, len(stored), len(order), bound, num_moved, stream.layout_number)]
    return dataclasses.replace(made, records=records)


def _filled_up(packed: Packed, members: Members, slack: float, layout: Layout) -> Packed:
    """Returns bins whose members keep more of the tokens that would be dropped, so that none is padding.

    No member keeps more than its part more, and no bin is another: only what would be padding is used.
    """
    grid_tokens = members.grid_tokens[packed.at].tolist()
    kept = packed.tokens.tolist()
    most = [min(grid, math.floor(count * (1 + slack))) for grid, count in zip(grid_tokens, kept, strict=True)]
    filled: list[int] = []
    edges = np.searchsorted(packed.bins, np.arange(packed.num_bins + 1)).tolist()
    for first, end in pairwise(edges):
        filled += fill_up(kept[first:end], most[first:end], layout.sequence_length, layout.align_tokens)
    tokens = np.array(filled, dtype=np.int64)
    record, *others = packed.records
    num_moved = record.num_moved + int((tokens != packed.tokens).sum())
    return dataclasses.replace(
        packed, tokens=tokens, records=[dataclasses.replace(record, num_moved=num_moved), *others]
    )
