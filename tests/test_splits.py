"""Splits: a key belongs to one for ever, the classes are shared, and a dataset of each is made."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Result
from hypothesis import given
from hypothesis import strategies as st

import patchpack
from patchpack.pipeline.inputs.split import Split, parse_splits, split_of

Run = Callable[..., Result]
OPTIONS = ("--workers", 1, "--sequence-length", 512, "--resolution", "side:32-64")


def test_fractions_are_those_asked_for() -> None:
    splits = parse_splits("train:0.7,val:0.1,test:0.2")
    counts = Counter(split_of(f"photos/{number}.jpg", splits) for number in range(20_000))
    assert counts["train"] == pytest.approx(14_000, abs=250)
    assert counts["val"] == pytest.approx(2_000, abs=150)
    assert counts["test"] == pytest.approx(4_000, abs=200)


@given(key=st.text(max_size=20), fraction=st.floats(0.01, 0.99))
def test_a_larger_training_part_only_takes_more(key: str, fraction: float) -> None:
    small = parse_splits(f"train:{fraction / 2!r},val:{1 - fraction / 2!r}")
    large = parse_splits(f"train:{fraction!r},val:{1 - fraction!r}")
    assert split_of(key, small) != "train" or split_of(key, large) == "train"
    assert split_of(key, parse_splits("all:1")) == "all"


def test_splits_never_change() -> None:
    splits = parse_splits("train:0.5,val:0.5")
    assert splits == (Split("train", 0.0, 0.5), Split("val", 0.5, 1.0))
    assert "".join(split_of(f"{number}", splits)[0] for number in range(8)) == "vtttvvvv"


@pytest.mark.parametrize(
    "text", ["train", "train:0.5", "a:0.5,a:0.5", "a/b:1", "..:1", "a:0,b:1", "a:0.5,b:0.6", "_a:1", ""]
)
def test_what_is_no_split_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--split .*: no splits; .* such as train:0.98,val:0.02$"):
        parse_splits(text)


def keys_of(folder: Path) -> set[str]:
    rows = [row for path in (folder / "sequences").iterdir() for row in pq.read_table(path)["segments"].to_pylist()]
    return {segment["source"] for row in rows for segment in row}


@pytest.mark.slow
def test_every_input_lands_in_one_dataset_of_the_shared_classes(media: Path, tmp_path: Path, run: Run) -> None:
    options = (*OPTIONS, "--labels", "folder", "--clips-per-video", 2)
    assert run("build", media, "--output", tmp_path / "all", *options).code == 0
    ended = run("build", media, "--output", tmp_path / "out", *options, "--split", "train:0.6,val:0.4")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("split train\ndataset ") and "\nsplit val\ndataset " in ended.out
    train, val = (keys_of(tmp_path / "out" / name) for name in ("train", "val"))
    assert train and val and not train & val and train | val == keys_of(tmp_path / "all")
    manifests = [json.loads((tmp_path / "out" / name / "manifest.json").read_text()) for name in ("train", "val")]
    whole = json.loads((tmp_path / "all/manifest.json").read_text())
    assert manifests[0]["classes"] == manifests[1]["classes"] == whole["classes"]
    for manifest, name in zip(manifests, ("train", "val"), strict=True):
        assert manifest["config"]["split_name"] == name
        assert run("verify", tmp_path / "out" / name).code == 0
    inputs = [manifest["totals"]["num_inputs"] for manifest in manifests]
    assert sum(inputs) == whole["totals"]["num_inputs"]
    assert manifests[0]["totals"]["ignored"]["(of another split)"] == inputs[1]
    again = run("build", media, "--output", tmp_path / "out", *options, "--split", "train:0.6,val:0.4", "--resume")
    assert again.code == 0, again.err


@pytest.mark.slow
def test_what_belongs_together_by_a_column_stays_together(media: Path, tmp_path: Path) -> None:
    names = sorted(str(path.relative_to(media.parent)) for path in media.rglob("*.*"))
    rows = [json.dumps({"path": name, "who": f"person {at // 3}"}) for at, name in enumerate(names)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    reports = patchpack.build_splits(
        tmp_path / "t.jsonl", tmp_path / "out", split="a:0.5,b:0.5", split_column="who", media_root=str(media.parent),
        workers=1, sequence_length=512, resolution="side:32-64", max_reject_fraction=1.0,
    )  # fmt: skip
    assert list(reports) == ["a", "b"] and all(report["totals"]["num_inputs"] for report in reports.values())
    splits = parse_splits("a:0.5,b:0.5")
    for split in reports:
        for key in keys_of(tmp_path / "out" / split):
            assert split_of(f"person {names.index(key) // 3}", splits) == split


def test_what_makes_one_dataset_names_what_makes_several(media: Path, tmp_path: Path, run: Run) -> None:
    with pytest.raises(ValueError, match="build_splits makes them all"):
        patchpack.build(media, tmp_path / "out", split="a:0.5,b:0.5")
    ended = run("plan", media, "--output", tmp_path / "out", *OPTIONS, "--split", "a:0.5,b:0.5")
    assert ended.code == 2 and "plan without --output looks at all of them together" in ended.err
    ended = run("build", media, "--output", tmp_path / "out", *OPTIONS, "--split-column", "who")
    assert ended.code == 2 and "add --split" in ended.err
