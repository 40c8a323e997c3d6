"""What a dataset is like, in numbers: how full, how far from the bound, what sizes, what was left out.

Reads the manifest, the shard and reject tables and the shards' small columns, never tokens; a shard at a time.
Every distribution is kept as exact counts of integers (fractions in fixed steps), so memory depends on how many
different values there are and not on how many examples (the names of one group's examples, for `arrangement`, are all
that is kept of single ones), and equal datasets give equal reports on every machine.
"""

import dataclasses
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchpack.pipeline.report.arrangement import Arrangement
from patchpack.pipeline.report.choice import Choice
from patchpack.pipeline.report.examples import ExampleScan
from patchpack.pipeline.report.sizes import SIZE_NAMES
from patchpack.pipeline.report.statistics import add_unique, distribution
from patchpack.pipeline.stages.records import PARTIAL_VIDEO
from patchpack.schemas import FormatError, Layout, Manifest, Shard
from patchpack.schemas.figures import SequenceDistributions
from patchpack.schemas.manifest import ShardRow
from patchpack.schemas.report import (
    AttentionCost,
    Bound,
    DatasetTotals,
    Efficiency,
    InputTotals,
    PlannedCounts,
    RejectCount,
    Report,
    ReportedBound,
    ReportedTotals,
    SegmentLimit,
    Sizes,
    Storage,
)
from patchpack.schemas.storage import join

# 1: the keys that `make_report` documents; a key that changes its meaning makes it 2
REPORT_VERSION = 1
# exact enough that the mean of the fill is the efficiency
FILL_STEPS = 1_000_000
MAX_SAMPLE_KEYS = 3

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


def make_report(
    folder: str,
    manifest: Manifest,
    shards: pa.Table,
    rejects: pa.Table,
    choice: Choice | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Report:
    """Returns the content of report.json, which `schemas.report` describes; equal for equal datasets.

    Args:
        folder: where the shards lie.
        manifest: of the dataset.
        shards: its shard table.
        rejects: its reject table.
        choice: sees every sequence, so that the gallery needs no look of its own at every shard.
        progress: called with how many shards are done, after each.

    Raises:
        FormatError: a shard is missing or broken, or the manifest lacks totals.
    """
    scan, examples, arrangement = _SequenceScan(), ExampleScan(), Arrangement(manifest.balance_step)
    for done, shard in enumerate(shards.to_pylist(), 1):
        table, layout = _scan_shard(scan, examples, arrangement, folder, shard)
        if choice is not None:
            choice.add_shard(table, layout.sequence_length)
        progress(done)
    num_bytes = sum(shards["bytes"].to_pylist())
    stored = scan.stored(len(shards), num_bytes)
    try:
        totals = _totals(manifest.totals, stored, _num_rejected_inputs(rejects))
        bounds = [_bound(entry) for entry in manifest.bounds]
        efficiency = _efficiency(scan, manifest, totals["planned"])
        sizes = manifest.totals["sizes"]
        # earlier versions do not say
        source_bytes = manifest.totals["planned"].get("source_bytes")
        if sizes is not None:
            sizes = cast(Sizes, {name: cast(dict[str, object], sizes)[name] for name in SIZE_NAMES})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{join(folder, 'manifest.json')}: broken totals or bounds ({error!r}); it holds what docs/format.md lists; "
            "write it again with build --resume"
        ) from error
    return {
        "report_version": REPORT_VERSION,
        "dataset_digest": manifest.dataset_digest,
        "recipe": manifest.recipe,
        "efficiency": efficiency,
        "bounds": bounds,
        "totals": totals,
        "rejects": _rejects(rejects),
        **examples.distributions(),
        **scan.distributions(),
        "segment_limit": scan.segment_limit(),
        "aspect_plane": examples.aspect_plane(),
        "num_dropped_tokens": examples.num_dropped_tokens,
        "attention_cost_per_sequence": scan.attention(),
        **arrangement.figures(),
        "storage": scan.storage(num_bytes, source_bytes),
        "frames": examples.frames(),
        "clips": examples.clips(),
        "sizes": sizes,
        "decoder_warnings": examples.decoder_warnings(),
        "classes": examples.classes(manifest.classes),
        "captions": examples.captions(),
        # said of the plan, by `whatif.advice`
        "advice": None,
        "what_if": None,
        "layouts": [layout.to_json() for layout in manifest.layouts],
        "config": manifest.config,
    }


def _scan_shard(
    scan: "_SequenceScan", examples: ExampleScan, arrangement: Arrangement, folder: str, shard: ShardRow
) -> tuple[pa.Table, Layout]:
    """Counts what is in a shard, and returns its small columns and its layout."""
    path = join(folder, shard["path"])
    try:
        with Shard(path) as opened:
            table, column_bytes = opened.read_metadata(_COLUMNS), opened.column_bytes()
    except FileNotFoundError as error:
        raise FormatError(
            f"{path}: no such file; shards.parquet lists it; write it again with build --resume"
        ) from error
    layout, first = opened.layout, scan.totals["num_sequences"]
    scan.add(table, layout)
    scan.column_bytes.update(column_bytes)
    segments = table["segments"].combine_chunks()
    found, rows = segments.flatten(), pc.list_parent_indices(segments).to_numpy()
    examples.add(found, first + rows)
    arrangement.add_shard(
        (shard["group"], shard["view"], shard["layout"]),
        found.field("num_tokens").to_numpy(zero_copy_only=False).astype(np.int64),
        rows,
        pa.table({"key": found.field("source"), "example_id": found.field("example_id")}),
        len(table),
        layout.sequence_length,
    )
    return table, layout


@dataclasses.dataclass
class _SequenceScan:
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
            "factor": _ratio(num_bytes, source_bytes) if source_bytes else None,
        }

    def attention(self) -> AttentionCost:
        """Returns the cost of attention inside segments, in pairs of tokens (the sum of n^2)."""
        mean = _ratio(self.attention_sum, self.totals["num_sequences"])
        return {
            "mean": mean,
            "max": self.attention_max,
            "max_over_mean": self.attention_max / mean if mean else None,
            "fraction_of_full": _ratio(self.attention_sum, self.full_attention),
        }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _efficiency(scan: _SequenceScan, manifest: Manifest, planned: PlannedCounts) -> Efficiency:
    """Returns efficiency as stored, and what the plan and the bound would give."""
    lengths = [layout.sequence_length for layout in manifest.layouts]
    planned_capacity = sum(entry["num_sequences"] * lengths[entry["layout"]] for entry in manifest.bounds)
    bound_capacity = sum(entry["bound"] * lengths[entry["layout"]] for entry in manifest.bounds)
    efficiency = _ratio(scan.totals["num_tokens"], scan.capacity)
    if bound_capacity < planned["num_tokens"]:
        raise ValueError(f"bounds of {bound_capacity} tokens for {planned['num_tokens']} planned")
    return {
        "efficiency": efficiency,
        "padding_fraction": None if efficiency is None else (scan.capacity - scan.totals["num_tokens"]) / scan.capacity,
        "planned_efficiency": _ratio(planned["num_tokens"], planned_capacity),
        "efficiency_at_bound": _ratio(planned["num_tokens"], bound_capacity),
    }


def _totals(totals: DatasetTotals, stored: ReportedTotals, num_rejected_inputs: int) -> InputTotals:
    """Returns what became of the inputs, and what was planned and stored; stored is what the shards say."""
    return {
        "num_inputs": totals["num_inputs"],
        "num_rejects": totals["num_rejects"],
        "num_rejected_inputs": num_rejected_inputs,
        "num_ignored": sum(totals["ignored"].values()),
        "ignored": dict(sorted(totals["ignored"].items(), key=lambda item: (-item[1], item[0]))),
        "planned": {
            "num_sequences": totals["planned"]["num_sequences"],
            "num_segments": totals["planned"]["num_segments"],
            "num_tokens": totals["planned"]["num_tokens"],
        },
        "stored": stored,
    }


def _bound(entry: Bound) -> ReportedBound:
    """Returns the packing of one (view, layout) against its bound: planned sequences, since the plan is what was packed."""
    gap = entry["num_sequences"] - entry["bound"]
    return {
        "view": entry["view"],
        "layout": entry["layout"],
        "num_sequences": entry["num_sequences"],
        "bound": entry["bound"],
        "gap": gap,
        "gap_fraction": _ratio(gap, entry["bound"]),
        "proven_optimal": gap == 0,
        "num_moved": entry.get("num_moved", 0),  # earlier builds do not say
        "num_chunks": entry["num_chunks"],
        "num_chunks_optimal": entry["num_chunks_optimal"],
    }


def _num_rejected_inputs(rejects: pa.Table) -> int:
    """Returns how many inputs have a reject, not counting videos that are only marked as damaged."""
    stage, reason = PARTIAL_VIDEO
    lost = pc.or_(pc.not_equal(rejects["stage"], stage), pc.not_equal(rejects["reason"], reason))
    return int(pc.count_distinct(rejects["key"].filter(lost)).as_py())


def _rejects(rejects: pa.Table) -> list[RejectCount]:
    """Returns how many rejects each stage and reason has, most first, with the first few keys of each.

    An input with several clips or views can be rejected more than once.
    """
    keys: dict[tuple[str, str], list[str]] = defaultdict(list)
    for batch in rejects.select(["stage", "reason", "key"]).to_batches():
        for stage, reason, key in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            keys[stage, reason].append(key)
    return [
        {
            "stage": stage,
            "reason": reason,
            "num_rejects": len(rejected),
            "sample_keys": heapq.nsmallest(MAX_SAMPLE_KEYS, set(rejected)),
        }
        for (stage, reason), rejected in sorted(keys.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
