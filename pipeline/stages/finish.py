"""Stage 8: the end of a build: shard table, rejects, report, and last the manifest.

Reads the plan's summaries and the shards' results: counts and names. Without the manifest a dataset is
unfinished, so everything else is there before it.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import pyarrow as pa

from patchpack.extras import MissingExtra
from patchpack.options import output_affecting
from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.names import REPORT_NAME, REPORT_PAGE_NAME
from patchpack.pipeline.packing.proof import ProvenBound, prove
from patchpack.pipeline.report.counted import Scan
from patchpack.pipeline.report.gallery import show
from patchpack.pipeline.report.page import page_of
from patchpack.pipeline.report.rejects import RejectCounts
from patchpack.pipeline.report.scan import make_report
from patchpack.pipeline.report.sizes import SizeCounts, merge_sizes
from patchpack.pipeline.report.text import to_json
from patchpack.pipeline.stages import saved
from patchpack.pipeline.stages.generations import new_alone
from patchpack.pipeline.stages.plan import sequence_bytes
from patchpack.pipeline.stages.records import Reject
from patchpack.pipeline.stages.rejects import SortedRejects
from patchpack.pipeline.stages.results import read_groups
from patchpack.pipeline.stages.summary import GroupId, Listing, ViewSummary
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
    Limits,
    Manifest,
    ShardRow,
    dataset_digest,
    largest_limits,
    table_bytes,
    write_rows,
)
from patchpack.schemas.report import DatasetTotals, Report, Totals

_COUNTS = ("num_sequences", "num_segments", "num_tokens")


class Planned:
    """What is planned, added up over groups and their views; `summaries` are looked at once, one at a time.

    Attributes:
        groups: those that have shards, ascending.
        num_bytes: of all sequences, before a codec makes them fewer.
    """

    def __init__(self, summaries: Iterable[ViewSummary], config: PlanConfig) -> None:
        """Adds them up."""
        self._config = config
        self._numbers: Counter[str] = Counter()
        self._lengths: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
        self._packed: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        self._moved: Counter[tuple[int, int]] = Counter()
        self.groups: list[GroupId] = []
        self.num_bytes = 0
        self._sizes = merge_sizes(self._added(summary) for summary in summaries)

    def _added(self, summary: ViewSummary) -> SizeCounts:
        self._numbers.update(source_px=summary.source_px, num_shards=len(summary.shards))
        group = (summary.generation, summary.group)
        if summary.shards and self.groups[-1:] != [group]:
            self.groups.append(group)
        for shard in summary.shards:
            self._numbers.update({name: getattr(shard, name) for name in _COUNTS})
            self.num_bytes += shard.num_sequences * sequence_bytes(self._config.layouts[shard.layout])
        for number, lengths in enumerate(summary.lengths):
            self._lengths[summary.view, number].update(lengths)
        for chunk in summary.chunks:
            self._packed[chunk.view, chunk.layout].append((chunk.num_sequences, chunk.bound))
            self._moved[chunk.view, chunk.layout] += chunk.num_moved
        return summary.sizes

    def totals(self, listing: Listing) -> Totals:
        """Returns inputs, rejects, ignored by reason, planned counts and sizes."""
        numbers = self._numbers
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
            "sizes": self._sizes,
        }

    def bounds(self) -> list[ProvenBound]:
        """Returns for each view and layout the proven least number of sequences over all groups, beside what was planned.

        The bound is that of the merged histogram: bounds of groups do not add up to one.
        """
        layouts = self._config.layouts
        return [
            prove(
                self._lengths[view, number],
                layout,
                self._packed[view, number],
                view=view,
                layout_number=number,
                num_moved=self._moved[view, number],
            )
            for view in range(self._config.views)
            for number, layout in enumerate(layouts)
        ]


class _Stored:
    """What is stored, added up over shards."""

    def __init__(self, num_layouts: int, rejects: SortedRejects) -> None:
        self.numbers: Counter[str] = Counter()
        self._rejects = rejects
        self._digests = bytearray()
        self._limits = [largest_limits(()) for _ in range(num_layouts)]

    def add(self, result: ShardResult) -> ShardRow:
        """Adds a shard, the next one by name, and returns its row."""
        for name in ("num_sequences", "num_segments", "num_tokens", "bytes"):
            self.numbers[name] += getattr(result, name)
        self.numbers["num_shards"] += 1
        # views and clips of one broken input fail alike: one row says it
        self._rejects.add(result.rejects)
        self._digests += bytes.fromhex(result.digest)
        self._limits[result.layout] = largest_limits((self._limits[result.layout], result.limits))
        return result.table_row()

    @property
    def digests(self) -> Iterator[str]:
        """Those of the shards, in order."""
        return (self._digests[at : at + 16].hex() for at in range(0, len(self._digests), 16))

    @property
    def limits(self) -> tuple[Limits, ...]:
        """Of each layout."""
        return tuple(self._limits)


def finish(
    folder: str, config: PlanConfig, scan: Scan, accepted: Callable[[Report], bool] = lambda report: True
) -> Report:
    """Writes the tables and the report of a dataset whose shards are all there, and the manifest if the report is accepted.

    Args:
        folder: the output; what writing gave lies there, a file a group (`results`).
        config: of the build.
        scan: of all shards.
        accepted: says whether the report is; it is returned in any case.
    """
    layouts = config.layouts
    planned = Planned(saved.read_summaries(folder), config)
    # of a dataset that has grown: its tables are replaced now
    files.remove(files.join(folder, MANIFEST_NAME))
    with SortedRejects() as rejects:
        stored = _Stored(len(layouts), rejects)
        with files.writing(files.join(folder, SHARD_TABLE_NAME)) as file:
            rows = map(stored.add, read_groups(folder, planned.groups))
            write_rows(pa.PythonFile(file, mode="w"), rows, SHARD_TABLE_SCHEMA)
        rejects.add(saved.read_rejects(folder))
        rejected = write_rejects(folder, rejects)
    earlier = saved.read_plan_record(folder)["earlier"]
    totals: DatasetTotals = {
        **planned.totals(new_alone(saved.read_listing(folder))),
        "num_rejects": rejected.num_rejects,
        "stored": {
            "num_shards": stored.numbers["num_shards"],
            "num_sequences": stored.numbers["num_sequences"],
            "num_segments": stored.numbers["num_segments"],
            "num_tokens": stored.numbers["num_tokens"],
            "bytes": stored.numbers["bytes"],
        },
    }
    bounds = planned.bounds()
    classes = saved.read_classes(folder, len(earlier)) if config.has_labels else None
    manifest = Manifest(
        dataset_digest=dataset_digest(layouts, stored.digests),
        layouts=layouts,
        classes=classes,
        totals=totals,
        bounds=tuple(bound.entry for bound in bounds),
        config=cast(Options, output_affecting(config)),
        balance_step=config.balance_step,
        recipe=config.recipe_name,
        limits=stored.limits,
        earlier=tuple(earlier),
    )
    return publish(folder, manifest, bounds, rejected, scan, accepted)


def write_rejects(folder: str, rejects: Iterable[Reject]) -> RejectCounts:
    """Writes the table of rejects, which come sorted, and returns their counts."""
    counted = RejectCounts()

    def rows() -> Iterator[dict[str, str]]:
        for row in rejects:
            counted.add([row])
            yield row._asdict()

    with files.writing(files.join(folder, REJECT_TABLE_NAME)) as file:
        write_rows(pa.PythonFile(file, mode="w"), rows(), REJECT_TABLE_SCHEMA)
    return counted


def publish(
    folder: str,
    manifest: Manifest,
    bounds: list[ProvenBound],
    rejected: RejectCounts,
    scan: Scan,
    accepted: Callable[[Report], bool] = lambda report: True,
) -> Report:
    """Writes what makes shards and their tables a dataset: the bounds, the report, and the manifest if the report is accepted.

    Returns the report.
    """
    proof_table = table_bytes((row for bound in bounds for row in bound.rows.to_pylist()), BOUND_TABLE_SCHEMA)
    files.write(files.join(folder, BOUND_TABLE_NAME), proof_table)
    made = make_report(manifest, scan, rejected)
    report = with_advice(folder, manifest, made)
    files.write(files.join(folder, REPORT_NAME), to_json(report).encode() + b"\n")
    try:
        scan.choice.number(scan.number_of)
        page = page_of(folder, report, show(folder, manifest, scan.choice))
        files.write(files.join(folder, REPORT_PAGE_NAME), page.encode())
    except MissingExtra as error:
        # the extra beam brings it; ShardWriter may do without
        warnings.warn(f"{REPORT_PAGE_NAME} is not written: {error}", stacklevel=2)
    if accepted(report):
        files.write(files.join(folder, MANIFEST_NAME), manifest.to_bytes())
    return report
