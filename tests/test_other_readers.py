"""Whoever is given the folder of sequences, and knows nothing of patchpack, reads it: pyarrow, DuckDB, Hugging Face datasets."""

from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from test_readme import block

from patchpack import Shard, read_shard_table


def stored(folder: Path) -> list[bytes]:
    """The tokens of every sequence, in the order of the shard table, as patchpack's own reader gives them."""
    rows = []
    for path in read_shard_table(str(folder))["path"].to_pylist():
        with Shard(str(folder / path)) as shard:
            rows += [shard.read_array("tokens", row).tobytes() for row in range(shard.num_sequences)]
    return rows


def test_pyarrow_reads_the_folder_of_sequences(reference: Path) -> None:
    expected = stored(reference)
    assert len(expected) > 8
    table = pq.read_table(reference / "sequences")
    assert sorted(table["tokens"].to_pylist()) == sorted(expected)
    assert pyarrow.dataset.dataset(reference / "sequences", format="parquet").count_rows() == len(expected)


def test_nothing_else_lies_among_the_sequences_and_what_is_internal_begins_with_an_underscore(reference: Path) -> None:
    assert {path.name for path in reference.iterdir()} == {
        *("manifest.json", "shards.parquet", "rejects.parquet", "bounds.parquet", "report.json", "report.html"),
        *("sequences", "_plan", "_results", "_run.json"),
    }
    assert all(path.name.startswith("part-") for path in (reference / "sequences").iterdir())


def test_duckdb_reads_rows_and_segments(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb = pytest.importorskip("duckdb", reason="of the extra test")
    monkeypatch.chdir(reference.parent)
    (query,) = block("docs/format.md", "duckdb").strip().split(";")[:-1]
    found = dict(duckdb.sql(query.replace("out/", f"{reference.name}/")).fetchall())
    expected: dict[str, int] = {}
    for row in pq.read_table(reference / "sequences", columns=["segments"])["segments"].to_pylist():
        for segment in row:
            expected[segment["source"]] = expected.get(segment["source"], 0) + segment["num_tokens"]
    assert found == expected and len(found) == 48


def test_hugging_face_datasets_load_the_folder(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="of the extra test")
    monkeypatch.chdir(reference.parent)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = block("docs/format.md", "datasets").replace("out/", f"{reference.name}/")
    scope: dict[str, object] = {}
    exec(code.replace("data_dir=", f"cache_dir={str(tmp_path)!r}, data_dir="), scope)
    rows = scope["rows"]
    assert sorted(row["tokens"] for row in rows) == sorted(stored(reference))  # type: ignore[attr-defined]
    assert np.frombuffer(rows[0]["segment_ids"], "<i2").max() == rows[0]["num_segments"]  # type: ignore[index]
