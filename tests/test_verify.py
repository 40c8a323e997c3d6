"""`verify` finds each kind of damage, names the file, row and example, and finds nothing in a sound set."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.manifests import change_manifest
from support.small_set import CLASSES, CONFIG, accept_file, read_rows, rewrite_shard
from support.verify_set import check, damaged_shard, edit_file, shard_of_another_group, table_of

from patchpack.pipeline.verification.dataset import verify

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def shard(packed: Path) -> str:
    """The shard that the damage goes to."""
    return damaged_shard(packed)


@pytest.fixture(scope="module")
def other(packed: Path, shard: str) -> str:
    """A shard of another group."""
    return shard_of_another_group(packed, shard)


def test_a_sound_set_has_no_problem(packed: Path) -> None:
    assert verify(str(packed)) == []


def test_progress_counts_every_sequence(packed: Path) -> None:
    told: list[int] = []
    verify(str(packed), told.append)
    assert told == sorted(told)
    assert told[-1] == sum(row["num_sequences"] for row in table_of(packed))


# ---- damaged bytes: the tables do not follow


def test_a_flipped_byte_of_tokens_is_found_in_its_row(own: Path, shard: str) -> None:
    with pq.ParquetFile(own / shard) as parquet:
        start = parquet.metadata.row_group(0).column(0).data_page_offset
    second_row = start + CONFIG.layouts[0].token_bytes + 1000
    edit_file(own, shard, lambda content: content.__setitem__(second_row, content[second_row] ^ 1))
    check(own, (shard, "digest is", "shards.parquet says"), (f"{shard} row 1", "digest is", "tokens"))


def test_a_flipped_byte_of_the_segments_is_found_by_its_page(own: Path, shard: str) -> None:
    place = (own / shard).read_bytes().rindex(b"media/")
    edit_file(own, shard, lambda content: content.__setitem__(place, ord("x")))
    check(own, (shard, "digest is"), (shard, "cannot be read", "rebuild"))


def test_a_truncated_shard_is_found_and_the_others_are_still_read(own: Path, shard: str, other: str) -> None:
    edit_file(own, shard, lambda content: content.__delitem__(slice(len(content) // 2, None)))
    lost = (shard, "not a readable Parquet file")
    edit_file(own, other, lambda content: content.__setitem__(1000, content[1000] ^ 1))
    flipped = (other, "digest is", "shards.parquet says"), (f"{other} row 0", "digest is")
    check(own, (shard, "bytes; shards.parquet says"), (shard, "digest is"), lost, *flipped)


def test_a_deleted_shard_is_found(own: Path, shard: str) -> None:
    (own / shard).unlink()
    check(own, (shard, "no such file", "--resume"))


def test_shards_that_no_table_knows_are_found(own: Path, shard: str) -> None:
    shutil.copy(own / shard, own / "sequences/part-000-00009-00000.parquet")
    (own / "sequences/.part-000-00001-00000.parquet.0123.tmp").touch()
    check(own, ("sequences/part-000-00009-00000.parquet", "not in shards.parquet"), (".0123.tmp", "was killed"))


def test_swapped_shards_are_found(own: Path, shard: str, other: str) -> None:
    first, second = (own / shard).read_bytes(), (own / other).read_bytes()
    (own / shard).write_bytes(second)
    (own / other).write_bytes(first)
    found = verify(str(own))
    for name in (shard, other):
        assert [line for line in found if f"{name}: digest is" in line]
        assert [line for line in found if f"{name}: group is" in line]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_and_any_cut_is_a_problem_and_never_an_exception(
    own: Path, other: str, data: st.DataObject
) -> None:
    path = own / other
    sound = path.read_bytes()
    # the footer, and the small columns before it, make readers stumble in more ways than the pixels
    place = data.draw(st.one_of(st.integers(0, len(sound) - 1), st.integers(len(sound) - 14_000, len(sound) - 1)))
    if data.draw(st.booleans()):
        damaged = sound[:place] + bytes([sound[place] ^ 1 << data.draw(st.integers(0, 7))]) + sound[place + 1 :]
    else:
        damaged = sound[:place]
    try:
        path.write_bytes(damaged)
        found = verify(str(own))
    finally:
        path.write_bytes(sound)
    assert [line for line in found if other in line]
    assert not [line for line in found if "\n" in line]


# ---- forged rows: digests and tables follow, so only the rule itself is broken


def other_position(rows: Rows) -> None:
    rows[1]["positions"][0] = (0, 1, 1)


def other_segment_id(rows: Rows) -> None:
    rows[1]["segment_ids"][0] = 2


def shuffled_segments(rows: Rows) -> None:
    rows[1]["segments"].reverse()


def filled_padding(rows: Rows) -> None:
    rows[1]["tokens"][-1] = 255


def other_count(rows: Rows) -> None:
    rows[1]["attention_cost"] += 1


def label_out_of_range(rows: Rows) -> None:
    rows[1]["segments"][1]["labels"] = [len(CLASSES)]


def other_view(rows: Rows) -> None:
    rows[1]["segments"][1]["view"] = 3


def other_size(rows: Rows) -> None:
    rows[1]["segments"][1]["height"] += 1


def other_num_frames(rows: Rows) -> None:
    rows[1]["segments"][1]["num_frames"] = 9


def missing_timestamps(rows: Rows) -> None:
    rows[1]["segments"][1]["timestamps_s"] = [0.0, 0.5, 1.0]


def time_goes_back(rows: Rows) -> None:
    rows[1]["segments"][1] |= {"timestamps_s": [0.5, 0.0], "num_frames": 2}


def other_kept_fraction(rows: Rows) -> None:
    rows[1]["segments"][1]["kept_fraction"] = 0.5


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (other_position, ("segment 1", "positions are not the raster")),
        (other_segment_id, ("segment 1", "segment_ids differ")),
        (shuffled_segments, ("segment 1", "starts at token")),
        (filled_padding, ("tokens of padding is not 0",)),
        (other_count, ("attention_cost is",)),
        (label_out_of_range, ("segment 2", "label 2; the manifest has classes 0 to 1")),
        (other_view, ("segment 2", "view 3; the shard is of view 0")),
        (other_size, ("segment 2", "px; its grid")),
        (other_num_frames, ("segment 2", "9 frames; its grid holds 1 to 2")),
        (missing_timestamps, ("segment 2", "3 timestamps; it has 1 frames")),
        (time_goes_back, ("segment 2", "timestamps go back")),
        (other_kept_fraction, ("segment 2", "kept_fraction 0.500000")),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_row_that_breaks_a_rule_is_named_with_its_example(
    own: Path, shard: str, damage: Callable[[Rows], None], words: tuple[str, ...]
) -> None:
    rows = read_rows(own / shard, CONFIG.layouts[0])
    damage(rows)
    rewrite_shard(own, shard, rows)
    if words[0].startswith("segment "):
        segment = rows[1]["segments"][int(words[0][-1]) - 1]
        words = (*words, f"example {segment['example_id']} ({segment['source']})")
    check(own, (f"{shard} row 1", *words))


def test_every_broken_row_is_listed_not_only_the_first(own: Path, shard: str) -> None:
    rows = read_rows(own / shard, CONFIG.layouts[0])
    for row in rows:
        row["positions"][0] = (0, 1, 1)
    rewrite_shard(own, shard, rows)
    check(own, (f"{shard} row 0", "segment 1"), (f"{shard} row 1", "segment 1"))


def test_an_example_stored_twice_is_named(own: Path, shard: str, other: str) -> None:
    rows, others = read_rows(own / shard, CONFIG.layouts[0]), read_rows(own / other, CONFIG.layouts[0])
    twice = rows[0]["segments"][0]["example_id"]
    others[1]["segments"][0]["example_id"] = twice
    rewrite_shard(own, other, others)
    check(own, (f"{other} row 1, segment 1, example {twice}", "stored twice"))


def test_labels_in_a_set_without_classes_are_found(own: Path) -> None:
    change_manifest(own, classes=None)
    found = verify(str(own))
    assert len(found) == 22
    assert all("label" in line and "the manifest has no classes" in line for line in found)


def test_missing_columns_and_fields_are_named(own: Path, shard: str, other: str) -> None:
    for name, lose in ((shard, "num_tokens"), (other, "segments")):
        table = pq.read_table(own / name)
        if lose == "segments":
            values = table[lose].to_pylist()
            for row in values:
                for segment in row:
                    del segment["grid_h"]
            table = table.set_column(table.schema.names.index(lose), lose, [values])
        else:
            table = table.drop_columns(lose)
        record = pq.read_metadata(own / name).metadata[b"patchpack"]
        pq.write_table(table.replace_schema_metadata({"patchpack": record}), own / name, compression="none")
        accept_file(own, name)
    found = verify(str(own))
    assert [line for line in found if f"{shard}: column num_tokens is missing; the format has int32" in line]
    assert [line for line in found if f"{other}: column segments.grid_h is missing; the format has int32" in line]


def test_a_null_where_a_value_is_required_is_named(own: Path, shard: str) -> None:
    table = pq.read_table(own / shard)
    values = table["segments"].to_pylist()
    values[1][0]["num_tokens"] = None
    # without the schema's rule that it has no nulls
    fields = [pa.field(field.name, field.type) for field in table.schema.field("segments").type.value_type]
    segments = pa.array(values, pa.list_(pa.field("element", pa.struct(fields))))
    table = table.set_column(table.schema.names.index("segments"), "segments", segments)
    record = pq.read_metadata(own / shard).metadata[b"patchpack"]
    pq.write_table(table.replace_schema_metadata({"patchpack": record}), own / shard, compression="none")
    accept_file(own, shard)
    check(own, (f"{shard} row 1", "a value is missing"))


# ---- shards and tables that contradict each other


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"layout": CONFIG.layouts[0].to_json() | {"std": [0.1, 0.2, 0.3]}}, ("layout is not layout 0",)),
        ({"view": 1}, ("view is 1; shards.parquet says 0",)),
        ({"group": 7}, ("group is 7; shards.parquet says",)),
    ],
)
def test_a_shard_of_another_layout_view_or_group_is_found(
    own: Path, shard: str, record: dict[str, Any], words: tuple[str, ...]
) -> None:
    rewrite_shard(own, shard, read_rows(own / shard, CONFIG.layouts[0]), **record)
    found = verify(str(own))
    assert [line for line in found if shard in line and all(word in line for word in words)]


def test_totals_of_a_shard_that_its_rows_do_not_give_are_found(own: Path, shard: str) -> None:
    rows = read_rows(own / shard, CONFIG.layouts[0])
    right = sum(row["num_tokens"] for row in rows)
    counts = {"num_sequences": len(rows), "num_segments": sum(row["num_segments"] for row in rows)}
    rewrite_shard(own, shard, rows, totals=counts | {"num_tokens": right + 1, "attention_cost": 0})
    check(
        own,
        (shard, f"num_tokens is {right + 1}; shards.parquet says {right}"),
        (shard, f"its totals say num_tokens {right + 1}; its rows give {right}"),
    )


def test_a_broken_record_of_a_shard_is_a_problem(own: Path, shard: str) -> None:
    rewrite_shard(own, shard, read_rows(own / shard, CONFIG.layouts[0]), totals=None, rejects=3)
    found = verify(str(own))
    assert [line for line in found if f"{shard}: cannot be read" in line]
