"""--overwrite: the old dataset is whole until the new plan is, and whatever ends the build says what it has left."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from PIL import Image
from support.markup import equal_part
from test_resume import snapshot

from patchpack.pipeline.execution import folder as output_folder
from patchpack.pipeline.execution import launch, plan_transforms, stage
from patchpack.pipeline.storage import files

Run = Callable[..., Result]

OPTIONS = ("--workers", 1, "--sequence-length", 64, "--resolution", "side:32-64")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Five images, a folder without any, one of a broken file, and one of other images."""
    for name, numbers in (("photos", range(5)), ("other", range(10, 13))):
        (tmp_path / name).mkdir()
        for number in numbers:
            Image.new("RGB", (60 + number, 90), (9, number, 0)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_bytes(b"no picture")
    return tmp_path


@pytest.fixture
def old(media: Path, run: Run) -> Path:
    """A finished dataset of the five images, and a file of someone else's beside it."""
    assert run("build", media / "photos", "--output", media / "set", *OPTIONS).code == 0
    (media / "set/mine.txt").write_text("keep")
    return media / "set"


def contents(folder: Path) -> dict[str, bytes]:
    """Returns what equal builds have equal."""
    return {
        name: equal_part(name, data)
        for name, (data, _) in snapshot(folder).items()
        if name not in ("_run.json", "mine.txt")
    }


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("hollow", 2, "no media found; at least one image or video is needed; check the path; {set} is as it was"),
        ("broken", 1, "nothing to write, all 1 inputs were rejected (first: broken/a.png: unknown_format"),
    ],
)
@pytest.mark.slow_beyond(1)
def test_a_set_is_not_replaced_by_nothing(name: str, code: int, told: str, old: Path, media: Path, run: Run) -> None:
    before = snapshot(old)
    ended = run("build", media / name, "--output", old, "--overwrite", *OPTIONS)
    assert (ended.code, ended.err.count("\n")) == (code, 1)
    assert told.format(set=old) in ended.err
    assert ended.err.endswith(f"{old} is as it was\n")
    assert snapshot(old).keys() == before.keys()
    assert {name: data for name, (data, _) in snapshot(old).items()} == {
        name: data for name, (data, _) in before.items()
    }


@pytest.mark.parametrize(
    ("failure", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted; {set} is as it was\n"),
        (OSError(errno.EIO, "the disk is dying"), 1, "the disk is dying"),
    ],
    ids=["Ctrl-C", "a dying disk"],
)
def test_what_ends_the_planning_leaves_the_old_set(
    failure: BaseException, code: int, told: str, old: Path, media: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(old)

    def fail(*_: Any) -> None:
        raise failure

    if code == 130:
        monkeypatch.setattr(stage.runner, "run_here", fail)
    else:
        monkeypatch.setattr(plan_transforms, "write_view_plan", fail)
    ended = run("build", media / "other", "--output", old, "--overwrite", *OPTIONS)
    assert ended.code == code
    assert told.format(set=old) in ended.err and ended.err.endswith(f"{old} is as it was\n")
    assert contents(old) == before
    assert run("verify", old).code == 0


@pytest.mark.slow
def test_what_ends_the_writing_says_that_the_new_set_is_unfinished(
    old: Path, media: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "_write_shards", interrupt)
    ended = run("build", media / "other", "--output", old, "--overwrite", *OPTIONS)
    assert (ended.code, ended.err) == (
        130,
        f"interrupted; {old} is unfinished; build --output {old} --resume goes on\n",
    )
    monkeypatch.undo()
    assert not list(old.glob("sequences/part-*.parquet")) and not (old / "manifest.json").exists()
    assert run("build", "--output", old, "--resume", "--workers", 1).code == 0
    assert run("build", media / "other", "--output", media / "new", *OPTIONS).code == 0
    assert contents(old) == contents(media / "new")
    assert (old / "mine.txt").read_text() == "keep"


class Died(Exception):
    """Stands for a killed process: nothing handles it."""


def test_a_run_that_dies_anywhere_while_sets_change_places_can_go_on(
    old: Path, media: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes a file is made the last one, in turn."""
    assert run("plan", media / "other", "--output", old / "_plan-next", *OPTIONS).code == 0
    planned = {name.removeprefix("_plan-next/"): data for name, (data, _) in snapshot(old / "_plan-next").items()}
    changing = {name: getattr(files, name) for name in ("remove", "write")}

    def taken_over(folder: Path, calls: int) -> int:
        """Changes places in a process that dies after so many changes; returns how many were left to it."""
        left = [calls]

        def counted(name: str) -> Callable[..., None]:
            def call(*arguments: Any) -> None:
                if not left[0]:
                    raise Died
                left[0] -= 1
                changing[name](*arguments)

            return call

        for name in changing:
            monkeypatch.setattr(files, name, counted(name))
        try:
            output_folder.settle(str(folder))
        except Died:
            # some complete plan is there to go on from
            assert (Path(output_folder.plan_home(str(folder))) / "_plan/plan.json").exists()
        finally:
            for name, call in changing.items():
                monkeypatch.setattr(files, name, call)
        return left[0]

    whole = Path(shutil.copytree(old, tmp_path / "whole"))
    num_changes = 1000 - taken_over(whole, 1000)
    # the old dataset is gone to the last file, and the new plan is there to the last
    assert {name: data for name, (data, _) in snapshot(whole).items()} == planned | {"mine.txt": b"keep"}
    for calls in range(num_changes):
        folder = Path(shutil.copytree(old, tmp_path / f"died-{calls}"))
        taken_over(folder, calls)
        output_folder.settle(str(folder))
        assert {name: data for name, (data, _) in snapshot(folder).items()} == {
            name: data for name, (data, _) in snapshot(whole).items()
        }, calls


def test_an_overwrite_that_was_killed_while_planning_is_swept_by_the_next_build(
    old: Path, media: Path, run: Run
) -> None:
    (old / "_plan-next/_plan").mkdir(parents=True)
    (old / "_plan-next/_plan/part-000-00000.parquet").write_bytes(b"half a plan")
    before = contents(old)
    # the dataset that is there goes on as if nothing had been tried
    assert run("build", "--output", old, "--resume", "--workers", 1).code == 0
    assert contents(old) == {name: data for name, data in before.items() if not name.startswith("_plan-next")}
