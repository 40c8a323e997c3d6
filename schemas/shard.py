"""Reading one shard, a standard Parquet file, whole or by single sequences.

The raw columns are written so that their values are the last bytes of each column chunk, in one
page (docs/format.md). Where that holds, a sequence is read straight from its place in the file:
one `pread` a column instead of a row group of 32 MiB. Where it does not (a shard rewritten by
another tool), the Parquet reader is used and one row group is kept. Tokens that are encoded (`schemas.codec`) are read
in the same two ways, and decoded by the thread that reads them.
"""

import bisect
import contextlib
import itertools
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from patchpack.schemas.codec import decode, most_bytes
from patchpack.schemas.errors import FormatError
from patchpack.schemas.geometry import MAX_ROW_BYTES, NO_CODEC, Layout, LayoutRecord, ceil_div
from patchpack.schemas.manifest import check_version
from patchpack.schemas.sequence import TOKENS_BYTES, array_bytes, array_columns
from patchpack.schemas.storage import open_file

METADATA_KEY = b"patchpack"

# The fixed part of one data page's Thrift header with a checksum and empty statistics (parquet.thrift,
# PageHeader); its two sizes and its row count follow as varints.
_PAGE_HEADER_BYTES = 22
# before a value of variable width: its length
_LENGTH_BYTES = 4
# what is read is hashed while it is still in a core's own cache: whole sequences of 3 MB cost four times as much to hash
# (benchmarks/loader.py)
_HASHED_BYTES = 1 << 18


class ShardTotals(TypedDict):
    """Sums over the sequences of a shard, and the most that one has: examples, and tokens, sides of the grid and labels of one."""

    num_sequences: int
    num_segments: int
    num_tokens: int
    attention_cost: int
    max_segments: int
    max_segment_tokens: int
    max_grid: list[int]
    max_labels: int


class ColumnRecord(TypedDict):
    """Type and shape of one row of a raw column."""

    dtype: str
    shape: list[int]


class ShardRecord(TypedDict):
    """A shard's own record: what it is, so that it can be read without the dataset."""

    format_version: int
    requires: list[str]
    layout: LayoutRecord
    columns: dict[str, ColumnRecord]
    group: int
    index: int
    view: int
    fingerprint: str
    totals: ShardTotals
    rejects: list[dict[str, str]]


def read_metadata(parquet: pq.ParquetFile, path: str) -> ShardRecord:
    """Returns a shard's own record from an open file's footer.

    Raises:
        FormatError: it is another Parquet file, its record is broken, or it is newer than this reader.
    """
    raw = (parquet.metadata.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise FormatError(
            f"{path}: no '{METADATA_KEY.decode()}' metadata; every shard has it; this is another Parquet file"
        )
    try:
        metadata = json.loads(raw)
        check_version(metadata["format_version"], metadata["requires"], path)
        metadata["layout"]
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{path}: broken '{METADATA_KEY.decode()}' metadata ({error!r}); rebuild this shard"
        ) from error
    return cast(ShardRecord, metadata)


class Shard:
    """One open shard.

    Attributes:
        path: how it is named.
        metadata: the shard's own record: format_version, layout, view, group, index, fingerprint, rejects, totals.
        layout: its layout.
        num_sequences: its rows.
    """

    def __init__(self, file: str, path: str | None = None) -> None:
        """Reads the footer.

        Args:
            file: its file.
            path: how messages name it, where that is a copy of it; None: as it is.

        Raises:
            FileNotFoundError: there is no such file.
            FormatError: it is not a shard, is broken, or is newer than this reader.
        """
        self.path = path = file if path is None else path
        self._file = open_file(file)
        try:
            self._parquet = self._open()
            self.metadata = read_metadata(self._parquet, path)
            self.layout = Layout.from_json(self.metadata["layout"], path)
            self._columns, self._row_bytes = array_columns(self.layout), array_bytes(self.layout)
            self._has_codec = self.layout.codec != NO_CODEC
            self._check_columns()
            footer = self._parquet.metadata
            paths = [footer.schema.column(leaf).path.split(".") for leaf in range(footer.num_columns)]
            # nested ones and their parts, as pyarrow is asked for them
            self._names = {".".join(path[:depth]) for path in paths for depth in range(1, len(path) + 1)}
            self.num_sequences: int = footer.num_rows
            rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            # lists: they are asked for single numbers
            self._first_rows = [0, *itertools.accumulate(rows)]
            self._frame_ends_R = self._read_frame_ends()
            self._direct = {name: self._chunk_starts(name) for name in self._columns}
            # of each row group, where each column begins
            self._starts = list(zip(*self._direct.values(), strict=True))
        except Exception as error:  # a flipped bit of the footer makes pyarrow and numpy raise anything
            self._file.close()
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{path}: broken footer ({error!r}); rebuild this shard") from error
        self._descriptor = self._file.fileno() if isinstance(self._file, pa.OSFile) else None
        self._cached_group: tuple[int, pa.Table] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Shard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._parquet.close()
        self._file.close()

    def read_array(self, column: str, row: int) -> np.ndarray:
        """Returns one row of `tokens` (L, P), `segment_ids` (L,) or `positions` (L, 3), read-only.

        Raises:
            FormatError: the file ends early, or its tokens cannot be decoded.
            OSError: it cannot be read.
        """
        if not 0 <= row < self.num_sequences:
            raise IndexError(f"{self.path}: row {row}; it has {self.num_sequences}")
        dtype, shape = self._columns[column]
        value = self._read_value(column, row, self.places(row)[list(self._columns).index(column)])
        if not self._is_encoded(column):
            return np.frombuffer(value, dtype).reshape(shape)
        array = np.empty(shape, dtype)
        decode(value, self.layout, array, f"{self.path} row {row}")
        array.flags.writeable = False
        return array

    def read_into(self, row: int, arrays: Mapping[str, np.ndarray], digest: xxhash.xxh3_64 | None = None) -> None:
        """Reads one row of the raw columns into memory that is there already.

        Args:
            row: its number.
            arrays: of each column one array of its dtype and shape, contiguous; other names are not looked at.
            digest: is updated with what is read, column after column (`sequence_digest`).

        Raises:
            FormatError: the file ends early, cannot be read there, or its tokens cannot be decoded.
        """
        descriptor = self._descriptor
        for (name, width), start in zip(self._row_bytes.items(), self.places(row), strict=True):
            out = arrays[name]
            if start is None or descriptor is None or self._is_encoded(name):
                self._read_otherwise(name, row, start, out)
            elif digest is not None and width > _HASHED_BYTES:
                memory = out.data.cast("B")
                for first in range(0, width, _HASHED_BYTES):
                    piece = memory[first : first + _HASHED_BYTES]
                    if (count := self._fill(descriptor, piece, start + first)) != len(piece):
                        raise self._cut_short(row, name, first + count, width)
                    digest.update(piece)
                continue
            elif (count := self._fill(descriptor, out.data, start)) != width:
                raise self._cut_short(row, name, count, width)
            if digest is not None:
                digest.update(out.data)

    def _fill(self, descriptor: int, memory: memoryview, start: int) -> int:
        """Fills memory from a place of the file on, and returns how many bytes there were."""
        try:
            return os.preadv(descriptor, [memory], start)
        except OSError as error:  # of a bad place of the disk, as of a bad file
            raise self._broken(error) from error

    def _read_otherwise(self, column: str, row: int, start: int | None, out: np.ndarray) -> None:
        """Writes one row of a raw column that is encoded, that lies in pages, or in no file of this machine."""
        if self._is_encoded(column):
            decode(self._read_value(column, row, start), self.layout, out, f"{self.path} row {row}")
        else:
            out[...] = self.read_array(column, row)

    def places(self, row: int) -> list[int | None]:
        """Returns where in the file a row's values of each raw column begin; None where they are not raw, or not in one piece."""
        group = self._group_of(row)
        first = self._first_rows[group]
        starts = [
            None if start is None else start + (row - first) * width
            for start, width in zip(self._starts[group], self._row_bytes.values(), strict=True)
        ]
        if self._has_codec and (start := self._direct["tokens"][group]) is not None:
            starts[0] = start + self._stored_bytes("tokens", first, row) + _LENGTH_BYTES
        return starts

    @property
    def is_direct(self) -> bool:
        """Whether all values lie as they were written, so that one sequence is read without its row group."""
        return all(start is not None for starts in self._direct.values() for start in starts)

    def _is_encoded(self, column: str) -> bool:
        return self._has_codec and column == "tokens"

    def _stored_bytes(self, column: str, first: int, end: int) -> int:
        """Returns what the values of a raw column take up in rows from `first` to before `end`, of one row group."""
        if self._is_encoded(column):
            return int(self._frame_ends_R[end] - self._frame_ends_R[first])
        return (end - first) * self._row_bytes[column]

    def _read_value(self, column: str, row: int, start: int | None) -> pa.Buffer:
        """Returns the stored bytes of one row of a raw column, which begin at `start` unless that is None."""
        if start is None:
            group = self._group_of(row)
            return self._cached(group).column(column)[row - self._first_rows[group]].as_buffer()
        width = self._stored_bytes(column, row, row + 1) - (_LENGTH_BYTES if self._is_encoded(column) else 0)
        try:
            value = self._file.read_at(width, start)
        except pa.ArrowException as error:  # a place beyond what a file can have
            raise self._broken(error) from error
        if len(value) != width:
            raise self._cut_short(row, column, len(value), width)
        return value

    def _read_frame_ends(self) -> np.ndarray:
        """Returns where the frame of each row ends, in bytes from the end of the last row's, (R + 1,) int64; zeros without a codec."""
        ends_R = np.zeros(self.num_sequences + 1, np.int64)
        if self.layout.codec == NO_CODEC:
            return ends_R
        frame_bytes_R = self.read_metadata([TOKENS_BYTES])[TOKENS_BYTES].to_numpy().astype(np.int64)
        most = most_bytes(self.layout)
        wrong_R = (frame_bytes_R < 1) | (frame_bytes_R > most)
        if wrong_R.any():
            row = int(np.argmax(wrong_R))
            raise FormatError(
                f"{self.path} row {row}: {TOKENS_BYTES} is {frame_bytes_R[row]}; a frame has 1 to {most}; rebuild this shard"
            )
        np.cumsum(frame_bytes_R + _LENGTH_BYTES, out=ends_R[1:])
        return ends_R

    def _group_of(self, row: int) -> int:
        """Returns a row's row group."""
        return bisect.bisect_right(self._first_rows, row) - 1

    def _cut_short(self, row: int, column: str, count: int, width: int) -> FormatError:
        return FormatError(
            f"{self.path} row {row}: {column} has {count} bytes of {width}; the file is cut short; rebuild this shard"
        )

    def read_metadata(self, columns: list[str] | None = None) -> pa.Table:
        """Returns the columns that are not raw arrays (counts, segments, digest), all rows."""
        names = [name for name in self._parquet.schema_arrow.names if name not in self._columns]
        if missing := sorted(set(columns or ()) - self._names):
            # pyarrow leaves out what is not there
            raise self._broken(KeyError(missing[0]))
        with self.intact():
            # these are small: other threads cost more than they save
            return self._parquet.read(columns=names if columns is None else columns, use_threads=False)

    def column_bytes(self) -> dict[str, int]:
        """Returns how many bytes of the file each column takes, by its name; what is left is the footer."""
        footer, sizes = self._parquet.metadata, Counter[str]()
        with self.intact():
            for group in range(footer.num_row_groups):
                for number in range(footer.num_columns):
                    column = footer.row_group(group).column(number)
                    sizes[column.path_in_schema.partition(".")[0]] += column.total_compressed_size
        return dict(sizes)

    @contextlib.contextmanager
    def intact(self) -> Iterator[None]:
        """Reports columns that cannot be read, or are not what they should be, as those of a broken shard."""
        try:
            yield
        except FormatError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise self._broken(error) from error

    def _open(self) -> pq.ParquetFile:
        try:
            # the digest column guards the raw arrays; the pages' checksums guard the rest
            return pq.ParquetFile(self._file, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise FormatError(
                f"{self.path}: not a readable Parquet file ({error}); a shard exists whole or not at all; rebuild it"
            ) from error

    def _check_columns(self) -> None:
        schema = self._parquet.schema_arrow
        due = {name: [pa.binary(width)] for name, width in self._row_bytes.items()}
        if self.layout.codec != NO_CODEC:
            # some writers have only the large one
            due |= {"tokens": [pa.binary(), pa.large_binary()], TOKENS_BYTES: [pa.int32()]}
            if self.layout.token_bytes > MAX_ROW_BYTES:
                raise FormatError(
                    f"{self.path}: {self.layout.token_bytes} bytes a sequence; at most {MAX_ROW_BYTES} are decoded; rebuild this shard"
                )
        for name, types in due.items():
            if name not in schema.names or schema.field(name).type not in types:
                actual = schema.field(name).type if name in schema.names else "missing"
                raise FormatError(
                    f"{self.path}: column {name} is {actual}; its layout needs {types[0]}; rebuild this shard"
                )

    def _chunk_starts(self, column: str) -> list[int | None]:
        """Returns, per row group, where the raw values of a column begin, or None where they are not raw and in one piece."""
        footer = self._parquet.metadata
        # footers number the leaves of nested columns too, so a column's place among the names does not say
        number = next(leaf for leaf in range(footer.num_columns) if footer.schema.column(leaf).path == column)
        starts: list[int | None] = []
        for group in range(footer.num_row_groups):
            rows, chunk = footer.row_group(group).num_rows, footer.row_group(group).column(number)
            plain = (
                chunk.compression == "UNCOMPRESSED"
                and not chunk.has_dictionary_page
                and set(chunk.encodings) <= {"PLAIN", "RLE"}
            )
            first = self._first_rows[group]
            size = self._stored_bytes(column, first, first + rows)
            headers = chunk.total_compressed_size - size
            # two pages, even without checksums, need six bytes more
            most = _PAGE_HEADER_BYTES + 2 * _varint_bytes(size) + _varint_bytes(rows)
            one_page = plain and 0 < headers <= most and chunk.data_page_offset > 0
            starts.append(chunk.data_page_offset + headers if one_page else None)
        return starts

    def _cached(self, group: int) -> pa.Table:
        with self._lock:
            if self._cached_group is None or self._cached_group[0] != group:
                with self.intact():
                    table = self._parquet.read_row_group(group, columns=list(self._columns))
                self._cached_group = (group, table)
            return self._cached_group[1]

    def _broken(self, error: Exception) -> FormatError:
        return FormatError(f"{self.path}: cannot be read ({error}); the shard is broken; rebuild it")


def _varint_bytes(value: int) -> int:
    """Returns the bytes of a whole number in Thrift's compact protocol: seven bits each, one bit for the sign."""
    return max(1, ceil_div((2 * value).bit_length(), 7))
