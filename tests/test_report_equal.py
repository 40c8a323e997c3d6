"""Equal datasets have equal pages but for the time they took, and datasets of earlier versions have reports, too."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from support.browser import OpenPage, has_number, shown_text
from support.markup import plain
from support.media_files import photo, video, write_files
from test_golden import GOLDEN

import patchpack

Run = Callable[..., Result]
OPTIONS: dict[str, Any] = {
    "sequence_length": 64,
    "resolution": "side:24-64",
    "group_size": 4,
    "clip_frames": 4,
    "labels": "folder",
    "max_reject_fraction": 1.0,
}
TIME = re.compile(r'<section id="time">.*?</section>', re.DOTALL)
NO_ADVICE = "No advice: this dataset has no saved plan that could be planned anew."


# builds, and processes for each of the older datasets
pytestmark = pytest.mark.slow


def built(folder: Path, **options: Any) -> str:
    """Returns the page of a build of some media below a folder of its own."""
    images = {f"{'left' if n % 3 else 'right'}/{n}.png": photo((30 + 9 * n, 90 - 5 * n), "PNG") for n in range(9)}
    write_files(folder / "media", images | {"left/clip.mp4": video(), "right/broken.jpg": b"no image"})
    patchpack.build(folder / "media", folder / "set", **OPTIONS | options)
    return (folder / "set" / "report.html").read_text(encoding="utf-8")


def digests(page: str) -> tuple[str, str]:
    """Returns the digests that the foot of a page says: its own, and that of its dataset."""
    [found] = re.findall(r"<footer.*Page <code>([0-9a-f]{16})</code> of dataset <code>([0-9a-f]{8})</code>", page)
    return found


def test_equal_builds_have_equal_pages_but_for_their_time(tmp_path: Path, run: Run) -> None:
    one = built(tmp_path / "one", workers=1)
    other = built(tmp_path / "a" / "longer" / "path", workers=2)
    assert one != other
    assert len(TIME.findall(one)) == len(TIME.findall(other)) == 1
    assert TIME.sub("", one) == TIME.sub("", other)
    assert digests(one) == digests(other)
    record = json.loads((tmp_path / "one/set/_run.json").read_text())
    spent = sum(stage["wall_s"] for stage in record["stages"] if stage["stage"] == "write")
    # that of the stage which writes the page, so far
    found = re.search(r'<td>Stage write</td><td class="n">([\d.]+)</td>', TIME.findall(one)[0])
    assert found is not None and 0 < float(found[1]) < spent + 1.1
    assert run("report", tmp_path / "one/set", "--html", tmp_path / "x.html").code == 0
    timed = TIME.findall((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert f'<td>Stage write</td><td class="n">{spent:.1f}</td>' in timed[0]
    # without its times a page says the same of all else
    (tmp_path / "one/set/_run.json").unlink()
    assert run("report", tmp_path / "one/set", "--html", tmp_path / "x.html").code == 0
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == TIME.sub("", one)
    # the digest of a page is of all that it shows
    assert run("report", tmp_path / "one/set", "--html", tmp_path / "x.html", "--gallery", 1).code == 0
    assert digests(one)[0] != digests(fewer := (tmp_path / "x.html").read_text(encoding="utf-8"))[0]
    assert digests(one)[1] == digests(fewer)[1]
    different = built(tmp_path / "seed", workers=1, seed=1)
    assert not set(digests(one)) & set(digests(different))


@pytest.fixture(params=GOLDEN, ids=lambda folder: folder.name)
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A dataset as an earlier version wrote it."""
    return Path(shutil.copytree(request.param, tmp_path / "older"))


def test_a_dataset_of_an_earlier_version_is_reported_on(
    older: Path, tmp_path: Path, run: Run, open_page: OpenPage
) -> None:
    before = {path: path.read_bytes() for path in older.rglob("*") if path.is_file()}
    shown = run("report", older, "--html", tmp_path / "page.html", "--figures", tmp_path / "figures")
    assert (shown.code, shown.err) == (0, "")
    assert NO_ADVICE in shown.out.splitlines()
    report = patchpack.report(older)
    assert report["storage"]["source_bytes"] is None and report["advice"] is None and report["what_if"] is None
    assert (tmp_path / "figures/storage.svg").stat().st_size > 1000
    assert not (tmp_path / "figures/what-if.svg").exists()
    with open_page(tmp_path / "page.html") as opened:
        opened.wait_for_function("!document.querySelector('[aria-busy]')")
        [text] = shown_text(opened)
        assert NO_ADVICE in text and "the files" not in text
        assert opened.locator("#what-if, #time").count() == 0
        for value in (report["efficiency"]["efficiency"], *report["storage"]["bytes_by_column"].values()):
            assert has_number(text, value)
    assert {path: path.read_bytes() for path in older.rglob("*") if path.is_file()} == before


def test_a_dataset_of_an_earlier_version_is_compared(older: Path, packed: Path, tmp_path: Path, run: Run) -> None:
    ended = run("diff", older, packed, "--html", tmp_path / "diff.html")
    assert (ended.code, ended.err) == (1, "")
    made = patchpack.diff(older, packed)
    counts = {row["name"]: row for row in made["sections"]["counts"]}
    stored = patchpack.report(older)["totals"]["stored"]
    assert counts["stored.num_tokens"]["a"] == stored["num_tokens"]
    assert f"{stored['num_tokens']:,}" in plain((tmp_path / "diff.html").read_text(encoding="utf-8"))


def test_a_report_with_keys_of_a_later_version_is_read(own: Path, packed: Path) -> None:
    report = json.loads((own / "report.json").read_text())
    report |= {"later": [1], "efficiency": report["efficiency"] | {"later": None, "efficiency": 0.5}}
    (own / "report.json").write_text(json.dumps(report))
    rows = {row["name"]: row for row in patchpack.diff(packed, own)["sections"]["efficiency"]}
    # as the file says, not made anew
    assert rows["efficiency"]["b"] == 0.5 and rows["later"]["a"] is None


@pytest.mark.parametrize("version", [99, "2", None, [1]])
def test_a_report_of_a_later_version_is_one_line(version: Any, own: Path, packed: Path, run: Run) -> None:
    report = json.loads((own / "report.json").read_text())
    (own / "report.json").write_text(json.dumps(report | {"report_version": version}))
    ended = run("diff", packed, own)
    line = f"{own}/report.json: report version {version}; this reader knows 1; upgrade patchpack\n"
    assert ended == Result(2, "", line)
    # of the shards alone
    assert run("report", own).code == 0
