"""What a group's plan says of itself, in counts and names: to JSON and back, by the names of the fields."""

import dataclasses
import json
from dataclasses import dataclass

from patchpack.pipeline.names import shard_name
from patchpack.pipeline.report.sizes import SizeCounts, by_number
from patchpack.pipeline.stages.records import KeyConflict
from patchpack.schemas.manifest import canonical_json


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard to be written: its name and its totals. `row_group` is where its rows stand in the group's plan file."""

    group: int
    index: int
    view: int
    row_group: int
    num_sequences: int
    num_segments: int
    num_tokens: int
    layout: int = 0

    @property
    def name(self) -> str:
        """Name of the shard, below the output."""
        return shard_name(self.group, self.index)


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


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """Totals of one group.

    `lengths` counts the examples that take up each number of tokens of a sequence, of each view and in it of each layout.
    `source_px` are the pixels that decoding takes, `source_bytes` what the inputs take up where they are, each once (None: unknown).
    `heads` are the least of its inputs' heads: a sample by content, whose copies are all in it or none.
    `label_gaps` is None where no labels were asked for.
    """

    group: int
    num_inputs: int
    num_rejects: int
    source_px: int
    sizes: SizeCounts
    lengths: list[dict[int, int]]
    chunks: list[Chunk]
    shards: list[ShardPlan]
    label_gaps: LabelGaps | None = None
    # plans of earlier versions have none
    source_bytes: int | None = None
    heads: list[int] = dataclasses.field(default_factory=list)

    def to_json(self) -> bytes:
        """Returns the summary as canonical JSON."""
        return canonical_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> "GroupSummary":
        """Returns the summary that `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: it is not one.
        """
        values = json.loads(data)
        gaps = values["label_gaps"]
        return cls(
            **values
            | {
                "sizes": SizeCounts.from_json(values["sizes"]),
                "lengths": [by_number(counts) for counts in values["lengths"]],
                "chunks": [Chunk(**chunk) for chunk in values["chunks"]],
                "shards": [_shard_plan(shard) for shard in values["shards"]],
                "label_gaps": None if gaps is None else LabelGaps(**gaps),
            }
        )


def _shard_plan(values: dict[str, int]) -> ShardPlan:
    """Returns a shard of a saved plan; its numbers make the name of a file that is written, and deleted by --overwrite."""
    if wrong := [name for name, value in values.items() if type(value) is not int or value < 0]:
        raise ValueError(f"{wrong[0]} of a shard is {values[wrong[0]]!r}")
    return ShardPlan(**values)


@dataclass(frozen=True, slots=True)
class Listing:
    """What was listed and is in no group: how many inputs were ignored, by reason, and the first key conflict."""

    ignored: dict[str, int]
    key_conflict: KeyConflict | None

    def to_json(self) -> bytes:
        """Returns the record as canonical JSON."""
        conflict = self.key_conflict
        return canonical_json({"ignored": self.ignored, "key_conflict": conflict and conflict._asdict()})

    @classmethod
    def from_json(cls, data: bytes) -> "Listing":
        """Returns the record that `to_json` wrote."""
        values = json.loads(data)
        conflict = values["key_conflict"]
        return cls(values["ignored"], conflict and KeyConflict(conflict["key"], tuple(conflict["paths"])))
