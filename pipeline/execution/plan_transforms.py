"""The first graph's transforms, a stage each: thin, since every stage is a function that works without Beam.

A stage's records leave it sorted by what they are: what the next stage takes, rejects, and what is only counted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import apache_beam as beam
import xxhash
from apache_beam.pvalue import AsIter, AsSingleton, DoOutputsTuple, PCollection, TaggedOutput
from apache_beam.transforms import combiners
from apache_beam.typehints.decorators import IOTypeHints

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.execution import counts
from patchpack.pipeline.execution.sandbox import isolated
from patchpack.pipeline.inputs.split import parse_splits, split_of
from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.names import CLASSES_NAME, LISTING_NAME
from patchpack.pipeline.stages.dedupe import keep_least, with_digest
from patchpack.pipeline.stages.group import group_of, num_groups
from patchpack.pipeline.stages.labels import in_order, label_of, read_label_file, with_folder_label
from patchpack.pipeline.stages.list import (
    BEYOND_LIMIT,
    LABEL_OF_NONE,
    OF_OTHER_SPLIT,
    Input,
    excluded,
    list_container,
    list_input,
    source_path,
    source_place,
    split_container,
)
from patchpack.pipeline.stages.plan import plan_group, rest_group
from patchpack.pipeline.stages.probe import probe
from patchpack.pipeline.stages.records import (
    Container,
    Example,
    Ignored,
    KeyConflict,
    LabelRow,
    Reference,
    Reject,
    Source,
    reject,
)
from patchpack.pipeline.stages.sample import sample_views
from patchpack.pipeline.stages.saved import GroupPlan, write_group_plan
from patchpack.pipeline.stages.summary import Listing
from patchpack.pipeline.storage import files
from patchpack.pipeline.storage.reading import read_input
from patchpack.schemas.manifest import canonical_json

# enough to spread probing over any number of workers
_NUM_BUCKETS = 4096

Taken = TypeVar("Taken")
Given = TypeVar("Given")

# a group's number and how many groups there are; its references; its rejects
Grouped = tuple[tuple[int, int], tuple[Iterable[Reference], Iterable[Reject]]]


class Listed(NamedTuple):
    """What listing gives; `named` are the sources of all splits, and `sources` those of this one."""

    named: PCollection[Source]
    sources: PCollection[Source]
    rejects: PCollection[Reject]
    ignored: PCollection[Ignored]
    conflicts: PCollection[KeyConflict]


class Probed(NamedTuple):
    """What probing gives."""

    examples: PCollection[Example]
    rejects: PCollection[Reject]
    ignored: PCollection[Ignored]


class Deduped(NamedTuple):
    """What looking for equal files gives."""

    examples: PCollection[Example]
    rejects: PCollection[Reject]


class Sampled(NamedTuple):
    """What sampling gives."""

    references: PCollection[Reference]
    rejects: PCollection[Reject]


class Stage(beam.PTransform[Taken, Given], Generic[Taken, Given]):
    """A transform of one or several collections; Beam's own type hints know only one, and would warn."""

    def default_type_hints(self) -> IOTypeHints:
        return IOTypeHints.empty()


class ByKind(Stage[PCollection[object], DoOutputsTuple]):
    """Records to one output for each kind of them, by the name of its class."""

    def expand(self, records: PCollection[object]) -> DoOutputsTuple:
        return records | beam.FlatMap(_tagged).with_outputs()


@dataclass
class ListInputs(Stage[PCollection[Input], Listed]):
    """Inputs to what they contain, with their labels, spread over workers; equal keys become a KeyConflict.

    Tables and tars are opened here, each row group by itself, so that their rows never pass through the launcher.
    """

    roots: list[str]
    config: PlanConfig
    has_containers: bool = False

    def expand(self, inputs: PCollection[Input]) -> Listed:
        config, roots = self.config, self.roots
        options = (config.exclude, config.any_suffix, config.prefix_keys)
        listed = (
            inputs
            | "list" >> beam.FlatMap(lambda given: counts.each_timed("list", list_input(given, *options)))
            | "found" >> ByKind()
        )
        sources, ignored, rejects = (listed[kind.__name__] for kind in (Source, Ignored, Reject))
        if self.has_containers:
            held = listed[Container.__name__] | "containers" >> _ListContainers(roots, config)
            sources = (sources, held[Source.__name__]) | "sources" >> beam.Flatten()
            rejects = (rejects, held[Reject.__name__]) | "rejects" >> beam.Flatten()
            ignored = (ignored, held[Ignored.__name__]) | "not taken" >> beam.Flatten()
        if config.labels == "folder":
            sources = sources | "folders" >> beam.Map(with_folder_label)
        if config.limit is not None:
            kept = sources | "limit" >> _Limit(config.limit, config.seed)
            sources = kept[Source.__name__]
            ignored = (ignored, kept[Ignored.__name__]) | "ignored" >> beam.Flatten()
        if config.labels not in ("none", "folder"):
            labels = (
                sources.pipeline
                | "label file" >> beam.Create([config.labels])
                | "labels" >> beam.FlatMap(read_label_file)
                | "of keys" >> ByKind()
            )
            sources = (sources, labels[LabelRow.__name__]) | "and labels" >> beam.Flatten()
            rejects = (rejects, labels[Reject.__name__]) | "and bad rows" >> beam.Flatten()
        spread = (
            sources
            | "bucket" >> beam.Map(_in_bucket)
            | "spread" >> beam.GroupByKey()
            | "distinct" >> beam.FlatMap(lambda bucket: _distinct(bucket[1], roots))
            | ByKind()
        )
        ignored = (ignored, spread[Ignored.__name__]) | "counted" >> beam.Flatten()
        named, conflicts = spread[Source.__name__], spread[KeyConflict.__name__]
        if config.split_name is None:
            return Listed(named, named, rejects, ignored, conflicts)
        own = (
            (named, rejects)
            | "of all splits" >> beam.Flatten()
            | "split" >> beam.Map(_of_split, config)
            | "own" >> ByKind()
        )
        ignored = (ignored, own[Ignored.__name__]) | "of others" >> beam.Flatten()
        return Listed(named, own[Source.__name__], own[Reject.__name__], ignored, conflicts)


@dataclass
class _ListContainers(Stage[PCollection[Container], DoOutputsTuple]):
    """Tables and tars to what they hold, one piece a worker at a time."""

    roots: list[str]
    config: PlanConfig

    def expand(self, containers: PCollection[Container]) -> DoOutputsTuple:
        roots, config = self.roots, self.config
        media_root = len(roots) - 1 if config.media_root is not None else None

        def run(container: Container) -> Iterator[Source | Ignored | Reject]:
            for listed in counts.each_timed("list", list_container(container, roots, config.columns, media_root)):
                why = excluded(listed.key, config.exclude) if isinstance(listed, Source) else None
                yield Ignored(listed.key, why) if why else listed

        pieces = containers | "split" >> beam.FlatMap(split_container, roots) | "pieces" >> ByKind()
        held = pieces[Container.__name__] | "one a worker" >> beam.Reshuffle() | "open" >> beam.FlatMap(run)
        return (held, pieces[Reject.__name__]) | "all" >> beam.Flatten() | ByKind()


@dataclass
class _Limit(Stage[PCollection[Source], DoOutputsTuple]):
    """Keeps the sources with the smallest hashes: a sample that no order of listing changes."""

    limit: int
    seed: int

    def expand(self, sources: PCollection[Source]) -> DoOutputsTuple:
        seed = self.seed

        def rank(source: Source) -> tuple[str, str]:
            # text: Beam's coder for integers has 64 bits with a sign
            return xxhash.xxh3_64_hexdigest(f"limit\0{seed}\0{source.key}".encode()), source.key

        last = (
            sources
            | beam.Map(rank)
            | combiners.Top.Smallest(self.limit)
            | "last" >> beam.Map(lambda ranks: ranks[-1] if ranks else ("", ""))
        )
        return (
            sources
            | "keep"
            >> beam.Map(
                lambda source, last: source if rank(source) <= last else Ignored(source.key, BEYOND_LIMIT),
                AsSingleton(last),
            )
            | ByKind()
        )


@dataclass
class Probe(Stage[PCollection[Source], Probed]):
    """Sources to Examples or Rejects, by their headers."""

    roots: list[str]
    config: PlanConfig

    def expand(self, sources: PCollection[Source]) -> Probed:
        roots, config = self.roots, self.config

        def run(source: Source) -> list[Example | Reject | Ignored]:
            path, root = source_path(source, roots), roots[source.root]
            rule = (config.clip_rule, config.max_pixels, config.max_bytes, config.seed, config.animated)
            try:
                with counts.timed("probe"):
                    probed = read_input(root, isolated, config, probe, source, path, *rule)
                    if config.dedupe == "digest":
                        probed = read_input(root, with_digest, probed, source, path)
            except DecodeError as error:
                probed = [reject(source.key, "probe", error.reason, error)]
            counts.add(num_probed=1)
            return probed

        probed = sources | beam.FlatMap(run) | ByKind()
        return Probed(probed[Example.__name__], probed[Reject.__name__], probed[Ignored.__name__])


@dataclass
class Dedupe(Stage[PCollection[Example], Deduped]):
    """Examples of equal files to those of one file and Rejects; without --dedupe nothing is shuffled."""

    config: PlanConfig

    def expand(self, examples: PCollection[Example]) -> Deduped:
        if self.config.dedupe == "none":
            return Deduped(examples, examples.pipeline | "none" >> beam.Create([]))
        kept = (
            examples
            | "content" >> beam.Map(lambda example: (example.source.digest, example))
            | "meet" >> beam.GroupByKey()
            | "least key" >> beam.FlatMap(lambda group: keep_least(group[1]))
            | ByKind()
        )
        return Deduped(kept[Example.__name__], kept[Reject.__name__])


@dataclass
class Sample(Stage[PCollection[Example], Sampled]):
    """Examples to one Reference a view, with size and grid, or Rejects."""

    config: PlanConfig

    def expand(self, examples: PCollection[Example]) -> Sampled:
        policy = self.config.policy

        def run(example: Example) -> Iterator[Reference | Reject]:
            for row in sample_views(example, policy):
                if isinstance(row, Reference):
                    counts.add(num_sampled=1)
                yield row

        sampled = examples | beam.FlatMap(run) | ByKind()
        return Sampled(sampled[Reference.__name__], sampled[Reject.__name__])


@dataclass
class Group(Stage[tuple[PCollection[Reference], PCollection[Reject]], PCollection[Grouped]]):
    """References and Rejects to groups of about --group-size examples; all of one source meet."""

    config: PlanConfig

    def expand(self, members: tuple[PCollection[Reference], PCollection[Reject]]) -> PCollection[Grouped]:
        references, rejects = members
        seed, size = self.config.seed, self.config.group_size
        groups = (
            references
            | "of one view" >> beam.Filter(lambda reference: reference.view == 0)
            | "count" >> combiners.Count.Globally()
            | "groups" >> beam.Map(num_groups, size)
        )

        def group(key: str, groups: int) -> tuple[int, int]:
            return group_of(key, seed, groups), groups

        return (
            references
            | "of references"
            >> beam.Map(lambda row, groups: (group(row.example.source.key, groups), row), AsSingleton(groups)),
            rejects | "of rejects" >> beam.Map(lambda row, groups: (group(row.key, groups), row), AsSingleton(groups)),
        ) | "meet" >> beam.CoGroupByKey()


@dataclass
class ClassNames(Stage[Listed, PCollection[tuple[str, ...]]]):
    """Listed inputs to the names of their classes: those given, or all there are, sorted; saved beside the plan."""

    folder: str
    given: tuple[str, ...] | None
    of_folders: bool

    def expand(self, listed: Listed) -> PCollection[tuple[str, ...]]:
        path = files.join(self.folder, CLASSES_NAME)

        def save(names: Iterable[str]) -> tuple[str, ...]:
            files.write(path, canonical_json(list(names)))
            return tuple(names)

        if self.given is not None:
            return listed.sources.pipeline | "given" >> beam.Create([self.given]) | "save" >> beam.Map(save)
        of_sources = listed.named | "names" >> beam.FlatMap(lambda source: source.facts.labels)
        # a folder of nothing but what cannot be listed is a class, too
        of_rejects = listed.rejects | "folders" >> beam.FlatMap(self._folders)
        return (
            (of_sources, of_rejects)
            | beam.Flatten()
            | beam.Distinct()
            | combiners.ToList()
            | "sort" >> beam.Map(in_order)
            | "save" >> beam.Map(save)
        )

    def _folders(self, row: Reject) -> list[str]:
        label = label_of(row.key) if self.of_folders else None
        return [] if label is None else [label]


@dataclass
class SaveListing(Stage[tuple[PCollection[Ignored], PCollection[KeyConflict]], PCollection[None]]):
    """What was ignored, counted by reason, and the first key conflict, saved beside the plan."""

    folder: str

    def expand(self, counted: tuple[PCollection[Ignored], PCollection[KeyConflict]]) -> PCollection[None]:
        ignored, conflicts = counted
        path = files.join(self.folder, LISTING_NAME)

        def save(ignored: list[tuple[str, int]], conflicts: Iterable[list[KeyConflict]]) -> None:
            conflict = next((first[0] for first in conflicts if first), None)
            files.write(path, Listing(dict(sorted(ignored)), conflict).to_json())

        first = conflicts | "first" >> combiners.Top.Smallest(1)
        return (
            ignored
            | "why" >> beam.Map(lambda row: row.why)
            | "count" >> combiners.Count.PerElement()
            | "all" >> combiners.ToList()
            | "save" >> beam.Map(save, AsIter(first))
        )


@dataclass
class SavePlan(Stage[PCollection[Grouped], PCollection[None]]):
    """Groups to their packed plans, written below the output folder; their rests to plans of their own."""

    folder: str
    config: PlanConfig
    classes: PCollection[tuple[str, ...]] | None

    def expand(self, groups: PCollection[Grouped]) -> PCollection[None]:
        folder, config = self.folder, self.config

        def run(grouped: Grouped, classes: tuple[str, ...] | None) -> Iterator[tuple[tuple[int, int], Reference]]:
            (number, num_groups), (references, rejects) = grouped
            counts.add(num_groups=1)
            with counts.timed("pack"):
                plan = plan_group(number, references, rejects, config, classes, num_groups)
                write_group_plan(plan, folder)
            counts.add(num_planned=_num_planned(plan))
            for reference in plan.rest:
                yield (rest_group(number, num_groups, config), num_groups), reference

        def run_rests(rests: tuple[tuple[int, int], Iterable[Reference]], classes: tuple[str, ...] | None) -> None:
            (number, num_groups), references = rests
            with counts.timed("pack"):
                plan = plan_group(number, references, [], config, classes, num_groups, of_rests=True)
                write_group_plan(plan, folder)
            counts.add(num_planned=_num_planned(plan))

        classes = None if self.classes is None else AsSingleton(self.classes)
        return (
            groups
            | "group" >> beam.FlatMap(run, classes)
            | "rests meet" >> beam.GroupByKey()
            | "rests" >> beam.Map(run_rests, classes)
        )


def _in_bucket(row: Source | LabelRow) -> tuple[int, Source | LabelRow]:
    if isinstance(row, Source):
        counts.add(num_inputs=1)
    return xxhash.xxh3_64_intdigest(row.key.encode()) % _NUM_BUCKETS, row


def _num_planned(plan: GroupPlan) -> int:
    return sum(len(rows) for rows in plan.shards)


def _distinct(listed: Iterable[Source | LabelRow], roots: list[str]) -> Iterator[Source | KeyConflict | Ignored]:
    """Yields each key's source once, with the labels of its key, and a KeyConflict for every other source of that key."""
    first: dict[str, Source] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for row in listed:
        if isinstance(row, LabelRow):
            labels[row.key] = row.labels
        elif row.key in first:
            one, two = sorted((source_place(first[row.key], roots), source_place(row, roots)))
            yield KeyConflict(row.key, (one, two))
        else:
            first[row.key] = row
    for key, source in first.items():
        named = labels.pop(key, None)
        yield source if named is None else source._replace(facts=source.facts._replace(labels=named))
    yield from (Ignored(key, LABEL_OF_NONE) for key in labels)


def _of_split(row: Source | Reject, config: PlanConfig) -> Source | Reject | Ignored:
    """Returns what belongs to the split of this build, and of other splits that it does not."""
    value = (row.facts.split if isinstance(row, Source) else "") or row.key
    own = split_of(value, parse_splits(config.split or "")) == config.split_name
    return row if own else Ignored(row.key, OF_OTHER_SPLIT)


def _tagged(record: object) -> Iterator[object]:
    yield TaggedOutput(type(record).__name__, record)
