"""Promises of `patchpack train`: it learns, resumes bit for bit, evaluates every sequence once, and fails in one line."""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.synthetic_set import SMALL_LAYOUT, Row, label_tokens, write_set

from patchpack.schemas import Layout
from patchpack.trainer import checkpoint
from patchpack.trainer.cli import main
from patchpack.trainer.config import Config
from patchpack.trainer.data import PackedShards
from patchpack.trainer.evaluate import evaluate, evaluation_dataset
from patchpack.trainer.losses import classification_loss
from patchpack.trainer.model import Model
from patchpack.trainer.models import make_model
from patchpack.trainer.optimisation import learning_rate, make_optimizer
from patchpack.trainer.parallel import World
from patchpack.trainer.vit import Shape, ViT

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--dim", "16", "--depth", "2", "--heads", "2", "--batch-size", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Row]]:
    folder = str(tmp_path_factory.mktemp("sets") / "labelled")
    return folder, write_set(folder, classes=("dark", "light"), make_tokens=label_tokens)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("sets") / "unlabelled")
    write_set(folder, num_views=2, make_tokens=lambda g, n, p, _: label_tokens(g, n, p, int(g.integers(2))))
    return folder


def small_model(folder: str) -> Model:
    """Returns a model of a dataset's classes, as the trainer makes it."""
    config, manifest = Config(folder, dim=16, depth=1, heads=2), PackedShards(folder, batch_size=1).manifest
    torch.manual_seed(0)
    return make_model(config, manifest, [0], torch.device("cpu"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """Runs the trainer with --json and returns its lines."""
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(("kind", "factor"), [("labelled", 0.2), ("unlabelled", 0.5)])
def test_the_model_learns(
    kind: str, factor: float, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    fixture = request.getfixturevalue(kind)
    folder = fixture[0] if kind == "labelled" else fixture
    lines = run(capsys, folder, "--steps", "60", "--lr", "0.01", "--log-every", "5", "--eval", folder, *SMALL)
    assert lines[-2]["loss"] < factor * lines[0]["loss"]
    assert lines[-1]["eval_loss"] < factor * lines[0]["loss"]
    if kind == "labelled":
        assert lines[-1]["eval_accuracy"] == 1


def tensors_of(path: Path) -> dict[str, bytes]:
    """Returns the files of a checkpoint that hold tensors: weights, average and moments."""
    files = {file.name: file.read_bytes() for file in path.iterdir() if file.suffix in (".distcp", ".safetensors")}
    assert len(files) >= 2
    return files


def are_equal(one: str, other: str) -> bool:
    """Returns whether two runs stand at the same place, to the bit."""
    places = [Path(checkpoint.find(folder)) for folder in (one, other)]
    records = [checkpoint.read(str(place)) for place in places]
    assert records[0]["step"] == records[1]["step"] and records[0]["loader"] == records[1]["loader"]
    return tensors_of(places[0]) == tensors_of(places[1])


@pytest.mark.parametrize("kind", ["labelled", "unlabelled"])
@pytest.mark.parametrize("killed", [True, False])
def test_a_resumed_run_is_bit_for_bit_the_run_that_did_not_stop(
    kind: str, killed: bool, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Half of 14 steps lies in the middle of an epoch, and the runs pass from one epoch to the next."""
    fixture = request.getfixturevalue(kind)
    folder = fixture[0] if kind == "labelled" else fixture
    options = [*SMALL, "--warmup-steps", "3", "--lr", "0.01", "--schedule-steps", "14"]
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    run(capsys, folder, "--steps", "14", "--checkpoint", whole, "--checkpoint-every", "6", *options)
    if killed:  # what a run that was killed after step 6 leaves
        start = str(Path(whole) / "step-00000006")
    else:  # a run that ended at step 6
        run(capsys, folder, "--steps", "6", "--checkpoint", parts, *options)
        start = parts
    run(
        capsys, folder, "--steps", "14", "--checkpoint", parts, "--resume", start
    )  # the options come from the checkpoint
    assert are_equal(whole, parts) and checkpoint.read(checkpoint.find(whole))["step"] == 14
    assert tensors_of(Path(whole) / "step-00000014") != tensors_of(Path(whole) / "step-00000006")


def test_evaluation_counts_every_sequence_once_whatever_the_batch_size(labelled: tuple[str, list[Row]]) -> None:
    folder, rows = labelled
    trained, world = PackedShards(folder, batch_size=1), World(0, 1, torch.device("cpu"))
    model = small_model(folder)
    results = []
    for size in (1, 5, 13, 99):
        config = Config(folder, batch_size=size)
        results.append(evaluate(model, evaluation_dataset(trained, folder, config, world), config, world))
    labels = [segment["labels"] for row in rows for segment in row["segments"]]
    total = torch.zeros((), dtype=torch.float64)
    for batch in PackedShards(folder, batch_size=1, shuffle=False):
        total += classification_loss(model(batch).logits_BSK, batch["labels"], batch["weights"]).total.detach()
    for result in results:
        assert result["eval_sequences"] == len(rows) and result["eval_segments"] == len(labels)
        assert result["eval_tokens"] == sum(row["num_tokens"] for row in rows)
        assert result["eval_counted"] == sum(bool(each) for each in labels) < len(labels)
        assert result["eval_loss"] == pytest.approx(float(total) / result["eval_counted"], rel=1e-5)
        assert result["eval_accuracy"] == results[0]["eval_accuracy"]
    assert model.training


def test_evaluation_alone_changes_nothing_and_repeats_the_result_of_its_run(
    unlabelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = str(tmp_path / "run")
    trained = run(capsys, unlabelled, "--steps", "4", "--checkpoint", folder, "--eval", unlabelled, *SMALL)[-1]
    before = {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    alone = [unlabelled, "--steps", "0", "--resume", folder, "--checkpoint", folder, "--eval", unlabelled]
    lines = run(capsys, *alone)
    assert len(lines) == 1 and lines[0]["steps"] == 4
    assert lines[0]["eval_loss"] == trained["eval_loss"]
    run(capsys, *alone, "--batch-size", "2")  # the batches of the training are not gone on with
    assert {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()} == before


def test_the_log_counts_real_tokens_and_never_padding(
    labelled: tuple[str, list[Row]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rows = labelled
    *logs, summary = run(capsys, folder, "--steps", "4", "--log-every", "1", *SMALL)
    loader = PackedShards(folder, batch_size=3, last="drop")
    real = [sum(rows[index]["num_tokens"] for index in batch["index"].tolist()) for batch in loader]
    assert len(real) == len(logs) == 4
    slots = 3 * SMALL_LAYOUT.sequence_length
    assert [line["efficiency"] for line in logs] == [tokens / slots for tokens in real]
    assert summary["real_tokens"] == sum(real) and summary["efficiency"] == sum(real) / (4 * slots)
    assert summary["tokens_per_s"] == pytest.approx(sum(real) / summary["seconds"])
    assert all(line["step"] == number for number, line in enumerate(logs, start=1))


def test_log_goes_to_stderr_and_one_summary_line_to_stdout(
    labelled: tuple[str, list[Row]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([labelled[0], "--steps", "4", "--log-every", "2", "--eval", labelled[0], *SMALL]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1 and captured.out.startswith("4 steps  on cpu")
    assert [line.split("  ")[0] for line in captured.err.splitlines()] == ["step 2", "step 4"]
    assert "real tokens/s" in captured.err and "efficiency" in captured.err and "lr" in captured.err


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = Config("x", steps=100, lr=1.0, warmup_steps=10)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1 and rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0)
    assert all(one > other for one, other in itertools.pairwise(rates[10:]))
    assert learning_rate(50, Config("x", steps=51, schedule_steps=100, lr=1.0, warmup_steps=10)) == rates[50]


def fails(capsys: pytest.CaptureFixture[str], status: int, words: str, *arguments: str) -> None:
    assert main(list(arguments)) == status
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and words in captured.err, captured.err


def test_mistakes_end_in_one_line_and_their_exit_status(
    labelled: tuple[str, list[Row]], unlabelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, run_folder = labelled[0], str(tmp_path / "run")
    assert main([folder, "--steps", "2", "--checkpoint", run_folder, *SMALL]) == 0
    other_layout = str(tmp_path / "other")
    write_set(other_layout, layouts=(Layout(24, 5, (1, 4, 1)),), classes=("dark", "light"))
    capsys.readouterr()

    fails(capsys, 1, "nowhere: no dataset; a dataset is a folder with manifest.json", str(tmp_path / "nowhere"))
    fails(capsys, 1, "no such checkpoint", folder, "--resume", str(tmp_path / "nothing"))
    # before the first step, so not after hours
    fails(capsys, 1, "no dataset", folder, "--log-every", "1", "--eval", str(tmp_path / "nowhere"), *SMALL)
    fails(capsys, 2, "batch size 14: ", folder, "--batch-size", "14")
    fails(capsys, 2, "--layout 3: no such layout", folder, "--layout", "3")
    fails(capsys, 2, "--steps -1: too small", folder, "--steps", "-1")
    fails(capsys, 2, "--steps 0: nothing to do", folder, "--steps", "0")
    fails(capsys, 2, "--lr nan: not a positive number", folder, "--lr", "nan")
    fails(capsys, 2, "--mask-share 1.0: nothing to learn", folder, "--mask-share", "1")
    fails(capsys, 2, "--dim 15 --depth 2 --heads 2: no such model", folder, *SMALL, "--dim", "15")
    fails(capsys, 2, "--device tpu: unknown", folder, "--device", "tpu")
    if not torch.cuda.is_available():
        fails(capsys, 2, "--device cuda: torch finds 0 CUDA devices", folder, "--device", "cuda")
    fails(capsys, 2, "holds step-00000002 of another run", folder, "--checkpoint", run_folder)
    fails(capsys, 2, "--dim 32: the checkpoint's model has 16", folder, "--resume", run_folder, "--dim", "32")
    fails(capsys, 2, "trained on a dataset with digest", unlabelled, "--resume", run_folder)
    resumed = [folder, "--resume", run_folder]
    fails(capsys, 2, "it is a multiple of 2; choose one", folder, "--batch-size", "3", "--accumulate", "2")
    evaluated = [*resumed, "--steps", "0", "--eval"]
    fails(capsys, 2, "tubelet (1, 4, 1); the model was trained on (1, 2, 2)", *evaluated, other_layout)
    fails(capsys, 2, "no classes; the model has 2; build the dataset with --labels folder", *evaluated, unlabelled)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no dataset"):
        main([str(tmp_path), "--debug"])


def test_help_names_every_option_and_unknown_ones_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help-all"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for name in Config.__dataclass_fields__:
        assert ("SHARDS" if name == "shards" else "--" + name.replace("_", "-")) in text
    with pytest.raises(SystemExit) as caught:
        main(["shards", "--batchsize", "3"])
    assert caught.value.code == 2


@pytest.mark.slow
def test_the_command_runs_alone_and_imports_neither_beam_nor_the_pipeline(labelled: tuple[str, list[Row]]) -> None:
    code = (
        "import os, runpy, sys\n"
        "os._exit = sys.exit\n"
        "try:\n"
        "    runpy.run_module('patchpack', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "found = sorted(name for name in sys.modules if name.startswith(('apache_beam', 'patchpack.pipeline')))\n"
        "assert 'patchpack.trainer.train' in sys.modules and not found, found\n"
    )
    arguments = ["train", labelled[0], "--steps", "2", *SMALL]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 steps")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["labelled", "unlabelled"])
def test_it_learns_on_cuda(kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    fixture = request.getfixturevalue(kind)
    folder = fixture[0] if kind == "labelled" else fixture
    lines = run(capsys, folder, "--steps", "60", "--lr", "0.01", "--eval", folder, *SMALL, "--device", "cuda")
    assert lines[-2]["loss"] < 0.7 * lines[0]["loss"] and lines[-1]["device"].startswith("cuda")


def test_weights_decay_and_norms_and_biases_do_not() -> None:
    layout, limits = SMALL_LAYOUT, {"max_segments": 5, "max_segment_tokens": 24, "max_grid": [3, 4, 4], "max_labels": 1}
    model = ViT(Shape(16, 2, 2, positions="learned", bias=True), [layout], limits, None)
    optimizer = make_optimizer(model, Config(shards="", weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    norms = [p for module in model.modules() if isinstance(module, torch.nn.LayerNorm) for p in module.parameters()]
    assert len(norms) > 8 and {decay[id(p)] for p in norms} == {0.0}
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert len(matrices) > 8 and {decay[id(p)] for p in matrices} == {0.3}
    others = [model.decoder.hidden_D, *model.position.parameters(), *(p for p in model.parameters() if p.dim() == 1)]
    assert {decay[id(p)] for p in others} == {0.0}
    maps = ViT(Shape(16, 1, 2), [layout], limits, 3)
    groups = make_optimizer(maps, Config(shards="", weight_decay=0.3)).param_groups
    undecayed = {id(p) for p in groups[1]["params"]}
    assert {id(p) for p in maps.position.parameters()} | {id(maps.pool.query_D)} <= undecayed
    assert len(decay) == len([p for p in model.parameters() if p.requires_grad])
