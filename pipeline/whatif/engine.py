"""What a build with some options would give, on counts alone: sampled, grouped and packed by the very functions that a build runs.

One process, a group at a time, so that memory holds the columns of all examples, the token counts of each view, and the records of
one group and of what groups leave for others. Exact: sequences, tokens and padding are those that the build plans.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from patchpack.collecting import uncollected
from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.packing.balance.balance import Steps
from patchpack.pipeline.packing.balance.swap import attention_costs
from patchpack.pipeline.packing.field import FIELD_PACKERS
from patchpack.pipeline.report.arrangement import COST_STEPS
from patchpack.pipeline.report.statistics import add_unique
from patchpack.pipeline.stages.group import group_of, num_groups
from patchpack.pipeline.stages.packed import Members, Packed, Stream, in_order, pack_stream, slots_of, streams_of
from patchpack.pipeline.stages.plan import rest_group, sequence_bytes
from patchpack.pipeline.stages.records import Reference
from patchpack.pipeline.stages.sample import sample_views
from patchpack.pipeline.whatif.cost import training_flops
from patchpack.pipeline.whatif.examples import Examples
from patchpack.schemas.geometry import Layout

Ints = npt.NDArray[np.int64]


@dataclass
class Tally:
    """Sums over the sequences of a packing; `costs` counts them by attention cost, in COST_STEPS of full attention."""

    num_sequences: int = 0
    num_segments: int = 0
    num_tokens: int = 0
    attention_cost: int = 0
    num_bytes: int = 0
    flops: int = 0
    attention_flops: int = 0
    costs: Counter[int] = field(default_factory=Counter)

    def add(self, layout: Layout, tokens_N: Ints, bin_index_N: Ints) -> Ints:
        """Adds the sequences of a layout, and returns their attention costs, by number.

        Args:
            layout: of the sequences.
            tokens_N: of each example.
            bin_index_N: the sequence of each, from 0, none empty.
        """
        costs = attention_costs(tokens_N, bin_index_N)
        pairs, full = int(costs.sum()), layout.sequence_length**2
        self.num_sequences += len(costs)
        self.num_segments += len(tokens_N)
        self.num_tokens += int(tokens_N.sum())
        self.attention_cost += pairs
        self.num_bytes += len(costs) * sequence_bytes(layout)
        self.flops += training_flops(layout, len(costs), pairs)
        self.attention_flops += training_flops(layout, 0, pairs)
        add_unique(self.costs, (costs * COST_STEPS + full // 2) // full)
        return costs


@dataclass
class Planned:
    """What planning all examples gives.

    `tokens` are the token counts of each stream (view and layout) as they are sampled, a group's after the other, in its
    order: what other packers get.
    """

    ours: Tally
    steps: Steps | None
    tokens: dict[tuple[int, int], list[Ints]] = field(default_factory=lambda: defaultdict(list))
    source_px: int = 0
    num_rejects: int = 0
    num_shrunk: int = 0
    has_text: bool = False


@uncollected()
def plan_examples(
    examples: Examples,
    config: PlanConfig,
    advance: Callable[[int], None] = lambda done: None,
    effort: float = 1.0,
) -> Planned:
    """Returns what a build of these examples plans.

    Args:
        examples: as probed.
        config: of the build.
        advance: called with the number of examples that are done, group by group.
        effort: of the packer; less than 1 may leave more padding than a build.
    """
    groups = num_groups(len(examples.keys), config.group_size)
    while True:
        planned, num_sampled = _plan_groups(examples, config, groups, advance, effort)
        # a build counts those that sampling did not reject; seldom is that another number of groups
        if num_groups(num_sampled, config.group_size) == groups:
            return planned
        groups = num_groups(num_sampled, config.group_size)


def pack_as(packer: str, planned: Planned, config: PlanConfig) -> Tally:
    """Returns what a packer of the field makes of the same examples, whole streams at a time, at the sizes that were sampled.

    Groups come in an order of their own, as a shuffled loader meets them.
    """
    tally = Tally()
    for (_, number), parts in sorted(planned.tokens.items()):
        layout, tokens_N = config.layouts[number], np.concatenate(parts)
        slots_N = slots_of(layout, tokens_N)
        tally.add(layout, tokens_N, FIELD_PACKERS[packer](slots_N, layout.sequence_length, layout.max_segments))
    return tally


def _plan_groups(
    examples: Examples, config: PlanConfig, groups: int, advance: Callable[[int], None], effort: float
) -> tuple[Planned, int]:
    """Returns the plan of all groups, and how many examples' first views were sampled."""
    planned = Planned(Tally(), Steps(config.balance_step) if config.balance_step else None)
    group_N = np.fromiter((group_of(key, config.seed, groups) for key in examples.keys), np.int64, len(examples.keys))
    members = np.split(np.argsort(group_N, kind="stable"), np.cumsum(np.bincount(group_N, minlength=groups))[:-1])
    rests: dict[int, list[Reference]] = defaultdict(list)
    num_sampled = done = 0
    for group, places in enumerate(members):
        references = []
        for example in examples.take(places):
            for view in sample_views(example, config.policy):
                if isinstance(view, Reference):
                    references.append(view)
                else:
                    planned.num_rejects += 1
        num_sampled += sum(reference.view == 0 for reference in references)
        planned.source_px += sum(map(_source_px, references))
        planned.num_shrunk += sum(reference.uncapped_tokens > 0 for reference in references)
        planned.has_text |= any(reference.num_text_tokens for reference in references)
        leaves_rest = groups > 1
        for stream, sampled, requested in _streams(group, references, config):
            if sampled:
                planned.tokens[stream.view, stream.layout_number].append(requested.tokens)
            for packed in pack_stream(stream, requested, config, leaves_rest=leaves_rest, effort=effort):
                _add(planned, stream, packed)
                rests[rest_group(group, groups, config)] += [sampled[at] for at in packed.rest.tolist()]
        done += len(places)
        advance(done)
    for number, rest in rests.items():
        for stream, _, requested in _streams(number, rest, config):
            for packed in pack_stream(stream, requested, config, leaves_rest=False, effort=effort):
                _add(planned, stream, packed)
    return planned, num_sampled


def _streams(
    group: int, references: list[Reference], config: PlanConfig
) -> Iterator[tuple[Stream, list[Reference], Members]]:
    """Yields each stream of a group with its references, in an order of their own, and the same as packing takes them."""
    by_stream: dict[tuple[int, int], list[Reference]] = defaultdict(list)
    for reference in references:
        by_stream[reference.view, reference.layout].append(reference)
    for view in range(config.views):
        for stream in streams_of(config, group, view):
            arrived = by_stream[view, stream.layout_number]
            members = Members.of_references(arrived)
            order = in_order(members, config)
            yield stream, [arrived[at] for at in order.tolist()], members.take(order)


def _source_px(reference: Reference) -> int:
    """Returns the pixels that decoding a view takes."""
    example = reference.example
    return example.source_height * example.source_width * max(1, len(example.frame_pts))


def _add(planned: Planned, stream: Stream, packed: Packed) -> None:
    costs = planned.ours.add(stream.layout, packed.tokens, packed.bins)
    if planned.steps:
        planned.steps.add(costs)
