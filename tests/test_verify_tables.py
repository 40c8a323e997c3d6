"""`verify` on the tables beside the shards: rejects, manifest, shard table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.manifests import change_manifest, unsigned, write_unsigned
from support.small_set import CHANGED_KEY, accept_file, write_shard_table
from support.verify_set import check, damaged_shard, table_of

from patchpack import FormatError, report
from patchpack.pipeline.verification.dataset import verify
from patchpack.schemas import read_manifest
from patchpack.schemas.manifest import BOUND_TABLE_SCHEMA, REJECT_TABLE_SCHEMA, table_bytes


@pytest.fixture(scope="module")
def shard(packed: Path) -> str:
    """The shard that the damage goes to."""
    return damaged_shard(packed)


def test_a_reject_that_the_reject_table_lacks_is_found(own: Path) -> None:
    rejects = pq.read_table(own / "rejects.parquet").to_pylist()
    kept = [row for row in rejects if row["key"] != CHANGED_KEY]
    [its_shard] = [row["path"] for row in table_of(own) if row["num_rejects"]]
    (own / "rejects.parquet").write_bytes(table_bytes(kept, REJECT_TABLE_SCHEMA))
    check(
        own,
        (its_shard, CHANGED_KEY, "is not in rejects.parquet"),
        ("manifest.json", "num_rejects is 2; rejects.parquet has 1 rows"),
        ("manifest.json", "num_inputs is 24; 23 different keys"),
    )


@pytest.mark.parametrize(
    ("section", "name"),
    [
        *(("stored", name) for name in ("num_shards", "num_sequences", "num_segments", "num_tokens", "bytes")),
        *(("planned", name) for name in ("num_sequences", "num_segments")),
        ("", "num_inputs"),
        ("", "num_rejects"),
        ("", "dataset_digest"),
    ],
)
def test_an_edited_manifest_is_found(own: Path, section: str, name: str) -> None:
    data = unsigned(own)
    place = data["totals"] if name != "dataset_digest" else data
    place = place[section] if section else place
    place[name] = place[name] + 1 if isinstance(place[name], int) else "0" * 32
    write_unsigned(own, data)
    found = verify(str(own))
    assert found
    assert all(line.startswith((f"{own}/manifest.json: ", f"{own}/bounds.parquet: ")) for line in found)
    told = {"planned": "planned"}.get(section, name)
    assert [line for line in found if told in line]


def test_fewer_tokens_planned_than_stored_are_found(own: Path) -> None:
    planned = read_manifest(str(own)).totals["planned"]
    change_manifest(own, planned=planned | {"num_tokens": 700})
    check(
        own,
        ("manifest.json", "700 tokens planned, 727 stored"),
        ("bounds.parquet", "num_tokens is 783; manifest.json has 700 planned"),
    )


def test_bounds_that_contradict_the_shard_table_are_found(own: Path) -> None:
    entry = read_manifest(str(own)).bounds[0]
    change_manifest(own, bounds=[entry | {"bound": 16}])
    check(
        own,
        ("manifest.json", "a bound of 16", "no bound is larger"),
        ("manifest.json", "a bound of 16 is not proven", "its certificate proves 14"),
    )
    change_manifest(own, bounds=[entry | {"num_sequences": 16}])
    check(own, ("manifest.json", "16 sequences", "shards.parquet has 15"))


def test_a_bound_that_is_set_by_hand_is_found_and_not_reported(own: Path) -> None:
    entry = read_manifest(str(own)).bounds[0]
    change_manifest(own, bounds=[entry | {"bound": 5}])
    check(own, ("manifest.json", "view 0, layout 0: a bound of 5 is not proven", "its certificate proves 14"))
    with pytest.raises(FormatError, match="broken totals or bounds"):
        report(own)


def test_a_proof_that_proves_nothing_is_found(own: Path) -> None:
    proof = pq.read_table(own / "bounds.parquet")
    rows = proof.to_pylist()

    def write(rows: list[dict[str, int]]) -> None:
        (own / "bounds.parquet").write_bytes(table_bytes(rows, BOUND_TABLE_SCHEMA))

    write([row | {"dual": row["dual"] + 1} for row in rows])
    check(own, ("manifest.json", "is not proven by bounds.parquet", "a bin may have a dual value over"))
    write(rows[::-1])
    check(own, ("manifest.json", "is not proven by bounds.parquet", "they do not rise"))
    write([])
    check(
        own,
        ("bounds.parquet", "num_segments is 0; manifest.json has 23 planned"),
        ("manifest.json", "is not proven by bounds.parquet"),
        ("manifest.json", "more examples of", "are stored than bounds.parquet has"),
    )
    (own / "bounds.parquet").unlink()
    check(own, ("bounds.parquet", "cannot be read"))
    write(rows)
    check(own)


def test_a_proof_of_other_examples_is_found(own: Path) -> None:
    rows = pq.read_table(own / "bounds.parquet").to_pylist()
    few, many = rows[0], rows[1]
    moved = [few | {"num_examples": few["num_examples"] + 1}, many | {"num_examples": many["num_examples"] - 1}]
    (own / "bounds.parquet").write_bytes(table_bytes([*moved, *rows[2:]], BOUND_TABLE_SCHEMA))
    found = verify(str(own))
    assert any("bounds.parquet: num_tokens is" in line for line in found), found
    assert any(f"more examples of {many['length']} tokens are stored" in line for line in found), found


def test_a_shard_that_cuts_a_step_is_found(own: Path) -> None:
    rows = table_of(own)
    sizes = {row["path"]: row["num_sequences"] for row in rows}
    last = {row["group"]: row["path"] for row in rows}
    for size in (1, 2, 3, 50):
        change_manifest(own, balance_step=size)
        cut = [path for path, number in sizes.items() if number % size and path not in last.values()]
        check(own, *((path, f"sequences, balance_step is {size}", "whole steps") for path in cut))
        assert bool(cut) == (size > 1)


def test_a_shard_listed_twice_or_elsewhere_is_found(own: Path, shard: str) -> None:
    rows = table_of(own)
    write_shard_table(own, [*rows, *(row for row in rows if row["path"] == shard)])
    assert [line for line in verify(str(own)) if f"{shard} is listed 2 times" in line]
    write_shard_table(own, [rows[0] | {"path": f"../set/{rows[0]['path']}"}, *rows[1:]])
    assert [line for line in verify(str(own)) if f"'../set/{rows[0]['path']}'; a shard is a file in sequences/" in line]


@pytest.mark.parametrize("name", ["manifest.json", "shards.parquet", "rejects.parquet"])
@pytest.mark.parametrize("content", [None, b"", b"\xff{", b'{"format_version": 1}', b'{"format_version": 9}'])
def test_a_missing_or_broken_table_is_the_problem(own: Path, name: str, content: bytes | None) -> None:
    (own / name).unlink()
    if content is not None:
        (own / name).write_bytes(content)
    (found,) = verify(str(own))
    assert name in found
    assert str(own) in found


@pytest.mark.parametrize("totals", [None, {}, {"planned": 3, "stored": {}}, {"planned": {}, "stored": []}])
def test_totals_of_another_shape_are_a_problem(own: Path, totals: Any) -> None:
    change_manifest(own, totals=totals)
    found = verify(str(own))
    assert [
        line for line in found if "manifest.json: broken totals" in line or "manifest.json: broken manifest" in line
    ]


def test_a_folder_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    (found,) = verify(str(tmp_path / "nothing"))
    assert found.startswith(f"{tmp_path}/nothing: no dataset; ")


def test_the_list_ends_at_its_limit_and_says_so(own: Path) -> None:
    change_manifest(own, classes=None)
    found = verify(str(own), limit=5)
    assert len(found) == 6
    assert found[-1] == f"{own}: more than 5 problems; the others are not listed; build the dataset again"


def test_more_columns_and_fields_are_no_problem(own: Path, shard: str) -> None:
    table = pq.read_table(own / shard)
    record = json.loads(pq.read_metadata(own / shard).metadata[b"patchpack"]) | {"later": 1}
    table = table.append_column("later", [np.arange(len(table))])
    table = table.replace_schema_metadata({"patchpack": json.dumps(record)})
    pq.write_table(table, own / shard, compression="none", use_dictionary=False)
    accept_file(own, shard)
    assert verify(str(own)) == []


def test_the_limits_are_those_of_the_stored_rows_and_smaller_ones_are_found(own: Path) -> None:
    rows = [row for shard in table_of(own) for row in pq.read_table(own / shard["path"]).to_pylist()]
    segments = [segment for row in rows for segment in row["segments"]]
    (limits,) = read_manifest(str(own)).limits
    assert limits == {
        "max_segments": max(row["num_segments"] for row in rows),
        "max_segment_tokens": max(segment["num_tokens"] for segment in segments),
        "max_grid": [max(segment[f"grid_{axis}"] for segment in segments) for axis in "thw"],
        "max_labels": 1,
    }
    for name, column in (("max_segments", "num_segments"), ("max_segment_tokens", "max_segment_tokens")):
        change_manifest(own, limits=[dict(limits) | {name: 1}])
        found = list(verify(str(own)))
        assert found and all(f"{column} " in line and "the limit in manifest.json is 1" in line for line in found)
    # a dataset of before has none, and is read as before
    data = unsigned(own)
    del data["limits"]
    write_unsigned(own, data)
    assert list(verify(str(own))) == []
    change_manifest(own, limits=[{"max_segments": 0}])
    with pytest.raises(FormatError, match="broken manifest"):
        read_manifest(str(own))
