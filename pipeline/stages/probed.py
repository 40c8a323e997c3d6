"""What probing found in a bucket of inputs, kept beside the plan until it is whole: a plan that was killed probes no bucket twice.

A Parquet file of its examples, whose metadata holds the rejects and what they are the answer to: the sources, the options that
decide probing and the versions of the libraries. Where one of its inputs could not be read, or took too long, it is probed again.
"""

import json
from collections import Counter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.names import probed_name
from patchpack.pipeline.stages.records import Example, Ignored, Reject
from patchpack.pipeline.stages.tables import EXAMPLE_SCHEMA, example_table
from patchpack.pipeline.storage import files
from patchpack.pipeline.versions import library_versions
from patchpack.schemas.manifest import canonical_json

_RECORD_KEY = b"patchpack_probed"
# what may be otherwise the next time
_PASSING = frozenset({"not_found", "unreadable", "timeout", "crashed"})
# options that decide what probing finds
_OPTIONS = (
    "clips_per_video",
    "clip_frames",
    "fps",
    "frame_stride",
    "slow_source",
    "clip_placement",
    "views",
    "max_pixels",
    "max_bytes",
    "seed",
    "animated",
    "dedupe",
    "decode_isolation",
    "media_backend",
)


class Probed(NamedTuple):
    """The examples of a bucket, rows of `tables.EXAMPLE_SCHEMA`; its rejects; and how many inputs were ignored, by reason."""

    examples: pa.Table
    rejects: list[Reject]
    ignored: dict[str, int]

    @classmethod
    def of(cls, found: list[Example | Reject | Ignored]) -> "Probed":
        """Returns what probing the inputs of a bucket gave."""
        examples = example_table([one for one in found if isinstance(one, Example)])
        rejects = sorted({one for one in found if isinstance(one, Reject)})
        return cls(examples, rejects, dict(Counter(one.why for one in found if isinstance(one, Ignored))))


def fingerprint(sources: pa.Table, roots: list[str], config: PlanConfig) -> str:
    """Returns what the answer depends on, 32 hex digits.

    Args:
        sources: of the bucket, rows of `tables.SOURCE_SCHEMA`, by key.
        roots: of the inputs, by number.
        config: of the build.
    """
    options = {name: getattr(config, name) for name in _OPTIONS}
    digest = xxhash.xxh3_128(canonical_json([options, roots, library_versions(config.media_backend)]))
    # as Arrow writes it: another version of it may answer otherwise, and then they are probed again
    for batch in sources.combine_chunks().to_batches():
        digest.update(batch.serialize())
    return digest.hexdigest()


def write_probed(folder: str, bucket: int, probed: Probed, fingerprint: str) -> None:
    """Writes what was found below an output folder, whole or not at all."""
    record = {
        "fingerprint": fingerprint,
        "rejects": [list(row) for row in probed.rejects],
        "ignored": probed.ignored,
    }
    with (
        files.writing(files.join(folder, probed_name(bucket))) as file,
        pq.ParquetWriter(pa.PythonFile(file, mode="w"), EXAMPLE_SCHEMA, compression="zstd") as writer,
    ):
        writer.write_table(probed.examples)
        writer.add_key_value_metadata({_RECORD_KEY: canonical_json(record)})


def read_probed(folder: str, bucket: int, expected: str | None = None) -> Probed | None:
    """Returns what was found, or None where nothing is kept, or it answers another question than `expected` or for now only."""
    path = files.join(folder, probed_name(bucket))
    if not files.exists(path):
        return None
    with files.open_read(path) as file:
        try:
            parquet = pq.ParquetFile(file)
            record = json.loads(parquet.metadata.metadata[_RECORD_KEY])
            rejects = [Reject(*row) for row in record["rejects"]]
            if expected is not None:
                is_kept = record["fingerprint"] == expected and not any(row.reason in _PASSING for row in rejects)
                if not is_kept:
                    return None
            return Probed(parquet.read(EXAMPLE_SCHEMA.names), rejects, record["ignored"])
        except (pa.ArrowException, KeyError, TypeError, ValueError):
            # damaged: as if it were not there
            return None
