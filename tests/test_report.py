"""The report says what is stored: every number against a slow count over all rows."""

import dataclasses
import json
import math
import re
import shutil
import statistics
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.manifests import change_manifest
from support.markup import Page
from support.reports import printed, rejected, report_of
from support.small_set import CONFIG, accept_file, build_small_set, stored_rows

import patchpack
from patchpack.pipeline.report.counted import scan_shards
from patchpack.pipeline.report.html import render_html
from patchpack.pipeline.report.rejects import RejectCounts
from patchpack.pipeline.report.scan import make_report
from patchpack.pipeline.report.statistics import MAX_BINS, distribution
from patchpack.pipeline.stages import sample, saved
from patchpack.pipeline.stages.planned import PlannedExample
from patchpack.pipeline.stages.records import Example, Reference, Source
from patchpack.schemas import FormatError, Shard, read_manifest, read_shard_table
from patchpack.schemas.manifest import REJECT_TABLE_SCHEMA


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset; tests that damage one copy it."""
    return build_small_set(tmp_path_factory.mktemp("report"))


def planned_rows(folder: Path) -> list[PlannedExample]:
    """Returns every planned example of a dataset."""
    shards = saved.planned_shards(str(folder))
    return [row for shard in shards for row in saved.read_shard_rows(str(folder), shard)]


@pytest.fixture(scope="module")
def report(packed: Path) -> dict[str, Any]:
    """The report of the dataset."""
    return report_of(packed)


@pytest.fixture(scope="module")
def rows(packed: Path) -> list[dict[str, Any]]:
    """Every stored sequence."""
    return stored_rows(packed)


@pytest.fixture(scope="module")
def segments(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every stored example."""
    return [segment for row in rows for segment in row["segments"]]


def check_distribution(found: dict[str, Any], values: list[Any], tolerance: float = 0.0) -> None:
    """Compares mean, quantiles and bins of a distribution with those of plain values."""
    ordered = sorted(values)
    expected = {
        "min": ordered[0],
        "p5": ordered[max(1, math.ceil(len(ordered) * 5 / 100)) - 1],
        "median": ordered[math.ceil(len(ordered) / 2) - 1],
        "p95": ordered[math.ceil(len(ordered) * 95 / 100) - 1],
        "max": ordered[-1],
        "mean": statistics.fmean(values),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=tolerance or 1e-12)
    assert found["num"] == len(values) == sum(found["counts"]) + found["num_above"]
    if not tolerance:
        for place, (low, high) in enumerate(zip(found["edges"], found["edges"][1:], strict=False)):
            last = place == len(found["counts"]) - 1
            assert found["counts"][place] == sum(low <= value < high or (last and value == high) for value in values)


def test_efficiency_and_totals_are_those_of_the_rows(report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    tokens = sum(row["num_tokens"] for row in rows)
    places = len(rows) * CONFIG.sequence_length
    assert report["efficiency"]["efficiency"] == tokens / places
    assert report["efficiency"]["padding_fraction"] == pytest.approx(1 - tokens / places)
    stored = report["totals"]["stored"]
    assert stored["num_sequences"] == len(rows)
    assert stored["num_segments"] == sum(len(row["segments"]) for row in rows)
    assert stored["num_tokens"] == tokens
    assert stored["num_full_sequences"] == sum(row["num_tokens"] == CONFIG.sequence_length for row in rows) > 0
    assert stored["num_empty_sequences"] == sum(not row["segments"] for row in rows) > 0


def test_distributions_are_those_of_the_rows(
    report: dict[str, Any], rows: list[dict[str, Any]], segments: list[dict[str, Any]]
) -> None:
    check_distribution(report["tokens_per_example"], [segment["num_tokens"] for segment in segments])
    check_distribution(report["examples_per_sequence"], [len(row["segments"]) for row in rows])
    fills = [row["num_tokens"] / CONFIG.sequence_length for row in rows]
    check_distribution(report["sequence_fill"], fills, tolerance=1e-6)
    check_distribution(
        report["effective_side_px"], [round(math.sqrt(segment["height"] * segment["width"])) for segment in segments]
    )


def test_aspect_error_and_scale_compare_the_stored_size_with_the_source(
    report: dict[str, Any], segments: list[dict[str, Any]]
) -> None:
    errors, scales, changes = [], [], []
    for segment in segments:
        ratio = Fraction(segment["height"], segment["width"]) / Fraction(
            segment["source_height"], segment["source_width"]
        )
        errors.append(float(max(ratio, 1 / ratio) - 1))
        area = segment["height"] * segment["width"] / (segment["source_height"] * segment["source_width"])
        scales.append(math.sqrt(area))
        wanted = segment["target_height"] * segment["target_width"]
        changes.append(abs(math.sqrt(segment["height"] * segment["width"] / wanted) - 1))
    check_distribution(report["aspect_error"], errors, tolerance=1e-4)
    check_distribution(report["scale"], scales, tolerance=1e-4)
    check_distribution(report["side_change"], changes, tolerance=1e-4)


def test_shrunk_examples_are_those_that_the_cap_made_smaller(packed: Path, report: dict[str, Any]) -> None:
    policy, wanted = dataclasses.replace(CONFIG.policy, cap=30_000), []
    for row in planned_rows(packed):
        size = row.source_height, row.source_width
        example = Example(Source(row.key, 0, "", 1), 0, row.example_id, *size, row.frame_pts)
        free = sample.sample(example, 0, policy)
        assert isinstance(free, Reference)
        wanted.append(free.num_tokens)
    # some by less than the 12 % that grids may depart from what was drawn
    assert report["sizes"]["num_shrunk"] == sum(tokens > CONFIG.sequence_length for tokens in wanted) > 1
    assert report["sizes"]["cap_for_all"] == max(wanted)


def test_the_report_and_its_page_say_what_was_made_to_fit(packed: Path, report: dict[str, Any]) -> None:
    sizes, rows = report["sizes"], planned_rows(packed)
    assert (sizes["num_examples"], sizes["num_clips"]) == (len(rows), 1)
    text = printed(report)
    page = " ".join(Page(render_html(report)).words.split())
    for words in (
        f"{sizes['num_shrunk']} of {len(rows) - 1} images",
        f"the worst to {sizes['shrunk_side_min']:.2f}",
        f"--sequence-length {sizes['cap_for_all']} shrinks none",
        f"{sizes['num_upscaled']} of {len(rows) - 1} images",
    ):
        assert words in text
        assert words in page


def test_a_dataset_whose_sizes_nobody_sampled_has_a_report(packed: Path) -> None:
    totals = read_manifest(str(packed)).totals
    report = report_of(packed, totals=totals | {"sizes": None})
    assert report["sizes"] is None
    assert "shrunk" not in printed(report)
    assert "Made to fit" not in render_html(report)
    with pytest.raises(FormatError, match="broken totals or bounds"):
        report_of(packed, totals=totals | {"sizes": {"num_shrunk": 1}})


def test_attention_cost_is_the_sum_of_squared_lengths(report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    costs = [sum(segment["num_tokens"] ** 2 for segment in row["segments"]) for row in rows]
    found = report["attention_cost_per_sequence"]
    assert found["mean"] == pytest.approx(statistics.fmean(costs))
    assert found["max"] == max(costs)
    assert found["max_over_mean"] == pytest.approx(max(costs) / statistics.fmean(costs))
    assert found["fraction_of_full"] == pytest.approx(sum(costs) / (len(rows) * CONFIG.sequence_length**2))


def test_clips_and_repeated_frames_are_counted_apart_from_images(
    report: dict[str, Any], segments: list[dict[str, Any]]
) -> None:
    clips = [segment for segment in segments if segment["timestamps_s"]]
    assert len(clips) == 1
    assert report["frames"] == {
        "num_images": len(segments) - 1,
        "num_clips": 1,
        "num_clip_frames": 5,
        "num_repeated_clip_frames": 1,
        "num_clips_with_repeated_frames": 1,
        # tubelets of two frames: an image stands still in each
        "num_repeated_image_frames": len(segments) - 1,
        "clip_duration_s": 0.625,
    }


def test_rejects_are_told_by_stage_and_reason_with_sample_keys(packed: Path) -> None:
    rejects = [row | {"key": f"{n}.jpg"} for n in (3, 1, 0, 2, 0) for row in rejected("")]
    rejects.append({"key": "z.jpg", "stage": "write", "reason": "changed", "detail": ""})
    # packed, but for what is missing
    rejects.append({"key": "y.mkv", "stage": "probe", "reason": "partial", "detail": ""})
    report = report_of(packed, rejects)
    # 0.jpg has two views, and both were rejected
    assert report["totals"]["num_rejected_inputs"] == 5
    assert report["rejects"] == [
        {"stage": "probe", "reason": "broken", "num_rejects": 5, "sample_keys": ["0.jpg", "1.jpg", "2.jpg"]},
        {"stage": "probe", "reason": "partial", "num_rejects": 1, "sample_keys": ["y.mkv"]},
        {"stage": "write", "reason": "changed", "num_rejects": 1, "sample_keys": ["z.jpg"]},
    ]


def test_classes_beyond_the_largest_are_summed_up(packed: Path, segments: list[dict[str, Any]]) -> None:
    counts = Counter(segment["labels"][0] for segment in segments)
    found = report_of(packed, classes=tuple(f"class {n}" for n in range(30)))["classes"]
    assert [(entry["name"], entry["num_examples"]) for entry in found["largest"][:2]] == [
        (f"class {label}", count) for label, count in counts.most_common()
    ]
    assert (found["num_labelled"], found["num_unlabelled"]) == (len(segments), 0)
    assert found["rest"] == {"num_classes": 10, "num_examples": 0}
    assert found["num_empty_classes"] == 28
    assert report_of(packed, classes=None)["classes"] is None


def test_a_gap_to_the_bound_is_told_in_sequences_and_as_a_fraction(packed: Path) -> None:
    entry = {
        "view": 0,
        "layout": 0,
        "num_sequences": 20,
        "bound": 16,
        "num_moved": 0,
        "num_chunks": 3,
        "num_chunks_optimal": 2,
    }
    report = report_of(packed, bounds=(entry,))
    assert report["bounds"] == [entry | {"gap": 4, "gap_fraction": 0.25, "proven_optimal": False}]
    assert report["efficiency"]["efficiency_at_bound"] == report["totals"]["planned"]["num_tokens"] / (16 * 64)
    assert "at most 4 over the least possible (0.2500)" in printed(report)
    optimal = report_of(packed, bounds=(entry | {"bound": 20},))
    assert optimal["bounds"][0]["proven_optimal"]
    assert "proven optimal\n" in printed(optimal)
    assert "<i>proven optimal</i>" in render_html(optimal)


def test_equal_sets_give_equal_reports_as_json(packed: Path, report: dict[str, Any]) -> None:
    again = report_of(packed)
    assert json.dumps(again, allow_nan=False) == json.dumps(report, allow_nan=False)
    # the file has advice, too
    advised = json.loads((packed / "report.json").read_text())
    assert advised == json.loads(json.dumps(patchpack.report(packed)))
    assert advised["advice"] and advised | {"advice": None, "what_if": None} == json.loads(json.dumps(report))
    assert render_html(again) == render_html(report)


def test_the_report_reads_no_tokens(
    packed: Path, report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Shard, "read_array")
    folder = tmp_path / "set"
    shutil.copytree(packed, folder)
    name = read_shard_table(str(folder))["path"][0].as_py()
    content = bytearray((folder / name).read_bytes())
    content[200:5000] = bytes(4800)
    (folder / name).write_bytes(content)
    accept_file(folder, name)
    damaged = report_of(folder)
    assert damaged | {"dataset_digest": report["dataset_digest"]} == report


def test_a_missing_shard_and_broken_totals_are_format_errors(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(packed, folder)
    with pytest.raises(FormatError, match=r"manifest\.json: broken totals or bounds \(KeyError\('planned'\)\); "):
        report_of(folder, totals={"num_inputs": 1, "num_rejects": 0, "ignored": {}})
    name = read_shard_table(str(folder))["path"][1].as_py()
    (folder / name).unlink()
    with pytest.raises(FormatError, match=rf"{name}: no such file; shards\.parquet lists it; "):
        report_of(folder)


def test_a_set_without_sequences_has_a_report(packed: Path) -> None:
    none = {"num_sequences": 0, "num_segments": 0, "num_tokens": 0}
    manifest = dataclasses.replace(
        read_manifest(str(packed)),
        totals={"num_inputs": 1, "num_rejects": 1, "ignored": {}, "planned": none, "sizes": None},
        bounds=(),
    )
    none_stored = scan_shards(str(packed), [], None)
    table = pa.Table.from_pylist(rejected("a.jpg"), schema=REJECT_TABLE_SCHEMA)
    report = make_report(manifest, none_stored, RejectCounts.of(table))
    assert report["efficiency"]["efficiency"] is None
    assert re.search("efficiency +none", printed(report))
    assert "Nothing was stored." in render_html(report)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=60))
def test_distributions_of_integers_are_exact(values: list[int]) -> None:
    found = distribution(Counter(values))
    check_distribution(found, values)
    assert len(found["counts"]) <= MAX_BINS
    assert found["num_above"] == 0


@settings(max_examples=60)
@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=200))
def test_distributions_of_fractions_leave_at_most_a_hundredth_beyond_the_axis(values: list[int]) -> None:
    found = distribution(Counter(values), 10_000)
    check_distribution(found, [value / 10_000 for value in values], tolerance=1e-9)
    assert len(found["counts"]) <= MAX_BINS
    assert found["num_above"] <= len(values) / 100
    assert found["num_above"] == sum(value / 10_000 > found["edges"][-1] for value in values)


def test_quantiles_are_nearest_rank() -> None:
    found = distribution(Counter(range(1, 201)))
    assert [found[name] for name in ("p5", "median", "p95")] == [10, 100, 190]


def test_an_outlier_does_not_squeeze_the_histogram_of_a_fraction() -> None:
    found = distribution(Counter({100: 150, 200: 49, 90_000: 1}), 10_000)
    assert found["edges"][-1] < 0.03
    assert sum(found["counts"]) == 199
    assert found["num_above"] == 1
    assert found["max"] == 9


def test_a_manifest_with_unknown_entries_is_read(packed: Path, tmp_path: Path, report: dict[str, Any]) -> None:
    folder = tmp_path / "set"
    shutil.copytree(packed, folder)
    change_manifest(folder, a_later_addition=[1])
    assert report_of(folder) == report
