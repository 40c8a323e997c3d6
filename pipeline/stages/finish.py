"""Stage 8: the end of a build: shard table, rejects, report, and last the manifest.

Reads the plan's summaries and the shards' results: counts and names. Without the manifest a dataset is
unfinished, so everything else is there before it.
"""

import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchpack.extras import MissingExtra
from patchpack.options import output_affecting
from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.names import CLASSES_NAME, REPORT_NAME, REPORT_PAGE_NAME, RESULTS_NAME
from patchpack.pipeline.packing.proof import ProvenBound, prove
from patchpack.pipeline.report.arrangement import Arrangement
from patchpack.pipeline.report.choice import Choice
from patchpack.pipeline.report.gallery import DEFAULT_SEQUENCES, show
from patchpack.pipeline.report.page import page_of
from patchpack.pipeline.report.scan import make_report
from patchpack.pipeline.report.sizes import SizeCounts, merge_sizes
from patchpack.pipeline.report.text import to_json
from patchpack.pipeline.stages import saved
from patchpack.pipeline.stages.records import Reject
from patchpack.pipeline.stages.summary import Listing, ViewSummary
from patchpack.pipeline.stages.write import ShardResult
from patchpack.pipeline.storage import files
from patchpack.pipeline.whatif.advice import with_advice
from patchpack.schemas.figures import Options
from patchpack.schemas.manifest import (
    BOUND_TABLE_NAME,
    BOUND_TABLE_SCHEMA,
    MANIFEST_NAME,
    REJECT_TABLE_NAME,
    REJECT_TABLE_SCHEMA,
    SHARD_TABLE_NAME,
    SHARD_TABLE_SCHEMA,
    Manifest,
    ShardRow,
    dataset_digest,
    largest_limits,
    table_bytes,
)
from patchpack.schemas.report import Arranged, DatasetTotals, Report, Totals


def planned_totals(summaries: Iterable[ViewSummary], listing: Listing) -> Totals:
    """Returns the totals over all groups: inputs, rejects, ignored by reason, planned counts and sizes."""
    numbers: Counter[str] = Counter()

    def sizes() -> Iterator[SizeCounts]:
        # a group at a time: there may be very many
        for summary in summaries:
            numbers.update(source_px=summary.source_px, num_shards=len(summary.shards))
            for shard in summary.shards:
                numbers.update({name: getattr(shard, name) for name in ("num_sequences", "num_segments", "num_tokens")})
            yield summary.sizes

    merged = merge_sizes(sizes())
    return {
        "num_inputs": listing.num_inputs,
        "num_rejects": listing.num_rejects,
        "ignored": listing.ignored,
        "planned": {
            "num_shards": numbers["num_shards"],
            "num_sequences": numbers["num_sequences"],
            "num_segments": numbers["num_segments"],
            "num_tokens": numbers["num_tokens"],
            "source_px": numbers["source_px"],
            "source_bytes": listing.source_bytes,
        },
        "sizes": merged,
    }


def global_bounds(summaries: Iterable[ViewSummary], config: PlanConfig) -> list[ProvenBound]:
    """Returns for each view and layout the proven least number of sequences over all groups, beside what was planned.

    The bound is that of the merged histogram: bounds of groups do not add up to one.
    """
    merged: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    packed: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    moved: Counter[tuple[int, int]] = Counter()
    for summary in summaries:
        for number, lengths in enumerate(summary.lengths):
            merged[summary.view, number].update(lengths)
        for chunk in summary.chunks:
            packed[chunk.view, chunk.layout].append((chunk.num_sequences, chunk.bound))
            moved[chunk.view, chunk.layout] += chunk.num_moved
    streams = ((view, number) for view in range(config.views) for number in range(len(config.layouts)))
    return [
        prove(
            merged[stream],
            config.layouts[stream[1]],
            packed[stream],
            view=stream[0],
            layout_number=stream[1],
            num_moved=moved[stream],
        )
        for stream in streams
    ]


def planned_arrangement(folder: str, config: PlanConfig) -> Arranged:
    """Returns what the report will say of step balance and mixing, from the plan alone."""
    arrangement = Arrangement(config.balance_step)
    columns = ["key", "example_id", "sequence", "num_tokens"]
    for summary in saved.read_summaries(folder):
        with files.open_read(saved.plan_path(folder, summary.group, summary.view)) as file:
            parquet = pq.ParquetFile(file)
            for shard in summary.shards:
                rows = parquet.read_row_group(shard.row_group, columns)
                lengths = rows["num_tokens"].to_numpy().astype(np.int64)
                sequences = rows["sequence"].to_numpy().astype(np.int64)
                listing = (shard.group, shard.view, shard.layout)
                names = rows.select(columns[:2])
                arrangement.add_shard(listing, lengths, sequences, names, shard.num_sequences, config.sequence_length)
    return arrangement.figures()


def read_results(folder: str) -> list[ShardResult]:
    """Returns what the shard pipeline reported, by file name."""
    rows = json.loads(files.read(files.join(folder, RESULTS_NAME)))
    return [ShardResult(**row | {"rejects": [Reject(**reject) for reject in row["rejects"]]}) for row in rows]


def finish(
    folder: str,
    config: PlanConfig,
    results: list[ShardResult],
    accepted: Callable[[Report], bool] = lambda report: True,
    progress: Callable[[int], object] = lambda done: None,
) -> Report:
    """Writes the tables and the report of a dataset whose shards are all there, and the manifest if the report is accepted.

    Returns the report; `progress` is called with how many shards are in it.
    """
    # views and clips of one broken input fail alike: one row says it
    rejects = sorted({*saved.read_rejects(folder), *(reject for result in results for reject in result.rejects)})
    totals: DatasetTotals = {
        **planned_totals(saved.read_summaries(folder), saved.read_listing(folder)),
        "num_rejects": len(rejects),
        "stored": {
            "num_shards": len(results),
            "num_sequences": sum(result.num_sequences for result in results),
            "num_segments": sum(result.num_segments for result in results),
            "num_tokens": sum(result.num_tokens for result in results),
            "bytes": sum(result.bytes for result in results),
        },
    }
    bounds, layouts = global_bounds(saved.read_summaries(folder), config), config.layouts
    classes = json.loads(files.read(files.join(folder, CLASSES_NAME))) if config.has_labels else None
    manifest = Manifest(
        dataset_digest=dataset_digest(layouts, [result.digest for result in results]),
        layouts=layouts,
        classes=None if classes is None else tuple(classes),
        totals=totals,
        bounds=tuple(bound.entry for bound in bounds),
        config=cast(Options, output_affecting(config)),
        balance_step=config.balance_step,
        recipe=config.recipe_name,
        limits=tuple(
            largest_limits(result.limits for result in results if result.layout == number)
            for number in range(len(layouts))
        ),
    )
    return publish(folder, manifest, bounds, [result.table_row() for result in results], rejects, accepted, progress)


def publish(
    folder: str,
    manifest: Manifest,
    bounds: list[ProvenBound],
    shard_rows: list[ShardRow],
    rejects: list[Reject],
    accepted: Callable[[Report], bool] = lambda report: True,
    progress: Callable[[int], object] = lambda done: None,
) -> Report:
    """Writes what makes shards a dataset: the tables, the report, and the manifest if the report is accepted; returns it."""
    shard_table = table_bytes(shard_rows, SHARD_TABLE_SCHEMA)
    reject_table = table_bytes([row._asdict() for row in rejects], REJECT_TABLE_SCHEMA)
    files.write(files.join(folder, SHARD_TABLE_NAME), shard_table)
    files.write(files.join(folder, REJECT_TABLE_NAME), reject_table)
    proof_table = table_bytes((row for bound in bounds for row in bound.rows.to_pylist()), BOUND_TABLE_SCHEMA)
    files.write(files.join(folder, BOUND_TABLE_NAME), proof_table)
    shards, rejected = (pq.read_table(pa.BufferReader(table)) for table in (shard_table, reject_table))
    choice = Choice(DEFAULT_SEQUENCES)
    made = make_report(folder, manifest, shards, rejected, choice, progress)
    report = with_advice(folder, manifest, made)
    files.write(files.join(folder, REPORT_NAME), to_json(report).encode() + b"\n")
    try:
        page = page_of(folder, report, show(folder, manifest, choice))
        files.write(files.join(folder, REPORT_PAGE_NAME), page.encode())
    except MissingExtra as error:
        # the extra beam brings it; ShardWriter may do without
        warnings.warn(f"{REPORT_PAGE_NAME} is not written: {error}", stacklevel=2)
    if accepted(report):
        files.write(files.join(folder, MANIFEST_NAME), manifest.to_bytes())
    return report
