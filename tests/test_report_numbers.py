"""The figures of the newer sections of a report against slow counts over raw shards, read by pyarrow alone."""

import math
import os
import random
import statistics
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.media_files import photo, video, write_files
from support.small_set import CHANGED_KEY, build_small_set, stored_rows

import patchpack
from patchpack.pipeline.packing.balance.balance import random_ratio
from patchpack.pipeline.report.aspects import Aspects, Sides, hexagon

OPTIONS: dict[str, Any] = {
    "workers": 1,
    "sequence_length": 64,
    "max_segments": 3,
    "resolution": "side:24-64",
    "views": 2,
    "patch_sizes": (8, 16),
    "drop_tokens": "constant:0.3",
    "clip_frames": 4,
    "clips_per_video": 3,
    "group_size": 16,
}


@pytest.fixture(scope="module", params=["layouts and views", "images and a clip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two layouts in two views with dropped tokens and several clips of a video, or the small one."""
    folder = tmp_path_factory.mktemp("numbers")
    if request.param == "images and a clip":
        return build_small_set(folder)
    # some far wider or higher than 16 : 1, which stand at the rim of the plane
    sizes = [(40 + 9 * n, 130 - 7 * n) for n in range(14)] + [(8, 300), (400, 9), (20, 20), (20, 40)]
    images = {f"{n:02}.png": photo(size, "PNG") for n, size in enumerate(sizes)}
    write_files(folder / "media", images | {"clip.mp4": video(num_frames=48), "broken.jpg": b"no image"})
    patchpack.build(folder / "media", folder / "set", **OPTIONS, max_reject_fraction=1.0)
    return folder / "set"


@pytest.fixture(scope="module")
def report(folder: Path) -> Any:
    return patchpack.report(folder)


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    return stored_rows(folder)


@pytest.fixture(scope="module")
def segments(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [segment | {"sequence": number} for number, row in enumerate(rows) for segment in row["segments"]]


def test_what_the_limit_of_segments_costs_is_counted(report: Any, rows: list[dict[str, Any]]) -> None:
    layout = report["layouts"][0]
    full = [row for row in rows if len(row["segments"]) == layout["max_segments"]]
    assert report["segment_limit"] == {
        "num_at_limit": len(full),
        "num_padding_tokens_at_limit": sum(layout["sequence_length"] - row["num_tokens"] for row in full),
    }
    assert len({one["max_segments"] for one in report["layouts"]}) == 1
    assert full or report["config"]["views"] == 1


def in_octaves(width: int, height: int) -> int:
    """Returns the nearest 32nd of a doubling of an aspect, by logarithms; what is beyond 16 : 1 is 16 : 1."""
    exact = 32 * math.log2(width / height)
    assert abs(exact - math.floor(exact) - 0.5) > 1e-9, "a tie; floats cannot say"
    return min(128, max(-128, round(exact)))


# even rows of centres begin at 0, odd ones half a hexagon to the right
CENTRES = [(8 * column + (4 if row % 2 else 0), 7 * row) for row in range(-22, 23) for column in range(-20, 21)]


def nearest(x: int, y: int) -> tuple[int, int]:
    """Returns the nearest of all centres, the lower of equally near ones."""
    return min(CENTRES, key=lambda centre: (math.dist(centre, (x, y)), centre))


def test_bins_of_the_aspect_plane_are_those_of_a_slow_search(report: Any, segments: list[dict[str, Any]]) -> None:
    found: Counter[tuple[int, int]] = Counter()
    for one in segments:
        source = in_octaves(one["crop_width"], one["crop_height"])
        found[nearest(source, in_octaves(one["valid_width"], one["valid_height"]))] += 1
    assert report["aspect_plane"]["bins"] == [
        {"source": x / 32, "realised": y / 32, "num_examples": found[x, y]} for x, y in sorted(found)
    ]
    assert sum(one["num_examples"] for one in report["aspect_plane"]["bins"]) == len(segments) > 15


@settings(max_examples=300)
@given(st.integers(-128, 128), st.integers(-128, 128))
def test_a_point_is_in_the_hexagon_of_its_nearest_centre(x: int, y: int) -> None:
    assert hexagon(x, y) == nearest(x, y)


def test_the_most_stretched_are_those_of_a_sorted_list(report: Any, segments: list[dict[str, Any]]) -> None:
    errors = []
    for one in segments:
        ratio = Fraction(one["valid_width"], one["valid_height"]) / Fraction(one["crop_width"], one["crop_height"])
        at = [other for other in segments if other["sequence"] == one["sequence"]].index(one)
        # a ten-thousandth is the finest that is kept
        error = math.floor((max(ratio, 1 / ratio) - 1) * 10_000 + Fraction(1, 2))
        errors.append((-error, one["sequence"], at, one))
    due = sorted(errors, key=lambda entry: entry[:3])[:6]
    assert report["aspect_plane"]["worst"] == [
        {
            "key": one["source"],
            "sequence": sequence,
            "segment": at,
            "aspect_error": -error / 10_000,
            "source_height": one["crop_height"],
            "source_width": one["crop_width"],
            "height": one["valid_height"],
            "width": one["valid_width"],
        }
        for error, sequence, at, one in due
        if error
    ]
    assert len(report["aspect_plane"]["worst"]) == 6


def test_of_equally_stretched_examples_the_first_are_shown() -> None:
    aspects, sequence = Aspects(), 0
    for errors in ((3, 5, 5), (5, 1, 5, 7), (5, 5, 0, 5, 5)):
        many = np.full(len(errors), 10)
        numbers = np.arange(sequence, sequence + len(errors))
        keys = pa.array([f"{number}" for number in numbers])
        aspects.add(Sides(many, many, many, many), np.array(errors), keys, numbers)
        sequence += len(errors)
    assert [one["key"] for one in aspects.plane()["worst"]] == ["6", "1", "2", "3", "5", "7"]


def test_sides_asked_for_are_those_of_the_targets(report: Any, segments: list[dict[str, Any]]) -> None:
    for name, kind in (("requested_side_px", "target"), ("effective_side_px", "valid")):
        sides = [round(math.sqrt(one[f"{kind}_height"] * one[f"{kind}_width"])) for one in segments]
        found = report[name]
        assert (found["num"], found["num_above"], sum(found["counts"])) == (len(sides), 0, len(sides))
        assert found["mean"] == pytest.approx(statistics.fmean(sides))
        assert (found["min"], found["max"], found["median"]) == (min(sides), max(sides), statistics.median_low(sides))
        edges = found["edges"]
        for place, count in enumerate(found["counts"]):
            last = place == len(found["counts"]) - 1
            inside = [s for s in sides if edges[place] <= s and (s <= edges[-1] if last else s < edges[place + 1])]
            assert count == len(inside)
    assert report["requested_side_px"]["edges"] == report["effective_side_px"]["edges"]


def test_dropped_tokens_are_what_the_grids_have_more(report: Any, segments: list[dict[str, Any]]) -> None:
    grids = sum(one["grid_t"] * one["grid_h"] * one["grid_w"] for one in segments)
    dropped = grids - sum(one["num_tokens"] for one in segments)
    assert report["num_dropped_tokens"] == dropped
    assert (dropped > 0) == (report["config"]["drop_tokens"] != "none")


def test_bytes_by_column_and_the_rest_are_those_of_the_files(folder: Path, report: Any) -> None:
    files = list((folder / "sequences").iterdir())
    sizes: Counter[str] = Counter()
    for path in files:
        footer = pq.read_metadata(path)
        for group in range(footer.num_row_groups):
            for number in range(footer.num_columns):
                column = footer.row_group(group).column(number)
                sizes[column.path_in_schema.split(".")[0]] += column.total_compressed_size
    found = report["storage"]
    assert found["bytes_by_column"] == sizes
    assert list(found["bytes_by_column"].values()) == sorted(sizes.values(), reverse=True)
    total = sum(os.path.getsize(path) for path in files)
    assert sum(sizes.values()) + found["footer_bytes"] == total == report["totals"]["stored"]["bytes"]
    assert found["footer_bytes"] > 0
    assert found["factor"] == total / found["source_bytes"]


def test_bytes_of_sources_are_those_of_the_files_that_were_planned_each_once(folder: Path, report: Any) -> None:
    media = folder.parent / "media"
    # not what was rejected before the plan, and not what is no media
    planned = [path for path in media.rglob("*.*") if path.name not in ("broken.jpg", "empty.jpg", "notes.txt")]
    sizes = {path.name: os.path.getsize(path) for path in planned}
    if CHANGED_KEY.endswith(changed := "04.png") and sizes[changed] == len(b"another file"):
        # in the plan as it was before another file took its place
        sizes[changed] = size_as_planned(folder, CHANGED_KEY)
    assert report["storage"]["source_bytes"] == sum(sizes.values())


def size_as_planned(folder: Path, key: str) -> int:
    tables = [pq.read_table(path).to_pylist() for path in (folder / "_plan").glob("**/*.parquet")]
    [size] = {row["size_bytes"] for table in tables for row in table if row.get("key") == key and "size_bytes" in row}
    return int(size)


def test_bytes_of_sources_of_a_table_and_of_arrays(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{n}.jpg": photo((30 + n, 50)) for n in range(5)})
    (tmp_path / "t.csv").write_text("path,texts\n" + "".join(f"{n}.jpg,words {n}\n" for n in range(4)))
    made = patchpack.build(tmp_path / "t.csv", tmp_path / "set", workers=1, caption_column=("texts",), views=2)
    assert made["storage"]["source_bytes"] == sum(os.path.getsize(tmp_path / f"{n}.jpg") for n in range(4))
    segments = [segment for row in stored_rows(tmp_path / "set") for segment in row["segments"]]
    assert made["captions"] == {"num_captioned": 8, "num_captions": 8}
    assert [len(one["captions"]) for one in segments] == [1] * 8
    layout = patchpack.Layout(64, 8, (1, 1, 1), channels=1)
    with patchpack.ShardWriter(tmp_path / "arrays", layout) as writer:
        for number in range(5):
            writer.add(
                np.full((3, 1), 7, np.uint8), (1, 1, 3), key=f"{number}", captions=["one", "two", "three"][: number % 4]
            )
    found = patchpack.report(tmp_path / "arrays")
    assert (found["storage"]["source_bytes"], found["storage"]["factor"]) == (None, None)
    assert found["captions"] == {"num_captioned": 3, "num_captions": 6}


def test_rates_and_spans_of_clips_are_those_of_the_rows(report: Any, segments: list[dict[str, Any]]) -> None:
    clips = [one for one in segments if one["clip_start_s"] is not None]
    assert len(clips) == (1 if report["config"]["views"] == 1 else 6)
    for name, field in (("fps", "fps"), ("duration_s", "clip_duration_s")):
        values, found = [one[field] for one in clips], report["clips"][name]
        assert found["num"] == len(values)
        assert found["mean"] == pytest.approx(statistics.fmean(values), abs=1e-3)
        for end, value in (("min", min(values)), ("max", max(values)), ("median", statistics.median_low(values))):
            assert found[end] == pytest.approx(value, abs=1e-3)
    assert report["frames"]["clip_duration_s"] == pytest.approx(sum(one["clip_duration_s"] for one in clips), abs=1e-3)


def test_captions_are_counted(report: Any, segments: list[dict[str, Any]]) -> None:
    assert report["captions"] == {
        "num_captioned": sum(bool(one["captions"]) for one in segments),
        "num_captions": sum(len(one["captions"]) for one in segments),
    }


def test_steps_of_several_ranks_cost_what_drawing_them_shows(report: Any, rows: list[dict[str, Any]]) -> None:
    costs = [sum(one["num_tokens"] ** 2 for one in row["segments"]) for row in rows]
    mean, rng = statistics.fmean(costs), random.Random(0)
    for ranks in (8, 64, 256):
        drawn = [max(rng.choices(costs, k=ranks)) / mean for _ in range(4000)]
        error = statistics.stdev(drawn) / math.sqrt(len(drawn))
        # costs are counted in millionths of full attention, 64 x 64
        assert report["step_balance"]["random_by_ranks"][str(ranks)] == pytest.approx(
            statistics.fmean(drawn), abs=4 * error + 1e-4
        )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), st.integers(1, 4))
def test_a_step_costs_its_mean_over_all_that_can_be_drawn(costs: list[int], ranks: int) -> None:
    draws: list[list[int]] = [[]]
    for _ in range(ranks):
        draws = [[*draw, cost] for draw in draws for cost in costs]
    expected = Fraction(sum(map(max, draws)), len(draws)) / Fraction(sum(costs), len(costs))
    assert random_ratio(Counter(costs), ranks) == pytest.approx(float(expected), rel=1e-12)
