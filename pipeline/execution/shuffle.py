"""Tables on their way to where they meet: Beam shuffles where they are, and on this machine files hold them.

FnApiRunner keeps in the launcher's memory whatever is shuffled: a kilobyte an input, and all of it until the end. So here
rows wait in files below the output, and Beam shuffles a hundred bytes for each part of a table. On other runners, which
shuffle for a living, the part itself is the element.
"""

import os
import uuid
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Key = TypeVar("Key", bound=Hashable)

# path, offset, compressed size and size in bytes of a record batch, and the bytes themselves where there is no path
Piece = tuple[str, int, int, int, bytes]


@dataclass(frozen=True)
class Shuffle:
    """How tables travel: through files of a folder that all workers see, or inside the elements where it is None."""

    folder: str | None

    def put(self, parts: Iterable[tuple[Key, pa.RecordBatch]]) -> Iterator[tuple[Key, Piece]]:
        """Yields the parts of a table as pieces, once all of them are on the disk."""
        if self.folder is None:
            for key, batch in parts:
                data, size = _compressed(batch)
                yield key, ("", 0, len(data), size, data)
            return
        kept = list(parts)
        path, offset = os.path.join(self.folder, uuid.uuid4().hex), 0
        put: list[tuple[Key, Piece]] = []
        if not kept:
            return
        with open(path, "wb") as file:
            for key, batch in kept:
                data, size = _compressed(batch)
                file.write(data)
                put.append((key, (path, offset, len(data), size, b"")))
                offset += len(data)
        yield from put

    def get(self, pieces: Iterable[Piece], schema: pa.Schema) -> pa.Table:
        """Returns pieces as one table."""
        batches = []
        for path, offset, length, size, data in pieces:
            if path:
                with open(path, "rb", buffering=0) as file:
                    data = os.pread(file.fileno(), length, offset)
            raw = pa.decompress(data, decompressed_size=size, codec="zstd")
            batches.append(pa.ipc.read_record_batch(raw, schema))
        return pa.Table.from_batches(batches, schema).combine_chunks()


def split(table: pa.Table, keys_N: npt.NDArray[np.int64]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields the rows of each key of a table, by rising key, in their order.

    Args:
        table: of N rows.
        keys_N: of each row, (N,).
    """
    if not len(table):
        return
    order = np.argsort(keys_N, kind="stable")
    batch, *_ = table.take(order).combine_chunks().to_batches()
    firsts = np.flatnonzero(np.diff(keys_N[order], prepend=-1))
    for first, end in zip(firsts.tolist(), [*firsts[1:].tolist(), len(table)], strict=True):
        yield int(keys_N[order[first]]), batch.slice(first, end - first)


def _compressed(batch: pa.RecordBatch) -> tuple[bytes, int]:
    raw = batch.serialize()
    return pa.compress(raw, codec="zstd", asbytes=True), raw.size
