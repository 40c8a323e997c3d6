"""`report --figures`: every chart as SVG, PNG and CSV, ready for a paper, whatever the names, and one line where that cannot be."""

import csv
import io
import json
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from PIL import Image

import patchpack
from patchpack.pipeline.report.charted import charts_of
from patchpack.pipeline.report.figures import to_csv

Run = Callable[..., Result]
# what a spreadsheet would run, what a reader would obey, what would end an element or a cell
HOSTILE = (
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "</text><script>alert(1)</script>",
    "\u202eevil",
    "\x1b[31mred\x07",
    'a,"b"\nc',
    "n" * 4096,
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@pytest.fixture(scope="module")
def drawn(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figures of the small dataset."""
    folder = tmp_path_factory.mktemp("figures") / "not" / "there"
    from patchpack import command

    assert command.main(["report", str(packed), "--figures", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def report(packed: Path) -> Any:
    return patchpack.report(packed)


def titles_of(spec: Any) -> set[str]:
    """Returns the titles of the axes of a chart."""
    if isinstance(spec, list):
        return set().union(*map(titles_of, spec))
    encoding = spec.get("encoding", {})
    found = {encoding[axis].get("title") for axis in "xy" if axis in encoding} - {None}
    return found | titles_of(spec.get("layer", []))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_chart_is_three_files(drawn: Path, report: Any) -> None:
    charts = charts_of(report)
    assert {"what-if", "classes", "clip-fps", "storage", "resolution"} <= charts.keys()
    due = {f"{name}.{kind}" for name in charts for kind in ("svg", "png", "csv")}
    assert {path.name for path in drawn.iterdir()} == due


def test_an_image_says_its_axes_and_needs_no_page(drawn: Path, report: Any) -> None:
    for name, spec in charts_of(report).items():
        text = (drawn / f"{name}.svg").read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg")
        # a colour of the page's style would be black, and a font or an image elsewhere missing
        assert "var(" not in text and "@import" not in text and "url(http" not in text
        assert not [one for one in root.iter() if one.tag.rpartition("}")[2] in ("script", "image", "foreignObject")]
        words = {"".join(one.itertext()) for one in root.iter() if one.tag.endswith("text")}
        assert titles_of(spec) and titles_of(spec) <= words, name
        assert len(words) > len(titles_of(spec)), name


def test_a_raster_is_fit_for_print(drawn: Path, report: Any) -> None:
    for name in charts_of(report):
        with Image.open(drawn / f"{name}.png") as image:
            assert image.width >= 1200, name
            pixels = np.asarray(image.convert("RGB"))
        # on white, and not white alone
        assert (pixels[0] == 255).all() and (pixels[-1] == 255).all() and pixels.min() < 128, name


def test_a_table_has_the_numbers_of_the_report(drawn: Path, report: Any) -> None:
    for name, key in (
        ("sequence-fill", "sequence_fill"),
        ("examples-per-sequence", "examples_per_sequence"),
        ("tokens-per-example", "tokens_per_example"),
        ("scale", "scale"),
        ("aspect-error", "aspect_error"),
        ("side-change", "side_change"),
        ("resolution", "effective_side_px"),
    ):
        rows, figures = table(drawn / f"{name}.csv"), report[key]
        assert [int(row["count"]) for row in rows] == figures["counts"], name
        edges = [float(row["from"]) for row in rows] + [float(rows[-1]["to"])]
        # a bar of one whole number stands over it
        shifts = {edge - low for edge, low in zip(edges, figures["edges"], strict=True)}
        assert shifts in ({0}, {-0.5}), name
    resolution = table(drawn / "resolution.csv")
    assert [int(row["asked"]) for row in resolution] == report["requested_side_px"]["counts"]
    sizes = {**report["storage"]["bytes_by_column"], "footers": report["storage"]["footer_bytes"]}
    for row in (stored := table(drawn / "storage.csv")):
        assert float(row["value"]) * 1e6 == pytest.approx(sizes[row["name"]])
    assert sum(float(row["value"]) * 1e6 for row in stored) == pytest.approx(sum(sizes.values()), rel=0.02)
    assert [int(row["value"]) for row in table(drawn / "classes.csv")] == [
        one["num_examples"] for one in report["classes"]["largest"]
    ]
    bins = [
        (float(row["source"]), float(row["realised"]), int(row["num_examples"]))
        for row in table(drawn / "aspect-plane.csv")
    ]
    assert bins == [tuple(one.values()) for one in report["aspect_plane"]["bins"]]
    compared = table(drawn / "what-if.csv")
    assert [float(row["padding"]) for row in compared] == [row["padding_fraction"] for row in report["what_if"]["rows"]]
    assert [row["is_chosen"] for row in compared] == ["True"] + ["False"] * (len(compared) - 1)
    efficiency = {row["name"]: float(row["value"]) for row in table(drawn / "efficiency.csv")}
    assert efficiency["stored"] == report["efficiency"]["efficiency"]
    balance = [float(row["value"]) for row in table(drawn / "step-balance.csv")]
    assert balance == list(report["step_balance"]["random_by_ranks"].values())


def hostile_set(folder: Path) -> Path:
    """Makes a dataset whose classes, keys and captions have hostile names."""
    layout = patchpack.Layout(16, 8, (1, 1, 1), channels=1)
    with patchpack.ShardWriter(folder, layout, classes=HOSTILE) as writer:
        for number, name in enumerate(HOSTILE):
            writer.add(np.zeros((3, 1), np.uint8), (1, 1, 3), key=name, labels=[number], captions=[name])
    return folder


@pytest.mark.slow
def test_hostile_names_are_text_in_every_file(tmp_path: Path, run: Run) -> None:
    hostile_set(tmp_path / "set")
    assert run("report", tmp_path / "set", "--figures", tmp_path / "f").code == 0
    for path in (tmp_path / "f").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert not [one for one in root.iter() if one.tag.endswith(("script", "foreignObject"))]
        assert not [name for one in root.iter() for name in one.attrib if name.startswith("on")]
        assert "\u202e" not in (text := path.read_text(encoding="utf-8")) and text.replace("\n", "").isprintable()
    words = ["".join(one.itertext()) for one in ElementTree.parse(tmp_path / "f/classes.svg").iter()]
    for shown in ("0: =cmd|' /C calc'!A0", "4: </text><script>", "\\u202eevil", "\\x1b[31mred\\x07"):
        assert any(shown in word for word in words), shown
    names = [row["name"] for row in table(tmp_path / "f/classes.csv")]
    assert names[0] == "0: =cmd|' /C calc'!A0" and names[7] == '7: a,"b"\\nc' and len(names[8]) <= 40
    for path in (tmp_path / "f").glob("*.csv"):
        check_cells(path.read_text(encoding="utf-8"))


def check_cells(text: str) -> None:
    """Checks that no cell of a table is a formula to a spreadsheet; numbers may be negative."""
    for cell in (cell for row in csv.reader(io.StringIO(text)) for cell in row):
        try:
            float(cell)
        except ValueError:
            assert not cell.startswith(FORMULA), cell


def test_no_text_of_a_table_is_a_formula() -> None:
    rows = [
        {"name": name, "value": value}
        for name, value in zip((*HOSTILE[:4], "\t=1", "a=1"), (-1, 0.5, 2, 3, 4, 5), strict=True)
    ]
    text = to_csv({"layer": [], "data": {"values": rows}})
    check_cells(text)
    read = list(csv.DictReader(io.StringIO(text)))
    # the apostrophe is what spreadsheets hide; numbers stay numbers
    assert [row["name"] for row in read] == ["'" + str(row["name"]) for row in rows[:5]] + ["a=1"]
    assert [float(row["value"]) for row in read] == [row["value"] for row in rows]


def test_options_tried_are_no_formulas(drawn: Path) -> None:
    check_cells((drawn / "what-if.csv").read_text(encoding="utf-8"))
    assert any(row["setting"].startswith("'--") for row in table(drawn / "what-if.csv"))


def test_a_place_that_cannot_be_made_is_one_line(packed: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("here")
    for place, words in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "in", "Not a directory")):
        ended = run("report", packed, "--figures", place)
        assert ended == Result(1, "", f"{place}: cannot be written ({words}); check the path and its permissions\n")
    assert (tmp_path / "file").read_text() == "here"


@pytest.mark.parametrize("option", ["--figures", "--html"])
def test_what_draws_is_named_where_it_is_missing(
    packed: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    from patchpack.pipeline.report import html

    html.new_environment.cache_clear()
    html._library.cache_clear()
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    ended = run("report", packed, option, tmp_path / "x")
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith("vl_convert: not installed; report") and "the extra report" in ended.err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("num_examples", [0, 1])
@pytest.mark.slow_beyond(1)
def test_a_dataset_of_next_to_nothing_has_figures(tmp_path: Path, run: Run, num_examples: int) -> None:
    layout = patchpack.Layout(16, 8, (1, 1, 1), channels=1)
    with patchpack.ShardWriter(tmp_path / "set", layout) as writer:
        for _ in range(num_examples):
            writer.add(np.zeros((3, 1), np.uint8), (1, 1, 3), key="only")
    assert run("report", tmp_path / "set", "--figures", tmp_path / "f").code == 0
    counts = [int(row["count"]) for row in table(tmp_path / "f/tokens-per-example.csv")]
    assert sum(counts) == num_examples


@pytest.mark.slow
def test_figures_are_written_again(packed: Path, drawn: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "f")
    (tmp_path / "f/storage.csv").write_text("old")
    made = run("report", packed, "--figures", tmp_path / "f", "--json")
    assert made.code == 0 and json.loads(made.out) == json.loads(json.dumps(patchpack.report(packed)))
    for path in drawn.iterdir():
        assert (tmp_path / "f" / path.name).read_bytes() == path.read_bytes(), path.name
