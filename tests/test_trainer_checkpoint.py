"""Promises of checkpoints: whole or not at all, and read without running anything."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from patchpack.schemas import FormatError
from patchpack.trainer import checkpoint
from patchpack.trainer.parallel import World

ALONE = World(0, 1, torch.device("cpu"))


def made(value: float = 0.0) -> checkpoint.Weights:
    """Returns a small model that has made a step, all of whose weights are a value."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3))[0, 0].backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return {"model": model, "optimizer": optimizer, "average": {"0.weight": torch.full((2, 3), 2 * value)}}


def record(step: int) -> checkpoint.RunRecord:
    return {"step": step, "config": {"lr": 0.5}, "dataset_digest": "d", "loader": {"epoch": 1}, "best_loss": 0.25}


def test_what_is_saved_is_read_and_a_folder_means_its_newest(tmp_path: Path) -> None:
    folder = str(tmp_path / "new")
    for step in (9, 10, 1000):
        path = checkpoint.save(folder, record(step), made(step), ALONE)
        assert os.path.basename(path) == f"step-{step:08}"
    assert sorted(os.listdir(folder)) == ["latest", *checkpoint.checkpoints(folder)]
    assert checkpoint.find(folder) == path and checkpoint.read(path) == record(1000)
    assert checkpoint.read(checkpoint.find(f"{folder}/latest")) == record(1000)
    assert checkpoint.read(checkpoint.find(f"{folder}/step-00000009"))["step"] == 9
    weights, saved = made(), made(1000)
    moments = weights["optimizer"].state_dict()["state"][0]["exp_avg"].clone()
    with torch.no_grad():
        weights["optimizer"].state_dict()["state"][0]["exp_avg"].zero_()
    checkpoint.restore(path, weights, ALONE)
    for name, tensor in weights["model"].state_dict().items():
        assert torch.equal(tensor, saved["model"].state_dict()[name])
    assert (weights["average"]["0.weight"] == 2000).all()
    assert torch.equal(weights["optimizer"].state_dict()["state"][0]["exp_avg"], moments)
    # other programs read the weights by themselves
    assert (load_file(f"{path}/model.safetensors")["0.weight"] == 1000).all()


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for step in range(1, 7):
        checkpoint.save(folder, record(step), made(step), ALONE, keep=2, best=step == 2)
    assert checkpoint.checkpoints(folder) == [f"step-0000000{step}" for step in (2, 5, 6)]
    assert os.readlink(f"{folder}/best") == "step-00000002" and os.readlink(f"{folder}/latest") == "step-00000006"


def test_a_write_that_fails_leaves_the_old_one_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint.save(str(tmp_path), record(1), made(1), ALONE)

    def half(tensors: dict[str, torch.Tensor], place: str) -> None:
        Path(place).write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(str(tmp_path), record(1), made(2), ALONE)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-00000001"]
    assert (load_file(f"{path}/model.safetensors")["0.weight"] == 1).all()
    # and one that does not fail takes its place
    checkpoint.save(str(tmp_path), record(1), made(2), ALONE)
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-00000001"]
    assert (load_file(f"{path}/model.safetensors")["0.weight"] == 2).all()


def test_the_bytes_are_flushed_before_the_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        call = getattr(os, name)
        return lambda *arguments: (calls.append(name), call(*arguments))[1]

    written = checkpoint.state_dict_saver.save
    monkeypatch.setattr(checkpoint.state_dict_saver, "save", lambda *a, **k: (written(*a, **k), calls.clear())[0])
    for name in ("fsync", "rename"):
        monkeypatch.setattr(os, name, noted(name))
    checkpoint.save(str(tmp_path), record(1), made(), ALONE)
    # one for each file, and one for their folder, before it is renamed; then one for the folder of folders
    at = calls.index("rename")
    assert calls[:at] == ["fsync"] * (len(os.listdir(tmp_path / "step-00000001")) + 1) and calls[at + 1 :] == ["fsync"]


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


class Attribute:
    """Is pickled as an attribute of something, as Python before 3.11.4 pickles members of enumerations."""

    def __init__(self, owner: Any, name: str) -> None:
        self.of = owner, name

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, self.of


@pytest.mark.parametrize(
    ("owner", "name", "is_good"), [(_MEM_FORMAT_ENCODING, "TORCH_PRESERVE_FORMAT", True), (torch.Size, "mro", False)]
)
def test_an_index_written_by_an_older_python_is_read(owner: Any, name: str, is_good: bool, tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Attribute(owner, name)))
    if is_good:
        checkpoint._check_index(str(tmp_path / ".metadata"))
    else:
        with pytest.raises(pickle.UnpicklingError, match="holds an attribute of"):
            checkpoint._check_index(str(tmp_path / ".metadata"))


def test_what_is_no_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = checkpoint.save(str(tmp_path / "a"), record(3), made(1), ALONE)
    for name, change in {
        "text": "hello",
        "foreign": "{}",
        "newer": json.dumps({"checkpoint_version": 99}),
        "bare": json.dumps({"checkpoint_version": 4, "step": 1}),
        "older": json.dumps({"checkpoint_version": 2}),
    }.items():
        shutil.copytree(whole, tmp_path / name)
        (tmp_path / name / "run.json").write_text(change)
    (tmp_path / "empty").mkdir()
    for name, words in [
        ("text", "not a readable checkpoint"),
        ("foreign", "not a readable checkpoint"),
        ("bare", "not a readable checkpoint"),
        ("newer", "checkpoint version 99; this trainer knows 4; upgrade patchpack"),
        ("older", "checkpoint version 2; this trainer knows 4; go on with the version that wrote it, or start anew"),
        ("empty", "no checkpoint in this folder"),
        ("nowhere", "no such checkpoint"),
    ]:
        with pytest.raises(FormatError, match=words) as caught:
            checkpoint.read(checkpoint.find(str(tmp_path / name)))
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "gone", "other model"])
def test_tensors_that_cannot_be_read_are_named(damage: str, tmp_path: Path) -> None:
    path = checkpoint.save(str(tmp_path), record(3), made(1), ALONE)
    weights = made()
    if damage == "other model":
        weights["model"] = nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2))
        weights["optimizer"] = torch.optim.AdamW(weights["model"].parameters())
    else:
        (tensors,) = Path(path).glob("*.distcp")
        tensors.write_bytes(tensors.read_bytes()[:50]) if damage == "cut" else tensors.unlink()
    with pytest.raises(FormatError, match="step-00000003: not a readable checkpoint") as caught:
        checkpoint.restore(path, weights, ALONE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["tensors", "index"])
def test_reading_runs_no_code(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = checkpoint.save(str(tmp_path / "a"), record(3), made(1), ALONE)
    (tensors,) = Path(path).glob("*.distcp")
    if where == "tensors":
        torch.save({"w": Harmful()}, tensors)
    else:
        Path(path, ".metadata").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(FormatError, match="not a readable checkpoint"):
        checkpoint.restore(path, made(), ALONE)
    assert not os.path.exists("harmed")
