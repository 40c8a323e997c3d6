"""Promises of checkpoints: whole or not at all, and read without running anything."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from patchpack.schemas import FormatError
from patchpack.trainer import checkpoint


def test_what_is_saved_is_loaded_and_a_folder_means_its_newest(tmp_path: Path) -> None:
    for step in (9, 10, 1000):
        path = checkpoint.save(str(tmp_path / "new"), {"step": step, "model": {"w": torch.arange(step)}, "name": "x"})
        assert os.path.basename(path) == f"step-{step:08}.pt"
    state = checkpoint.load(str(tmp_path / "new"))
    assert state["step"] == 1000 and state["name"] == "x" and torch.equal(state["model"]["w"], torch.arange(1000))
    assert checkpoint.load(str(tmp_path / "new" / "step-00000009.pt"))["step"] == 9
    assert sorted(os.listdir(tmp_path / "new")) == checkpoint.checkpoints(str(tmp_path / "new"))


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint.save(str(tmp_path), {"step": 1, "value": 1})

    def half(state: dict[str, Any], file: Any) -> None:
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(str(tmp_path), {"step": 1, "value": 2})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["step-00000001.pt"] and checkpoint.load(path)["value"] == 1


def test_the_bytes_are_flushed_before_the_file_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda one, other: (calls.append("rename"), replace(one, other))[1])
    checkpoint.save(str(tmp_path), {"step": 1})
    assert calls == ["fsync", "rename", "fsync"]


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


def test_what_is_no_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("hello")
    whole = checkpoint.save(str(tmp_path / "a"), {"step": 3, "w": torch.zeros(1000)})
    (tmp_path / "cut.pt").write_bytes(Path(whole).read_bytes()[:2000])
    torch.save({"w": 1}, tmp_path / "foreign.pt")
    torch.save({"checkpoint_version": 1, "w": Harmful()}, tmp_path / "harmful.pt")
    torch.save({"checkpoint_version": 99}, tmp_path / "newer.pt")
    (tmp_path / "empty").mkdir()
    for name, words in [
        ("text.pt", "not a readable checkpoint"),
        ("cut.pt", "not a readable checkpoint"),
        ("foreign.pt", "not a readable checkpoint"),
        ("harmful.pt", "not a readable checkpoint"),
        ("newer.pt", "checkpoint version 99; this trainer knows 1"),
        ("empty", "no checkpoint in this folder"),
        ("nowhere", "no such checkpoint"),
    ]:
        with pytest.raises(FormatError, match=words) as caught:
            checkpoint.load(str(tmp_path / name))
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not os.path.exists("harmed")
