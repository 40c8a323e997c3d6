"""The second graph's transforms: planned shards to written ones, and these to a finished dataset."""

import contextlib
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import AsSingleton, PCollection, TaggedOutput

from patchpack.pipeline.config import BuildConfig
from patchpack.pipeline.execution import counts, outcome
from patchpack.pipeline.execution.checks import Failure, finish_dataset
from patchpack.pipeline.execution.transform import Tagged, Transform
from patchpack.pipeline.inputs.opened import open_source
from patchpack.pipeline.media import SNIFF_BYTES, DecodeError
from patchpack.pipeline.media.sniff import is_heif
from patchpack.pipeline.report.counted import Scan
from patchpack.pipeline.stages.list import source_path
from patchpack.pipeline.stages.planned import PlannedExample
from patchpack.pipeline.stages.results import read_result, save_group, save_result
from patchpack.pipeline.stages.saved import read_group, read_shard_rows
from patchpack.pipeline.stages.summary import GroupId, ShardPlan
from patchpack.pipeline.stages.write import FilledSequence, write_shard
from patchpack.pipeline.storage import files
from patchpack.pipeline.storage.reading import StorageGone
from patchpack.pipeline.versions import HEIC_READER, other_versions

# a group, and what became of one of its shards: a failure, or None where it is there
Done = tuple[GroupId, Failure | None]
# how many failed, and the first by name
Failed = tuple[int, Failure | None]


@dataclass
class PlannedShards(Transform[PCollection[GroupId], PCollection[ShardPlan]]):
    """Groups to their planned shards, spread over workers: their list is read here, and is in no job request."""

    folder: str
    num_views: int

    def expand(self, groups: PCollection[GroupId]) -> PCollection[ShardPlan]:
        """Returns them."""
        folder, views = self.folder, self.num_views

        def planned(group: GroupId) -> list[ShardPlan]:
            return [shard for summary in read_group(folder, group, views) for shard in summary.shards]

        return groups | "of group" >> beam.FlatMap(planned) | "one a worker" >> beam.Reshuffle()


@dataclass
class WriteShards(Transform[PCollection[ShardPlan], PCollection[Done]]):
    """Planned shards to written ones. A shard that storage fails is reported; the others are finished."""

    folder: str
    roots: list[str]
    config: BuildConfig
    versions: dict[str, str]

    def expand(self, shards: PCollection[ShardPlan]) -> PCollection[Done]:
        """Returns what became of each."""
        return shards | beam.ParDo(_WriteFn(self.folder, self.roots, self.config, self.versions))


class _WriteFn(beam.DoFn):
    def __init__(self, folder: str, roots: list[str], config: BuildConfig, versions: dict[str, str]) -> None:
        self._folder, self._roots, self._config, self._versions = folder, roots, config, versions
        # what to say of the reader of HEIC, where it is another one here than the launcher's
        self._heic_reader = ""

    def setup(self) -> None:
        others = other_versions(self._versions, self._config.media_backend)
        self._heic_reader = others.pop(HEIC_READER, "")
        if others:
            raise _version_error(", ".join(others.values()))

    def process(self, shard: ShardPlan) -> Iterator[Done]:
        """Yields what became of a shard."""
        failure = None
        try:
            self._written(shard)
        except (NothingFits, VersionError):
            raise
        except (OSError, MemoryError) as error:
            # the shard failed, the others go on, --resume tries again
            failure = Failure(shard.name, files.described(error) if isinstance(error, OSError) else "out of memory")
        except Exception as error:  # noqa: BLE001 (a bug costs one shard, and is reported)
            failure = Failure(shard.name, f"{type(error).__name__}: {error}", traceback.format_exc())
        yield (shard.generation, shard.group), failure

    def _written(self, shard: ShardPlan) -> None:
        """Writes a shard; once more where an error of storage may pass.

        Raises:
            NothingFits: so that no further shard need be decoded.
            VersionError: an image would be read by another library than the launcher's.
            OSError: storage failed.
        """
        for is_last in (False, True):
            try:
                self._tried(shard)
                return
            except OSError as error:
                if files.is_full(error):
                    raise NothingFits(
                        f"{files.described(error)}; nothing more can be written, so the build stops here; free space and go on with --resume"
                    ) from error
                if is_last or isinstance(error, StorageGone):
                    raise

    def _tried(self, shard: ShardPlan) -> None:
        """Writes a shard, unless it is there, and notes what that gave; counts sequence by sequence, and where the time went."""
        layout = self._config.layouts[shard.layout]
        began, elsewhere_s, is_kept = time.perf_counter(), 0.0, True

        def filled(sequence: FilledSequence) -> None:
            nonlocal elsewhere_s, is_kept
            decode_s = sum(sequence.decodes_s)
            elsewhere_s, is_kept = elsewhere_s + decode_s + sequence.patchify_s, False
            counts.add(
                num_sequences=1,
                num_examples=sequence.num_examples,
                num_tokens=sequence.num_tokens,
                num_token_bytes=sequence.num_tokens * layout.token_bytes // layout.sequence_length,
                decode_us=round(decode_s * 1e6),
                patchify_us=round(sequence.patchify_s * 1e6),
            )
            counts.spread("sequence_tokens", sequence.num_tokens)
            for seconds in sequence.decodes_s:
                counts.spread("file_decode_us", round(seconds * 1e6))
            for row in sequence.rejects:
                counts.add_reject(row)

        try:
            rows = read_shard_rows(self._folder, shard)
            if self._heic_reader and _has_heic(rows, self._roots):
                raise _version_error(self._heic_reader)
            known = read_result(self._folder, shard)
            where = (self._roots, self._folder, self._config, self._versions)
            result = write_shard(
                shard, rows, *where, retry_rejects=self._config.retry_rejects, filled=filled, known=known
            )
            if result != known:
                save_result(self._folder, shard, result)
            if is_kept:
                rejects = len(result.rejects)
                counts.add(num_kept_shards=1, num_kept_rejects=rejects, num_kept_examples=result.num_segments)
            else:
                counts.add(num_shards=1, num_bytes=result.bytes)
                counts.spread("shard_bytes", result.bytes)
                counts.spread("shard_us", round((time.perf_counter() - began) * 1e6))
        finally:
            # the plan's rows, the file and its flush, or the check of a shard that is there
            counts.add(write_us=round((time.perf_counter() - began - elsewhere_s) * 1e6))


class NothingFits(RuntimeError):
    """The disk is full: this ends the pipeline, and not the shard alone."""


class VersionError(RuntimeError):
    """This worker would write other bytes than one with the launcher's libraries: this ends the pipeline, too."""


def _version_error(others: str) -> VersionError:
    return VersionError(
        f"worker: {others}; workers and launcher run the same versions; install constraints.txt on both"
    )


def _has_heic(rows: list[PlannedExample], roots: list[str]) -> bool:
    """Returns whether a planned image is HEIC, by its first bytes; one that cannot be read is none, and `write_shard` says so."""
    for source in {row.key: row.source for row in rows}.values():
        with (
            contextlib.suppress(OSError, DecodeError),
            open_source(source, source_path(source, roots), whole=False) as file,
        ):
            if is_heif(file.read(SNIFF_BYTES)):
                return True
    return False


@dataclass
class Before(Transform[beam.Pipeline, PCollection[Done]]):
    """Groups of generations before: their shards are there."""

    groups: list[GroupId]

    def expand(self, pipeline: beam.Pipeline) -> PCollection[Done]:
        """Returns them."""
        done: PCollection[Done] = pipeline | beam.Create([(group, None) for group in self.groups])
        return done


@dataclass
class Finish(Transform[tuple[PCollection[Done], ...], PCollection[None]]):
    """Written shards to a finished dataset: groups are counted wherever there is a worker, and one of them adds up.

    What came of it is saved (`outcome`).
    """

    folder: str
    config: BuildConfig

    def expand(self, done: tuple[PCollection[Done], ...]) -> PCollection[None]:
        """Returns one element, when the dataset is finished or will not be."""
        config = self.config

        def merged(scans: Iterable[Scan]) -> Scan:
            every = Scan(config.balance_step)
            for scan in scans:
                every.merge(scan)
            return every

        counted = (
            done
            | "all" >> beam.Flatten()
            | "meet" >> beam.GroupByKey()
            | "count" >> beam.FlatMap(self._count).with_outputs("failed", main="scans")
        )
        scan = counted.scans | "add up" >> beam.CombineGlobally(merged)
        failed = counted.failed | "failed" >> beam.CombineGlobally(_all_failed)
        finished: PCollection[None] = scan | "dataset" >> beam.Map(self._finish, AsSingleton(failed))
        return finished

    def _count(self, group: tuple[GroupId, Iterable[Failure | None]]) -> Iterator[Tagged]:
        """Yields what is in the shards of a group, if all are there; how many are not otherwise."""
        named, outcomes = group
        failed = _all_failed((1, failure) for failure in outcomes if failure is not None)
        yield TaggedOutput("failed", failed)
        if failed[0]:
            return
        with counts.timed("finish"):
            scan, results = Scan(self.config.balance_step), []
            for summary in read_group(self.folder, named, self.config.views):
                for shard in summary.shards:
                    result = read_result(self.folder, shard)
                    if result is None:
                        raise OSError(f"{shard.name}: what was noted of it is gone; go on with --resume")
                    results.append(result)
                    scan.add_shard(self.folder, result.table_row(), named[1])
                    counts.add(num_counted_shards=1)
            save_group(self.folder, named, results)
        yield scan

    def _finish(self, scan: Scan, failed: Failed) -> None:
        if outcome.read(self.folder) is not None:
            # the plan was refused
            return
        with counts.timed("finish"), outcome.saved(self.folder):
            finish_dataset(self.folder, self.config, scan, *failed)


def _all_failed(failed: Iterable[Failed]) -> Failed:
    total, first = 0, None
    for number, failure in failed:
        total += number
        if failure is not None and (first is None or failure < first):
            first = failure
    return total, first
