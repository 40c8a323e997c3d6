"""Writing a shard: every token lands once, what fails leaves, what is finished stays, and no half file is seen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import xxhash
from support.planned import CONFIG, PICTURE_SIZE, PLANNED, VERSIONS, Work, read_rows, slow_tokens, write_picture

from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.stages import write as shards
from patchpack.pipeline.stages.planned import PlannedExample
from patchpack.schemas import Shard, sequence_schema

Row = dict[str, Any]

RAW = ("tokens", "segment_ids", "positions")
SMALL = [name for name in sequence_schema(CONFIG.layouts[0]).names if name not in RAW]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Images in a fresh folder."""
    return Work(tmp_path)


def expected_tokens(work: Work, row: PlannedExample) -> list[list[int]]:
    """Returns an example's tokens: the image decoded at its size, cut by loops."""
    data = (work.media / row.key).read_bytes()
    frames_THWC, _ = image.decode(data, row.grid_h * 4, row.grid_w * 4)
    return slow_tokens(frames_THWC, CONFIG.tubelet)


def check_stored(work: Work, stored: list[Row], missing: set[str]) -> None:
    """Checks that the stored rows hold every planned example but the missing, each token once and in its place."""
    for number, row in enumerate(stored):
        planned = [one for one in work.rows if one.sequence == number and one.key not in missing]
        assert [segment["source"] for segment in row["segments"]] == [one.key for one in planned]
        wanted = [token for one in planned for token in expected_tokens(work, one)]
        assert row["tokens"].tolist() == wanted + [[0] * 48] * (20 - len(wanted))


@pytest.mark.parametrize("group_rows", [1, 3, 100])
def test_every_token_lands_exactly_once(work: Work, group_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "rows_per_group", lambda layout: group_rows)
    result = work.write()
    stored = read_rows(work.path)
    assert len(stored) == 4 and result.rejects == []
    check_stored(work, stored, set())
    assert (result.group, result.view, result.layout, result.num_sequences, result.num_segments) == (2, 0, 0, 4, 8)
    assert result.num_tokens == sum(h * w for _, _, (_, h, w), _ in PLANNED)
    assert pq.ParquetFile(work.path).num_row_groups == -(-4 // group_rows)


def test_pixels_that_need_no_resize_are_stored_as_they_are(work: Work) -> None:
    pixels_HWC = write_picture(work.media / "a.png", 99, (8, 12))
    size = (work.media / "a.png").stat().st_size
    work.change("a.png", source_height=8, source_width=12, box_height=8, box_width=12, size_bytes=size)
    work.write()
    assert read_rows(work.path)[0]["tokens"][:6].tolist() == slow_tokens(pixels_HWC[None], CONFIG.tubelet)


def test_a_segment_says_what_it_is(work: Work) -> None:
    work.write()
    second = read_rows(work.path)[0]["segments"][1]
    assert second == {
        "example_id": work.row("b.jpg").example_id,
        "view": 0,
        "source": "b.jpg",
        "member": None,
        "labels": [],
        "captions": [],
        "weight": 1.0,
        "start": 6,
        "num_tokens": 6,
        "grid_t": 1,
        "grid_h": 3,
        "grid_w": 2,
        "source_height": PICTURE_SIZE[0],
        "source_width": PICTURE_SIZE[1],
        "target_height": 31,
        "target_width": 41,
        "height": 12,
        "width": 8,
        "timestamps_s": [],
        "clip_start_s": None,
        "clip_duration_s": None,
        "fps": None,
        "num_frames": 1,
        "num_repeated_frames": 0,
        "kept_fraction": 1.0,
        "extra": None,
        "crop_top": 0,
        "crop_left": 0,
        "crop_height": 24,
        "crop_width": 36,
        "valid_height": 12,
        "valid_width": 8,
        "flipped": False,
        "aspect_error": 1.25,
        "scale": pytest.approx(1 / 3),
        "text_start": 0,
        "num_text_tokens": 0,
        "caption": -1,
        "boxes": [],
    }
    labels = [segment["labels"] for row in read_rows(work.path) for segment in row["segments"]]
    assert labels == [[0], [], [2], [], [1], [], [], []]


def test_the_result_and_the_footer_tell_the_same(work: Work) -> None:
    result = work.write()
    content = work.path.read_bytes()
    assert (result.path, result.bytes) == (f"sequences/{work.path.name}", len(content))
    assert result.digest == xxhash.xxh3_128(content).hexdigest()
    with Shard(str(work.path)) as shard:
        metadata = shard.metadata
        assert shard.layout == CONFIG.layouts[0]
    lengths = [h * w for _, _, (_, h, w), _ in PLANNED]
    assert metadata["totals"] == {
        "num_sequences": 4,
        "num_segments": 8,
        "num_tokens": sum(lengths),
        "attention_cost": sum(length**2 for length in lengths),
        "max_segments": max(len(row["segments"]) for row in read_rows(work.path)),
        "max_segment_tokens": max(lengths),
        "max_grid": [max(grid[axis] for _, _, grid, _ in PLANNED) for axis in range(3)],
        "max_labels": max(len(segment["labels"]) for row in read_rows(work.path) for segment in row["segments"]),
    }
    assert (metadata["group"], metadata["index"], metadata["view"], metadata["rejects"]) == (2, 1, 0, [])
    assert metadata["fingerprint"] == shards.fingerprint(work.rows, CONFIG, VERSIONS)
    assert metadata["columns"] == {
        "tokens": {"dtype": "uint8", "shape": [20, 48]},
        "segment_ids": {"dtype": "int16", "shape": [20]},
        "positions": {"dtype": "int16", "shape": [20, 3]},
    }


def test_raw_values_are_the_last_bytes_of_their_chunk(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "rows_per_group", lambda layout: 3)
    work.write()
    content, table = work.path.read_bytes(), pq.read_table(work.path)
    footer = pq.ParquetFile(work.path).metadata
    for group, (first, last) in enumerate([(0, 3), (3, 4)]):
        for number, name in enumerate(RAW):
            chunk = footer.row_group(group).column(number)
            end = chunk.data_page_offset + chunk.total_compressed_size
            values = b"".join(table.column(name).to_pylist()[first:last])
            assert chunk.path_in_schema == name and content[end - len(values) : end] == values


def test_equal_plans_give_equal_bytes_wherever_they_stand(tmp_path: Path) -> None:
    here, there = Work(tmp_path / "here"), Work(tmp_path / "some" / "where")
    assert here.write() == there.write()
    assert here.path.read_bytes() == there.path.read_bytes()


def _delete(work: Work, name: str) -> None:
    (work.media / name).unlink()


def _grow(work: Work, name: str) -> None:
    with open(work.media / name, "ab") as file:
        file.write(b"\0")


def _other_pixels(work: Work, name: str) -> None:
    write_picture(work.media / name, 1, (PICTURE_SIZE[1], PICTURE_SIZE[0]))
    work.change(name, size_bytes=(work.media / name).stat().st_size)


def _truncate(work: Work, name: str) -> None:
    data = (work.media / name).read_bytes()
    (work.media / name).write_bytes(data[: len(data) * 2 // 3])
    work.change(name, size_bytes=len(data) * 2 // 3)


def _text(work: Work, name: str) -> None:
    (work.media / name).write_bytes(b"x" * work.row(name).size_bytes)


# what happens to a file after it was probed, the reason that is reported, and the detail where it is ours
HARM: list[tuple[Callable[[Work, str], None], str, str | None]] = [
    (_delete, "not_found", "not there"),
    (_grow, "changed", "{more} bytes now, {bytes} when probed"),
    (_other_pixels, "changed", "36x24 now, 24x36 when probed"),
    (_truncate, "broken", None),
    (_text, "broken", None),
]


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c.jpg", "e.jpg", "h.jpg"])
@pytest.mark.parametrize(("harm", "reason", "detail"), HARM)
def test_an_example_that_fails_leaves_its_bin(
    tmp_path: Path, name: str, harm: Callable[[Work, str], None], reason: str, detail: str | None
) -> None:
    whole, work = Work(tmp_path / "whole"), Work(tmp_path / "harmed")
    whole.write()
    size = work.row(name).size_bytes
    harm(work, name)
    result = work.write()
    stored, before = read_rows(work.path), read_rows(whole.path)
    check_stored(work, stored, {name})
    for number, row in enumerate(before):
        if number != work.row(name).sequence:
            # the digest, which read_rows has checked, stands for the arrays
            assert {key: row[key] for key in SMALL} == {key: stored[number][key] for key in SMALL}
    [told] = result.rejects
    assert told[:3] == (name, "write", reason) and "\n" not in told.detail
    assert detail is None or told.detail == detail.format(more=size + 1, bytes=size)
    with Shard(str(work.path)) as shard:
        assert shard.metadata["rejects"] == [told._asdict()]
    assert result.num_segments == 7 and result.num_tokens == sum(row["num_tokens"] for row in stored)


def test_a_sequence_that_loses_all_its_examples_stays_as_an_empty_row(work: Work) -> None:
    (work.media / "f.jpg").unlink()
    result = work.write()
    stored = read_rows(work.path)
    check_stored(work, stored, {"f.jpg"})
    assert (stored[2]["segments"], stored[2]["num_tokens"], result.num_sequences) == ([], 0, 4)


def test_a_shard_that_loses_everything_is_a_shard_of_empty_rows(work: Work) -> None:
    for row in work.rows:
        (work.media / row.key).unlink()
    # an empty folder would be a disk that is gone
    (work.media / "other").touch()
    result = work.write()
    assert [row["num_segments"] for row in read_rows(work.path)] == [0, 0, 0, 0]
    assert [told.key for told in result.rejects] == [row.key for row in work.rows]
    assert (result.num_sequences, result.num_segments, result.num_tokens) == (4, 0, 0)
    assert work.write() == result
