"""Growth: a dataset takes more inputs as a generation of its own, and nothing of the ones before is touched or looked at again.

What is known of the ones before are the keys of their inputs, with sizes, and digests where copies are to be found: read from
the saved plan, a file at a time, and spread over buckets as the new inputs are. Groups are numbered on.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchpack.pipeline.names import bucket_digests_name, bucket_rejects_name, view_plan_name
from patchpack.pipeline.stages import saved
from patchpack.pipeline.stages.records import Ignored, Source
from patchpack.pipeline.stages.summary import Listing
from patchpack.pipeline.storage import files
from patchpack.schemas.manifest import REJECT_TABLE_SCHEMA, Manifest
from patchpack.schemas.report import Earlier

PACKED_BEFORE = "(packed before)"
CHANGED_SINCE = "(packed before, and of another size now)"
REJECTED_BEFORE = "(rejected before)"
KNOWN = (PACKED_BEFORE, CHANGED_SINCE, REJECTED_BEFORE)

# an input of a generation before; its size is SIZE_OF_REJECT where it was rejected, and -1 where only reading would show it
KNOWN_SCHEMA = pa.schema([("key", pa.string()), ("size_bytes", pa.int64())])
SIZE_OF_REJECT = -2

# of an input whose content may come again
DIGEST_SCHEMA = pa.schema([("digest", pa.string()), ("key", pa.string())])


class Generation(NamedTuple):
    """Inputs that are planned together: the how manieth, counted from 0, and the number of its first group."""

    number: int
    first_group: int

    @property
    def before(self) -> range:
        """The numbers of the generations before it."""
        return range(self.number)


class Grown(NamedTuple):
    """What inputs are planned as: a generation, and where the dataset lies that it is added to, if it is not the first."""

    generation: Generation = Generation(0, 0)
    folder: str = ""


def following(folder: str) -> Grown:
    """Returns what inputs added to a dataset are planned as.

    Raises:
        FormatError: its plan was damaged.
    """
    before = saved.read_generations(folder)
    groups = saved.planned_groups(folder, before)
    return Grown(Generation(len(before), 1 + max((group for _, group in groups), default=-1)), folder)


def earlier_of(folder: str, manifest: Manifest) -> list[Earlier]:
    """Returns what a dataset was after each of its generations, the last of them included."""
    stored = manifest.totals["stored"]
    now: Earlier = {
        "dataset_digest": manifest.dataset_digest,
        "num_shards": stored["num_shards"],
        "num_sequences": stored["num_sequences"],
    }
    return [*manifest.earlier, now]


def new_alone(listing: Listing) -> Listing:
    """Returns what became of the inputs of a dataset, none of which is counted again where a later generation met it."""
    ignored = {why: count for why, count in listing.ignored.items() if why not in KNOWN}
    return dataclasses.replace(listing, ignored=ignored)


def known_names(folder: str, generation: int) -> Iterator[str]:
    """Yields the names of the files that hold the keys of a generation: every input has a row of view 0, or is a reject."""
    for group, view in saved.read_parts(folder, generation):
        if view == 0:
            yield view_plan_name(generation, group, view)
    yield from (
        bucket_rejects_name(generation, bucket) for bucket in saved.read_listing(folder, [generation]).rejects_in
    )


def read_known(folder: str, name: str) -> pa.Table:
    """Returns the inputs that a file of the plan names, each once, rows of KNOWN_SCHEMA."""
    path = files.join(folder, name)
    with files.open_read(path) as file, saved.intact(path):
        parquet = pq.ParquetFile(file)
        if parquet.schema_arrow.equals(REJECT_TABLE_SCHEMA):
            keys = parquet.read(["key"])
            rows = keys.append_column("size_bytes", pa.array(np.full(len(keys), SIZE_OF_REJECT)))
        else:
            rows = parquet.read(KNOWN_SCHEMA.names)
    # clips of one video are a row each
    return rows.select(KNOWN_SCHEMA.names).group_by(KNOWN_SCHEMA.names).aggregate([]).cast(KNOWN_SCHEMA)


def write_digests(folder: str, generation: int, bucket: int, examples: pa.Table) -> None:
    """Writes the digests of the inputs of a bucket below an output folder, whole or not at all."""
    rows = examples.select(DIGEST_SCHEMA.names).group_by(DIGEST_SCHEMA.names).aggregate([])
    with files.writing(files.join(folder, bucket_digests_name(generation, bucket))) as file:
        pq.write_table(rows, pa.PythonFile(file, mode="w"), compression="zstd")


def read_digests(folder: str, generation: int) -> Iterator[tuple[str, str]]:
    """Yields the digest and the key of each input of a generation; those of a later one are of content that is new in it."""
    for bucket in saved.read_listing(folder, [generation]).digests_in:
        path = files.join(folder, bucket_digests_name(generation, bucket))
        with files.open_read(path) as file, saved.intact(path):
            for batch in pq.ParquetFile(file).iter_batches(columns=DIGEST_SCHEMA.names):
                yield from zip(*(batch[name].to_pylist() for name in DIGEST_SCHEMA.names), strict=True)


def not_known(sources: Iterable[Source], known: pa.Table) -> Iterator[Source | Ignored]:
    """Yields sources that no generation before had, and of each other one why it is left out.

    Args:
        sources: of one bucket.
        known: the inputs of the generations before in that bucket, rows of KNOWN_SCHEMA.
    """
    size_of: dict[str, int] = {}
    for key, size in zip(*(known[name].to_pylist() for name in KNOWN_SCHEMA.names), strict=True):
        # of a video that breaks off a part is packed, and a part a reject
        size_of[key] = max(size, size_of.get(key, size))
    for source in sources:
        known_size = size_of.get(source.key)
        if known_size is None:
            yield source
        elif known_size == SIZE_OF_REJECT:
            yield Ignored(source.key, REJECTED_BEFORE)
        elif -1 in (known_size, source.size_bytes) or known_size == source.size_bytes:
            yield Ignored(source.key, PACKED_BEFORE)
        else:
            yield Ignored(source.key, CHANGED_SINCE)
