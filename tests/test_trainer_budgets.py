"""Promises of judging on several token budgets: what `evaluate` says of each, by example, as a table and an image."""

from pathlib import Path

import pytest
from PIL import Image
from support.synthetic_set import label_tokens, write_set
from test_trainer_train import SMALL, fails, one_thread, run

from patchpack.trainer.budgets import Judged, table
from patchpack.trainer.cli import main

__all__ = ["one_thread"]

CLASSES = ("dark", "light")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two datasets that differ in their sizes."""
    place = tmp_path_factory.mktemp("budgets")
    long, short = str(place / "long"), str(place / "short")
    write_set(long, classes=CLASSES, make_tokens=label_tokens)
    write_set(short, classes=CLASSES, make_tokens=label_tokens, seed=1)
    return long, short


def test_every_budget_is_judged_as_evaluation_alone_does(
    sets: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = str(tmp_path / "run")
    budgets = [part for path in sets for part in ("--budget", path)]
    summary = run(capsys, sets[0], "--steps", "12", "--checkpoint", place, "--lr", "0.01", *SMALL, *budgets)[-1]
    assert [each["eval"] for each in summary["budgets"]] == list(sets)
    for each in summary["budgets"]:
        alone = run(capsys, sets[0], "--resume", place, "--steps", "0", "--eval", each["eval"])[-1]
        assert (each["loss"], each["accuracy"]) == (alone["eval_loss"], alone["eval_accuracy"])
        assert each["tokens_per_example"] == alone["eval_tokens"] / alone["eval_segments"]
        assert each["gflops_per_example"] == pytest.approx(alone["eval_gflops"] / alone["eval_segments"])
    in_order = [each["eval"] for each in sorted(summary["budgets"], key=lambda each: each["gflops_per_example"])]
    assert summary["drawn"] == f"{place}/budgets.png"
    with Image.open(summary["drawn"]) as image:
        assert image.size == (720, 480)
    # for a reader: the cheapest first, and the same without training
    assert main([sets[0], "--resume", place, "--steps", "0", *budgets]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tokens/example", "GFLOPs/example", "accuracy", "loss", "dataset"]
    assert [line.split()[-1] for line in lines[1:3]] == in_order and lines[3].startswith("12 steps")


def test_a_dataset_that_the_model_cannot_judge_is_named_before_training(
    sets: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_set(str(tmp_path / "plain"), make_tokens=label_tokens)
    options = ["--steps", "1", "--budget", str(tmp_path / "plain"), *SMALL]
    fails(capsys, 2, "plain: no classes; the model has 2", sets[0], *options)


def test_a_model_without_classes_has_no_accuracy() -> None:
    found: list[Judged] = [
        {"eval": "b", "tokens_per_example": 64.0, "gflops_per_example": 2.0, "loss": 0.25, "accuracy": None},
        {"eval": "a", "tokens_per_example": 16.0, "gflops_per_example": 0.5, "loss": None, "accuracy": None},
    ]
    assert [line.split() for line in table(found)][1:] == [
        ["16.0", "0.5000", "-", "-", "a"],
        ["64.0", "2.0000", "-", "0.2500", "b"],
    ]
