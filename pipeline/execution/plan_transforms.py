"""The transforms of planning, a stage each: thin, since every stage is a function that works without Beam.

Elements are buckets of inputs and parts of tables, never single inputs, so that neither Beam nor the launcher holds more than
some hundred bytes for a hundred of them. Rejects leave with the bucket that they are of.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import AsSingleton, PCollection, TaggedOutput
from apache_beam.transforms import combiners

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.execution import counts
from patchpack.pipeline.execution.list_transforms import Listed, Part
from patchpack.pipeline.execution.sandbox import isolated
from patchpack.pipeline.execution.shuffle import Piece, Shuffle, split
from patchpack.pipeline.execution.transform import Tagged, Transform
from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.names import arranged_name, classes_name, listing_name
from patchpack.pipeline.report.arrangement import Arrangement
from patchpack.pipeline.stages.buckets import bucket_of, distinct, of_split
from patchpack.pipeline.stages.dedupe import PACKED_BEFORE, rejects_of_copies, with_digest
from patchpack.pipeline.stages.generations import (
    KNOWN_SCHEMA,
    Generation,
    Grown,
    not_known,
    read_digests,
    write_digests,
)
from patchpack.pipeline.stages.group import group_of, num_groups
from patchpack.pipeline.stages.labels import in_order, label_gaps, label_of
from patchpack.pipeline.stages.list import OF_OTHER_SPLIT, source_path
from patchpack.pipeline.stages.plan import ViewPlan, arrangement_of, plan_view, rest_group
from patchpack.pipeline.stages.probe import probe
from patchpack.pipeline.stages.probed import Probed, fingerprint, read_probed, write_probed
from patchpack.pipeline.stages.records import Example, Ignored, KeyConflict, LabelRow, Reject, Source, reject
from patchpack.pipeline.stages.sample import sample_table
from patchpack.pipeline.stages.saved import read_classes, write_parts, write_rejects, write_view_plan
from patchpack.pipeline.stages.summary import HEADS, Listing
from patchpack.pipeline.stages.tables import (
    EXAMPLE_SCHEMA,
    LABEL_SCHEMA,
    REFERENCE_SCHEMA,
    SOURCE_SCHEMA,
    source_table,
    sources_of,
    values,
)
from patchpack.pipeline.storage import files
from patchpack.pipeline.storage.reading import read_input
from patchpack.pipeline.versions import check_planner, planner_version
from patchpack.schemas.manifest import canonical_json

# how often what is probed is counted
COUNT_EVERY_S = 0.25

# what is known of a bucket: ("probed", number of its examples), ("copy", a key, the one that is kept, number of examples), or
# ("reject", the reject)
Found = tuple[str, Any]
# a group of this generation, counted from 0, a view of it, and how many groups there are
ViewKey = tuple[int, int, int]
# a group, a view of it, and how that is arranged
PlannedPart = tuple[tuple[int, int], Arrangement]


class ProbedBuckets(NamedTuple):
    """What probing gives; the examples themselves are kept in files (`probed`)."""

    found: PCollection[tuple[int, Found]]
    listings: PCollection[Listing]
    labels: PCollection[str]
    digests: PCollection[tuple[str, tuple[str, int, int]]]


class Met(NamedTuple):
    """Everything that is known of each bucket, and how many examples are left of all."""

    buckets: PCollection[tuple[int, Iterable[Found]]]
    num_examples: PCollection[int]


class Sampled(NamedTuple):
    """What sampling gives: the parts of each view of each group, and what became of the inputs."""

    parts: PCollection[tuple[ViewKey, Piece]]
    listings: PCollection[Listing]


@dataclass
class Probe(Transform[Listed, ProbedBuckets]):
    """Buckets of sources to files of examples, by their headers; what an earlier run has probed is kept."""

    roots: list[str]
    folder: str
    config: PlanConfig
    shuffle: Shuffle

    def expand(self, listed: Listed) -> ProbedBuckets:
        probed = listed.parts | "meet" >> beam.GroupByKey() | "bucket" >> beam.FlatMap(self._run).with_outputs()
        return ProbedBuckets(probed.found, probed.listings, probed.labels, probed.digests)

    def _run(self, bucket: tuple[int, Iterable[Part]]) -> Iterator[Tagged]:
        number, parts = bucket
        with counts.timed("list"):
            sources, listing = self._listed(parts)
        names = {name for source in sources for name in source.facts.labels}
        if self.config.classes is None:
            yield from (TaggedOutput("labels", name) for name in sorted(names))
        own = [row for row in of_split(sources, self.config) if isinstance(row, Source)]
        others = len(sources) - len(own)
        with counts.timed("probe"):
            probed = self._probed(number, own)
        ignored = dict(probed.ignored) | ({OF_OTHER_SPLIT: others} if others else {})
        yield TaggedOutput("listings", listing)
        yield TaggedOutput("listings", Listing(ignored))
        yield TaggedOutput("found", (number, ("probed", len(probed.examples))))
        if self.config.dedupe != "none":
            of_key: dict[tuple[str, str], int] = {}
            for digest, key in zip(*(values(probed.examples, name) for name in ("digest", "key")), strict=True):
                of_key[digest, key] = of_key.get((digest, key), 0) + 1
            for (digest, key), count in of_key.items():
                yield TaggedOutput("digests", (digest, (key, number, count)))

    def _listed(self, parts: Iterable[Part]) -> tuple[list[Source], Listing]:
        """Returns the sources of a bucket by key, each once, and what else was in it."""
        pieces: dict[str, list[Piece]] = {"source": [], "label": [], "known": []}
        for kind, piece in parts:
            pieces[kind].append(piece)
        listed = sources_of(self.shuffle.get(pieces["source"], SOURCE_SCHEMA))
        named = self.shuffle.get(pieces["label"], LABEL_SCHEMA)
        labels = [LabelRow(*row) for row in zip(*(named[name].to_pylist() for name in named.column_names), strict=True)]
        rows = list(distinct(listed, labels, self.roots))
        conflicts = [row for row in rows if isinstance(row, KeyConflict)]
        known = self.shuffle.get(pieces["known"], KNOWN_SCHEMA)
        sources = list(not_known((row for row in rows if isinstance(row, Source)), known))
        ignored = Counter(row.why for row in [*rows, *sources] if isinstance(row, Ignored))
        return [row for row in sources if isinstance(row, Source)], Listing(
            dict(ignored), key_conflict=min(conflicts, default=None)
        )

    def _probed(self, bucket: int, sources: list[Source]) -> Probed:
        """Returns what is in a bucket, from the file of an earlier run where that still holds."""
        expected = fingerprint(source_table(sources), self.roots, self.config)
        kept = read_probed(self.folder, bucket, expected)
        if kept is not None:
            counts.add(num_probed=len(sources))
            return kept
        found: list[Example | Reject | Ignored] = []
        pending, counted_at = 0, time.monotonic()
        for source in sources:
            found += self._probe(source)
            pending += 1
            if time.monotonic() - counted_at > COUNT_EVERY_S:
                counts.add(num_probed=pending)
                pending, counted_at = 0, time.monotonic()
        counts.add(num_probed=pending)
        probed = Probed.of(found)
        write_probed(self.folder, bucket, probed, expected)
        return probed

    def _probe(self, source: Source) -> list[Example | Reject | Ignored]:
        config, path, root = self.config, source_path(source, self.roots), self.roots[source.root]
        rule = (config.clip_rule, config.max_pixels, config.max_bytes, config.seed, config.animated)
        try:
            probed = read_input(root, isolated, config, probe, source, path, *rule)
            if config.dedupe == "digest":
                probed = read_input(root, with_digest, probed, source, path)
        except DecodeError as error:
            return [reject(source.key, "probe", error.reason, error)]
        return probed


@dataclass
class Dedupe(Transform[tuple[Listed, ProbedBuckets], Met]):
    """Buckets with everything that is known of them: rejects of listing, and which inputs are copies of others."""

    config: PlanConfig
    grown: Grown

    def expand(self, found: tuple[Listed, ProbedBuckets]) -> Met:
        listed, probed = found
        config = self.config

        def of_bucket(row: Reject, buckets: int) -> Iterator[tuple[int, Found]]:
            for own in of_split([row], config):
                if isinstance(own, Reject):
                    yield bucket_of(row.key, buckets), ("reject", tuple(row))

        rejects = listed.rejects | "of bucket" >> beam.FlatMap(of_bucket, AsSingleton(listed.buckets))
        of_buckets, counted = [probed.found, rejects], [probed.found | "probed" >> beam.Map(lambda row: row[1][1])]
        if config.dedupe != "none":
            digests = probed.digests
            if self.grown.generation.number:
                before = digests.pipeline | "generations" >> beam.Create(list(self.grown.generation.before))
                packed = before | "packed before" >> beam.FlatMap(_packed_digests, self.grown.folder)
                digests = (digests, packed) | "and those before" >> beam.Flatten()
            copies = digests | "content" >> beam.GroupByKey() | "least key" >> beam.FlatMap(rejects_of_copies)
            of_buckets.append(copies | "copies" >> beam.Map(lambda row: (row[0], ("copy", row[1]))))
            counted.append(copies | "fewer" >> beam.Map(lambda row: -row[1][2]))
        return Met(
            of_buckets | "known" >> beam.Flatten() | "meet" >> beam.GroupByKey(),
            counted | "counts" >> beam.Flatten() | "examples" >> beam.CombineGlobally(sum),
        )


def _packed_digests(generation: int, folder: str) -> Iterator[tuple[str, tuple[str, int, int]]]:
    for digest, key in read_digests(folder, generation):
        yield digest, (key, PACKED_BEFORE, 0)


def of_bucket(folder: str, number: int, found: Iterable[Found]) -> tuple[pa.Table, list[Reject]]:
    """Returns the examples of a bucket, copies left out, and its rejects."""
    examples, rejects, copies = None, set[Reject](), dict[str, str]()
    for kind, what in found:
        if kind == "probed":
            kept = read_probed(folder, number)
            if kept is None:
                raise OSError(
                    f"bucket {number} of the plan: what was probed is not there any more; plan again with --resume"
                )
            examples, rejects = kept.examples, rejects | set(kept.rejects)
        elif kind == "copy":
            copies[what[0]] = what[1]
        else:
            rejects.add(Reject(*what))
    if examples is None:
        examples = EXAMPLE_SCHEMA.empty_table()
    if copies:
        is_copy = pc.is_in(examples["key"], pa.array(list(copies), pa.string()))
        examples = examples.filter(pc.invert(is_copy))
        rejects |= {reject(key, "dedupe", "duplicate", f"the same bytes as {kept}") for key, kept in copies.items()}
    return examples, sorted(rejects)


@dataclass
class Sample(Transform[Met, Sampled]):
    """Buckets to the views of their examples, with sizes and grids, spread over groups; their rejects are saved."""

    folder: str
    config: PlanConfig
    shuffle: Shuffle
    generation: Generation

    def expand(self, met: Met) -> Sampled:
        groups = met.num_examples | "groups" >> beam.Map(num_groups, self.config.group_size)
        sampled = met.buckets | "bucket" >> beam.FlatMap(self._run, AsSingleton(groups)).with_outputs(
            "listings", main="parts"
        )
        return Sampled(sampled.parts, sampled.listings)

    def _run(self, bucket: tuple[int, Iterable[Found]], groups: int) -> Iterator[Tagged]:
        number, found = bucket
        config = self.config
        with counts.timed("sample"):
            examples, rejects = of_bucket(self.folder, number, found)
            references, too_large = sample_table(examples, config.policy)
            rejects = sorted({*rejects, *too_large})
            if rejects:
                write_rejects(self.folder, self.generation.number, number, rejects)
            if self.config.dedupe != "none" and len(examples):
                write_digests(self.folder, self.generation.number, number, examples)
            counts.add(num_sampled=len(references))
            for row in rejects:
                counts.add_reject(row)
            keys = references["key"].to_pylist()
            group_N = np.array([group_of(key, config.seed, groups) for key in keys], dtype=np.int64)
            parts = split(references, group_N * config.views + references["view"].to_numpy())
            pieces = [(divmod(at, config.views), piece) for at, piece in self.shuffle.put(parts)]
        for (group, view), piece in pieces:
            yield (group, view, groups), piece
        yield TaggedOutput("listings", self._listing(number, examples, set(keys), rejects))

    def _listing(self, number: int, examples: pa.Table, sampled: set[str], rejects: list[Reject]) -> Listing:
        """Returns what became of the inputs of a bucket."""
        columns = ("key", "size_bytes", "head", "labels")
        of_key = {
            key: rest
            for key, *rest in zip(*(values(examples, name) for name in columns), strict=True)
            if key in sampled
        }
        sizes = [size for size, _, _ in of_key.values()]
        gaps = label_gaps({key: labels for key, (_, _, labels) in of_key.items()}, self.config.classes)
        return Listing(
            num_inputs=len(of_key.keys() | {row.key for row in rejects}),
            num_rejects=len(rejects),
            source_bytes=None if any(size < 0 for size in sizes) else sum(sizes),
            heads=sorted(head for _, head, _ in of_key.values())[:HEADS],
            label_gaps=gaps if self.config.has_labels else None,
            rejects_in=[number] if rejects else [],
            digests_in=[number] if self.config.dedupe != "none" and len(examples) else [],
        )


@dataclass
class ClassNames(Transform[tuple[Listed, ProbedBuckets], PCollection[tuple[str, ...]]]):
    """The names of the classes: those given, or those of the generations before and then all others of inputs, sorted.

    They are saved beside the plan.
    """

    folder: str
    config: PlanConfig
    grown: Grown

    def expand(self, found: tuple[Listed, ProbedBuckets]) -> PCollection[tuple[str, ...]]:
        listed, probed = found
        number, _ = self.grown.generation
        path = files.join(self.folder, classes_name(number))
        before = read_classes(self.grown.folder, number - 1) if number else ()

        def save(names: Iterable[str]) -> tuple[str, ...]:
            files.write(path, canonical_json(list(names)))
            return tuple(names)

        if self.config.classes is not None:
            return listed.buckets.pipeline | "given" >> beam.Create([self.config.classes]) | "save" >> beam.Map(save)
        # a folder of nothing but what cannot be listed is a class, too
        of_rejects = listed.rejects | "folders" >> beam.FlatMap(self._folders)
        return (
            (probed.labels, of_rejects)
            | beam.Flatten()
            | beam.Distinct()
            | combiners.ToList()
            | "sort" >> beam.Map(in_order)
            | "behind those before" >> beam.Map(lambda names: _appended(before, names))
            | "save" >> beam.Map(save)
        )

    def _folders(self, row: Reject) -> list[str]:
        label = label_of(row.key) if self.config.labels == "folder" else None
        return [] if label is None else [label]


def _appended(before: tuple[str, ...], names: Iterable[str]) -> list[str]:
    known = set(before)
    return [*before, *(name for name in names if name not in known)]


@dataclass
class SaveListing(Transform[tuple[PCollection[Listing], ...], PCollection[None]]):
    """What became of all inputs, counted, saved beside the plan."""

    folder: str
    generation: Generation

    def expand(self, parts: tuple[PCollection[Listing], ...]) -> PCollection[None]:
        path = files.join(self.folder, listing_name(self.generation.number))
        return (
            parts
            | "all" >> beam.Flatten()
            | "sum" >> beam.CombineGlobally(Listing.merged)
            | "save" >> beam.Map(lambda listing: files.write(path, listing.to_json()))
        )


@dataclass
class Group(Transform[Sampled, PCollection[tuple[ViewKey, Iterable[Piece]]]]):
    """The parts of each view of each group of about --group-size examples; all of one source meet."""

    def expand(self, sampled: Sampled) -> PCollection[tuple[ViewKey, Iterable[Piece]]]:
        return sampled.parts | "meet" >> beam.GroupByKey()


@dataclass
class SavePlan(Transform[PCollection[tuple[ViewKey, Iterable[Piece]]], PCollection[None]]):
    """Views of groups to their packed plans, written below the output folder; their rests to plans of their own."""

    folder: str
    config: PlanConfig
    shuffle: Shuffle
    classes: PCollection[tuple[str, ...]] | None
    generation: Generation
    # the launcher's, where the graph is made
    planner: str = field(default_factory=planner_version)

    def expand(self, views: PCollection[tuple[ViewKey, Iterable[Piece]]]) -> PCollection[None]:
        """Returns an element when all of it is saved."""
        classes = None if self.classes is None else AsSingleton(self.classes)
        folder, number, step = self.folder, self.generation.number, self.config.balance_step
        path = files.join(folder, arranged_name(number))

        def merged(parts: Iterable[Arrangement]) -> Arrangement:
            every = Arrangement(step)
            for part in parts:
                every.merge(part)
            return every

        planned = views | "view" >> beam.FlatMap(self._run, classes).with_outputs("planned", main="rests")
        rests = planned.rests | "rests meet" >> beam.GroupByKey() | "rests" >> beam.Map(self._run_rests, classes)
        parts = (planned.planned, rests) | "parts" >> beam.Flatten()
        arranged = (
            parts
            | "arrangements" >> beam.Values()
            | "arrangement" >> beam.CombineGlobally(merged)
            | "save" >> beam.Map(lambda every: files.write(path, canonical_json(every.figures())))
        )
        named = (
            parts
            | "names" >> beam.Keys()
            | "all of them" >> combiners.ToList()
            | "save names" >> beam.Map(lambda names: write_parts(folder, number, names))
        )
        saved: PCollection[None] = (arranged, named) | "saved" >> beam.Flatten()
        return saved

    def _run(self, view: tuple[ViewKey, Iterable[Piece]], classes: tuple[str, ...] | None) -> Iterator[Tagged]:
        (group, number, groups), pieces = view
        counts.add(num_groups=1)
        plan = self._planned(group, number, groups, pieces, classes, of_rests=False)
        yield TaggedOutput("planned", self._part(plan))
        key = (rest_group(group, groups, self.config), number, groups)
        yield from self.shuffle.put((key, batch) for batch in plan.rest.combine_chunks().to_batches())

    def _run_rests(self, view: tuple[ViewKey, Iterable[Piece]], classes: tuple[str, ...] | None) -> PlannedPart:
        (group, number, groups), pieces = view
        return self._part(self._planned(group, number, groups, pieces, classes, of_rests=True))

    def _part(self, plan: ViewPlan) -> PlannedPart:
        return (plan.summary.group, plan.summary.view), arrangement_of(plan, self.config)

    def _planned(
        self,
        group: int,
        view: int,
        groups: int,
        pieces: Iterable[Piece],
        classes: tuple[str, ...] | None,
        *,
        of_rests: bool,
    ) -> ViewPlan:
        """Returns the plan of a view of a group, which is saved."""
        check_planner(self.planner)
        with counts.timed("pack"):
            references = self.shuffle.get(pieces, REFERENCE_SCHEMA)
            number, first = self.generation
            plan = plan_view(
                first + group, view, references, self.config, classes, groups, of_rests=of_rests, generation=number
            )
            write_view_plan(self.folder, plan.summary, plan.shards)
        counts.add(num_planned=sum(map(len, plan.shards)))
        return plan
