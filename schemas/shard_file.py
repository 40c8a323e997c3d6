"""Writing one shard: row groups of raw arrays and segments, and last its own record in the footer."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from patchpack.schemas.codec import encode
from patchpack.schemas.geometry import NO_CODEC, Layout
from patchpack.schemas.manifest import FORMAT_VERSION, canonical_json
from patchpack.schemas.sequence import TOKENS_BYTES, Segment, array_columns, sequence_digest, sequence_schema
from patchpack.schemas.shard import METADATA_KEY, ShardRecord, ShardTotals

# see docs/format.md: raw values in one page a column chunk, so that a sequence can be read straight from its place
_WRITER_OPTIONS = {
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
    "data_page_size": 2**31 - 1,
    # Arrow's own schema beside Parquet's would hide the shard's record from who reads the file and writes it again
    "store_schema": False,
}

_SUMMED: tuple[Literal["num_segments", "num_tokens", "attention_cost"], ...]
_SUMMED = ("num_segments", "num_tokens", "attention_cost")
_LARGEST: dict[Literal["max_segments", "max_segment_tokens"], str]
_LARGEST = {"max_segments": "num_segments", "max_segment_tokens": "max_segment_tokens"}


class ShardFile:
    """A shard while it is written; a context, whose end writes the footer.

    Attributes:
        digest: xxh3_128 of what is written so far, 32 hex digits; of the whole file once the context has ended.
        size: bytes written so far.
        totals: of the row groups so far.
    """

    def __init__(self, file: IO[bytes], layout: Layout) -> None:
        self._layout = layout
        self._hashed = _HashedFile(file)
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._hashed, mode="w"), sequence_schema(layout), **_WRITER_OPTIONS
        )
        self.totals: ShardTotals = {
            "num_sequences": 0,
            "num_segments": 0,
            "num_tokens": 0,
            "attention_cost": 0,
            "max_segments": 0,
            "max_segment_tokens": 0,
            "max_grid": [0, 0, 0],
            "max_labels": 0,
        }

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()

    @property
    def digest(self) -> str:
        """See the class."""
        return self._hashed.digest.hexdigest()

    @property
    def size(self) -> int:
        """See the class."""
        return self._hashed.size

    def new_arrays(self, num_rows: int) -> dict[str, np.ndarray]:
        """Returns the raw columns, `tokens` (R, L, P) and the others, of sequences that are all padding."""
        return {
            name: np.zeros((num_rows, *shape), dtype) for name, (dtype, shape) in array_columns(self._layout).items()
        }

    def add_row_group(self, arrays: Mapping[str, np.ndarray], segments: Sequence[Sequence[Segment]]) -> None:
        """Writes sequences as one row group.

        Args:
            arrays: as `new_arrays` gives them, filled in.
            segments: of each sequence.
        """
        table = _table(arrays, segments, self._layout)
        self._writer.write_table(table, row_group_size=len(table))
        self.totals["num_sequences"] += len(table)
        for name in _SUMMED:
            self.totals[name] += sum(table[name].to_pylist())
        for largest, column in _LARGEST.items():
            self.totals[largest] = max(self.totals[largest], *table[column].to_pylist())
        grids = [(segment["grid_t"], segment["grid_h"], segment["grid_w"]) for row in segments for segment in row]
        labels = (len(segment["labels"]) for row in segments for segment in row)
        self.totals["max_labels"] = max([self.totals["max_labels"], *labels])
        self.totals["max_grid"] = [max(sides) for sides in zip(self.totals["max_grid"], *grids, strict=True)]

    def add_record(
        self, *, group: int, index: int, view: int, fingerprint: str, rejects: Sequence[Mapping[str, str]]
    ) -> ShardRecord:
        """Adds the shard's own record, see docs/format.md, behind the last row group, and returns it."""
        record: ShardRecord = {
            "format_version": FORMAT_VERSION,
            "requires": self._layout.features,
            "layout": self._layout.to_json(),
            "columns": {
                name: {"dtype": str(dtype), "shape": list(shape)}
                for name, (dtype, shape) in array_columns(self._layout).items()
            },
            "group": group,
            "index": index,
            "view": view,
            "fingerprint": fingerprint,
            "totals": self.totals,
            "rejects": [dict(row) for row in rejects],
        }
        self._writer.add_key_value_metadata({METADATA_KEY: canonical_json(record)})
        return record


def _table(arrays: Mapping[str, np.ndarray], segments: Sequence[Sequence[Segment]], layout: Layout) -> pa.Table:
    """Returns one row group; the raw columns share the buffers' memory, but for tokens that are encoded."""
    schema = sequence_schema(layout)
    lengths = [[segment["num_tokens"] for segment in row] for row in segments]
    columns = {
        name: pa.FixedSizeBinaryArray.from_buffers(schema.field(name).type, len(segments), [None, pa.py_buffer(array)])
        for name, array in arrays.items()
        if pa.types.is_fixed_size_binary(schema.field(name).type)
    }
    if layout.codec != NO_CODEC:
        columns["tokens"] = pa.array([encode(tokens_LP, layout) for tokens_LP in arrays["tokens"]], pa.binary())
        columns[TOKENS_BYTES] = pc.binary_length(columns["tokens"])
    counts: dict[str, Sequence[object]] = {
        "num_tokens": [sum(row) for row in lengths],
        "num_segments": [len(row) for row in lengths],
        "max_segment_tokens": [max(row, default=0) for row in lengths],
        "attention_cost": [sum(n * n for n in row) for row in lengths],
        "segments": segments,
        "digest": [sequence_digest(*row) for row in zip(*arrays.values(), strict=True)],
    }
    columns |= {name: pa.array(values, schema.field(name).type) for name, values in counts.items()}
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


class _HashedFile:
    """A file that hashes and counts what is written to it."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = xxhash.xxh3_128()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        self._file.write(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Left to the owner of the file."""
