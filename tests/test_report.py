"""The report says what is stored: every number against a slow count over all rows."""

import base64
import dataclasses
import io
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import unicodedata
from collections import Counter
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.manifests import change_manifest
from support.markup import plain
from support.small_set import CONFIG, accept_file, build_small_set, stored_rows

import patchpack
from patchpack.pipeline.report.charted import charts_of
from patchpack.pipeline.report.html import render_html
from patchpack.pipeline.report.rejected import reject_thumbnails
from patchpack.pipeline.report.scan import make_report
from patchpack.pipeline.report.statistics import MAX_BINS, distribution
from patchpack.pipeline.report.text import fitted, print_report
from patchpack.pipeline.stages import sample, saved
from patchpack.pipeline.stages.planned import PlannedExample
from patchpack.pipeline.stages.records import Example, Reference, Source
from patchpack.schemas import FormatError, Shard, read_manifest, read_shard_table
from patchpack.schemas.manifest import REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA, read_table

ROOT = Path(__file__).parent.parent
HOSTILE = "<script>alert(1)</script>.jpg"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset; tests that damage one copy it."""
    return build_small_set(tmp_path_factory.mktemp("report"))


def report_of(folder: Path, rejects: list[dict[str, str]] | None = None, **manifest: Any) -> dict[str, Any]:
    """Returns the report of a dataset, as another manifest or reject table would make it."""
    table = read_table(str(folder), REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA)
    if rejects is not None:
        table = pa.Table.from_pylist(rejects, schema=REJECT_TABLE_SCHEMA)
    changed = dataclasses.replace(read_manifest(str(folder)), **manifest)
    return make_report(str(folder), changed, read_shard_table(str(folder)), table)


def printed(report: dict[str, Any]) -> str:
    """Returns the report as a terminal would show it."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    print_report(report, out)
    out.seek(0)
    return out.read()


def planned_rows(folder: Path) -> list[PlannedExample]:
    """Returns every planned example of a dataset."""
    shards = saved.planned_shards(str(folder))
    return [row for shard in shards for row in saved.read_shard_rows(str(folder), shard)]


def rejected(key: str) -> list[dict[str, str]]:
    """Returns a reject table of one row."""
    return [{"key": key, "stage": "probe", "reason": "broken", "detail": "bad"}]


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
    page = " ".join(_Page(render_html(report)).words.split())
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
    shards = read_shard_table(str(packed)).slice(0, 0)
    report = make_report(
        str(packed), manifest, shards, pa.Table.from_pylist(rejected("a.jpg"), schema=REJECT_TABLE_SCHEMA)
    )
    assert report["efficiency"]["efficiency"] is None
    assert re.search("efficiency +none", printed(report))
    assert "Nothing was stored." in render_html(report)


@pytest.mark.parametrize("key", ["a/" * 70 + "\u30d5\u30a1" * 30 + ".jpg", "\x1b[2J\x07\n\u202e" * 12 + ".jpg"])
def test_the_printed_report_fits_80_columns_whatever_the_keys(packed: Path, key: str) -> None:
    # counts of nine digits, too
    entry = dict.fromkeys(("view", "layout", "num_chunks"), 0) | {"num_chunks_optimal": 0, "bound": 200_000_000}
    bounds = (entry | {"num_sequences": 200_000_000, "num_moved": 100_000_000},)
    text = printed(report_of(packed, rejected(key), classes=(key, "b" * 200), bounds=bounds))
    assert "100,000,000 examples have other tokens" in text
    for line in text.splitlines():
        assert sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) <= 80
        assert line.isprintable()
    assert ".jpg" in text


def test_the_printed_report_survives_a_terminal_of_ascii(packed: Path) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_report(report_of(packed, rejected("\u00e9" * 100 + ".jpg")), out)
    out.seek(0)
    text = out.read()
    assert " ####" in text
    assert "\\xe9" in text


@given(st.text(max_size=60), st.integers(8, 40))
def test_shortened_text_is_printable_and_fits(text: str, width: int) -> None:
    short = fitted(text, width)
    assert sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in short) <= width
    assert short.isprintable()


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


class _Page(HTMLParser):
    """Collects the tags, ids, references and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("src", "href", "xlink:href", "srcset", "data", "action") or name.startswith("on"):
                self.references.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_needs_nothing_from_outside(report: dict[str, Any]) -> None:
    text = plain(render_html(report))
    page = _Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    for outside in ("http://", "https://", "src=", "@import", "url(//"):
        assert outside not in text
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in page.references)
    assert max(page.ids.values()) == 1


def test_the_page_escapes_keys_classes_and_suffixes(packed: Path) -> None:
    manifest = read_manifest(str(packed))
    totals = manifest.totals | {"ignored": {f".{HOSTILE}": 2}}
    text = plain(render_html(report_of(packed, rejected(HOSTILE), classes=(HOSTILE, "b"), totals=totals)))
    page = _Page(text)
    assert page.tags["script"] == 0
    assert "<script" not in text
    assert page.words.count(HOSTILE) == 3


def test_every_chart_has_a_place_a_title_and_axes_with_units(report: dict[str, Any]) -> None:
    page, charts = _Page(plain(render_html(report))), charts_of(report)
    assert {name for name in page.ids if name.startswith("chart-")} == {f"chart-{name}" for name in charts}
    assert page.tags["h3"] >= page.tags["figure"] == len(charts)
    titles = {name: _titles(spec) for name, spec in charts.items()}
    assert titles["sequence-fill"] == {"real tokens / sequence length (fraction)", "sequences"}
    assert titles["resolution"] == {"effective side, √(height × width) (px)", "examples"}
    assert titles["aspect-error"] == {"larger aspect / smaller aspect − 1 (fraction)", "examples"}
    assert all(titles.values()) and all(spec["description"].endswith(".") for spec in charts.values())
    for words in (report["dataset_digest"], "media/right/empty.jpg", "side:16-64"):
        assert words in page.words


def _titles(spec: dict[str, Any]) -> set[str]:
    """Returns the titles of a chart's axes."""
    encodings = [
        layer["encoding"][axis] for layer in spec["layer"] for axis in "xy" if axis in layer.get("encoding", {})
    ]
    return {encoding["title"] for encoding in encodings if encoding.get("title")}


def test_reading_sets_needs_neither_beam_nor_what_draws_the_page() -> None:
    code = (
        "import sys; from patchpack.pipeline.inspection import sequence; from patchpack.pipeline.report import html, scan, text; "
        "from patchpack.pipeline.verification import dataset; "
        "print(sorted({'apache_beam', 'matplotlib', 'jinja2', 'vl_convert'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_a_manifest_with_unknown_entries_is_read(packed: Path, tmp_path: Path, report: dict[str, Any]) -> None:
    folder = tmp_path / "set"
    shutil.copytree(packed, folder)
    change_manifest(folder, a_later_addition=[1])
    assert report_of(folder) == report


def test_the_first_rejected_image_of_a_reason_is_shown_where_it_decodes(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    # smooth, as thumbnails are lossy
    pixels = np.fromfunction(lambda y, x, c: 20 + 2 * x + y * (c + 1), (40, 90, 3)).astype(np.uint8)
    for name in ("a", "b", "c"):
        Image.fromarray(pixels).save(media / f"{name}.png")
    whole = (media / "a.png").read_bytes()
    (media / "cut.png").write_bytes(whole[: len(whole) // 2])
    options: dict[str, Any] = {"workers": 1, "dedupe": "digest", "max_reject_fraction": 1.0}
    made = patchpack.build(media, tmp_path / "set", **options)
    found = reject_thumbnails(str(tmp_path / "set"), made["rejects"])
    assert [entry["reason"] for entry in made["rejects"]] == ["duplicate", "broken"]
    assert list(found) == ["media/b.png"]
    frame = found["media/b.png"]
    assert (frame["height"], frame["width"]) == (32, 72)
    drawn = Image.open(io.BytesIO(base64.b64decode(frame["image"].partition(",")[2]))).convert("RGB")
    expected = Image.fromarray(pixels).resize((72, 32), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(drawn, int) - np.asarray(expected, int)).mean() < 12
    page = (tmp_path / "set" / "report.html").read_text()
    assert page.count('alt="the first of them"') == 1
    assert frame["image"] in page
    # where the files are gone there is none, and no error
    shutil.rmtree(media)
    assert reject_thumbnails(str(tmp_path / "set"), made["rejects"]) == {}
    (tmp_path / "set" / "_run.json").write_text("{}")
    assert reject_thumbnails(str(tmp_path / "set"), made["rejects"]) == {}
