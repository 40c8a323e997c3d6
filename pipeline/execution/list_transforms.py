"""The transforms of listing: what inputs contain, and their labels, in tables spread over buckets by key."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice
from typing import NamedTuple, TypeVar

import apache_beam as beam
import numpy as np
import pyarrow as pa
import xxhash
from apache_beam.pvalue import AsSingleton, PCollection, TaggedOutput

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.execution import counts
from patchpack.pipeline.execution.shuffle import Piece, Shuffle, split
from patchpack.pipeline.execution.transform import Tagged, Transform
from patchpack.pipeline.stages.buckets import bucket_of, num_buckets
from patchpack.pipeline.stages.generations import Grown, known_names, read_known
from patchpack.pipeline.stages.labels import read_label_file, with_folder_label
from patchpack.pipeline.stages.list import (
    BEYOND_LIMIT,
    Branch,
    Input,
    excluded,
    list_branch,
    list_container,
    list_top,
    split_container,
)
from patchpack.pipeline.stages.records import Container, Ignored, LabelRow, Reject, Source
from patchpack.pipeline.stages.summary import Listing
from patchpack.pipeline.stages.tables import LABEL_SCHEMA, SOURCE_SCHEMA, source_table

Item = TypeVar("Item")

# rows of a table that listing hands on, 10 MB
BATCH = 65_536

# the outputs of what is listed but sources and what was ignored
_TAGS = {Reject: "rejects", Container: "containers", Branch: "branches"}

# which schema a piece has, and the piece
Part = tuple[str, Piece]


class Listed(NamedTuple):
    """What listing gives: the parts of each bucket, rejects, how much was ignored, and how many buckets there are."""

    parts: PCollection[tuple[int, Part]]
    rejects: PCollection[Reject]
    ignored: PCollection[Listing]
    buckets: PCollection[int]


@dataclass
class ListInputs(Transform[PCollection[Input], Listed]):
    """Inputs to what they contain, with their labels, spread over buckets.

    Folders are listed apart, some together; tables and tars are opened here, each row group by itself. Nothing that is found passes
    through the launcher.
    """

    roots: list[str]
    config: PlanConfig
    shuffle: Shuffle
    grown: Grown

    def expand(self, inputs: PCollection[Input]) -> Listed:
        config, shuffle, roots = self.config, self.shuffle, self.roots
        options = (config.exclude, config.any_suffix, config.prefix_keys)

        def list_one(given: Input) -> Iterator[Tagged]:
            return _sorted_out(list_top(given, *options), config, shuffle)

        def list_below(branch: Branch, may_split: bool) -> Iterator[Tagged]:
            return _sorted_out(list_branch(branch, *options, may_split=may_split), config, shuffle)

        def list_held(container: Container) -> Iterator[Tagged]:
            return _sorted_out(_held(container, roots, config), config, shuffle)

        found = inputs | "files" >> beam.FlatMap(list_one).with_outputs()
        below = (
            found.branches
            | "spread folders" >> beam.Reshuffle()
            | "folders" >> beam.FlatMap(list_below, may_split=True).with_outputs()
        )
        spans = (
            below.branches
            | "spread spans" >> beam.Reshuffle()
            | "spans" >> beam.FlatMap(list_below, may_split=False).with_outputs()
        )
        containers = (found.containers, below.containers, spans.containers) | "containers" >> beam.Flatten()
        pieces = containers | "pieces" >> beam.FlatMap(_pieces_of, roots).with_outputs("rejects", main="pieces")
        held = pieces.pieces | "one a worker" >> beam.Reshuffle() | "open" >> beam.FlatMap(list_held).with_outputs()
        sources = (found.sources, below.sources, spans.sources, held.sources) | "sources" >> beam.Flatten()
        rejects = (
            found.rejects,
            below.rejects,
            spans.rejects,
            pieces.rejects,
            held.rejects,
        ) | "rejects" >> beam.Flatten()
        ignored = (found.ignored, below.ignored, spans.ignored, held.ignored) | "ignored" >> beam.Flatten()
        if config.limit is not None:
            kept = sources | "limit" >> _Limit(config.limit, config.seed, shuffle)
            sources, ignored = kept.sources, (ignored, kept.ignored) | "and beyond" >> beam.Flatten()
        buckets = (
            sources
            | "sizes" >> beam.Map(lambda counted: counted[0])
            | "in all" >> beam.CombineGlobally(sum)
            | "buckets" >> beam.Map(num_buckets)
        )

        def spread(counted: tuple[int, Piece], buckets: int) -> Iterator[tuple[int, Part]]:
            table = shuffle.get([counted[1]], SOURCE_SCHEMA)
            return _spread("source", table, buckets, shuffle)

        parts = sources | "spread" >> beam.FlatMap(spread, AsSingleton(buckets))
        if self.grown.generation.number:
            parts = (parts, buckets | "known" >> KnownInputs(self.grown, shuffle)) | "and known" >> beam.Flatten()
        if config.labels not in ("none", "folder"):
            named = (
                sources.pipeline
                | "label file" >> beam.Create([config.labels])
                | "labels" >> beam.FlatMap(_labels, AsSingleton(buckets), shuffle).with_outputs("rejects", main="parts")
            )
            parts = (parts, named.parts) | "and labels" >> beam.Flatten()
            rejects = (rejects, named.rejects) | "and bad rows" >> beam.Flatten()
        return Listed(parts, rejects, ignored, buckets)


@dataclass
class KnownInputs(Transform[PCollection[int], PCollection[tuple[int, Part]]]):
    """The inputs of the generations before, spread over the buckets that new ones are spread over."""

    grown: Grown
    shuffle: Shuffle

    def expand(self, buckets: PCollection[int]) -> PCollection[tuple[int, Part]]:
        folder, shuffle = self.grown.folder, self.shuffle

        def spread(name: str, buckets: int) -> Iterator[tuple[int, Part]]:
            return _spread("known", read_known(folder, name), buckets, shuffle)

        def names(generation: int) -> Iterator[str]:
            return known_names(folder, generation)

        return (
            buckets.pipeline
            | "generations" >> beam.Create(list(self.grown.generation.before))
            | "names" >> beam.FlatMap(names)
            | "one a worker" >> beam.Reshuffle()
            | "spread" >> beam.FlatMap(spread, AsSingleton(buckets))
        )


@dataclass
class _Limit(Transform[PCollection[tuple[int, Piece]], beam.pvalue.DoOutputsTuple]):
    """Keeps the sources with the smallest hashes: a sample that no order of listing changes. Holds their hashes."""

    limit: int
    seed: int
    shuffle: Shuffle

    def expand(self, sources: PCollection[tuple[int, Piece]]) -> beam.pvalue.DoOutputsTuple:
        shuffle, limit = self.shuffle, self.limit

        def ranks(table: pa.Table) -> list[tuple[bytes, str]]:
            start = f"limit\0{self.seed}\0"
            keys = table["key"].to_pylist()
            return [(xxhash.xxh3_64_digest((start + key).encode()), key) for key in keys]

        def least(counted: tuple[int, Piece]) -> list[tuple[bytes, str]]:
            return nsmallest(limit, ranks(shuffle.get([counted[1]], SOURCE_SCHEMA)))

        def merged(lists: Iterable[list[tuple[bytes, str]]]) -> list[tuple[bytes, str]]:
            kept: list[tuple[bytes, str]] = []
            for ranked in lists:
                kept = nsmallest(limit, [*kept, *ranked])
            return kept

        last = (
            sources
            | "ranks" >> beam.Map(least)
            | "least" >> beam.CombineGlobally(merged)
            | "last" >> beam.Map(lambda ranked: ranked[-1] if ranked else (b"", ""))
        )

        def keep(counted: tuple[int, Piece], last: tuple[bytes, str]) -> Iterator[Tagged]:
            table = shuffle.get([counted[1]], SOURCE_SCHEMA)
            kept = table.filter(np.array([rank <= last for rank in ranks(table)], dtype=bool))
            yield TaggedOutput("ignored", Listing({BEYOND_LIMIT: len(table) - len(kept)}))
            yield from _as_pieces(kept, shuffle)

        return sources | "keep" >> beam.FlatMap(keep, AsSingleton(last)).with_outputs()


def _sorted_out(
    listed: Iterable[Source | Container | Ignored | Reject | Branch], config: PlanConfig, shuffle: Shuffle
) -> Iterator[Tagged]:
    """Yields what was listed: sources as tables, containers, branches, rejects, and how much was ignored."""
    for batch in counts.each_timed("list", _batched(listed, BATCH)):
        sources = [one for one in batch if isinstance(one, Source)]
        counts.add(num_inputs=len(sources))
        if config.labels == "folder":
            sources = [with_folder_label(source) for source in sources]
        yield from _as_pieces(source_table(sources), shuffle)
        ignored: Counter[str] = Counter()
        for one in batch:
            if isinstance(one, Ignored):
                ignored[one.why] += 1
            elif not isinstance(one, Source):
                yield TaggedOutput(_TAGS[type(one)], one)
        if ignored:
            yield TaggedOutput("ignored", Listing(dict(ignored)))


def _as_pieces(table: pa.Table, shuffle: Shuffle) -> Iterator[Tagged]:
    for count, piece in shuffle.put((len(batch), batch) for batch in table.combine_chunks().to_batches()):
        yield TaggedOutput("sources", (count, piece))


def _held(container: Container, roots: list[str], config: PlanConfig) -> Iterator[Source | Ignored | Reject]:
    """Yields what a table or tar holds."""
    media_root = len(roots) - 1 if config.media_root is not None else None
    held = list_container(container, roots, config.columns, media_root)
    if not config.exclude:
        yield from held
        return
    for listed in held:
        why = excluded(listed.key, config.exclude) if isinstance(listed, Source) else None
        yield Ignored(listed.key, why) if why else listed


def _pieces_of(container: Container, roots: list[str]) -> Iterator[Tagged]:
    for piece in split_container(container, roots):
        yield TaggedOutput("rejects", piece) if isinstance(piece, Reject) else piece


def _labels(path: str, buckets: int, shuffle: Shuffle) -> Iterator[Tagged]:
    for batch in _batched(read_label_file(path), BATCH):
        rows = [row for row in batch if isinstance(row, LabelRow)]
        yield from (TaggedOutput("rejects", row) for row in batch if isinstance(row, Reject))
        columns = list(zip(*rows, strict=True)) or [()] * len(LABEL_SCHEMA)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, LABEL_SCHEMA, strict=True)]
        yield from _spread("label", pa.table(arrays, schema=LABEL_SCHEMA), buckets, shuffle)


def _spread(kind: str, table: pa.Table, buckets: int, shuffle: Shuffle) -> Iterator[tuple[int, Part]]:
    numbers = np.array([bucket_of(key, buckets) for key in table["key"].to_pylist()], dtype=np.int64)
    for bucket, piece in shuffle.put(split(table, numbers)):
        yield bucket, (kind, piece)


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
