"""The transforms of listing: what inputs contain, each key once, with its labels, spread over workers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import xxhash
from apache_beam.pvalue import AsSingleton, DoOutputsTuple, PCollection
from apache_beam.transforms import combiners

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.execution import counts
from patchpack.pipeline.execution.plan_transforms import ByKind, Listed, Stage
from patchpack.pipeline.inputs.split import parse_splits, split_of
from patchpack.pipeline.stages.labels import read_label_file, with_folder_label
from patchpack.pipeline.stages.list import (
    BEYOND_LIMIT,
    LABEL_OF_NONE,
    OF_OTHER_SPLIT,
    Input,
    excluded,
    list_container,
    list_input,
    source_place,
    split_container,
)
from patchpack.pipeline.stages.records import Container, Ignored, KeyConflict, LabelRow, Reject, Source

# enough to spread probing over any number of workers
_NUM_BUCKETS = 4096


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


def _in_bucket(row: Source | LabelRow) -> tuple[int, Source | LabelRow]:
    if isinstance(row, Source):
        counts.add(num_inputs=1)
    return xxhash.xxh3_64_intdigest(row.key.encode()) % _NUM_BUCKETS, row


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
