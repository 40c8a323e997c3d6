"""The manifest and its tables: what was written comes back, and every broken one is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from patchpack.schemas import FormatError, Layout, Manifest, read_manifest, read_shard_table
from patchpack.schemas.manifest import (
    REJECT_TABLE_SCHEMA,
    SHARD_TABLE_SCHEMA,
    canonical_json,
    dataset_digest,
    read_table,
    table_bytes,
)

LAYOUTS = (Layout(8, 2, (1, 2, 2)), Layout(16, 2, (2, 4, 4), mean=(0.1, 0.2, 0.3)))
MANIFEST = Manifest(
    dataset_digest="0123456789abcdef" * 2,
    layouts=LAYOUTS,
    classes=("chat", "hündchen"),
    totals={"num_inputs": 3, "ignored": {".txt": 1}},
    bounds=({"view": 0, "layout": 0, "bound": 2},),
    config={"resolution": "native", "exclude": ["*.gif"]},
)
SHARD = {
    "path": "sequences/part-000-00000-00000.parquet",
    "digest": "ab" * 16,
    "fingerprint": "cd" * 16,
    "bytes": 1234,
    "group": 0,
    "view": 0,
    "layout": 0,
    "num_sequences": 3,
    "num_segments": 5,
    "num_tokens": 20,
    "num_rejects": 1,
}


def stored(folder: Path, **changes: Any) -> Path:
    """Writes the manifest with some keys changed, and returns its path."""
    path = folder / "manifest.json"
    unsigned = json.loads(MANIFEST.to_bytes())
    del unsigned["manifest_digest"]
    path.write_bytes(json.dumps(unsigned | changes).encode())
    return path


def refusal(call: Callable[..., Any], *args: Any) -> str:
    """Returns the message of the FormatError that a call ends in."""
    with pytest.raises(FormatError) as refused:
        call(*args)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("classes", [MANIFEST.classes, None])
def test_a_manifest_survives_its_file(tmp_path: Path, classes: tuple[str, ...] | None) -> None:
    manifest = Manifest(**{**vars(MANIFEST), "classes": classes})
    (tmp_path / "manifest.json").write_bytes(manifest.to_bytes())
    assert read_manifest(str(tmp_path)) == manifest
    assert read_manifest(tmp_path.as_uri()) == manifest


def test_unknown_keys_of_a_manifest_are_ignored(tmp_path: Path) -> None:
    stored(tmp_path, licence="CC0", layouts=[layout.to_json() | {"new": 1} for layout in LAYOUTS])
    assert read_manifest(str(tmp_path)) == MANIFEST


def test_a_folder_without_a_manifest_is_unfinished_or_no_set(tmp_path: Path) -> None:
    file, begun = tmp_path / "file", tmp_path / "begun"
    file.touch()
    begun.mkdir()
    (begun / "_run.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "missing", file):
        assert refusal(read_manifest, str(folder)) == (
            f"{folder}: no dataset; a dataset is a folder with manifest.json; check the path"
        )
    assert refusal(read_manifest, str(begun)) == (
        f"{begun}: no manifest.json; the dataset is not finished, and a finished one has it; finish it with build --resume"
    )


@pytest.mark.parametrize("content", [b"", b"{'a': 1}", b'{"format_version": 1', b"\xff\xfe\x00"])
def test_a_manifest_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as why:
        json.loads(content)
    assert refusal(read_manifest, str(tmp_path)) == (
        f"{path}: not JSON ({why.value}); the manifest is broken; write it again with build --resume"
    )


@pytest.mark.parametrize("content", ["[]", "{}", '{"name": "some other tool"}', "null"])
def test_the_manifest_of_another_tool_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(content)
    assert refusal(read_manifest, str(tmp_path)) == (
        f"{path}: no format_version; a manifest of patchpack has one; check the path"
    )


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, format_version=3)
    assert refusal(read_manifest, str(tmp_path)) == (
        f"{path}: format version 3; this reader knows 1; upgrade patchpack"
    )


def test_a_feature_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, requires=["zstd-tokens", "float16"])
    assert refusal(read_manifest, str(tmp_path)) == (
        f"{path}: requires float16, zstd-tokens; this reader has no such feature; upgrade patchpack"
    )


@pytest.mark.parametrize("key", ["dataset_digest", "layouts", "classes", "totals", "bounds", "config"])
def test_a_manifest_without_a_key_is_refused(tmp_path: Path, key: str) -> None:
    path = stored(tmp_path)
    data = json.loads(path.read_bytes())
    del data[key]
    path.write_text(json.dumps(data))
    assert refusal(read_manifest, str(tmp_path)) == (
        f"{path}: broken manifest (KeyError('{key}')); it holds what docs/format.md lists; "
        "write it again with build --resume"
    )


@pytest.mark.parametrize("change", [{"requires": None}, {"layouts": None}, {"layouts": [3]}, {"classes": 2}], ids=str)
def test_values_of_the_wrong_kind_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = stored(tmp_path, **change)
    assert refusal(read_manifest, str(tmp_path)).startswith(f"{path}: broken ")


def test_canonical_json_is_equal_for_equal_data() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": {"ö": "ä€", "z": True}}) == canonical_json(
        {"a": {"z": True, "ö": "ä€"}, "b": (1, 2.5, None)}
    )
    assert canonical_json({"b": [1, None], "a": "ä€"}) == b'{"a":"\xc3\xa4\xe2\x82\xac","b":[1,null]}'
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})


def test_the_dataset_digest_is_a_hash_over_canonical_json() -> None:
    identity = {"format_version": 1, "layouts": [layout.to_json() for layout in LAYOUTS], "shards": ["aa", "bb"]}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    assert dataset_digest(LAYOUTS, ["aa", "bb"]) == xxhash.xxh3_128(text.encode()).hexdigest()


def test_the_dataset_digest_tells_shards_their_order_and_layouts_apart() -> None:
    sets = [
        (LAYOUTS, ["aa", "bb"]),
        (LAYOUTS, ["bb", "aa"]),
        (LAYOUTS, ["aa"]),
        (LAYOUTS, ["aa", "bc"]),
        (LAYOUTS, ["aabb"]),
        (LAYOUTS[::-1], ["aa", "bb"]),
        (LAYOUTS[:1], ["aa", "bb"]),
        ((LAYOUTS[0], Layout(16, 3, (2, 4, 4), mean=(0.1, 0.2, 0.3))), ["aa", "bb"]),
    ]
    assert len({dataset_digest(layouts, shards) for layouts, shards in sets}) == len(sets)


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    rejects = [{"key": "a/b%FF.jpg", "stage": "probe", "reason": "broken", "detail": "ä"}]
    (tmp_path / "shards.parquet").write_bytes(
        table_bytes([SHARD, SHARD | {"path": "sequences/b", "view": 1}], SHARD_TABLE_SCHEMA)
    )
    (tmp_path / "rejects.parquet").write_bytes(table_bytes(rejects, REJECT_TABLE_SCHEMA))
    table = read_shard_table(str(tmp_path))
    assert table.to_pylist() == [SHARD, SHARD | {"path": "sequences/b", "view": 1}]
    assert table.schema == SHARD_TABLE_SCHEMA
    assert read_table(str(tmp_path), "rejects.parquet", REJECT_TABLE_SCHEMA).to_pylist() == rejects
    assert read_table(tmp_path.as_uri(), "rejects.parquet", REJECT_TABLE_SCHEMA).to_pylist() == rejects


def test_unknown_columns_and_another_order_of_columns_are_ignored(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([SHARD]).append_column("colour", pa.array(["red"]))
    pq.write_table(table.select(table.column_names[::-1]), tmp_path / "shards.parquet", compression="gzip")
    assert read_shard_table(str(tmp_path)).to_pylist() == [SHARD]
    assert read_shard_table(str(tmp_path)).schema == SHARD_TABLE_SCHEMA


def _missing(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _text(path: Path) -> None:
    path.write_text("path,digest\n")


def _no_digest(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([SHARD]).drop_columns(["digest"]), path)


def _empty_digest(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([SHARD, SHARD | {"digest": None}]), path)


def _words(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([SHARD | {"bytes": "many"}]), path)


@pytest.mark.parametrize("damage", [_missing, _cut, _text, _no_digest, _empty_digest, _words])
def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "shards.parquet"
    path.write_bytes(table_bytes([SHARD], SHARD_TABLE_SCHEMA))
    damage(path)
    message = refusal(read_shard_table, str(tmp_path))
    assert message.startswith(f"{path}: cannot be read (")
    assert message.endswith("); a finished dataset has this table; write it again with build --resume")
