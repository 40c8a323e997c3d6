"""Names of 4 kB, marks that turn text around and codes that terminals obey are text in every form of a report and of a comparison."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from support.manifests import change_manifest
from support.markup import plain
from support.media_files import photo, write_files

import patchpack
from patchpack.pipeline.report.counted import scan_shards
from patchpack.pipeline.report.html import render_html
from patchpack.pipeline.report.rejects import RejectCounts
from patchpack.pipeline.report.scan import make_report
from patchpack.pipeline.report.text import to_json
from patchpack.schemas import read_manifest, read_shard_table
from patchpack.schemas.manifest import REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA, table_bytes

Run = Callable[..., Result]
# turned around; a colour, a bell, the one-byte form of the same code; markup; a line of its own; half a character
ODD = (
    "\u202e\u2066gpj.exe",
    "\x1b[2J\x1b[31mred\x07",
    "\x9b31mred\x85",
    "</script><img src=x onerror=alert(1)>'\"",
    "one\n\r\ttwo\u2028three",
    "{{ 7 * 7 }}${7*7}",
    "\ufeff\U000e0041\u00ad\u200b",
    "long" + "n" * 4092,
)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose keys, classes, captions, recipe, options, suffixes, rejects and their reasons are odd."""
    folder = tmp_path_factory.mktemp("odd") / "set"
    with patchpack.ShardWriter(folder, patchpack.Layout(16, 8, (1, 1, 1), channels=1), classes=ODD) as writer:
        for number, name in enumerate(ODD):
            writer.add(np.zeros((3, 1), np.uint8), (1, 1, 3), key=name, labels=[number], captions=[name])
    rejects = [{"key": name, "stage": "probe", "reason": name, "detail": name} for name in ODD]
    (folder / REJECT_TABLE_NAME).write_bytes(table_bytes(rejects, REJECT_TABLE_SCHEMA))
    manifest = read_manifest(str(folder))
    totals = manifest.totals | {"ignored": {f".{name}": 2 for name in ODD}}
    change_manifest(folder, totals=totals, recipe="".join(ODD), config=manifest.config | {name: name for name in ODD})
    return folder


def unseen(text: str) -> set[str]:
    """Returns what is in a text and cannot be seen."""
    return {character for character in text if not character.isprintable()} - {"\n"}


def test_a_terminal_and_json_show_them(odd: Path, run: Run) -> None:
    shown = run("report", odd)
    assert shown.code == 0, shown.err
    assert not unseen(shown.out)
    assert max(map(len, shown.out.splitlines())) <= 80
    for part in ("\\u202e\\u2066gpj.exe", "\\x1b[2J\\x1b[31mred\\x07", "\\x9b31mred\\x85", "one\\n\\r\\ttwo\\u2028"):
        assert part in shown.out
    as_json = run("report", odd, "--json")
    assert not unseen(as_json.out)
    report = json.loads(as_json.out)
    assert [entry["name"] for entry in report["classes"]["largest"]] == list(ODD)
    assert {entry["reason"] for entry in report["rejects"]} == set(ODD)
    assert report["recipe"] == "".join(ODD) and set(report["totals"]["ignored"]) == {f".{name}" for name in ODD}


def test_a_page_shows_them(odd: Path, run: Run, tmp_path: Path) -> None:
    assert run("report", odd, "--html", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    # what Vega's own code has is its own
    text = plain(page)
    assert not unseen(text)
    assert "<img src=x" not in text
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") >= 6
    assert text.count("{{ 7 * 7 }}${7*7}") >= 6
    specs = page.split('<script type="application/json" class="specs">')[1].split("</script>")[0]
    assert not unseen(specs)
    # the long ones are cut: in the page once each as key, class, suffix, reason and option
    assert len(text) < 120_000


def test_other_reports_show_what_they_are_given(odd: Path) -> None:
    """Of a class or a key that no file could hold: half a character."""
    manifest = dataclasses.replace(read_manifest(str(odd)), classes=tuple("\ud800" for _ in ODD))
    scan = scan_shards(str(odd), read_shard_table(str(odd)).to_pylist(), manifest.balance_step)
    report = make_report(manifest, scan, RejectCounts())
    page = render_html(report)
    assert "\\ud800" in page and page.encode()
    assert json.loads(to_json(report).encode())["classes"]["largest"][0]["name"] == "\ud800"


@pytest.mark.parametrize("value", ["", "plain é 日本 🙂", *ODD, "\x7f\x80\U000e0001", 3, None, [ODD], {ODD[1]: [1.5]}])
def test_json_means_what_it_did(value: Any) -> None:
    text = to_json(value)
    assert not unseen(text)
    assert json.loads(text) == json.loads(json.dumps(value))
    # what can be read is read as it is
    assert value != "plain é 日本 🙂" or text == f'"{value}"'


def test_a_comparison_of_odd_recipes_shows_them(tmp_path: Path, run: Run) -> None:
    write_files(tmp_path / "media", {"a.jpg": photo(), "\u202e\x1b[31mb.jpg": photo((60, 40))})
    settings = []
    for number, name in enumerate(("\u202egpj", "\x1b[2J\x9b1m", "<img src=x onerror=alert(1)>")):
        (tmp_path / f"{name}.toml").write_text(f"name = 'r{number}'\nsequence_length = {200 + number}\n")
        settings += ["--compare", f"--recipe '{tmp_path}/{name}.toml'"]
    asked = ("plan", tmp_path / "media", "--workers", 1, *settings)
    shown = run(*asked, "--html", tmp_path / "page.html")
    assert shown.code == 0, shown.err
    assert not unseen(shown.out) and "\\u202egpj.toml" in shown.out and "\\x1b[2J" in shown.out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    text = plain(page)
    assert not unseen(text) and "<img" not in text and "&lt;img src=x onerror=alert(1)&gt;.toml" in text
    as_json = run(*asked, "--json").out
    assert not unseen(as_json)
    assert "\u202egpj.toml" in json.loads(as_json)["settings"][1]["options"]
