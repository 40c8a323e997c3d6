"""Promises of several processes: the same steps as one, and a run goes on with any other number of them."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.processes import ROOT, command, losses, run
from support.synthetic_set import label_tokens, write_set

from patchpack.trainer import checkpoint

SIZES = ["--dim", "16", "--depth", "2", "--heads", "2", "--device", "cpu", "--batch-size", "4", "--lr", "0.01"]
STEPS = 8


@pytest.fixture(scope="module", params=["labelled", "unlabelled"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("sets") / request.param)
    classes = ("dark", "light") if request.param == "labelled" else None
    write_set(place, classes=classes, make_tokens=label_tokens, rows_per_shard=(5, 7, 4))
    return place


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "how"), [(2, "ddp"), (4, "ddp"), (2, "fsdp")])
def test_any_number_of_processes_makes_the_same_steps(processes: int, how: str, folder: str) -> None:
    options = [folder, "--steps", str(STEPS), "--eval", folder, "--ema", "0.9", *SIZES]
    alone, together = run(1, *options), run(processes, *options, "--parallel", how)
    assert len(losses(alone)) == len(losses(together)) == STEPS
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5, abs=1e-6)
    names = {"eval_loss", "eval_accuracy", "eval_counted", "eval_sequences", "real_tokens", "efficiency"}
    # without classes nothing is right or wrong
    names -= {"eval_accuracy"} if Path(folder).name == "unlabelled" else set()
    for name in names:
        assert together[-1][name] == pytest.approx(alone[-1][name], rel=1e-5), name
    assert [line["grad_norm"] for line in together[:-1]] == pytest.approx(
        [line["grad_norm"] for line in alone[:-1]], rel=1e-4, abs=1e-6
    )


@pytest.mark.slow
def test_a_step_is_the_same_in_parts(folder: str) -> None:
    options = [folder, "--steps", "4", *SIZES]
    assert losses(run(1, *options, "--accumulate", "4")) == pytest.approx(losses(run(1, *options)), rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_with_another_number_of_processes(folder: str, tmp_path: Path) -> None:
    options = [folder, "--steps", "12", "--checkpoint-every", "2", "--keep", "0", "--ema", "0.9", *SIZES]
    whole = losses(run(1, *options, "--checkpoint", str(tmp_path / "whole")))
    place = str(tmp_path / "run")
    started = subprocess.Popen(
        command(2, *options, "--checkpoint", place),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 60
    while not checkpoint.checkpoints(place) and time.monotonic() < until:
        time.sleep(0.01)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    for process in (started.pid, *map(int, children)):
        os.kill(process, signal.SIGKILL)
    started.wait()
    # the processes of a run that are gone are nobody's children
    while any(
        Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_text() for child in children
    ):
        time.sleep(0.01)
    step = checkpoint.step_of(checkpoint.checkpoints(place)[-1])
    assert 2 <= step <= 12
    for processes, end in ((4, 10), (1, 12)):
        if step < end:
            rest = losses(run(processes, folder, "--resume", place, "--steps", str(end), "--schedule-steps", "12"))
            assert rest == pytest.approx(whole[step:end], rel=1e-4, abs=1e-5)
            step = end
    assert not [name for name in os.listdir(place) if name.endswith(".tmp")]
    one, other = (load_file(f"{each}/step-00000012/model.safetensors") for each in (tmp_path / "whole", place))
    for name, tensor in one.items():
        assert other[name].tolist() == pytest.approx(tensor.tolist(), rel=1e-2, abs=1e-3) if tensor.dim() < 2 else True


@pytest.mark.slow
def test_what_was_typed_wrong_is_said_once(folder: str) -> None:
    done = subprocess.run(
        command(2, folder, *SIZES, "--batch-size", "3"), cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("--batch-size 3")]
    assert done.returncode != 0 and len(said) == 1 and "it is a multiple of 2; choose one" in said[0]


@pytest.mark.slow
def test_a_signal_to_one_process_saves_the_step_of_all(folder: str, tmp_path: Path) -> None:
    place = str(tmp_path / "run")
    started = subprocess.Popen(
        command(2, folder, "--steps", "100000", *SIZES, "--checkpoint", place, "--checkpoint-every", "100000"),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert started.stdout is not None
    # both make steps
    started.stdout.readline()
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    workers = [child for child in children if "train" in Path(f"/proc/{child}/cmdline").read_text()]
    os.kill(int(workers[-1]), signal.SIGTERM)
    started.communicate(timeout=100)
    (name,) = checkpoint.checkpoints(place)
    assert started.returncode != 0 and 1 <= checkpoint.step_of(name) < 100000
    step = checkpoint.step_of(name)
    assert losses(run(1, folder, "--resume", place, "--steps", str(step + 1)))
