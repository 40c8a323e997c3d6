"""What is counted of shards: a group's, or, merged, those of a dataset; what `scan` makes a report of.

Reads shards' small columns, never tokens, a shard at a time. Every distribution is kept as exact counts of integers (fractions
in fixed steps), so memory depends on how many different values there are and not on how many examples (the names of one
group's examples, for `arrangement`, are all that is kept of single ones). Parts add up in any order, so that groups can be
counted wherever they were written.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchpack.pipeline.report.arrangement import Arrangement
from patchpack.pipeline.report.choice import Choice
from patchpack.pipeline.report.examples import ExampleScan
from patchpack.pipeline.report.statistics import add_unique, distribution
from patchpack.schemas import FormatError, Layout, Shard
from patchpack.schemas.figures import SequenceDistributions
from patchpack.schemas.manifest import ShardRow
from patchpack.schemas.report import AttentionCost, ReportedTotals, SegmentLimit, Storage
from patchpack.schemas.storage import join

# exact enough that the mean of the fill is the efficiency
FILL_STEPS = 1_000_000
# of the pages of reports
DEFAULT_SEQUENCES = 12
# a sequence's place: the number of its group, then that of the sequence in it
_GROUP = 2**40

_TOTALS = (
    "num_sequences",
    "num_segments",
    "num_tokens",
    "num_full_sequences",
    "num_empty_sequences",
    "num_at_limit",
    "num_padding_tokens_at_limit",
)
_COLUMNS = ["num_tokens", "num_segments", "attention_cost", "max_segment_tokens", "segments"]


class Scan:
    """Sums and exact counts over the shards seen so far."""

    def __init__(self, balance_step: int | None, num_chosen: int = DEFAULT_SEQUENCES) -> None:
        """Starts without any.

        Args:
            balance_step: the manifest's.
            num_chosen: sequences to choose for the gallery.
        """
        self.sequences, self.examples = SequenceScan(), ExampleScan()
        self.arrangement, self.choice = Arrangement(balance_step), Choice(num_chosen)
        self.num_shards = self.num_bytes = 0
        # sequences of each group
        self._groups: Counter[int] = Counter()

    def add_shard(self, folder: str, shard: ShardRow, group: int) -> None:
        """Counts what is in a shard; those of a group come one after the other, in the order of the table.

        Args:
            folder: of the dataset.
            shard: its row in the shard table.
            group: a number of its group that sorts as the table does.

        Raises:
            FormatError: it is missing or broken.
        """
        path = join(folder, shard["path"])
        try:
            with Shard(path) as opened:
                table, column_bytes = opened.read_metadata(_COLUMNS), opened.column_bytes()
        except FileNotFoundError as error:
            raise FormatError(
                f"{path}: no such file; shards.parquet lists it; write it again with build --resume"
            ) from error
        self.num_shards += 1
        self.num_bytes += shard["bytes"]
        self.sequences.column_bytes.update(column_bytes)
        self._add(table, opened.layout, shard, group)

    def _add(self, table: pa.Table, layout: Layout, shard: ShardRow, group: int) -> None:
        first = group * _GROUP + self._groups[group]
        self._groups[group] += len(table)
        self.sequences.add(table, layout)
        segments = table["segments"].combine_chunks()
        found, rows = segments.flatten(), pc.list_parent_indices(segments).to_numpy()
        self.examples.add(found, first + rows)
        self.arrangement.add_shard(
            (group, shard["view"], shard["layout"]),
            found.field("num_tokens").to_numpy(zero_copy_only=False).astype(np.int64),
            rows,
            pa.table({"key": found.field("source"), "example_id": found.field("example_id")}),
            len(table),
            layout.sequence_length,
        )
        self.choice.add_shard(table, layout.sequence_length, first)

    def merge(self, other: "Scan") -> None:
        """Adds the shards of another, which are of other groups."""
        self.num_shards += other.num_shards
        self.num_bytes += other.num_bytes
        self._groups.update(other._groups)
        self.sequences.merge(other.sequences)
        self.examples.merge(other.examples)
        self.arrangement.merge(other.arrangement)
        self.choice.merge(other.choice)

    def number_of(self, place: int) -> int:
        """Returns the number in the dataset of a sequence, once all groups are there."""
        group, number = divmod(place, _GROUP)
        return number + sum(count for before, count in self._groups.items() if before < group)


def scan_shards(
    folder: str,
    shards: Iterable[ShardRow],
    balance_step: int | None,
    num_chosen: int = DEFAULT_SEQUENCES,
    progress: Callable[[int], object] = lambda done: None,
) -> Scan:
    """Returns what is in shards, in the order of their table.

    Args:
        folder: of the dataset.
        shards: rows of its table.
        balance_step: the manifest's.
        num_chosen: sequences to choose for the gallery.
        progress: called with how many shards are done, after each.

    Raises:
        FormatError: one is missing or broken.
    """
    scan = Scan(balance_step, num_chosen)
    for number, (_, of_group) in enumerate(groupby(shards, key=lambda shard: shard["group"])):
        for shard in of_group:
            scan.add_shard(folder, shard, number)
            progress(scan.num_shards)
    return scan


@dataclasses.dataclass
class SequenceScan:
    """Sums and exact counts over the sequences seen so far."""

    # counts of a dataset without sequences are zeros, and not missing
    totals: Counter[str] = dataclasses.field(default_factory=lambda: Counter(dict.fromkeys(_TOTALS, 0)))
    counts: dict[str, Counter[int]] = dataclasses.field(default_factory=lambda: defaultdict(Counter))
    column_bytes: Counter[str] = dataclasses.field(default_factory=Counter)
    capacity: int = 0
    full_attention: int = 0
    attention_sum: int = 0
    attention_max: int = 0

    def add(self, table: pa.Table, layout: Layout) -> None:
        """Counts what belongs to whole sequences."""
        tokens, segments, cost = (table[name].to_numpy().astype(np.int64) for name in _COLUMNS[:3])
        length, at_limit = layout.sequence_length, segments == layout.max_segments
        self.totals.update(
            num_sequences=len(tokens),
            num_segments=int(segments.sum()),
            num_tokens=int(tokens.sum()),
            num_full_sequences=int((tokens == length).sum()),
            num_empty_sequences=int((tokens == 0).sum()),
            num_at_limit=int(at_limit.sum()),
            num_padding_tokens_at_limit=int((length - tokens)[at_limit].sum()),
        )
        self.capacity += len(tokens) * length
        self.full_attention += len(tokens) * length**2
        self.attention_sum += int(cost.sum())
        self.attention_max = max(self.attention_max, int(cost.max(initial=0)))
        add_unique(self.counts["examples_per_sequence"], segments)
        add_unique(self.counts["sequence_fill"], (tokens * FILL_STEPS + length // 2) // length)

    def merge(self, other: "SequenceScan") -> None:
        """Adds the sequences of another."""
        self.totals.update(other.totals)
        for name, counts in other.counts.items():
            self.counts[name].update(counts)
        self.column_bytes.update(other.column_bytes)
        self.capacity += other.capacity
        self.full_attention += other.full_attention
        self.attention_sum += other.attention_sum
        self.attention_max = max(self.attention_max, other.attention_max)

    def distributions(self) -> SequenceDistributions:
        """Returns the finished distributions by name."""
        return {
            "examples_per_sequence": distribution(self.counts["examples_per_sequence"]),
            "sequence_fill": distribution(self.counts["sequence_fill"], FILL_STEPS, [n / 20 for n in range(21)]),
        }

    def stored(self, num_shards: int, num_bytes: int) -> ReportedTotals:
        """Returns the totals of what is stored."""
        totals = self.totals
        return {
            "num_sequences": totals["num_sequences"],
            "num_segments": totals["num_segments"],
            "num_tokens": totals["num_tokens"],
            "num_full_sequences": totals["num_full_sequences"],
            "num_empty_sequences": totals["num_empty_sequences"],
            "num_shards": num_shards,
            "bytes": num_bytes,
        }

    def segment_limit(self) -> SegmentLimit:
        """Returns what max_segments costs."""
        totals = self.totals
        return {
            "num_at_limit": totals["num_at_limit"],
            "num_padding_tokens_at_limit": totals["num_padding_tokens_at_limit"],
        }

    def storage(self, num_bytes: int, source_bytes: int | None) -> Storage:
        """Returns what takes up the bytes of the shards, the largest first."""
        by_kind = dict(sorted(self.column_bytes.items(), key=lambda item: (-item[1], item[0])))
        return {
            "bytes_by_column": by_kind,
            "footer_bytes": num_bytes - sum(by_kind.values()),
            "source_bytes": source_bytes,
            "factor": ratio(num_bytes, source_bytes) if source_bytes else None,
        }

    def attention(self) -> AttentionCost:
        """Returns the cost of attention inside segments, in pairs of tokens (the sum of n^2)."""
        mean = ratio(self.attention_sum, self.totals["num_sequences"])
        return {
            "mean": mean,
            "max": self.attention_max,
            "max_over_mean": self.attention_max / mean if mean else None,
            "fraction_of_full": ratio(self.attention_sum, self.full_attention),
        }


def ratio(part: float, whole: float) -> float | None:
    """Returns a part of a whole, or None where there is no whole."""
    return part / whole if whole else None
