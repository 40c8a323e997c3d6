"""Reading a shard: straight from its place in the file, or through Parquet, a row is the same bytes."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from patchpack.schemas import FormatError, Layout, Shard, sequence_schema
from patchpack.schemas import shard as shard_module
from patchpack.schemas.sequence import array_columns

LAYOUT = Layout(sequence_length=6, max_segments=2, tubelet=(1, 2, 2))
RAW = ("tokens", "segment_ids", "positions")
# as docs/format.md asks for
OWN = {
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
    "data_page_size": 2**31 - 1,
}
OTHERS: dict[str, dict[str, Any]] = {
    "compressed": OWN | {"compression": "zstd"},
    "compressed, no checksums": OWN | {"compression": "snappy", "write_page_checksum": False},
    "dictionary": OWN | {"use_dictionary": True},
    "many pages": OWN | {"data_page_size": 1, "write_batch_size": 1},
    "many small pages": OWN | {"data_page_size": 1, "write_batch_size": 1, "write_page_checksum": False},
    "pages of the second kind": OWN | {"data_page_version": "2.0"},
    "no checksums": OWN | {"write_page_checksum": False},
    "statistics": OWN | {"write_statistics": True, "write_page_index": True},
    "byte streams": OWN | {"column_encoding": dict.fromkeys(RAW, "BYTE_STREAM_SPLIT")},
    "pyarrow's defaults": {},
}


def make_table(layout: Layout, rows: int, seed: int = 0, **metadata: Any) -> pa.Table:
    """Returns rows of random bytes under the shard's schema, all of them different, without segments."""
    generator = np.random.default_rng(seed)
    schema = sequence_schema(layout)
    own = {"format_version": 1, "requires": [], "layout": layout.to_json()} | metadata
    widths = {name: schema.field(name).type.byte_width for name in RAW}
    return pa.Table.from_pylist(
        [
            {name: generator.bytes(width) for name, width in widths.items()}
            | {"num_tokens": row, "num_segments": 0, "max_segment_tokens": 0, "attention_cost": 0}
            | {"segments": [], "digest": row}
            for row in range(rows)
        ],
        schema=schema.with_metadata({"patchpack": json.dumps(own)}),
    )


def expected(table: pa.Table, layout: Layout, column: str, row: int) -> np.ndarray:
    """Returns a row's array as numpy reads it from the bytes that were given to the writer."""
    dtype, shape = array_columns(layout)[column]
    return np.frombuffer(table.column(column)[row].as_py(), dtype).reshape(shape)


def check_every_array(shard: Shard, table: pa.Table, layout: Layout) -> None:
    """Checks every row and column of an open shard, in an order that jumps between row groups."""
    assert shard.num_sequences == len(table)
    for row in sorted(range(len(table)), key=lambda row: row * 7 % 11):
        for column in RAW:
            array = shard.read_array(column, row)
            wanted = expected(table, layout, column, row)
            assert array.dtype == wanted.dtype and array.shape == wanted.shape
            assert array.tobytes() == wanted.tobytes(), (column, row)
            assert not array.flags.writeable


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 70),
    tubelet=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)),
    rows=st.integers(1, 12),
    group=st.integers(1, 12),
    dtype=st.sampled_from(["uint8", "float16"]),
)
def test_a_direct_read_equals_the_parquet_reader(
    tmp_path_factory: pytest.TempPathFactory,
    length: int,
    tubelet: tuple[int, int, int],
    rows: int,
    group: int,
    dtype: str,
) -> None:
    layout = Layout(length, 3, tubelet, token_dtype=dtype)
    path = tmp_path_factory.mktemp("shard") / "a.parquet"
    table = make_table(layout, rows, seed=length)
    pq.write_table(table, path, row_group_size=group, **OWN)
    assert pq.read_table(path).equals(table)
    with Shard(str(path)) as shard:
        assert all(start is not None for starts in shard._direct.values() for start in starts)
        check_every_array(shard, table, layout)


@pytest.mark.parametrize("kind", sorted(OTHERS))
@settings(max_examples=12, deadline=None)
@given(
    length=st.integers(1, 40),
    side=st.integers(1, 6),
    rows=st.integers(1, 9),
    group=st.integers(1, 9),
)
def test_a_shard_that_another_writer_rewrote_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, kind: str, length: int, side: int, rows: int, group: int
) -> None:
    layout = Layout(length, 3, (1, side, 1), channels=1)
    path = tmp_path_factory.mktemp("shard") / "a.parquet"
    table = make_table(layout, rows, seed=length)
    pq.write_table(table, path, row_group_size=group, **OTHERS[kind])
    with Shard(str(path)) as shard:
        if kind in ("compressed", "compressed, no checksums", "byte streams"):
            assert not any(start for starts in shard._direct.values() for start in starts), "read as if it were raw"
        check_every_array(shard, table, layout)


def test_two_tiny_pages_are_not_taken_for_one(tmp_path: Path) -> None:
    layout = Layout(1, 1, (1, 1, 1), channels=2)
    path, table = tmp_path / "a.parquet", make_table(layout, 2)
    pq.write_table(table, path, **OTHERS["many small pages"])
    with Shard(str(path)) as shard:
        assert shard._direct == {name: [None] for name in RAW}
        check_every_array(shard, table, layout)


def test_columns_and_metadata_that_are_unknown_are_ignored(tmp_path: Path) -> None:
    table = make_table(LAYOUT, 3, colour="sRGB")
    wider = table.append_column("mood", pa.array(["good", "bad", None]))
    path = tmp_path / "a.parquet"
    pq.write_table(wider.select(wider.column_names[::-1]), path, **OWN)
    with Shard(path.as_uri()) as shard:
        assert shard.layout == LAYOUT and shard.metadata["colour"] == "sRGB"
        check_every_array(shard, table, LAYOUT)


def test_the_small_columns_come_without_the_raw_ones(tmp_path: Path) -> None:
    table = make_table(LAYOUT, 5)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2, **OWN)
    with Shard(str(tmp_path / "a.parquet")) as shard:
        assert shard.read_metadata().equals(table.drop_columns(list(RAW)))
        assert shard.read_metadata(["digest"]).to_pydict() == {"digest": [0, 1, 2, 3, 4]}


@pytest.mark.parametrize("kind", ["own", "compressed"])
def test_several_threads_read_one_shard(tmp_path: Path, kind: str) -> None:
    path, table = tmp_path / "a.parquet", make_table(LAYOUT, 9)
    pq.write_table(table, path, row_group_size=2, **({"own": OWN} | OTHERS)[kind])
    failures: list[BaseException] = []
    start = threading.Barrier(6)

    def read(shard: Shard) -> None:
        try:
            start.wait(timeout=30)
            for _ in range(10):
                check_every_array(shard, table, LAYOUT)
        except BaseException as error:  # noqa: BLE001 (judged below)
            failures.append(error)

    with Shard(str(path)) as shard:
        threads = [threading.Thread(target=read, args=(shard,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


@pytest.mark.parametrize("row", [-1, 3, 2**40])
def test_a_row_out_of_range_is_an_index_error(tmp_path: Path, row: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(make_table(LAYOUT, 3), path, **OWN)
    with Shard(str(path)) as shard, pytest.raises(IndexError, match=f"a.parquet: row {row}; it has 3"):
        shard.read_array("tokens", row)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Shard(str(tmp_path / "a.parquet"))


def refusal(path: Path) -> str:
    """Returns the message of the FormatError that opening a file ends in; the file is closed again."""
    opened: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        open_file = shard_module.open_file
        patch.setattr(shard_module, "open_file", lambda name: opened.append(open_file(name)) or opened[-1])
        with pytest.raises(FormatError) as refused:
            Shard(str(path))
    assert opened[0].closed
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_file_cut_short_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(make_table(LAYOUT, 3), path, **OWN)
    whole = path.read_bytes()
    for size in {0, 1, 4, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1}:
        path.write_bytes(whole[:size])
        message = refusal(path)
        assert message.startswith(f"{path}: not a readable Parquet file (")
        assert message.endswith("); a shard exists whole or not at all; rebuild it")


def test_a_file_cut_short_while_it_is_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(make_table(LAYOUT, 3), path, **OWN)
    with Shard(str(path)) as shard:
        path.write_bytes(path.read_bytes()[:150])
        with pytest.raises(FormatError) as refused:
            shard.read_array("positions", 2)
    assert str(refused.value) == (
        f"{path} row 2: positions has 0 bytes of 36; the file is cut short; rebuild this shard"
    )


@pytest.mark.parametrize("piece", [1, 7, 12, 36, 1 << 18])
def test_a_digest_is_of_what_is_read_whatever_its_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(shard_module, "_HASHED_BYTES", piece)
    path = tmp_path / "a.parquet"
    table = make_table(LAYOUT, 5)
    pq.write_table(table, path, row_group_size=2, **OWN)
    arrays = {name: np.zeros(shape, dtype) for name, (dtype, shape) in array_columns(LAYOUT).items()}
    with Shard(str(path)) as shard:
        for row in (3, 0, 4):
            digest = xxhash.xxh3_64()
            shard.read_into(row, arrays, digest)
            due = [expected(table, LAYOUT, name, row) for name in RAW]
            assert all(np.array_equal(arrays[name], array) for name, array in zip(RAW, due, strict=True))
            assert digest.intdigest() == xxhash.xxh3_64_intdigest(b"".join(array.tobytes() for array in due))
        # in the middle of a piece of the positions, which come last of the three
        path.write_bytes(path.read_bytes()[: shard.places(4)[2] + 25])
        with pytest.raises(FormatError, match="row 4: positions has 25 bytes of 36; the file is cut short"):
            shard.read_into(4, arrays, xxhash.xxh3_64())


def test_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"tokens": [1, 2]}), path)
    assert refusal(path) == (f"{path}: no 'patchpack' metadata; every shard has it; this is another Parquet file")


def test_a_newer_shard_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(make_table(LAYOUT, 1, format_version=3), path)
    assert refusal(path) == f"{path}: format version 3; this reader knows 1; upgrade patchpack"
    pq.write_table(make_table(LAYOUT, 1, requires=["float16"]), path)
    assert refusal(path) == f"{path}: requires float16; this reader has no such feature; upgrade patchpack"


@pytest.mark.parametrize("record", [b"", b"{", b"\xff", b"3", b"{}", b'{"format_version": 1, "requires": []}'])
def test_a_broken_record_in_the_footer_is_refused(tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "a.parquet"
    table = make_table(LAYOUT, 1)
    pq.write_table(table.replace_schema_metadata({"patchpack": record}), path)
    message = refusal(path)
    assert message.startswith(f"{path}: broken 'patchpack' metadata (")
    assert message.endswith("); rebuild this shard")


def _narrow(table: pa.Table) -> pa.Table:
    return table.set_column(1, "segment_ids", pa.array([b"123456"] * 2, pa.binary(6)))


def _loose(table: pa.Table) -> pa.Table:
    return table.set_column(1, "segment_ids", table.column("segment_ids").cast(pa.binary()))


def _gone(table: pa.Table) -> pa.Table:
    return table.drop_columns(["segment_ids"])


@pytest.mark.parametrize(
    ("change", "found"), [(_narrow, "fixed_size_binary[6]"), (_loose, "binary"), (_gone, "missing")]
)
def test_a_column_of_another_width_is_refused(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], found: str
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(change(make_table(LAYOUT, 2)), path)
    assert refusal(path) == (
        f"{path}: column segment_ids is {found}; its layout needs fixed_size_binary[12]; rebuild this shard"
    )


def test_a_damaged_page_of_a_small_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(make_table(LAYOUT, 3), path, **OWN)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(3)
    assert chunk.path_in_schema == "num_tokens"
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with Shard(str(path)) as shard, pytest.raises(FormatError) as refused:
        shard.read_metadata()
    message = str(refused.value)
    assert message.startswith(f"{path}: cannot be read (") and "\n" not in message
    assert message.endswith("); the shard is broken; rebuild it")
