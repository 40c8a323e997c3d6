"""Rejects of any number without a list of them: sorted with runs in files (an external merge sort), or looked at one by one.

A hundredth of a billion inputs is ten million rows: some gigabytes as Python objects, a gigabyte as files. Sorting holds RUN rows, and a
batch of each run while it merges them; it costs some 10 us a row beyond the first RUN.
"""

import heapq
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from tempfile import TemporaryDirectory
from typing import Self

import pyarrow as pa

from patchpack.pipeline.stages.records import Reject
from patchpack.schemas.manifest import REJECT_TABLE_SCHEMA

# rows that are sorted in memory, some 50 MB
RUN = 100_000
# rows of a run that are read at once
BATCH = 1024


class RejectedInputs:
    """How many inputs some rejects are of, which come with those of an input one after the other, and the least reject.

    Attributes:
        number: of the inputs.
        first: the least; None where there are none.
    """

    def __init__(self) -> None:
        self.number = 0
        self.first: Reject | None = None
        self._last_key: str | None = None

    def add(self, reject: Reject) -> None:
        """Adds one."""
        self.number += reject.key != self._last_key
        self._last_key = reject.key
        self.first = reject if self.first is None else min(self.first, reject)


class SortedRejects:
    """Takes rejects in any order, and yields them sorted, equal ones once; a context, whose files go when it ends."""

    def __init__(self) -> None:
        self._rows: set[Reject] = set()
        self._runs: list[str] = []
        self._folder: TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, rejects: Iterable[Reject]) -> None:
        """Adds some."""
        for reject in rejects:
            self._rows.add(reject)
            if len(self._rows) == RUN:
                self._write_run()

    def __iter__(self) -> Iterator[Reject]:
        runs = [sorted(self._rows), *map(_read_run, self._runs)]
        return (reject for reject, _ in groupby(heapq.merge(*runs)))

    def _write_run(self) -> None:
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="patchpack-rejects-")
        path = os.path.join(self._folder.name, str(len(self._runs)))
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, REJECT_TABLE_SCHEMA) as writer:
            rows = [row._asdict() for row in sorted(self._rows)]
            for at in range(0, len(rows), BATCH):
                writer.write(pa.RecordBatch.from_pylist(rows[at : at + BATCH], schema=REJECT_TABLE_SCHEMA))
        self._runs.append(path)
        self._rows.clear()


def _read_run(path: str) -> Iterator[Reject]:
    with pa.OSFile(path) as file:
        for batch in pa.ipc.open_stream(file):
            yield from map(Reject, *(column.to_pylist() for column in batch.columns))
