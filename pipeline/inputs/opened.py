"""Opens a source wherever it lies: a file, a byte range of a tar, or a cell of a Parquet table."""

import io
import threading
from collections import OrderedDict
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from patchpack.pipeline.inputs.table import content
from patchpack.pipeline.media.errors import DecodeError
from patchpack.pipeline.stages.records import Source
from patchpack.pipeline.storage import files

# a row group is read whole for one of its rows; the last ones are kept while they are small, and so is one that is not, so that
# rows that lie together cost one read
MAX_ROW_GROUP_BYTES = 2**30
KEPT_BYTES = 2**28


# of these the header says all that planning asks for; of others it may ask for any part
_HEADER_FIRST = (".jpg", ".jpeg", ".jpe", ".jfif", ".png")
# of an object that is no larger, the rest comes sooner than the answer to a second request
_CHEAP_BYTES = 2**20


def open_source(source: Source, path: str, whole: bool = True) -> IO[bytes]:
    """Returns a seekable binary file of a source's content.

    Args:
        source: as listed.
        path: where its file is, see `list.source_path`.
        whole: whether all of it will be read; a store then sends it at once, if it is not large.

    Raises:
        DecodeError: the table holds no such row, or too large a row group.
        OSError: as `files.open_read`.
    """
    part = source.part
    if part.column:
        return io.BytesIO(_cell(path, part.row_group, part.row, part.column))
    is_small = source.size_bytes <= files.WHOLE_BYTES
    if part.offset >= 0 and is_small and files.is_uri(path):
        return io.BytesIO(files.read_part(path, part.offset, source.size_bytes))
    is_header = not whole and path.lower().endswith(_HEADER_FIRST) and not 0 <= source.size_bytes <= _CHEAP_BYTES
    file = files.open_read(path, files.WHOLE_BYTES if is_small and not is_header else files.HEADER_BYTES)
    return file if part.offset < 0 else io.BufferedReader(_Range(file, part.offset, source.size_bytes))


class _Range(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _cell(path: str, row_group: int, row: int, column: str) -> bytes:
    values = _row_groups.column(path, row_group, column)
    if not 0 <= row < len(values):
        raise DecodeError(
            "changed", f"row group {row_group} has {len(values)} rows now, and row {row} when it was listed"
        )
    data = values[row].as_py()
    return data if isinstance(data, bytes) else b""


class RowGroups:
    """Columns of the row groups that were read last, so few that two large ones are never held."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, tuple[int, int], int, str], pa.ChunkedArray] = OrderedDict()
        # threads of a worker share it
        self._lock = threading.Lock()

    def column(self, path: str, row_group: int, column: str) -> pa.ChunkedArray:
        """Returns one column of one row group.

        Raises:
            DecodeError: there is none, it cannot be read, or it is too large.
            OSError: as `files.open_read`.
        """
        which = path, files.version(path), row_group, column
        with self._lock:
            if which not in self._kept:
                self._kept[which] = self._read(path, row_group, column)
            self._kept.move_to_end(which)
            return self._kept[which]

    def _read(self, path: str, row_group: int, column: str) -> pa.ChunkedArray:
        try:
            with files.open_read(path) as file, content():
                parquet = pq.ParquetFile(file)
                self._make_room(_size(parquet, row_group))
                values = parquet.read_row_group(row_group, columns=[column]).column(0)
        except (pa.ArrowException, ValueError) as error:
            if isinstance(error, DecodeError):
                raise
            raise DecodeError("broken", f"the table cannot be read: {error}") from error
        if pa.types.is_struct(values.type):
            values = pa.chunked_array([chunk.field(0) for chunk in values.chunks])
        return values

    def _make_room(self, size: int) -> None:
        while self._kept and sum(values.nbytes for values in self._kept.values()) + size > KEPT_BYTES:
            self._kept.popitem(last=False)


_row_groups = RowGroups()


def _size(parquet: pq.ParquetFile, row_group: int) -> int:
    """Returns the bytes of a row group that is there and small enough."""
    if row_group >= parquet.num_row_groups:
        raise DecodeError("changed", f"{parquet.num_row_groups} row groups now, fewer than when it was listed")
    size: int = parquet.metadata.row_group(row_group).total_byte_size
    if size > MAX_ROW_GROUP_BYTES:
        raise DecodeError(
            "too_large",
            f"row group of {size} bytes; at most {MAX_ROW_GROUP_BYTES}, as one is read whole; write smaller ones",
        )
    return size
