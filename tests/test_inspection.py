"""`inspect` shows the sequence that was asked for, and the images that were packed."""

import io
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Result
from PIL import Image
from support.small_set import CLASSES, CONFIG, read_rows, rewrite_shard, stored_rows

from patchpack.pipeline.inspection import image as inspection_picture
from patchpack.pipeline.inspection.sequence import describe, draw, print_description
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.patchify import unpatchify
from patchpack.schemas import FormatError, read_shard_table
from patchpack.schemas.manifest import REJECT_TABLE_SCHEMA, table_bytes

Run = Callable[..., Result]


def names(folder: Path) -> list[str]:
    """Returns the shards by order of the table."""
    return read_shard_table(str(folder))["path"].to_pylist()


def printed(description: dict[str, Any]) -> str:
    """Returns a description as a terminal would show it."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    print_description(description, out)
    out.seek(0)
    return out.read()


def places_of(picture: np.ndarray, part: np.ndarray) -> int:
    """Returns how often a smaller image stands in a larger one, pixel for pixel."""
    height, width = part.shape[:2]
    found = 0
    for y, x in np.argwhere((picture[: -height + 1, : -width + 1] == part[0, 0]).all(axis=2)):
        found += np.array_equal(picture[y : y + height, x : x + width], part)
    return found


def test_sequences_are_numbered_in_the_order_of_the_shard_table(packed: Path) -> None:
    rows = stored_rows(packed)
    for number, row in enumerate(rows):
        found = describe(str(packed), number)
        assert [segment["example_id"] for segment in found["segments"]] == [
            segment["example_id"] for segment in row["segments"]
        ]
        in_shard = pq.read_table(packed / found["shard"]).to_pylist()[found["row"]]
        assert in_shard["digest"] == row["digest"] == int(found["digest"], 16)


def test_a_description_holds_every_stored_field_as_json(packed: Path) -> None:
    row = stored_rows(packed)[0]
    found = json.loads(json.dumps(describe(str(packed), 0), allow_nan=False))
    for segment, stored in zip(found["segments"], row["segments"], strict=True):
        assert segment["label_names"] == [CLASSES[label] for label in stored["labels"]]
        assert {name: segment[name] for name in stored} == stored
    for name in ("num_tokens", "num_segments", "max_segment_tokens", "attention_cost"):
        assert found[name] == row[name]
    assert found["fill"] == row["num_tokens"] / CONFIG.sequence_length
    assert found["digest_ok"]
    assert found["problem"] is None


def test_a_changed_token_shows_as_a_wrong_digest(own: Path) -> None:
    name = names(own)[0]
    content = bytearray((own / name).read_bytes())
    content[300] ^= 1
    (own / name).write_bytes(content)
    found = describe(str(own), 0)
    assert not found["digest_ok"]
    assert f"{name} row 0: digest is" in found["problem"]
    assert "DOES NOT MATCH" in printed(found)
    with pytest.raises(FormatError, match=f"{name} row 0: digest is"):
        draw(str(own), 0)


@pytest.mark.parametrize("number", [-1, 15, 10**12])
def test_a_number_out_of_range_is_an_error_that_says_the_range(packed: Path, number: int) -> None:
    expected = f"sequence {number}: out of range; {packed} has 15 sequences, 0 to 14; choose one of them"
    for show in (describe, draw):
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
            show(str(packed), number)


def test_every_picture_is_drawn_as_its_file_decodes(packed: Path) -> None:
    checked = 0
    for number, row in enumerate(stored_rows(packed)):
        drawn = np.array(draw(str(packed), number))
        for segment in row["segments"]:
            if not segment["timestamps_s"]:
                content = (packed.parent / segment["source"]).read_bytes()
                frames_THWC, _ = image.decode(content, segment["height"], segment["width"])
                assert places_of(drawn, frames_THWC[0]) == 1, segment["source"]
                checked += 1
    assert checked == 21


def test_a_clip_is_drawn_as_a_filmstrip_of_every_tubelet(packed: Path) -> None:
    rows = stored_rows(packed)
    number = next(n for n, row in enumerate(rows) if any(segment["timestamps_s"] for segment in row["segments"]))
    clip = next(segment for segment in rows[number]["segments"] if segment["timestamps_s"])
    drawn = np.array(draw(str(packed), number))
    layout_width = 2 * 8 * 8 * 3
    tokens = np.frombuffer(rows[number]["tokens"], np.uint8).reshape(-1, layout_width)
    grid = (clip["grid_t"], clip["grid_h"], clip["grid_w"])
    frames = unpatchify(tokens[clip["start"] :][: clip["num_tokens"]], grid, CONFIG.tubelet, 3, 5)
    assert grid[0] == 3
    for frame in frames[::2]:
        assert places_of(drawn, frame) == 1
    for frame in frames[1::2]:
        assert places_of(drawn, frame) == 0


def test_the_strip_shows_segments_in_colour_and_padding_hatched(packed: Path) -> None:
    rows = stored_rows(packed)
    number = next(n for n, row in enumerate(rows) if len(row["segments"]) > 1 and row["num_tokens"] < 60)
    drawn = np.array(draw(str(packed), number))
    margin, width = inspection_picture.MARGIN_PX, inspection_picture.WIDTH_PX - 2 * inspection_picture.MARGIN_PX
    top = margin + inspection_picture.LINE_PX + inspection_picture.GAP_PX
    strip = drawn[top + 4 : top + inspection_picture.STRIP_PX - 3]
    for place, segment in enumerate(rows[number]["segments"], start=1):
        x = margin + width * segment["start"] // CONFIG.sequence_length + 2
        assert (strip[:, x] == inspection_picture.colour(place)).all()
    padding = strip[:, margin + width * rows[number]["num_tokens"] // CONFIG.sequence_length + 2 : margin + width - 1]
    shades = {tuple(pixel) for pixel in padding.reshape(-1, 3).tolist()}
    assert len(shades) == 2
    assert (255, 255, 255) in shades


def test_an_empty_sequence_is_shown(packed: Path) -> None:
    number = next(n for n, row in enumerate(stored_rows(packed)) if not row["segments"])
    assert describe(str(packed), number)["segments"] == []
    assert draw(str(packed), number).width == inspection_picture.WIDTH_PX


def test_dropped_tokens_are_grey(own: Path) -> None:
    name = names(own)[0]
    rows = read_rows(own / name, CONFIG.layouts[0])
    row, segment = rows[0], rows[0]["segments"][-1]
    whole = np.array(draw(str(own), 0))
    end = row["num_tokens"] - 1
    for column in ("tokens", "segment_ids", "positions"):
        row[column][end] = 0
    segment["num_tokens"] -= 1
    row["num_tokens"] -= 1
    lengths = [one["num_tokens"] for one in row["segments"]]
    row["max_segment_tokens"], row["attention_cost"] = max(lengths), sum(n * n for n in lengths)
    rewrite_shard(own, name, rows)
    assert describe(str(own), 0)["problem"] is None
    drawn = np.array(draw(str(own), 0))
    # the token's 4 x 4 pixels, enlarged, and nothing else of the segments' frames
    grey = (drawn == 128).all(axis=2) & ~(whole == 128).all(axis=2)
    assert grey.sum() >= 16 and drawn.shape == whole.shape


@pytest.mark.parametrize("source", ["\x1b[2J\n" * 30, "\u30d5" * 80, "x" * 300])
def test_a_printed_description_fits_80_columns_whatever_the_key(packed: Path, source: str) -> None:
    description = describe(str(packed), 0)
    description["segments"][0] |= {"source": source, "captions": [source], "label_names": [source]}
    for line in printed(description).splitlines():
        assert sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) <= 80
        assert line.isprintable()


def test_a_wide_picture_is_shrunk_to_the_page() -> None:
    frames = np.zeros((1, 40, 4000, 3), np.uint8)
    frames[:, :, 2000:, 0] = 255
    drawn = np.array(
        inspection_picture.compose("title", [inspection_picture.SegmentImage(frames, ("wide",))], [(0, 5)], 10)
    )
    assert drawn.shape[1] == inspection_picture.WIDTH_PX
    half = (inspection_picture.WIDTH_PX - 2 * inspection_picture.MARGIN_PX) // 2
    for colour in ((0, 0, 0), (255, 0, 0)):
        # the filter blurs a column or two where they meet
        assert half - 4 <= (drawn == colour).all(axis=2).any(axis=0).sum() <= half


def test_a_missing_shard_is_named(own: Path) -> None:
    (own / names(own)[0]).unlink()
    with pytest.raises(FormatError, match=rf"{names(own)[0]}: no such file; shards\.parquet lists it; "):
        describe(str(own), 0)
    assert describe(str(own), 14)["digest_ok"]


def test_an_input_is_found_by_its_key_and_by_its_id(packed: Path, run: Run, tmp_path: Path) -> None:
    rows = stored_rows(packed)
    segment = next(row["segments"][0] for row in rows[3:] if row["segments"])
    places = {
        name: [
            {"sequence": sequence, "segment": slot}
            for sequence, row in enumerate(rows)
            for slot, each in enumerate(row["segments"])
            if name in (each["example_id"], each["source"])
        ]
        for name in (segment["source"], segment["example_id"])
    }
    assert all(places.values())
    for name, due in places.items():
        found = run("inspect", packed, "--example", name, "--json", "--image", tmp_path / "one.png")
        assert found.code == 0 and json.loads(found.out) == {"name": name, "places": due, "rejects": []}
        image = draw(str(packed), due[0]["sequence"])
        assert Image.open(tmp_path / "one.png").tobytes() == image.tobytes()
    words = run("inspect", packed, "--example", segment["example_id"]).out.splitlines()
    assert words == [
        segment["example_id"],
        *(f"  sequence {each['sequence']}, segment {each['segment'] + 1}" for each in due),
    ]


def test_a_reject_says_why_in_the_decoder_s_words(own: Path, run: Run) -> None:
    told = "broken \x1b[31mhere‮ " + "x" * 300
    rejects = pq.read_table(own / "rejects.parquet").to_pylist()
    rejects[0]["detail"] = told
    (own / "rejects.parquet").write_bytes(table_bytes(rejects, REJECT_TABLE_SCHEMA))
    key = rejects[0]["key"]
    found = run("inspect", own, "--reject", key)
    assert found.code == 0
    name, where, why = found.out.splitlines()
    assert name == key and where == f"  rejected at {rejects[0]['stage']}: {rejects[0]['reason']}"
    assert why == "    broken \\x1b[31mhere\\u202e " + "x" * 300
    assert json.loads(run("inspect", own, "--reject", key, "--json").out)["rejects"] == [rejects[0]]
    drawn = run("inspect", own, "--reject", key, "--image", "a.png")
    assert (
        drawn.code == 2 and drawn.err == f"--image a.png: {key} is in no sequence; an image shows one; leave it out\n"
    )


def test_an_input_that_nobody_knows_is_one_line(packed: Path, run: Run) -> None:
    ended = run("inspect", packed, "--example", "no/such\n.jpg")
    assert ended.code == 2 and ended.err.count("\n") == 1 and "neither packed nor rejected" in ended.err
    for arguments in ((), (3, "--example", "a")):
        ended = run("inspect", packed, *arguments)
        assert ended.code == 2 and ended.err.startswith("N or --example ID|KEY: give one of them")
