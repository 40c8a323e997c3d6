"""`diff` says every kind of difference between two datasets, and nothing where there is none."""

import io
import json
import shutil
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from conftest import Result
from support.manifests import change_manifest
from support.markup import Page, plain
from support.small_set import EMPTY_KEY, stored_rows

import patchpack
from patchpack.pipeline.comparison import differences
from patchpack.pipeline.comparison.html import render_html
from patchpack.pipeline.comparison.text import print_comparison
from patchpack.schemas.comparison import Comparison, NamesName, Row, SectionName
from patchpack.schemas.manifest import REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA, table_bytes

Run = Callable[..., Result]

HOSTILE = (
    "<img src=x onerror=alert(1)>.jpg",
    "\u202egpj.exe\x1b[2J\x9b\n.jpg",
    "a'\"&amp;\u732b.jpg",
    "x/" * 2000 + ".jpg",
)


def made(folder: Path, lengths: Mapping[str, int], *, value: int = 0, length: int = 64, classes: Any = None) -> Path:
    """Writes a dataset of examples of so many tokens, all of one value, labelled in turn, and returns its folder."""
    layout = patchpack.Layout(length, 8, (1, 1, 1), channels=1, token_dtype="int32")
    with patchpack.ShardWriter(folder, layout, classes=classes, group_size=16) as writer:
        for number, (key, count) in enumerate(lengths.items()):
            labels = [number % len(classes)] if classes else []
            writer.add(np.full((count, 1), value, np.int32), (1, 1, count), key=key, labels=labels)
    return folder


def reject(folder: Path, *rows: tuple[str, str, str]) -> None:
    """Makes these (key, stage, reason) the rejects of a dataset."""
    table = [dict(zip(("key", "stage", "reason"), row, strict=True)) | {"detail": "x"} for row in rows]
    (folder / REJECT_TABLE_NAME).write_bytes(table_bytes(table, REJECT_TABLE_SCHEMA))


def row_of(found: Comparison, section: SectionName, name: str) -> Row:
    """Returns the one row of that name."""
    [row] = [row for row in found["sections"][section] if row["name"] == name]
    return row


def printed(found: Comparison, encoding: str = "utf-8") -> str:
    """Returns what a terminal would show."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_comparison(found, out)
    out.seek(0)
    return out.read()


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 40 examples of two classes."""
    lengths = {f"{n:02}.jpg": n % 20 + 1 for n in range(40)}
    return made(tmp_path_factory.mktemp("few") / "set", lengths, classes=("cat", "dog"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another: other inputs, sizes, sequence length and classes."""
    lengths = {f"{n:02}.jpg": n % 30 + 2 for n in range(25, 60)}
    return made(tmp_path_factory.mktemp("other") / "set", lengths, length=96, classes=("dog", "bird", "cat"))


def test_equal_datasets_are_equal_to_the_byte(own: Path, packed: Path, run: Run) -> None:
    ended = run("diff", packed, own)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("equal: the same to the byte, by their dataset digests\n")
    assert len(ended.out.splitlines()) == 5
    found = patchpack.diff(packed, own)
    assert found["equal"] and found["equal_digests"] and not found["differing"]


def test_equal_datasets_need_no_shard_to_be_opened(own: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(differences, "Shard")
    assert patchpack.diff(packed, own)["equal"]


def test_figures_are_those_of_the_two_reports(few: Path, other: Path) -> None:
    found = patchpack.diff(few, other)
    a, b = patchpack.report(few), patchpack.report(other)
    for section, name, keys in (
        ("counts", "num_inputs", ("totals", "num_inputs")),
        ("counts", "planned.num_tokens", ("totals", "planned", "num_tokens")),
        ("counts", "stored.num_sequences", ("totals", "stored", "num_sequences")),
        ("efficiency", "efficiency", ("efficiency", "efficiency")),
        ("efficiency", "padding_fraction", ("efficiency", "padding_fraction")),
        ("efficiency", "view 0 layout 0.gap", ("bounds", 0, "gap")),
        *(
            ("distributions", f"{which}.{figure}", (which, figure))
            for which in ("tokens_per_example", "examples_per_sequence", "sequence_fill")
            for figure in ("mean", "median", "p95", "max")
        ),
        ("arrangement", "attention_cost.mean", ("attention_cost_per_sequence", "mean")),
    ):
        values = []
        for report in (a, b):
            value: Any = report
            for key in keys:
                value = value[key]
            values.append(value)
        row = row_of(found, section, name)
        assert [row["a"], row["b"], row["change"]] == [*values, values[1] - values[0]], name
    assert {"counts", "efficiency", "distributions", "arrangement", "layouts", "classes"} <= set(found["differing"])
    assert found["histograms"]["sequence_fill"]["b"] == b["sequence_fill"]


def test_inputs_of_one_alone_are_counted_and_the_first_few_named(few: Path, other: Path) -> None:
    found = patchpack.diff(few, other)["only_in"]["inputs"]
    stored = [
        {segment["source"] for row in stored_rows(folder) for segment in row["segments"]} for folder in (few, other)
    ]
    for side, names in (("a", stored[0] - stored[1]), ("b", stored[1] - stored[0])):
        assert found[side] == {"num": len(names), "first": sorted(names)[: differences.MAX_NAMES]}  # type: ignore[literal-required]
    assert found["a"]["num"] > differences.MAX_NAMES
    text = printed(patchpack.diff(few, other))
    assert f"\nInputs only in A: {found['a']['num']}\n  00.jpg\n" in text
    assert f"\n  and {found['a']['num'] - differences.MAX_NAMES} more\n" in text


def test_keys_are_the_same_however_often_they_are_merged(
    few: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = patchpack.diff(few, other)
    monkeypatch.setattr(differences, "_LEAST_MERGED", 0)
    assert patchpack.diff(few, other) == whole


def test_rejects_are_compared_by_stage_and_reason_and_by_input(packed: Path, own: Path, run: Run) -> None:
    other_copy = own.parent / "other"
    shutil.copytree(own, other_copy)
    reject(own, (EMPTY_KEY, "probe", "broken"), ("old.jpg", "probe", "broken"))
    # a video that is cut short is packed, and no rejected input
    reject(other_copy, (EMPTY_KEY, "probe", "broken"), ("new.jpg", "write", "changed"), ("v.mp4", "probe", "partial"))
    found = patchpack.diff(own, other_copy)
    assert found["equal_digests"] and not found["equal"]
    assert found["differing"] == ["rejects", "inputs", "rejected"]
    assert [tuple(row.values()) for row in found["sections"]["rejects"]] == [
        ("probe: broken", 2, 1, -1),
        ("write: changed", 0, 1, 1),
        ("probe: partial", 0, 1, 1),
    ]
    assert found["only_in"]["rejected"] == {
        "a": {"num": 1, "first": ["old.jpg"]},
        "b": {"num": 1, "first": ["new.jpg"]},
    }
    assert found["only_in"]["inputs"]["b"]["first"] == ["new.jpg", "v.mp4"]
    ended = run("diff", own, other_copy)
    assert ended.code == 1
    assert " ".join(ended.out.split()).startswith(
        "sequences the same to the byte, by their dataset digests; different: rejects, inputs, "
    )


def test_an_input_that_fails_by_now_is_newly_rejected_and_not_missing(few: Path, tmp_path: Path) -> None:
    lengths = {f"{n:02}.jpg": n % 20 + 1 for n in range(39)}
    fewer = made(tmp_path / "set", lengths, classes=("cat", "dog"))
    reject(fewer, ("39.jpg", "write", "changed"))
    only_in = patchpack.diff(few, fewer)["only_in"]
    assert (only_in["inputs"]["a"]["num"], only_in["inputs"]["b"]["num"]) == (0, 0)
    assert only_in["rejected"]["b"]["first"] == ["39.jpg"]


def test_options_and_the_recipe_are_compared(packed: Path, own: Path) -> None:
    config = json.loads((own / "manifest.json").read_text())["config"]
    change_manifest(own, config=config | {"views": 2, "exclude": ["*.gif"], "later": "x"}, recipe="navit")
    found = patchpack.diff(packed, own)
    assert found["differing"] == ["config"]
    assert [tuple(row.values()) for row in found["sections"]["config"] if row["a"] != row["b"]] == [
        ("recipe", None, "navit", None),
        ("exclude", [], ["*.gif"], None),
        ("views", 1, 2, 1),
        ("later", None, "x", None),
    ]
    assert "\n  views                                             1            2           +1\n" in printed(found)


def test_layouts_and_classes_are_compared(few: Path, other: Path) -> None:
    found = patchpack.diff(few, other)
    assert row_of(found, "layouts", "layout 0.sequence_length")["change"] == 32
    assert row_of(found, "classes", "num_classes")["change"] == 1
    assert found["only_in"]["class_names"]["b"] == {"num": 1, "first": ["bird"]}
    assert tuple(row_of(found, "classes", "num_renumbered").values()) == ("num_renumbered", 0, 2, 2)
    assert tuple(row_of(found, "classes", "label of cat").values()) == ("label of cat", 0, 2, 2)


def test_other_bytes_of_equal_figures_are_a_difference(tmp_path: Path, run: Run) -> None:
    one, two = (made(tmp_path / str(value), {"a": 3, "b": 60}, value=value) for value in (1, 2))
    ended = run("diff", one, two)
    assert ended.code == 1
    assert " ".join(ended.out.split()).startswith(
        "different: bytes of the sequences alone; every figure, setting and input is equal "
    )


def test_an_older_report_or_none_is_made_new_from_the_shards(few: Path, other: Path, tmp_path: Path) -> None:
    whole = patchpack.diff(few, other)
    folder = Path(shutil.copytree(other, tmp_path / "set"))
    report = json.loads((folder / "report.json").read_text())
    for text in (
        json.dumps({name: value for name, value in report.items() if name != "mixing"}),
        json.dumps(report | {"dataset_digest": "0" * 32, "efficiency": {}}),
        None,
    ):
        (folder / "report.json").unlink() if text is None else (folder / "report.json").write_text(text)
        assert patchpack.diff(few, folder) | {"b": whole["b"]} == whole


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", None, "{folder}: no dataset; a dataset is a folder with manifest.json; check the path"),
        ("report.json", "{", "{folder}/report.json: broken report ("),
        ("report.json", "[]", "{folder}/report.json: broken report (list, and no object); it holds what schemas/"),
        ("report.json", '{"report_version": 2}', "{folder}/report.json: report version 2; this reader knows 1; upgrade"),
        ("rejects.parquet", "x", "{folder}/rejects.parquet: cannot be read ("),
        ("sequences/part-000-00000-00000.parquet", None, "{folder}/sequences/part-000-00000-00000.parquet: no such file; "),
        ("sequences/part-000-00000-00000.parquet", "x", "{folder}/sequences/part-000-00000-00000.parquet: "),
    ],
)  # fmt: skip
def test_what_is_broken_is_one_line_and_not_a_difference(
    name: str, content: str | None, message: str, few: Path, own: Path, run: Run
) -> None:
    (own / name).unlink() if content is None else (own / name).write_text(content)
    for arguments in ((few, own), (own, few)):
        ended = run("diff", *arguments)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert ended.err.startswith(message.format(folder=own))


def test_a_report_of_broken_values_is_one_line(few: Path, other: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(few, tmp_path / "set"))
    report = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(report | {"bounds": [1], "sequence_fill": 3}))
    with pytest.raises(patchpack.FormatError, match=r"report\.json: broken report \(.*\); it holds what "):
        patchpack.diff(folder, other)


def test_what_is_no_dataset_and_no_page_is_wrong_use(few: Path, media: Path, tmp_path: Path, run: Run) -> None:
    ended = run("diff", few, media)
    told = f"{media}: no dataset; a dataset is a folder with manifest.json; check the path\n"
    assert (ended.code, ended.out, ended.err) == (2, "", told)
    told = f"--html {tmp_path}: a folder; the diff is one page; name a file in it, such as diff.html\n"
    assert run("diff", few, few, "--html", tmp_path) == Result(2, "", told)
    assert run("diff", few).code == 2


def test_tokens_are_never_read(few: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("read_array", "read_into"):
        monkeypatch.delattr(patchpack.Shard, name)
    assert not patchpack.diff(few, other)["equal"]


def test_datasets_are_read_by_uri(few: Path, other: Path) -> None:
    found = patchpack.diff(few.as_uri(), other.as_uri())
    assert found | {"a": 0, "b": 0} == patchpack.diff(few, other) | {"a": 0, "b": 0}


def test_json_is_what_the_function_returns_under_the_documented_names(few: Path, other: Path, run: Run) -> None:
    ended = run("diff", few, other, "--json")
    found = json.loads(ended.out)
    assert (ended.code, found) == (1, patchpack.diff(few, other))
    assert set(found) == Comparison.__required_keys__
    assert set(found["sections"]) == set(get_args(SectionName))
    assert set(found["only_in"]) == set(get_args(NamesName))
    assert all(set(row) == Row.__required_keys__ for rows in found["sections"].values() for row in rows)


@pytest.mark.parametrize("rejects", [(), (("bad.jpg", "probe", "broken"),)])
def test_an_empty_dataset_compares(rejects: tuple[tuple[str, str, str], ...], few: Path, tmp_path: Path) -> None:
    empty = made(tmp_path / "set", {}, classes=("cat", "dog"))
    reject(empty, *rejects)
    found = patchpack.diff(few, empty)
    assert found["only_in"]["inputs"] == {
        "a": {"num": 40, "first": [f"{n:02}.jpg" for n in range(10)]},
        "b": {"num": len(rejects), "first": [row[0] for row in rejects]},
    }
    assert row_of(found, "efficiency", "efficiency")["b"] is None
    assert "none        other\n" in printed(found)
    assert "Only in A" in render_html(found)
    assert patchpack.diff(empty, empty)["equal"]
    assert render_html(patchpack.diff(empty, empty))


def test_hostile_names_are_text_everywhere(few: Path, tmp_path: Path, run: Run) -> None:
    classes = ["<script>alert(1)</script>", "\u202e'\"\x1b[0m", "cat", "dog"]
    odd = made(tmp_path / "<b>\x1b[1m", dict.fromkeys(HOSTILE, 5), classes=classes)
    reject(odd, ("<script>\x07.png", "probe", "broken"))
    found = patchpack.diff(few, odd)
    for encoding in ("utf-8", "ascii"):
        for line in printed(found, encoding).splitlines():
            assert line.isprintable()
            if encoding == "utf-8":
                assert sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) <= 80
    page = Page(plain(render_html(found)))
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not {c for c in page.words if not c.isprintable()} - {"\n"}
    for name in (HOSTILE[0], HOSTILE[2], classes[0]):
        assert name in page.words
    ended = run("diff", few, odd, "--json")
    assert "\x1b" not in ended.out
    assert sorted((*HOSTILE, "<script>\x07.png")) == json.loads(ended.out)["only_in"]["inputs"]["b"]["first"]


def test_the_page_shows_every_figure_of_both_and_needs_nothing_from_outside(
    few: Path, other: Path, tmp_path: Path, run: Run
) -> None:
    assert run("diff", few, other, "--html", tmp_path / "d.html").code == 1
    text = plain((tmp_path / "d.html").read_text())
    page = Page(text)
    for row in (row for rows in patchpack.diff(few, other)["sections"].values() for row in rows):
        assert row["name"] in page.words
    for outside in ("http://", "https://", "src=", "@import", "url(//", "<script", "<link"):
        assert outside not in text
    assert "prefers-color-scheme: dark" in text
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
