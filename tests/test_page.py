"""report.html and the page of diff in headless Chromium, whatever the dataset: no error, no request, legible, accessible.

What the pages say in which words is not checked here, but that the numbers and names of the report are on them.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.browser import (
    OpenPage,
    faint_chart_text,
    has_number,
    one_line,
    paper_luminance,
    shown_text,
    violations,
)
from support.pages import DATASETS, HOSTILE_CLASSES, HOSTILE_NAMES

import patchpack
from patchpack import command

# (A, B) of pages of diff
DIFFS = {"diff": ("mixed", "hostile"), "diff of nothing": ("layouts", "empty"), "diff of equals": ("mixed", "mixed")}
QUICK = ("mixed", "hostile", "diff")
# of plan --compare: settings
COMPARED = ("--sequence-length 256", "--max-segments 2")


class Written(NamedTuple):
    """A page and what it is about: a report, how two datasets differ, or what was compared."""

    path: Path
    about: Any


@pytest.fixture(scope="module")
def page(request: pytest.FixtureRequest, made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The page of one case, written by the command."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    if sides := DIFFS.get(request.param):
        a, b = (_dataset(name, made, tmp_path_factory) for name in sides)
        assert command.main(["diff", str(a), str(b), "--html", str(path)]) == (a != b)
        return Written(path, patchpack.diff(a, b))
    if request.param == "what-if":
        folder = _dataset("hostile", made, tmp_path_factory)
        asked = [word for setting in COMPARED for word in ("--compare", setting)]
        assert command.main(["plan", "--from", str(folder), *asked, "--html", str(path)]) == 0
        return Written(path, patchpack.compare([], COMPARED, saved=folder))
    folder = _dataset(request.param, made, tmp_path_factory)
    assert command.main(["report", str(folder), "--html", str(path)]) == 0
    return Written(path, patchpack.report(folder))


@pytest.fixture(scope="module")
def made() -> dict[str, Path]:
    """The datasets made so far, by name."""
    return {}


def _dataset(name: str, made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if name not in made:
        made[name] = DATASETS[name](tmp_path_factory.mktemp(name.replace(" ", "_")))
    return made[name]


def _cases(*names: str) -> pytest.MarkDecorator:
    marked = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("page", marked, indirect=True)


every_page = _cases(*DATASETS, *DIFFS, "what-if")
every_report = _cases(*DATASETS)


@every_page
@pytest.mark.parametrize(("width", "dark"), [(360, False), (1100, True)])
@pytest.mark.slow_beyond(1)
def test_axe_finds_nothing(page: Written, width: int, dark: bool, open_page: OpenPage) -> None:
    with open_page(page.path, width=width, dark=dark) as opened:
        found = violations(opened) + faint_chart_text(opened)
        assert not found, "\n".join(found)


@every_page
@pytest.mark.slow_beyond(1)
def test_a_narrow_window_scrolls_down_alone(page: Written, open_page: OpenPage) -> None:
    with open_page(page.path, width=360) as opened:
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360


@every_page
@pytest.mark.slow_beyond(1)
def test_paper_is_dark_for_those_who_prefer_it_and_white_in_print(page: Written, open_page: OpenPage) -> None:
    for dark, low, high in ((False, 0.8, 1), (True, 0, 0.05)):
        with open_page(page.path, dark=dark) as opened:
            assert low <= paper_luminance(opened) <= high
            opened.emulate_media(media="print")
            assert paper_luminance(opened) == 1


@every_page
@pytest.mark.slow_beyond(1)
def test_nothing_is_cut_off_on_paper(page: Written, open_page: OpenPage) -> None:
    # A4 less margins of 1 cm, at 96 px an inch
    with open_page(page.path, width=718, print=True) as opened:
        assert opened.evaluate("document.documentElement.scrollWidth") <= 718


@every_report
@pytest.mark.slow_beyond(1)
def test_the_numbers_of_the_report_are_on_the_page(page: Written, open_page: OpenPage) -> None:
    report = page.about
    stored = report["totals"]["stored"]
    numbers = {
        "efficiency": report["efficiency"]["efficiency"],
        "padding": report["efficiency"]["padding_fraction"],
        "sequences": stored["num_sequences"],
        "examples": stored["num_segments"],
        "tokens": stored["num_tokens"],
        "inputs": report["totals"]["num_inputs"],
        "rejected inputs": report["totals"]["num_rejected_inputs"],
        "shards": stored["num_shards"],
    }
    with open_page(page.path, reduced=True) as opened:
        [text] = shown_text(opened)
        missing = {name: value for name, value in numbers.items() if not has_number(text, value)}
        assert not missing
        assert report["dataset_digest"] in text


@every_report
@pytest.mark.slow_beyond(1)
def test_every_reason_of_a_reject_stands_with_its_count_and_first_sources(page: Written, open_page: OpenPage) -> None:
    with open_page(page.path) as opened:
        rows = shown_text(opened, "tr, li")
        for entry in page.about["rejects"]:
            assert any(
                entry["reason"] in row
                and has_number(row, entry["num_rejects"])
                and all(_shows(row, key) for key in entry["sample_keys"])
                for row in rows
            ), entry


@every_report
@pytest.mark.slow_beyond(1)
def test_classes_stand_with_their_counts(page: Written, open_page: OpenPage) -> None:
    with open_page(page.path) as opened:
        rows = shown_text(opened, "tr, li")
        for entry in (page.about["classes"] or {"largest": []})["largest"]:
            assert any(_shows(row, entry["name"]) and has_number(row, entry["num_examples"]) for row in rows), entry


@_cases("hostile", "diff")
@pytest.mark.slow_beyond(1)
def test_hostile_names_are_text(page: Written, open_page: OpenPage) -> None:
    with open_page(page.path) as opened:
        [text] = shown_text(opened)
        missing = [name for name in HOSTILE_NAMES + HOSTILE_CLASSES if not _shows(text, name)]
        assert not missing
        assert opened.locator("[onerror], [onmouseover], [src=x]").count() == 0


def _shows(text: str, name: str) -> bool:
    """Returns whether a line of the page has a name, as it is or with what nobody sees escaped."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return one_line(name) in text or escaped in text


@pytest.mark.slow
def test_what_a_page_does_wrong_fails_the_test_that_opens_it(open_page: OpenPage, tmp_path: Path) -> None:
    for wrong, words in {
        "<script>console.error('of ours')</script>": "console error: of ours",
        "<script>console.warn('of ours')</script>": "console warning: of ours",
        "<script>throw new Error('of ours')</script>": "error: of ours",
        "<script>setTimeout(() => { throw new Error('late') }, 20)</script>": "error: late",
        "<img src=x onerror=alert(1)>": "alert dialog: 1",
        "<img src=https://example.invalid/x.png>": "request: https://example.invalid/x.png",
        "<script>navigator.sendBeacon('https://example.invalid/b')</script>": "request: https://example.invalid/b",
        "<script>new WebSocket('wss://example.invalid/w')</script>": "request: wss://example.invalid/w",
    }.items():
        (tmp_path / "page.html").write_text(f"<!doctype html><title>x</title>{wrong}")
        with pytest.raises(AssertionError) as failed, open_page(tmp_path / "page.html"):
            pass
        assert words in str(failed.value).split("\n")


def test_what_nobody_can_read_is_found(open_page: OpenPage, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        "<!doctype html><html lang=en><title>x</title><style>body { background: #fff } @media (prefers-color-scheme: dark)"
        "{ body { background: #000 } }</style><main><h1 style='color: #888'>x</h1>"
        "<svg role=img aria-label=chart><text y=20 fill='#777'>faint</text><text y=40 fill='#595959'>clear</text></svg></main>"
    )
    with open_page(tmp_path / "page.html") as opened:
        assert [line.split(":")[0] for line in violations(opened)] == []
        assert [line.split(":")[0] for line in faint_chart_text(opened)] == ["faint"]
    with open_page(tmp_path / "page.html", dark=True) as opened:
        assert [line.split(":")[0] for line in faint_chart_text(opened)] == ["clear"]
