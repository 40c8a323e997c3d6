"""What a reader does with report.html and the page of a comparison: hover, sort, open, with a mouse or a keyboard, with or without scripts.

Also that a page is as large for a million sequences as for a few.
"""

import copy
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from support.browser import OpenPage, has_number, shown_text
from support.media_files import photo, write_files
from support.pages import DATASETS

import patchpack
from patchpack import command
from patchpack.pipeline.report.html import render_html
from patchpack.schemas.report import DistributionName

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

# a browser, and datasets to open in it
pytestmark = pytest.mark.slow

MOST_BYTES = 2_500_000
SETTINGS = ("--sequence-length 256", "--max-segments 2 --packer ours", "--balance-step 2")
# of every report, in their order
ALWAYS = ("fill", "examples", "sizes", "aspects", "balance", "storage", "counts", "left-out", "options")
SECTIONS = [*ALWAYS[:5], "what-if", "gallery", "storage", "clips", "counts", "left-out", "classes", "time", "options"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of images, a clip, two classes and rejects."""
    return DATASETS["mixed"](tmp_path_factory.mktemp("acts"))


@pytest.fixture(scope="module")
def report(folder: Path) -> Any:
    return patchpack.report(folder)


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its page."""
    return written(tmp_path_factory.mktemp("page"), "report", str(folder))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a comparison, some of whose settings have no stored steps."""
    folder = tmp_path_factory.mktemp("compared")
    write_files(folder / "media", {f"{n:02}.jpg": photo((30 + 7 * n, 200 - 6 * n)) for n in range(30)})
    base = ("--workers", "1", "--sequence-length", "64", "--resolution", "side:64-128")
    asked = [word for setting in SETTINGS for word in ("--compare", setting)]
    return written(folder, "plan", str(folder / "media"), *base, *asked)


@pytest.fixture(scope="module")
def of_a_million(report: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a dataset of a million sequences, as large as it can be."""
    path = tmp_path_factory.mktemp("million") / "page.html"
    path.write_text(render_html(grown(report)), encoding="utf-8")
    return path


def written(folder: Path, *arguments: str) -> Path:
    assert command.main([*arguments, "--html", str(folder / "page.html")]) == 0
    return folder / "page.html"


def grown(report: Any) -> Any:
    """Returns the report of a million sequences: huge counts, every bin, the most classes, the longest names."""
    made = copy.deepcopy(report)
    for name in get_args(DistributionName):
        made[name] |= {"edges": [n / 24 for n in range(25)], "counts": [41_667 * (n + 1) for n in range(24)]}
        made[name] |= {"num": 12_500_100, "num_above": 123_456}
    made["totals"]["stored"] |= {"num_sequences": 1_000_000, "num_segments": 12_500_100, "num_tokens": 1_023_999_999}
    made["totals"]["stored"] |= {"num_shards": 4321, "bytes": 12_345_678_901_234}
    made["totals"] |= {"num_inputs": 13_000_000, "ignored": {f".{n}{'x' * 4000}": 10**6 - n for n in range(5000)}}
    made["rejects"] = [
        {"stage": "probe", "reason": f"reason {n}", "num_rejects": 10**n, "sample_keys": ["k" * 4096] * 3}
        for n in range(12)
    ]
    counts = [1_234_567, 1_000, 999, 1_001, 9, *range(10, 25)]
    made["classes"] |= {"num_classes": 21_841, "rest": {"num_classes": 21_821, "num_examples": 3}}
    made["classes"]["largest"] = [
        {"label": n, "name": f"{n:02} {'name' * 1000}", "num_examples": count} for n, count in enumerate(counts)
    ]
    made["aspect_plane"]["bins"] = [
        {"source": x / 4, "realised": y / 4, "num_examples": (x + 17) ** 3 + 1}
        for x in range(-16, 17)
        for y in range(-16, 17)
    ]
    made["aspect_plane"]["worst"] = [
        {**made["aspect_plane"]["worst"][0], "key": "w" * 4096, "sequence": 999_999 - n} for n in range(6)
    ]
    return made


def drawn(opened: "Page") -> None:
    """Waits until every chart of a page is drawn."""
    opened.wait_for_function("!document.querySelector('[aria-busy]')")


def check_charts(opened: "Page") -> None:
    """Checks that each chart is one drawing that says what it shows."""
    drawn(opened)
    charts = opened.locator(".chart")
    assert charts.count()
    for chart in charts.all():
        name = chart.get_attribute("id")
        assert chart.get_attribute("role") == "img", name
        assert len(chart.get_attribute("aria-label") or "") > 10, name
        assert chart.locator("svg").count() == 1 and chart.locator("svg").get_attribute("aria-hidden") == "true", name
        box = chart.locator("svg").bounding_box()
        assert box is not None and box["width"] > 150 and box["height"] > 30, (name, box)
        axes = chart.locator(".role-axis-title").all_inner_texts() or chart.locator(".role-axis-title text").count()
        assert axes, name


@pytest.mark.parametrize("name", ["mixed", "empty", "one example"])
def test_every_section_is_there_with_its_charts(name: str, tmp_path: Path, open_page: OpenPage) -> None:
    folder = DATASETS[name](tmp_path)
    report = patchpack.report(folder)
    has = {
        "what-if": report["what_if"] is not None,
        "gallery": True,
        "clips": report["clips"] is not None,
        "classes": report["classes"] is not None,
        "time": (folder / "_run.json").exists(),
    }
    assert has["clips"] == has["classes"] == (name == "mixed") and has["time"] == (name == "one example")
    with open_page(written(tmp_path, "report", str(folder))) as opened:
        ids = opened.locator("section").evaluate_all("all => all.map((one) => one.id)")
        assert ids == [section for section in SECTIONS if has.get(section, True)]
        assert all(opened.locator(f"#{section} h2").count() == 1 for section in ids)
        check_charts(opened)


def test_a_bar_says_its_numbers(page: Path, report: Any, open_page: OpenPage) -> None:
    figures = report["tokens_per_example"]
    with open_page(page) as opened:
        drawn(opened)
        bars = opened.locator("#chart-tokens-per-example .mark-rect path")
        assert bars.count() == len(figures["counts"])
        for number, count in enumerate(figures["counts"]):
            if not count:
                continue
            bars.nth(number).hover()
            shown = opened.locator("#vg-tooltip-element.visible")
            due = [*figures["edges"][number : number + 2], count]
            opened.wait_for_function(
                "due => [...document.querySelectorAll('#vg-tooltip-element.visible .value')].map((one) => Number(one.textContent))"
                ".join() === due.join()",
                arg=due,
            )
            assert "examples" in shown.inner_text() and "tokens an example" in shown.inner_text()
        opened.mouse.move(0, 0)
        shown.wait_for(state="hidden")


def cells_of(table: "Locator", column: int) -> list[str]:
    """Returns what a column is sorted by, from top to bottom."""
    read = "(row, at) => row.cells[at].dataset.value ?? row.cells[at].textContent.trim()"
    return [row.evaluate(read, column) for row in table.locator("tbody tr").all()]


def in_order(cells: list[str], falling: bool) -> bool:
    """Returns whether cells stand in order, numbers as numbers; those without a value last."""
    known = [cell for cell in cells if cell]
    if cells != known + [""] * (len(cells) - len(known)):
        return False
    try:
        values: list[Any] = [float(cell) for cell in known]
    except ValueError:
        # how a language sorts letters is the browser's
        values = [re.sub(r"\W", "", cell).lower() for cell in known]
    return values == sorted(values, reverse=falling)


@pytest.mark.parametrize("which", ["page", "compared", "of_a_million"])
def test_a_table_sorts_both_ways_by_click_and_by_key(
    which: str, request: pytest.FixtureRequest, open_page: OpenPage
) -> None:
    with open_page(request.getfixturevalue(which)) as opened:
        tables = opened.locator("table.sortable")
        assert tables.count() == (1 if which == "compared" else 5)
        for table in tables.all():
            heads = table.locator("thead th")
            rows = sorted(table.locator("tbody tr").all_inner_texts())
            for column in range(heads.count()):
                before = cells_of(table, column)
                if heads.nth(column).inner_text().strip() == "Example" or len(before) < 2:
                    continue
                button = heads.nth(column).get_by_role("button")
                for act, falling in ((button.click, False), (partial(pressed, button, "Enter"), True)):
                    act()
                    assert heads.nth(column).get_attribute("aria-sort") == ("descending" if falling else "ascending")
                    assert table.locator("[aria-sort]").count() == 1
                    cells = cells_of(table, column)
                    assert in_order(cells, falling), (which, column, cells)
                    assert sorted(cells) == sorted(before)
                pressed(button, "Space")
                assert heads.nth(column).get_attribute("aria-sort") == "ascending"
                assert in_order(cells_of(table, column), False)
            # rows moved whole
            assert sorted(table.locator("tbody tr").all_inner_texts()) == rows


def pressed(button: "Locator", key: str) -> None:
    button.focus()
    button.page.keyboard.press(key)


def test_numbers_are_sorted_as_numbers_and_what_has_none_stands_last(
    compared: Path, of_a_million: Path, open_page: OpenPage
) -> None:
    with open_page(of_a_million) as opened:
        opened.locator("#classes thead button").nth(2).click()
        shown = [text.split("\t")[2] for text in opened.locator("#classes tbody tr").all_inner_texts()]
        assert [shown.index(text) for text in ("9", "999", "1,000", "1,001", "1,234,567")] == [0, 16, 17, 18, 19]
    with open_page(compared) as opened:
        column = opened.locator("#what-if thead th").all_inner_texts().index("stored")
        for _ in range(2):
            opened.locator("#what-if thead button").nth(column).click()
            shown = [text.split("\t")[column].strip() for text in opened.locator("#what-if tbody tr").all_inner_texts()]
            assert "-" in shown and shown[0] != "-"
            assert set(shown[shown.index("-") :]) == {"-"}


def test_a_strip_opens_and_closes_by_click_and_by_key(page: Path, open_page: OpenPage) -> None:
    with open_page(page) as opened:
        strip = opened.locator("details.packed").first
        summary, picture = strip.locator("summary"), strip.locator(".cells img").first
        for act in (summary.click, partial(pressed, summary, "Enter"), partial(pressed, summary, "Space")):
            assert not picture.is_visible()
            act()
            assert strip.evaluate("one => one.open") and picture.is_visible()
            act()
            assert not strip.evaluate("one => one.open")
        # by Tab alone: each strip is one stop
        opened.locator("#grid-lines").focus()
        opened.keyboard.press("Tab")
        assert summary.evaluate("one => document.activeElement === one")


def test_grid_lines_are_shown_by_key(page: Path, open_page: OpenPage) -> None:
    lines = "one => getComputedStyle(one, '::after').backgroundImage"
    with open_page(page) as opened:
        opened.locator("details.packed summary").first.click()
        cells = opened.locator(".cells").first
        assert cells.evaluate(lines) == "none"
        pressed(opened.locator("#grid-lines"), "Space")
        assert opened.get_by_label("Show the tokens' grid").is_checked() and "gradient" in cells.evaluate(lines)
        pressed(opened.locator("#grid-lines"), "Space")
        assert cells.evaluate(lines) == "none"


def test_the_ring_of_a_comparison_is_around_its_base(compared: Path, open_page: OpenPage) -> None:
    with open_page(compared) as opened:
        check_charts(opened)
        marks = opened.locator("#chart-what-if .mark-symbol.role-mark")
        assert marks.count() == 2
        assert marks.nth(0).locator("path").count() == opened.locator("#what-if tbody tr").count() > 4
        # the base is drawn last, on top of what agrees with it
        ring, base = marks.nth(1).locator("path"), marks.nth(0).locator("path").last
        points = marks.nth(0).locator("path").evaluate_all("all => all.map((one) => one.getAttribute('transform'))")
        assert len(set(points)) > 2
        assert ring.count() == 1
        assert ring.get_attribute("transform") == base.get_attribute("transform")
        assert ring.get_attribute("stroke") == "var(--ink)" and ring.get_attribute("fill") == "transparent"
        assert opened.locator("#what-if tr.chosen").count() == 1
        assert opened.locator("#what-if tr.chosen td").first.inner_text() == "base"


@pytest.mark.parametrize("which", ["page", "compared"])
def test_without_scripts_every_number_is_there_and_what_is_missing_is_said(
    which: str, request: pytest.FixtureRequest, open_page: OpenPage
) -> None:
    path = request.getfixturevalue(which)
    with open_page(path) as opened:
        drawn(opened)
        rows = shown_text(opened, "td, dd, .card, figcaption")
    with open_page(path, scripts=False) as opened:
        assert opened.locator("svg").count() == 0
        assert shown_text(opened, "td, dd, .card, figcaption") == rows
        said = " ".join(opened.locator("noscript").all_inner_texts())
        assert "need a script" in said
        assert which != "page" or "report --figures" in said
        assert opened.locator("th button").count() == 0


def test_without_scripts_the_numbers_are_those_of_the_report(page: Path, report: Any, open_page: OpenPage) -> None:
    numbers = [
        report["efficiency"]["efficiency"],
        report["totals"]["stored"]["num_tokens"],
        report["num_dropped_tokens"] or report["totals"]["num_inputs"],
        *report["storage"]["bytes_by_column"].values(),
        report["storage"]["footer_bytes"],
        *report["step_balance"]["random_by_ranks"].values(),
        report["attention_cost_per_sequence"]["max"],
        *(one["num_examples"] for one in report["classes"]["largest"]),
        *(one["aspect_error"] for one in report["aspect_plane"]["worst"]),
        *(one["num_rejects"] for one in report["rejects"]),
    ]
    with open_page(page, scripts=False) as opened:
        [text] = shown_text(opened)
        assert not [value for value in numbers if not has_number(text, value)]


def test_a_page_of_a_million_sequences_opens(of_a_million: Path, open_page: OpenPage) -> None:
    assert of_a_million.stat().st_size < MOST_BYTES
    with open_page(of_a_million) as opened:
        check_charts(opened)
        [text] = shown_text(opened)
        for value in (1_000_000, 12_500_100, 1_023_999_999, 13_000_000, 1_234_567, 4321):
            assert has_number(text, value), value
        assert "12.3 TB" in text and "4,980 other suffixes" in opened.locator("#left-out").inner_text()


def test_a_page_is_no_larger_for_more_sequences(tmp_path: Path) -> None:
    layout = patchpack.Layout(64, 8, (1, 1, 1), channels=1)
    sizes = []
    for num_examples in (1_000, 20_000):
        examples = (
            (f"{n:06}", np.full((n % 29 + 7, 1), n % 256, np.uint8), (1, 1, n % 29 + 7)) for n in range(num_examples)
        )
        folder = tmp_path / str(num_examples)
        made = patchpack.pack_arrays(examples, folder, layout)
        assert made["totals"]["stored"]["num_sequences"] > num_examples // 4
        sizes.append(len(written(folder, "report", str(folder)).read_bytes()))
    assert sizes[1] < sizes[0] + 5_000 < MOST_BYTES
