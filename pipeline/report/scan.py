"""What a dataset is like, in numbers: how full, how far from the bound, what sizes, what was left out.

Of the manifest, the reject table and what `counted` found in the shards; equal datasets give equal reports on every machine.
"""

from typing import cast

from patchpack.pipeline.report.counted import Scan, SequenceScan, ratio, scan_shards
from patchpack.pipeline.report.rejects import RejectCounts
from patchpack.pipeline.report.sizes import SIZE_NAMES
from patchpack.schemas import FormatError, Manifest, read_manifest, read_shard_table
from patchpack.schemas.manifest import MANIFEST_NAME, REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA, read_table
from patchpack.schemas.report import (
    Bound,
    DatasetTotals,
    Efficiency,
    InputTotals,
    PlannedCounts,
    Report,
    ReportedBound,
    ReportedTotals,
    Sizes,
)

# 1: the keys that `make_report` documents; a key that changes its meaning makes it 2
REPORT_VERSION = 1


def read_report(folder: str) -> Report:
    """Returns the report of a finished dataset, made anew from its tables and shards; without advice.

    Raises:
        FormatError: there is no finished dataset, or it is broken.
    """
    manifest = read_manifest(folder)
    rejects = read_table(folder, REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA)
    scan = scan_shards(folder, read_shard_table(folder).to_pylist(), manifest.balance_step)
    return make_report(manifest, scan, RejectCounts.of(rejects))


def make_report(manifest: Manifest, scan: Scan, rejects: RejectCounts) -> Report:
    """Returns the content of report.json, which `schemas.report` describes; equal for equal datasets.

    Args:
        manifest: of the dataset.
        scan: of all its shards.
        rejects: of its reject table.

    Raises:
        FormatError: the manifest lacks totals.
    """
    sequences, examples = scan.sequences, scan.examples
    stored = sequences.stored(scan.num_shards, scan.num_bytes)
    try:
        totals = _totals(manifest.totals, stored, rejects.num_inputs)
        bounds = [_bound(entry) for entry in manifest.bounds]
        efficiency = _efficiency(sequences, manifest, totals["planned"])
        sizes = manifest.totals["sizes"]
        # earlier versions do not say
        source_bytes = manifest.totals["planned"].get("source_bytes")
        if sizes is not None:
            sizes = cast(Sizes, {name: cast(dict[str, object], sizes)[name] for name in SIZE_NAMES})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{MANIFEST_NAME}: broken totals or bounds ({error!r}); it holds what docs/format.md lists; "
            "write it again with build --resume"
        ) from error
    return {
        "report_version": REPORT_VERSION,
        "dataset_digest": manifest.dataset_digest,
        "earlier": list(manifest.earlier),
        "recipe": manifest.recipe,
        "efficiency": efficiency,
        "bounds": bounds,
        "totals": totals,
        "rejects": rejects.by_kind(),
        **examples.distributions(),
        **sequences.distributions(),
        "segment_limit": sequences.segment_limit(),
        "aspect_plane": examples.aspect_plane(scan.number_of),
        "num_dropped_tokens": examples.num_dropped_tokens,
        "attention_cost_per_sequence": sequences.attention(),
        **scan.arrangement.figures(),
        "storage": sequences.storage(scan.num_bytes, source_bytes),
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


def _efficiency(scan: SequenceScan, manifest: Manifest, planned: PlannedCounts) -> Efficiency:
    """Returns efficiency as stored, and what the plan and the bound would give."""
    lengths = [layout.sequence_length for layout in manifest.layouts]
    planned_capacity = sum(entry["num_sequences"] * lengths[entry["layout"]] for entry in manifest.bounds)
    bound_capacity = sum(entry["bound"] * lengths[entry["layout"]] for entry in manifest.bounds)
    efficiency = ratio(scan.totals["num_tokens"], scan.capacity)
    if bound_capacity < planned["num_tokens"]:
        raise ValueError(f"bounds of {bound_capacity} tokens for {planned['num_tokens']} planned")
    return {
        "efficiency": efficiency,
        "padding_fraction": None if efficiency is None else (scan.capacity - scan.totals["num_tokens"]) / scan.capacity,
        "planned_efficiency": ratio(planned["num_tokens"], planned_capacity),
        "efficiency_at_bound": ratio(planned["num_tokens"], bound_capacity),
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
        "gap_fraction": ratio(gap, entry["bound"]),
        "proven_optimal": gap == 0,
        "num_moved": entry.get("num_moved", 0),  # earlier builds do not say
        "num_chunks": entry["num_chunks"],
        "num_chunks_optimal": entry["num_chunks_optimal"],
    }
