"""The second graph's transforms: planned shards to written ones, and what that gave."""

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.transforms import combiners

from patchpack.pipeline.config import BuildConfig
from patchpack.pipeline.execution import counts
from patchpack.pipeline.names import RESULTS_NAME
from patchpack.pipeline.stages.saved import read_shard_rows
from patchpack.pipeline.stages.summary import ShardPlan
from patchpack.pipeline.stages.write import FilledSequence, ShardResult, write_shard
from patchpack.pipeline.storage import files
from patchpack.pipeline.storage.reading import StorageGone
from patchpack.pipeline.versions import library_versions
from patchpack.schemas.manifest import canonical_json


@dataclass
class WriteShards(beam.PTransform[PCollection[ShardPlan], PCollection[ShardResult]]):
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
        yield result

    def _written(self, shard: ShardPlan) -> ShardResult:
        """Returns what writing a shard gave; once more where an error of storage may pass.

        Raises:
            NothingFits: so that no further shard need be decoded.
            OSError: storage failed.
        """
        for is_last in (False, True):
            try:
                return self._tried(shard)
            except OSError as error:
                if files.is_full(error):
                    raise NothingFits(
                        f"{files.described(error)}; nothing more can be written, so the build stops here; free space and go on with --resume"
                    ) from error
                if is_last or isinstance(error, StorageGone):
                    raise
        raise AssertionError("the last try returns or raises")

    def _tried(self, shard: ShardPlan) -> ShardResult:
        """Returns what writing a shard gave; counts sequence by sequence, and where the time went."""
        layout = self._config.layouts[shard.layout]
        began, elsewhere_s, is_kept = time.perf_counter(), 0.0, True

        def filled(sequence: FilledSequence) -> None:
            nonlocal elsewhere_s, is_kept
            elsewhere_s, is_kept = elsewhere_s + sequence.decode_s + sequence.patchify_s, False
            counts.add(
                num_sequences=1,
                num_examples=sequence.num_examples,
                num_tokens=sequence.num_tokens,
                num_token_bytes=sequence.num_tokens * layout.token_bytes // layout.sequence_length,
                decode_us=round(sequence.decode_s * 1e6),
                patchify_us=round(sequence.patchify_s * 1e6),
            )
            for row in sequence.rejects:
                counts.add_reject(row)

        try:
            where = (self._roots, self._folder, self._config, self._versions)
            rows = read_shard_rows(self._folder, shard)
            result = write_shard(shard, rows, *where, retry_rejects=self._config.retry_rejects, filled=filled)
            if is_kept:
                counts.add(num_kept_shards=1, num_kept_rejects=len(result.rejects))
            else:
                counts.add(num_shards=1, num_bytes=result.bytes)
            return result
        finally:
            # the plan's rows, the file and its flush, or the check of a shard that is there
            counts.add(write_us=round((time.perf_counter() - began - elsewhere_s) * 1e6))


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
        layout=shard.layout,
        num_sequences=0,
        num_segments=0,
        num_tokens=0,
        failure=failure,
        traceback=traceback,
    )


@dataclass
class SaveResults(beam.PTransform[PCollection[ShardResult], PCollection[None]]):
    """All results to one file, from which the launcher finishes the dataset."""

    folder: str

    def expand(self, results: PCollection[ShardResult]) -> PCollection[None]:
        path = files.join(self.folder, RESULTS_NAME)

        def save(results: list[ShardResult]) -> None:
            files.write(path, canonical_json([result.to_json() for result in sorted(results)]))

        return results | combiners.ToList() | beam.Map(save)
