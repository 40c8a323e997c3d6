"""The first graph's transforms, a stage each: thin, since every stage is a function that works without Beam.

A stage's records leave it sorted by what they are: what the next stage takes, rejects, and what is only counted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import apache_beam as beam
from apache_beam.pvalue import AsIter, AsSingleton, DoOutputsTuple, PCollection, TaggedOutput
from apache_beam.transforms import combiners
from apache_beam.typehints.decorators import IOTypeHints

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.execution import counts
from patchpack.pipeline.execution.sandbox import isolated
from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.names import CLASSES_NAME, LISTING_NAME
from patchpack.pipeline.stages.dedupe import keep_least, with_digest
from patchpack.pipeline.stages.group import group_of, num_groups
from patchpack.pipeline.stages.labels import in_order, label_of
from patchpack.pipeline.stages.list import (
    source_path,
)
from patchpack.pipeline.stages.plan import plan_group, rest_group
from patchpack.pipeline.stages.probe import probe
from patchpack.pipeline.stages.records import (
    Example,
    Ignored,
    KeyConflict,
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


def _num_planned(plan: GroupPlan) -> int:
    return sum(len(rows) for rows in plan.shards)


def _tagged(record: object) -> Iterator[object]:
    yield TaggedOutput(type(record).__name__, record)
