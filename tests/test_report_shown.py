"""The report as people see it, in a terminal and on a page: whatever is in it, and with nothing from outside."""

import base64
import io
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.markup import Page, plain
from support.reports import printed, rejected, report_of
from support.small_set import build_small_set

import patchpack
from patchpack.pipeline.report.charted import charts_of
from patchpack.pipeline.report.html import render_html
from patchpack.pipeline.report.rejected import reject_thumbnails
from patchpack.pipeline.report.text import fitted, print_report
from patchpack.schemas import read_manifest

ROOT = Path(__file__).parent.parent
HOSTILE = "<script>alert(1)</script>.jpg"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset."""
    return build_small_set(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def report(packed: Path) -> dict[str, Any]:
    """The report of the dataset."""
    return report_of(packed)


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


def test_the_page_needs_nothing_from_outside(report: dict[str, Any]) -> None:
    text = plain(render_html(report))
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    for outside in ("http://", "https://", "src=", "@import", "url(//"):
        assert outside not in text
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in page.references)
    assert max(page.ids.values()) == 1


def test_the_page_escapes_keys_classes_and_suffixes(packed: Path) -> None:
    manifest = read_manifest(str(packed))
    totals = manifest.totals | {"ignored": {f".{HOSTILE}": 2}}
    text = plain(render_html(report_of(packed, rejected(HOSTILE), classes=(HOSTILE, "b"), totals=totals)))
    page = Page(text)
    assert page.tags["script"] == 0
    assert "<script" not in text
    assert page.words.count(HOSTILE) == 3


def test_every_chart_has_a_place_a_title_and_axes_with_units(report: dict[str, Any]) -> None:
    page, charts = Page(plain(render_html(report))), charts_of(report)
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


@pytest.mark.slow
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
