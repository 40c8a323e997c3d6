"""Promises about a run as a whole: what it is reported it keeps, what it did it saves, and nothing that is no number."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.manifests import change_manifest
from support.synthetic_set import label_tokens, write_set
from test_trainer_train import SMALL, are_equal, fails, one_thread, run, small_model

from patchpack.trainer import checkpoint
from patchpack.trainer.checks import check_finite
from patchpack.trainer.cli import main
from patchpack.trainer.config import Config
from patchpack.trainer.data import PackedShards
from patchpack.trainer.evaluate import evaluate, evaluation_dataset
from patchpack.trainer.optimisation import averaged, follow
from patchpack.trainer.parallel import World
from patchpack.trainer.runlog import read_log
from patchpack.trainer.stop import Interrupted
from patchpack.trainer.train import train

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("dark", "light")

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("sets") / "labelled")
    write_set(folder, classes=CLASSES, make_tokens=label_tokens)
    return folder


def test_a_resumed_run_keeps_every_option_and_says_so(
    labelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = str(tmp_path / "run")
    options = ["--lr", "0.01", "--eval", labelled, "--checkpoint-every", "2", "--log-every", "3", "--no-verify"]
    run(capsys, labelled, "--steps", "9", "--checkpoint", str(tmp_path / "whole"), *options, *SMALL)
    # a run that was killed behind its sixth step, in another folder of the disk
    os.makedirs(folder)
    os.rename(tmp_path / "whole/step-00000006", f"{folder}/step-00000006")
    first, *logs, summary = run(capsys, labelled, "--resume", folder)
    assert first == {
        "event": "log",
        "step": 6,
        "resumed": f"{folder}/step-00000006",
        "taken_over": (
            "--steps 9 --batch-size 3 --no-verify --log-every 3 --dim 16 --depth 2 --heads 2 --lr 0.01 "
            f"--checkpoint {folder} --checkpoint-every 2 --eval {labelled}"
        ),
    }
    assert [line["step"] for line in logs] == [9] and summary["steps"] == 9 and "eval_accuracy" in summary
    assert checkpoint.checkpoints(folder) == ["step-00000006", "step-00000008", "step-00000009"]
    assert are_equal(str(tmp_path / "whole"), folder)
    one, other = (checkpoint.read(f"{place}/step-00000009") for place in (tmp_path / "whole", folder))
    # the set to judge on, too, where nothing but that is asked for
    assert run(capsys, labelled, "--resume", folder, "--steps", "0")[-1]["eval_accuracy"] == summary["eval_accuracy"]
    kept = other["config"] | {"checkpoint": one["config"]["checkpoint"], "resume": None, "device": "cpu"}
    assert kept == one["config"]


def test_a_run_that_is_done_or_goes_back_says_so(
    labelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = str(tmp_path / "run")
    run(capsys, labelled, "--steps", "4", "--checkpoint", folder, "--checkpoint-every", "2", *SMALL)
    before = os.listdir(folder)
    told = f"--resume {folder}: done with step 4 of 4; nothing is left to do; give more --steps, or --eval"
    fails(capsys, 2, told, labelled, "--resume", folder)
    back = f"{folder}/step-00000002"
    told = f"--resume of step 2: {folder} holds step-00000004, which is later; a run that goes back has a folder of its own"
    fails(capsys, 2, told, labelled, "--resume", back)
    assert os.listdir(folder) == before
    run(capsys, labelled, "--resume", back, "--checkpoint", str(tmp_path / "again"))
    first = run(capsys, labelled, "--resume", folder, "--steps", "6")[0]
    assert first["taken_over"].endswith("(the learning rate now ends at step 6, not 4)")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow_beyond(1)
def test_a_signal_saves_the_last_whole_step(
    number: int, status: int, labelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, handlers = str(tmp_path / "run"), [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    sizes = {"dim": 16, "depth": 2, "heads": 2, "batch_size": 3, "device": "cpu"}
    typed = sizes | {"shards": labelled, "steps": 9, "log_every": 1, "lr": 0.001}

    def log(values: dict[str, Any]) -> None:
        if values["step"] == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as ended:
        train(typed | {"checkpoint": folder}, log)
    (name,) = checkpoint.checkpoints(folder)
    step = checkpoint.step_of(name)
    assert 5 <= step < 9 and ended.value.status == status
    assert str(ended.value) == f"interrupted: step {step} is done and saved as {folder}/{name}; --resume it to go on"
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    # and going on from there gives the run that nobody disturbed
    run(capsys, labelled, "--resume", folder)
    train(typed | {"checkpoint": str(tmp_path / "whole")}, lambda values: None)
    assert are_equal(folder, str(tmp_path / "whole"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow_beyond(1)
def test_the_command_ends_as_shells_expect_of_a_signal(number: int, status: int, labelled: str, tmp_path: Path) -> None:
    folder, command = str(tmp_path / "run"), [sys.executable, "-m", "patchpack", "train", labelled, *SMALL]
    options = ["--steps", "100000", "--log-every", "1", "--checkpoint", folder]
    process = subprocess.Popen(
        [*command, *options], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    (name,) = checkpoint.checkpoints(folder)
    assert (process.returncode, out) == (status, "")
    assert err.splitlines()[-1].endswith(f" is done and saved as {folder}/{name}; --resume it to go on")


@pytest.mark.slow
def test_a_signal_without_a_folder_says_that_nothing_is_saved(labelled: str) -> None:
    command = [sys.executable, "-m", "patchpack", "train", labelled, *SMALL, "--steps", "100000", "--log-every", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith("is done and not saved, since no --checkpoint was given")


@pytest.mark.parametrize("rate", ["1e6", "1e30"])
def test_weights_that_are_no_numbers_are_never_saved(
    rate: str, labelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = str(tmp_path / "run")
    arguments = [labelled, "--lr", rate, "--steps", "6", "--checkpoint-every", "1", "--warmup-steps", "0", *SMALL]
    status = main([*arguments, "--checkpoint", folder])
    captured = capsys.readouterr()
    assert status == 1, captured.err
    last = captured.err.splitlines()[-1]
    assert last.startswith("step ") and last.endswith(
        ("lower --lr and resume an earlier checkpoint", "resume an earlier one")
    )
    for name in checkpoint.checkpoints(folder):
        for tensor in load_file(f"{folder}/{name}/model.safetensors").values():
            assert torch.isfinite(tensor).all(), name


def test_weights_that_an_update_broke_are_not_saved(labelled: str) -> None:
    model = small_model(labelled)
    check_finite(model, 3)
    with torch.no_grad():
        model.blocks[0].mlp.widen.weight[0, 0] = float("inf")
    with pytest.raises(
        FloatingPointError, match=r"^step 3: weights blocks\.0\.mlp\.widen\.weight are not finite, and were not saved"
    ):
        check_finite(model, 3)


def test_a_broken_sequence_ends_a_run_or_is_left_out(
    labelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = str(tmp_path / "own")
    shutil.copytree(labelled, own)
    (path, *_) = sorted(Path(own).glob("sequences/*.parquet"))
    os.truncate(path, 200)
    told = f"{path}: not a readable Parquet file"
    assert main([own, "--steps", "8", *SMALL]) == 1
    assert told in capsys.readouterr().err
    assert main([own, "--steps", "8", "--on-corrupt", "skip", "--json", *SMALL]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["skipped"] == 3
    (line,) = [line for line in err.splitlines() if "comes as an empty one" in line]
    assert line.startswith("warning: sequence ") and told in line


def relabel(folder: Path, classes: tuple[str, ...]) -> None:
    change_manifest(folder, classes=list(classes))


def test_a_step_with_nothing_to_learn_from_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_set(str(tmp_path / "set"))
    relabel(tmp_path / "set", CLASSES)
    folder = str(tmp_path / "set")
    told = (
        f"{folder}: no segment has a label in the 3 sequences of step 1, so there is nothing to learn; a step needs one"
    )
    fails(capsys, 2, told, folder, "--steps", "3", "--checkpoint", str(tmp_path / "run"), *SMALL)
    assert checkpoint.checkpoints(str(tmp_path / "run")) == []
    relabel(tmp_path / "set", ())
    write_set(str(tmp_path / "bare"))
    told = "no token is hidden in the 3 sequences of step 1"
    fails(capsys, 2, told, str(tmp_path / "bare"), "--mask-share", "0.001", "--steps", "3", *SMALL)


@pytest.mark.parametrize("what", ["file", "below a file"])
def test_a_checkpoint_folder_that_cannot_be_is_told_before_the_training(
    what: str, labelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    place = str(tmp_path / "file") if what == "file" else str(tmp_path / "file/run")
    told = f"--checkpoint {place}: no folder that can be written ("
    fails(capsys, 2, told, labelled, "--steps", "2", "--log-every", "1", "--checkpoint", place, *SMALL)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_split_with_fewer_classes_in_another_order_is_judged_by_their_names(labelled: str, tmp_path: Path) -> None:
    trained = PackedShards(labelled, batch_size=1)
    model, world = small_model(labelled), World(0, 1, torch.device("cpu"))

    def judged(classes: tuple[str, ...], **options: Any) -> dict[str, Any]:
        folder = tmp_path / "-".join(classes)
        write_set(str(folder), make_tokens=label_tokens, classes=CLASSES, **options)
        relabel(folder, classes)
        config = Config(str(folder))
        found = evaluate(model, evaluation_dataset(trained, str(folder), config, world), config, world)
        return {name: value for name, value in found.items() if name != "eval"}

    same, turned = judged(CLASSES), judged(CLASSES[::-1])
    # each label now means the other class, which a model of two classes gets right where it was wrong
    assert turned["eval_accuracy"] == pytest.approx(1 - same["eval_accuracy"])
    assert turned["eval_counted"] == same["eval_counted"]
    with pytest.raises(ValueError, match=r"class zebu; the model does not know it; evaluate on classes of .*--classes"):
        judged(("dark", "zebu"))


def test_a_split_without_one_of_the_classes_is_judged(
    labelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    part = str(tmp_path / "light")
    # one class, whose number here is 0 and in training 1
    write_set(
        part, classes=("dark",), make_tokens=lambda g, n, p, label: label_tokens(g, n, p, 1 if label == 0 else -1)
    )
    relabel(Path(part), ("light",))
    lines = run(capsys, labelled, "--steps", "60", "--lr", "0.01", "--eval", part, *SMALL)
    assert lines[-1]["eval_accuracy"] == 1


def test_an_average_follows_the_weights_and_is_what_is_judged(labelled: str) -> None:
    model = small_model(labelled)
    average = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    follow(average, model, 0.75)
    follow(average, model, 0.75)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, weight in weights.items():
        torch.testing.assert_close(average[name], weight * (0.25 + 0.75 * 0.25))
    with averaged(model, average):
        assert all(torch.equal(p, average[name]) for name, p in model.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_an_average_is_resumed_and_its_evaluation_is_not_that_of_the_weights(
    labelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--steps", "8", "--schedule-steps", "8", "--lr", "0.01", "--ema", "0.5", "--eval", labelled, *SMALL]
    whole = run(capsys, labelled, *options, "--checkpoint", str(tmp_path / "whole"))
    run(capsys, labelled, *options, "--steps", "5", "--checkpoint", str(tmp_path / "parts"))
    parts = run(capsys, labelled, "--steps", "8", "--resume", str(tmp_path / "parts"))
    assert parts[-1]["eval_loss"] == whole[-1]["eval_loss"]
    plain = run(capsys, labelled, *options, "--ema", "0")
    assert plain[-1]["loss"] == whole[-1]["loss"] and plain[-1]["eval_loss"] != whole[-1]["eval_loss"]


def test_the_best_checkpoint_is_that_of_least_evaluation_loss(
    labelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = str(tmp_path / "run")
    options = ["--steps", "12", "--eval-every", "2", "--eval", labelled, "--keep", "1", "--lr", "0.05", *SMALL]
    lines = run(capsys, labelled, *options, "--checkpoint", folder, "--checkpoint-every", "100")
    judged = {line.get("step", line.get("steps")): line["eval_loss"] for line in lines if "eval_loss" in line}
    assert sorted(judged) == [2, 4, 6, 8, 10, 12]
    best = min(judged, key=judged.__getitem__)
    assert os.readlink(f"{folder}/best") == f"step-{best:08}" and os.readlink(f"{folder}/latest") == "step-00000012"
    assert checkpoint.checkpoints(folder) == sorted({f"step-{best:08}", "step-00000012"})


def test_overfitting_sees_the_same_steps_again(labelled: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--overfit", "2", "--log-every", "1", "--lr", "1e-9", "--steps", "6", *SMALL]
    *logs, _ = run(capsys, labelled, *options)
    fills = [line["efficiency"] for line in logs]
    assert fills == fills[:2] * 3 and fills[0] != fills[1]


def test_the_limits_of_what_is_judged_count_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, labelled: str
) -> None:
    few = str(tmp_path / "few")
    shutil.copytree(labelled, few)
    # says that it has fewer than it has: found before it is looked at
    limits = [{"max_segments": 1, "max_segment_tokens": 24, "max_grid": [3, 4, 4], "max_labels": 2}]
    change_manifest(few, limits=limits)
    fails(capsys, 2, "segments in a batch: the model was made for 1", few, "--steps", "1", *SMALL)
    # and a dataset with more is evaluated by a model that was made for both
    assert run(capsys, few, "--steps", "0", "--eval", labelled, *SMALL)[-1]["eval_segments"] > 13


def test_a_run_logs_every_line_and_one_that_goes_on_appends(
    labelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = str(tmp_path / "run")
    options = ["--steps", "6", "--log-every", "2", "--checkpoint", folder, "--checkpoint-every", "4", *SMALL]
    lines = run(capsys, labelled, *options, "--eval", labelled, "--eval-every", "4")
    logged = read_log(folder)
    said = [{name: value for name, value in line.items() if name != "event"} for line in lines[:-1]]
    assert logged[:-1] == said and logged[-1]["step"] == 6 and logged[-1]["eval_loss"] == lines[-1]["eval_loss"]
    assert {"loss", "lr", "grad_norm", "tokens_per_s", "examples_per_s", "efficiency", "waiting", "left_s"} <= said[
        0
    ].keys()
    # what a killed run leaves: lines behind its checkpoint, and half a line
    shutil.rmtree(f"{folder}/step-00000006")
    with open(f"{folder}/log.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    run(capsys, labelled, "--resume", folder)
    assert [line["step"] for line in read_log(folder)] == [2, 4, 4, 6, 6]
    assert main(["--plot", folder]) == 0
    assert capsys.readouterr().out == f"{folder}/curves.png\n"
    with Image.open(f"{folder}/curves.png") as curves:
        assert curves.size == (1080, 720)


def test_a_plot_of_nothing_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fails(capsys, 1, "log.jsonl: no log (", "--plot", str(tmp_path))
    for arguments in ([], ["shards", "--plot", str(tmp_path)]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2 and "SHARDS or --plot FOLDER: give one of them" in capsys.readouterr().err
    fails(capsys, 2, "--tensorboard: no folder to write to", "shards", "--tensorboard")


def test_judging_a_run_that_is_done_changes_nothing_of_it(
    labelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = str(tmp_path / "run")
    run(capsys, labelled, "--steps", "3", "--checkpoint", folder, *SMALL)
    before = {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    assert "eval_loss" in run(capsys, labelled, "--resume", folder, "--eval", labelled)[-1]
    assert {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()} == before


def test_tensorboard_has_the_numbers_of_the_log(
    labelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = str(tmp_path / "run")
    run(capsys, labelled, "--steps", "4", "--log-every", "2", "--checkpoint", folder, "--tensorboard", *SMALL)
    events = EventAccumulator(f"{folder}/tensorboard").Reload()
    for name in ("loss", "lr", "grad_norm", "tokens_per_s"):
        logged = [(line["step"], line[name]) for line in read_log(folder)]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [2, 4] == [step for step, _ in logged]
        assert [value for _, value in found] == pytest.approx([value for _, value in logged], rel=1e-6)
