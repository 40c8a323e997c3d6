"""What a dataset is like, in numbers: how full, how far from the bound, what sizes, what was left out.

Reads the manifest, the shard and reject tables and the shards' small columns, never tokens; a shard at a time.
Every distribution is kept as exact counts of integers (fractions in fixed steps), so memory depends on how many
different values there are and not on how many examples (the names of one group's examples, for `arrangement`, are all
that is kept of single ones), and equal datasets give equal reports on every machine.
"""

import dataclasses
import heapq
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchpack.pipeline.report.arrangement import Arrangement
from patchpack.pipeline.report.sizes import SIZE_NAMES
from patchpack.pipeline.report.statistics import add_unique, distribution
from patchpack.pipeline.stages.records import PARTIAL_VIDEO
from patchpack.schemas import FormatError, Layout, Manifest, Shard
from patchpack.schemas.manifest import ShardRow
from patchpack.schemas.report import (
    AttentionCost,
    Bound,
    Classes,
    DatasetTotals,
    DecoderWarnings,
    Distributions,
    Efficiency,
    Frames,
    InputTotals,
    PlannedCounts,
    RejectCount,
    Report,
    ReportedBound,
    ReportedTotals,
    Sizes,
)
from patchpack.schemas.storage import join

# 1: the keys that `make_report` documents; a key that changes its meaning makes it 2
REPORT_VERSION = 1
# fractions are counted in steps of 1e-6 (fill: exact enough that its mean is the efficiency) or 1e-4
FILL_STEPS = 1_000_000
RATIO_STEPS = 10_000
MAX_CLASSES = 20
MAX_WARNINGS = 5
MAX_SAMPLE_KEYS = 3

_TOTALS = ("num_sequences", "num_segments", "num_tokens", "num_full_sequences", "num_empty_sequences")
_FRAMES = (
    "num_images",
    "num_clips",
    "num_clip_frames",
    "num_repeated_clip_frames",
    "num_clips_with_repeated_frames",
    "num_repeated_image_frames",
)
_COLUMNS = ["num_tokens", "num_segments", "attention_cost", "segments"]


def make_report(
    folder: str,
    manifest: Manifest,
    shards: pa.Table,
    rejects: pa.Table,
    progress: Callable[[int], object] = lambda done: None,
) -> Report:
    """Returns the content of report.json, which `schemas.report` describes; equal for equal datasets.

    Args:
        folder: where the shards lie.
        manifest: of the dataset.
        shards: its shard table.
        rejects: its reject table.
        progress: called with how many shards are done, after each.

    Raises:
        FormatError: a shard is missing or broken, or the manifest lacks totals.
    """
    scan, arrangement = _Scan(), Arrangement(manifest.balance_step)
    for done, shard in enumerate(shards.to_pylist(), 1):
        _scan_shard(scan, arrangement, folder, shard, manifest)
        progress(done)
    stored = scan.stored(len(shards), sum(shards["bytes"].to_pylist()))
    try:
        totals = _totals(manifest.totals, stored, _num_rejected_inputs(rejects))
        bounds = [_bound(entry) for entry in manifest.bounds]
        efficiency = _efficiency(scan, manifest, totals["planned"])
        sizes = manifest.totals["sizes"]
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
        **scan.distributions(),
        "attention_cost_per_sequence": scan.attention(),
        **arrangement.figures(),
        "frames": scan.frame_counts(),
        "sizes": sizes,
        "decoder_warnings": scan.decoder_warnings(),
        "classes": _classes(scan, manifest.classes),
        "layouts": [layout.to_json() for layout in manifest.layouts],
        "config": manifest.config,
    }


def aspect_error(
    height: np.ndarray, width: np.ndarray, source_height: np.ndarray, source_width: np.ndarray
) -> np.ndarray:
    """Returns how far images are stretched, in steps of 1 / RATIO_STEPS, (N,) int64.

    The error is the larger aspect over the smaller, minus 1: an image drawn 2 % too wide or too high has 0.02.
    """
    one, other = height * source_width, width * source_height
    large, small = np.maximum(one, other), np.minimum(one, other)
    steps: np.ndarray = (large * RATIO_STEPS + small // 2) // small - RATIO_STEPS
    return steps


def _scan_shard(scan: "_Scan", arrangement: Arrangement, folder: str, shard: ShardRow, manifest: Manifest) -> None:
    path = join(folder, shard["path"])
    try:
        with Shard(path) as opened:
            table = opened.read_metadata(_COLUMNS)
    except FileNotFoundError as error:
        raise FormatError(
            f"{path}: no such file; shards.parquet lists it; write it again with build --resume"
        ) from error
    layout = opened.layout
    scan.add_sequences(table, layout)
    segments = table["segments"].combine_chunks()
    examples = segments.flatten()
    scan.add_segments(examples)
    arrangement.add_shard(
        (shard["group"], shard["view"], shard["layout"]),
        examples.field("num_tokens").to_numpy(zero_copy_only=False).astype(np.int64),
        pc.list_parent_indices(segments).to_numpy(),
        pa.table({"key": examples.field("source"), "example_id": examples.field("example_id")}),
        len(table),
        layout.sequence_length,
    )


@dataclasses.dataclass
class _Scan:
    """Sums and exact counts over the sequences and segments seen so far."""

    # counts of a dataset without sequences are zeros, and not missing
    totals: Counter[str] = dataclasses.field(default_factory=lambda: Counter(dict.fromkeys(_TOTALS, 0)))
    counts: dict[str, Counter[int]] = dataclasses.field(default_factory=lambda: defaultdict(Counter))
    labels: Counter[int] = dataclasses.field(default_factory=Counter)
    frames: Counter[str] = dataclasses.field(default_factory=lambda: Counter(dict.fromkeys(_FRAMES, 0)))
    warnings: Counter[str] = dataclasses.field(default_factory=Counter)
    num_labelled: int = 0
    capacity: int = 0
    full_attention: int = 0
    clip_duration_s: float = 0.0
    attention_sum: int = 0
    attention_max: int = 0

    def add_sequences(self, table: pa.Table, layout: Layout) -> None:
        """Counts what belongs to whole sequences."""
        tokens, segments, cost = (table[name].to_numpy().astype(np.int64) for name in _COLUMNS[:3])
        length = layout.sequence_length
        self.totals.update(num_sequences=len(tokens), num_segments=int(segments.sum()), num_tokens=int(tokens.sum()))
        self.totals.update(
            num_full_sequences=int((tokens == length).sum()), num_empty_sequences=int((tokens == 0).sum())
        )
        self.capacity += len(tokens) * length
        self.full_attention += len(tokens) * length**2
        self.attention_sum += int(cost.sum())
        self.attention_max = max(self.attention_max, int(cost.max(initial=0)))
        self._count("examples_per_sequence", segments)
        self._count("sequence_fill", (tokens * FILL_STEPS + length // 2) // length)

    def add_segments(self, segments: pa.StructArray) -> None:
        """Counts what belongs to single examples."""

        def column(name: str) -> np.ndarray:
            values: np.ndarray = segments.field(name).to_numpy(zero_copy_only=False).astype(np.int64)
            return values

        # what earlier versions do not say is all of it
        is_later = segments.type.get_field_index("valid_height") >= 0
        height, width = (column(f"valid_{side}" if is_later else side) for side in ("height", "width"))
        source_height, source_width = (
            column(f"{'crop' if is_later else 'source'}_{side}") for side in ("height", "width")
        )
        area, source_area = height * width, source_height * source_width
        self._count("tokens_per_example", column("num_tokens"))
        self._count("effective_side_px", np.rint(np.sqrt(area)).astype(np.int64))
        self._count("aspect_error", aspect_error(height, width, source_height, source_width))
        self._count("scale", np.rint(np.sqrt(area / source_area) * RATIO_STEPS).astype(np.int64))
        target_area = column("target_height") * column("target_width")
        self._count("side_change", np.rint(abs(np.sqrt(area / target_area) - 1) * RATIO_STEPS).astype(np.int64))
        cells = column("grid_t") * column("grid_h") * column("grid_w")
        self._count("kept_fraction", (column("num_tokens") * RATIO_STEPS + cells // 2) // cells)
        self._count_frames(segments, column("num_frames"), column("num_repeated_frames"))
        extras = segments.field("extra").drop_null()
        for extra in extras.filter(pc.match_substring(extras, "decoder_warning")).to_pylist():
            # numbers differ from file to file, and say nothing here
            self.warnings[re.sub(r"\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b", "N", json.loads(extra)["decoder_warning"])] += 1
        labels = segments.field("labels")
        self.num_labelled += int((labels.value_lengths().to_numpy(zero_copy_only=False) > 0).sum())
        add_unique(self.labels, labels.flatten().to_numpy(zero_copy_only=False))

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

    def frame_counts(self) -> Frames:
        """Returns how many images, clips and frames there are."""
        frames = self.frames
        return {
            "num_images": frames["num_images"],
            "num_clips": frames["num_clips"],
            "num_clip_frames": frames["num_clip_frames"],
            "num_repeated_clip_frames": frames["num_repeated_clip_frames"],
            "num_clips_with_repeated_frames": frames["num_clips_with_repeated_frames"],
            "num_repeated_image_frames": frames["num_repeated_image_frames"],
            "clip_duration_s": round(self.clip_duration_s, 3),
        }

    def distributions(self) -> Distributions:
        """Returns the finished distributions by name."""
        counts = self.counts
        return {
            "tokens_per_example": distribution(counts["tokens_per_example"]),
            "examples_per_sequence": distribution(counts["examples_per_sequence"]),
            "sequence_fill": distribution(counts["sequence_fill"], FILL_STEPS, [n / 20 for n in range(21)]),
            "effective_side_px": distribution(counts["effective_side_px"]),
            "aspect_error": distribution(counts["aspect_error"], RATIO_STEPS),
            "side_change": distribution(counts["side_change"], RATIO_STEPS),
            "scale": distribution(counts["scale"], RATIO_STEPS),
            "kept_fraction": distribution(counts["kept_fraction"], RATIO_STEPS, [n / 20 for n in range(21)]),
        }

    def decoder_warnings(self) -> DecoderWarnings:
        """Returns how many examples are kept in spite of a warning, and the most frequent ones, numbers left out."""
        first = sorted(self.warnings.items(), key=lambda item: (-item[1], item[0]))[:MAX_WARNINGS]
        return {"num_examples": self.warnings.total(), "texts": dict(first)}

    def attention(self) -> AttentionCost:
        """Returns the cost of attention inside segments, in pairs of tokens (the sum of n^2)."""
        mean = _ratio(self.attention_sum, self.totals["num_sequences"])
        return {
            "mean": mean,
            "max": self.attention_max,
            "max_over_mean": self.attention_max / mean if mean else None,
            "fraction_of_full": _ratio(self.attention_sum, self.full_attention),
        }

    def _count(self, name: str, values: np.ndarray) -> None:
        add_unique(self.counts[name], values)

    def _count_frames(self, segments: pa.StructArray, num_frames: np.ndarray, repeated: np.ndarray) -> None:
        # only clips have a place in time
        is_clip = segments.field("clip_start_s").is_valid().to_numpy(zero_copy_only=False)
        values = (
            (~is_clip).sum(),
            is_clip.sum(),
            num_frames[is_clip].sum(),
            repeated[is_clip].sum(),
            (repeated[is_clip] > 0).sum(),
            repeated[~is_clip].sum(),
        )
        self.frames.update(dict(zip(_FRAMES, map(int, values), strict=True)))
        self.clip_duration_s += math.fsum(segments.field("clip_duration_s").drop_null().to_pylist())


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _efficiency(scan: _Scan, manifest: Manifest, planned: PlannedCounts) -> Efficiency:
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


def _classes(scan: _Scan, classes: tuple[str, ...] | None) -> Classes | None:
    """Returns how many examples each class has: the largest by name, the others summed up."""
    if classes is None:
        return None
    ordered = sorted(range(len(classes)), key=lambda label: (-scan.labels[label], label))
    first, rest = ordered[:MAX_CLASSES], ordered[MAX_CLASSES:]
    return {
        "num_classes": len(classes),
        "num_labelled": scan.num_labelled,
        "num_unlabelled": scan.totals["num_segments"] - scan.num_labelled,
        "largest": [{"label": n, "name": classes[n], "num_examples": scan.labels[n]} for n in first],
        "rest": {"num_classes": len(rest), "num_examples": sum(scan.labels[n] for n in rest)},
        "num_empty_classes": sum(not scan.labels[n] for n in ordered),
    }
