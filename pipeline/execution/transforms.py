"""The stages as Beam transforms: thin, since every stage is a function that works without Beam.

Elements are the tuples of `records`; each stage turns its own kind into the next and lets the others pass,
so that every input reaches the plan as something.
"""

import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import xxhash
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import AsSingleton, PCollection
from apache_beam.transforms import combiners

from patchpack.pipeline.config import BuildConfig, PlanConfig
from patchpack.pipeline.execution.sandbox import isolated
from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.names import CLASSES_NAME, RESULTS_NAME
from patchpack.pipeline.stages.dedupe import content_of, keep_least, with_digest
from patchpack.pipeline.stages.group import group_of, num_groups
from patchpack.pipeline.stages.labels import label_of
from patchpack.pipeline.stages.list import BEYOND_LIMIT, Input, list_input, source_path
from patchpack.pipeline.stages.plan import ShardPlan, plan_group, read_shard_rows, write_group_plan
from patchpack.pipeline.stages.probe import probe
from patchpack.pipeline.stages.records import Example, Ignored, KeyConflict, Outcome, Reference, Source, reject
from patchpack.pipeline.stages.sample import Resolution, sample
from patchpack.pipeline.stages.write import ShardResult, write_shard
from patchpack.pipeline.storage import files
from patchpack.pipeline.storage.reading import StorageGone, read_input
from patchpack.pipeline.versions import library_versions
from patchpack.schemas.manifest import canonical_json

# enough to spread probing over any number of workers
_NUM_BUCKETS = 4096


@dataclass
class ListInputs(beam.PTransform[Any, Any]):
    """Inputs to what they contain, spread over workers; equal keys become a KeyConflict."""

    roots: list[str]
    config: PlanConfig

    def expand(self, inputs: PCollection[Input]) -> PCollection[Outcome]:
        listed = inputs | "list" >> beam.FlatMap(
            list_input, self.config.exclude, self.config.any_suffix
        ).with_output_types(Any)
        if self.config.limit is not None:
            listed = listed | "limit" >> _Limit(self.config.limit, self.config.seed)
        return (
            listed
            | "bucket"
            >> beam.Map(lambda listed: (xxhash.xxh3_64_intdigest(listed.key.encode()) % _NUM_BUCKETS, listed))
            | "spread" >> beam.GroupByKey()
            | "key_conflicts"
            >> beam.FlatMap(lambda bucket, roots: _distinct(bucket[1], roots), self.roots).with_output_types(Any)
        )


@dataclass
class _Limit(beam.PTransform[Any, Any]):
    """Keeps the sources with the smallest hashes: a sample that no order of listing changes."""

    limit: int
    seed: int

    def expand(self, listed: PCollection[Outcome]) -> PCollection[Outcome]:
        seed = self.seed

        def rank(source: Source) -> tuple[str, str]:
            # text: Beam's coder for integers has 64 bits with a sign
            return xxhash.xxh3_64_hexdigest(f"limit\0{seed}\0{source.key}".encode()), source.key

        last = (
            listed
            | beam.Filter(lambda outcome: isinstance(outcome, Source))
            | beam.Map(rank)
            | combiners.Top.Smallest(self.limit)
            | beam.Map(lambda ranks: ranks[-1] if ranks else ("", ""))
        )
        return listed | "keep" >> beam.Map(
            lambda outcome, last: (
                outcome
                if not isinstance(outcome, Source) or rank(outcome) <= last
                else Ignored(outcome.key, BEYOND_LIMIT)
            ),
            AsSingleton(last),
        ).with_output_types(Any)


@dataclass
class Probe(beam.PTransform[Any, Any]):
    """Sources to Examples or Rejects, by their headers."""

    roots: list[str]
    config: PlanConfig

    def expand(self, listed: PCollection[Outcome]) -> PCollection[Outcome]:
        roots, config = self.roots, self.config

        def run(outcome: Outcome) -> list[Outcome]:
            if not isinstance(outcome, Source):
                return [outcome]
            path = source_path(outcome, roots)
            rule = (config.clip_rule, config.max_pixels, config.max_bytes, config.seed, config.animated)
            root = roots[outcome.root]
            try:
                probed: list[Outcome] = read_input(root, isolated, config, probe, outcome, path, *rule)
                if config.dedupe == "digest":
                    probed = read_input(root, with_digest, probed, path)
                return probed
            except DecodeError as error:
                return [reject(outcome.key, "probe", error.reason, error)]

        return listed | beam.FlatMap(run).with_output_types(Any)


@dataclass
class Dedupe(beam.PTransform[Any, Any]):
    """Examples of equal files to those of one file and Rejects; adds nothing to the graph unless it is asked for."""

    config: PlanConfig

    def expand(self, probed: PCollection[Outcome]) -> PCollection[Outcome]:
        if self.config.dedupe == "none":
            return probed
        return (
            probed
            | "content" >> beam.Map(lambda outcome: (content_of(outcome), outcome))
            | "meet" >> beam.GroupByKey()
            | "least key" >> beam.FlatMap(lambda group: keep_least(group[1])).with_output_types(Any)
        )


@dataclass
class Sample(beam.PTransform[Any, Any]):
    """Examples to one Reference a view, with size and grid, or Rejects."""

    config: PlanConfig

    def expand(self, probed: PCollection[Outcome]) -> PCollection[Outcome]:
        config, rule = self.config, Resolution.parse(self.config.resolution)

        def run(outcome: Outcome) -> list[Outcome]:
            if not isinstance(outcome, Example):
                return [outcome]
            options = (rule, config.tubelet, config.token_cap, config.oversize, config.seed)
            return [sample(outcome, view, *options) for view in range(config.views)]

        return probed | beam.FlatMap(run).with_output_types(Any)


@dataclass
class Group(beam.PTransform[Any, Any]):
    """Outcomes to groups of about --group-size examples, by (number, how many there are); clips and views of one source meet."""

    config: PlanConfig

    def expand(self, sampled: PCollection[Outcome]) -> PCollection[tuple[tuple[int, int], Iterable[Outcome]]]:
        seed, size = self.config.seed, self.config.group_size
        groups = (
            sampled
            | "of one view" >> beam.Filter(lambda outcome: isinstance(outcome, Reference) and outcome.view == 0)
            | "count" >> combiners.Count.Globally()
            | "groups" >> beam.Map(num_groups, size)
        )
        return (
            sampled
            | "group of"
            >> beam.Map(
                lambda outcome, groups: ((group_of(_key_of(outcome), seed, groups), groups), outcome),
                AsSingleton(groups),
            )
            | "meet" >> beam.GroupByKey()
        )


@dataclass
class ClassNames(beam.PTransform[Any, Any]):
    """Listed inputs to the names of their classes: those given, or of their folders, sorted; kept beside the plan."""

    folder: str
    given: tuple[str, ...] | None

    def expand(self, listed: PCollection[Outcome]) -> PCollection[tuple[str, ...]]:
        path = files.join(self.folder, CLASSES_NAME)

        def keep(names: Iterable[str]) -> tuple[str, ...]:
            files.write(path, canonical_json(list(names)))
            return tuple(names)

        if self.given is not None:
            return listed.pipeline | "given" >> beam.Create([self.given]) | "keep" >> beam.Map(keep)
        return (
            listed
            | beam.Filter(lambda outcome: not isinstance(outcome, Ignored))
            | beam.Map(lambda outcome: label_of(outcome.key))
            | beam.Distinct()
            | combiners.ToList()
            | "sort" >> beam.Map(lambda names: tuple(sorted(name for name in names if name is not None)))
            | "keep" >> beam.Map(keep)
        )


@dataclass
class KeepPlan(beam.PTransform[Any, Any]):
    """Groups to their packed plans, written below the output folder."""

    folder: str
    config: PlanConfig
    classes: Any

    def expand(self, groups: PCollection[tuple[tuple[int, int], Iterable[Outcome]]]) -> PCollection[None]:
        folder, config = self.folder, self.config

        def run(group: tuple[tuple[int, int], Iterable[Outcome]], classes: tuple[str, ...] | None) -> None:
            (number, num_groups), members = group
            write_group_plan(plan_group(number, members, config, classes, num_groups), folder)

        return groups | beam.Map(run, None if self.classes is None else AsSingleton(self.classes))


@dataclass
class WriteShards(beam.PTransform[Any, Any]):
    """Planned shards to written ones. A shard that storage fails is reported; the others are finished."""

    folder: str
    roots: list[str]
    config: BuildConfig
    versions: dict[str, str]

    def expand(self, shards: PCollection[ShardPlan]) -> PCollection[ShardResult]:
        return shards | beam.ParDo(_WriteFn(self.folder, self.roots, self.config, self.versions))


class _WriteFn(beam.DoFn):
    def __init__(self, folder: str, roots: list[str], config: BuildConfig, versions: dict[str, str]) -> None:
        self._folder, self._roots, self._config, self._versions = folder, roots, config, versions

    def setup(self) -> None:
        here = library_versions(self._config.media_backend)
        if here != self._versions:
            other = ", ".join(
                f"{name} {here[name]} (launcher: {self._versions[name]})"
                for name in here
                if here[name] != self._versions[name]
            )
            raise RuntimeError(
                f"worker: {other}; workers and launcher run the same versions; install constraints.txt on both"
            )

    def process(self, shard: ShardPlan) -> Iterator[ShardResult]:
        try:
            result = self._written(shard)
        except NothingFits:
            raise
        except (OSError, MemoryError) as error:
            # the shard failed, the others go on, --resume tries again
            result = _failed(shard, files.described(error) if isinstance(error, OSError) else "out of memory")
        except Exception as error:  # noqa: BLE001 (a bug costs one shard, and is reported)
            result = _failed(shard, f"{type(error).__name__}: {error}", traceback.format_exc())
        if result.failure:
            yield result
            return
        for name in ("num_sequences", "num_segments", "num_tokens", "bytes"):
            Metrics.counter("patchpack", name).inc(getattr(result, name))
        for row in result.rejects:
            Metrics.counter("patchpack", f"rejects_{row.reason}").inc()
        yield result

    def _written(self, shard: ShardPlan) -> ShardResult:
        """Returns what writing a shard gave; once more where an error of storage may pass.

        Raises:
            NothingFits: so that no further shard need be decoded.
            OSError: storage failed.
        """
        for is_last in (False, True):
            try:
                rows = read_shard_rows(self._folder, shard)
                where = (self._roots, self._folder, self._config, self._versions)
                return write_shard(shard, rows, *where, retry_rejects=self._config.retry_rejects)
            except OSError as error:
                if files.is_full(error):
                    raise NothingFits(
                        f"{files.described(error)}; nothing more can be written, so the build stops here; free space and go on with --resume"
                    ) from error
                if is_last or isinstance(error, StorageGone):
                    raise
        raise AssertionError("the last try returns or raises")


class NothingFits(RuntimeError):
    """The disk is full: this ends the pipeline, and not the shard alone."""


def _failed(shard: ShardPlan, failure: str, traceback: str = "") -> ShardResult:
    return ShardResult(
        path=shard.name,
        digest="",
        fingerprint="",
        bytes=0,
        group=shard.group,
        view=shard.view,
        layout=0,
        num_sequences=0,
        num_segments=0,
        num_tokens=0,
        rejects=[],
        failure=failure,
        traceback=traceback,
    )


@dataclass
class KeepResults(beam.PTransform[Any, Any]):
    """All results to one file, from which the launcher finishes the dataset."""

    folder: str

    def expand(self, results: PCollection[ShardResult]) -> PCollection[None]:
        path = files.join(self.folder, RESULTS_NAME)

        def keep(results: list[ShardResult]) -> None:
            files.write(path, canonical_json([list(result) for result in sorted(results)]))

        return results | combiners.ToList() | beam.Map(keep)


def _distinct(listed: Iterable[Outcome], roots: list[str]) -> Iterator[Outcome]:
    """Yields each key's source once, and a KeyConflict for every other source of that key."""
    first: dict[str, Source] = {}
    for outcome in listed:
        if isinstance(outcome, Source) and outcome.key in first:
            yield KeyConflict(outcome.key, (source_path(first[outcome.key], roots), source_path(outcome, roots)))
            continue
        if isinstance(outcome, Source):
            first[outcome.key] = outcome
        yield outcome


def _key_of(outcome: Outcome) -> str:
    if isinstance(outcome, Reference):
        return outcome.example.source.key
    return outcome.source.key if isinstance(outcome, Example) else outcome.key
