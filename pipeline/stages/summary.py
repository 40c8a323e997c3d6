"""What a plan says of itself, in counts and names: to JSON and back, by the names of the fields."""

import dataclasses
import heapq
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from patchpack.pipeline.names import shard_name
from patchpack.pipeline.report.sizes import SizeCounts, by_number
from patchpack.pipeline.stages.records import KeyConflict
from patchpack.schemas.manifest import canonical_json

# inputs of a dataset by which copies are estimated: within a few hundredths
HEADS = 4096


# the generation and the number of a group; no two generations have groups of one number
GroupId = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard to be written: its name and its totals. `row_group` is where its rows stand in the plan file of its view."""

    group: int
    index: int
    view: int
    row_group: int
    num_sequences: int
    num_segments: int
    num_tokens: int
    layout: int = 0
    generation: int = 0

    @property
    def name(self) -> str:
        """Name of the shard, below the output."""
        return shard_name(self.generation, self.group, self.index)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Examples that were packed together: how many, in how many sequences, and the proven least number of those.

    `num_moved` of them have another grid than they asked for, or more or fewer tokens, so that sequences are fewer or fuller.
    """

    view: int
    num_examples: int
    num_sequences: int
    bound: int
    num_moved: int = 0
    layout: int = 0


@dataclass(frozen=True, slots=True)
class LabelGaps:
    """Which of a group's planned inputs have no label.

    `num_without_label` of `num_inputs` have none, the first of them being `first_without_label`; `unknown_labels` counts
    those that are no class.
    """

    num_inputs: int
    num_without_label: int
    first_without_label: str
    unknown_labels: dict[str, int]

    @classmethod
    def merged(cls, parts: Iterable["LabelGaps"]) -> "LabelGaps":
        """Returns the sum of several, none of whose inputs is in two of them."""
        num_inputs = num_without = 0
        firsts: list[str] = []
        unknown: Counter[str] = Counter()
        for part in parts:
            num_inputs, num_without = num_inputs + part.num_inputs, num_without + part.num_without_label
            firsts += [part.first_without_label] if part.num_without_label else []
            unknown.update(part.unknown_labels)
        return cls(num_inputs, num_without, min(firsts, default=""), dict(sorted(unknown.items())))


@dataclass(frozen=True, slots=True)
class ViewSummary:
    """Totals of one view of a group.

    `lengths` counts the examples that take up each number of tokens of a sequence, of each layout. `source_px` are the pixels
    that decoding takes. `shards` are numbered in the view; `saved.numbered` numbers them in their group.
    """

    group: int
    view: int
    source_px: int
    sizes: SizeCounts
    lengths: list[dict[int, int]]
    chunks: list[Chunk]
    shards: list[ShardPlan]
    generation: int = 0

    def to_json(self) -> bytes:
        """Returns the summary as canonical JSON."""
        return canonical_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> "ViewSummary":
        """Returns the summary that `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: it is not one.
        """
        values = json.loads(data)
        check_numbers("group", [values["group"], values["view"], values["generation"]])
        return cls(
            **values
            | {
                "sizes": SizeCounts.from_json(values["sizes"]),
                "lengths": [by_number(counts) for counts in values["lengths"]],
                "chunks": [Chunk(**chunk) for chunk in values["chunks"]],
                "shards": [_shard_plan(shard) for shard in values["shards"]],
            }
        )


def check_numbers(name: str, found: Iterable[object]) -> None:
    """Checks numbers of a saved plan that make names of files: these are written, copied with the plan, and deleted by --overwrite.

    Raises:
        ValueError: one is no number, or is negative.
    """
    for value in found:
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} is {value!r}")


def _shard_plan(values: dict[str, int]) -> ShardPlan:
    """Returns a shard of a saved plan."""
    for name, value in values.items():
        check_numbers(f"{name} of a shard", [value])
    return ShardPlan(**values)


@dataclass(frozen=True, slots=True)
class Listing:
    """What became of inputs before they were packed; parts of it add up (`merged`).

    Attributes:
        ignored: how many inputs, by reason.
        key_conflict: the first one.
        num_inputs: that were sampled or rejected.
        num_rejects: rows of rejects.
        source_bytes: what the sampled ones take up where they are, each once; None where only reading would show it.
        heads: the least of their heads, HEADS at most: a sample by content, whose copies are all in it or none.
        label_gaps: which of them have no label; None where no labels were asked for.
        rejects_in, digests_in: buckets of inputs that have a file of these.
    """

    ignored: dict[str, int] = dataclasses.field(default_factory=dict)
    key_conflict: KeyConflict | None = None
    num_inputs: int = 0
    num_rejects: int = 0
    source_bytes: int | None = 0
    heads: list[int] = dataclasses.field(default_factory=list)
    label_gaps: LabelGaps | None = None
    rejects_in: list[int] = dataclasses.field(default_factory=list)
    digests_in: list[int] = dataclasses.field(default_factory=list)

    @classmethod
    def merged(cls, parts: Iterable["Listing"]) -> "Listing":
        """Returns the sum of parts, in whatever order they come."""
        ignored: Counter[str] = Counter()
        heads: list[int] = []
        conflicts: list[KeyConflict] = []
        gaps: list[LabelGaps] = []
        rejects_in: list[int] = []
        digests_in: list[int] = []
        numbers, source_bytes, is_known = Counter[str](), 0, True
        for part in parts:
            ignored.update(part.ignored)
            heads = heapq.nsmallest(HEADS, [*heads, *part.heads])
            conflicts += filter(None, [part.key_conflict])
            gaps += filter(None, [part.label_gaps])
            rejects_in += part.rejects_in
            digests_in += part.digests_in
            numbers.update(num_inputs=part.num_inputs, num_rejects=part.num_rejects)
            is_known = is_known and part.source_bytes is not None
            source_bytes += part.source_bytes or 0
            gaps = [LabelGaps.merged(gaps)] if gaps else []
        return cls(
            ignored=dict(sorted(ignored.items())),
            key_conflict=min(conflicts, default=None),
            num_inputs=numbers["num_inputs"],
            num_rejects=numbers["num_rejects"],
            source_bytes=source_bytes if is_known else None,
            heads=heads,
            label_gaps=gaps[0] if gaps else None,
            rejects_in=sorted(rejects_in),
            digests_in=sorted(digests_in),
        )

    def to_json(self) -> bytes:
        """Returns the record as canonical JSON."""
        return canonical_json(
            dataclasses.asdict(self) | {"key_conflict": self.key_conflict and self.key_conflict._asdict()}
        )

    @classmethod
    def from_json(cls, data: bytes) -> "Listing":
        """Returns the record that `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: it is not one.
        """
        values = json.loads(data)
        conflict, gaps = values["key_conflict"], values["label_gaps"]
        for name in ("rejects_in", "digests_in"):
            check_numbers(name, values[name])
        return cls(
            **values
            | {
                "key_conflict": conflict and KeyConflict(conflict["key"], tuple(conflict["paths"])),
                "label_gaps": gaps and LabelGaps(**gaps),
            }
        )
