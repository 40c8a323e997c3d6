"""A build that goes on: with its own options and inputs, and never with less than it was reported; a refusal changes nothing."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, start
from PIL import Image

from patchpack.options import output_affecting, recorded
from patchpack.pipeline.config import BuildConfig
from patchpack.pipeline.rules import MAX_WORKERS_A_CORE, default_workers

Run = Callable[..., Result]

OPTIONS = (
    "--workers",
    1,
    "--sequence-length",
    128,
    "--labels",
    "folder",
    "--exclude",
    "*7.png",
    "--max-reject-fraction",
    0.5,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images in two folders."""
    folder = tmp_path / "photos"
    for number in range(10):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + 10 * number, 90), (20 * number, 9, 0)).save(folder / "ab"[number % 2] / f"{number}.png")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Returns content and time of every file below a folder, and the folders, to see that nothing was touched."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def kill_while_planning(photos: Path, output: Path) -> None:
    """Starts a build and kills it when its record is there and its plan is not."""
    process = start("build", photos, "--output", output, *OPTIONS)
    while not (output / "_run.json").exists():
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (output / "_plan/plan.json").exists()


@pytest.mark.slow
def test_a_build_killed_while_planning_goes_on_with_its_own_options(photos: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "shards"
    kill_while_planning(photos, output)
    ended = run("build", "--output", output, "--resume", "--workers", 1)
    assert ended.code == 0, ended.err
    assert run("build", photos, "--output", tmp_path / "whole", *OPTIONS).code == 0
    one, other = (json.loads((folder / "manifest.json").read_text()) for folder in (output, tmp_path / "whole"))
    assert one == other
    assert (one["config"]["sequence_length"], one["classes"], one["config"]["exclude"]) == (128, ["a", "b"], ["*7.png"])
    # and those that decide no byte: ten rejects of a hundred would not fail it
    assert json.loads((output / "_run.json").read_text())["options"]["max_reject_fraction"] == 0.5


@pytest.mark.slow
def test_other_options_are_refused_while_planning_as_after_it(photos: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "shards"
    kill_while_planning(photos, output)
    before = snapshot(output)
    ended = run("build", "--output", output, "--resume", "--workers", 1, "--sequence-length", 256)
    assert (ended.code, ended.err) == (
        2,
        f"--sequence-length: 256 now, 128 when {output} was begun; what goes on or grows has the same options; leave it out, "
        "or use --overwrite\n",
    )
    (tmp_path / "other").mkdir()
    assert run("build", tmp_path / "other", "--output", output, "--resume", "--workers", 1).err == (
        f"{output}: begun with photos, resumed with other; --resume goes on with the same inputs in the same order; leave "
        "them out, or use --overwrite\n"
    )
    assert snapshot(output) == before
    # the same option again is no other one
    assert run("build", photos, "--output", output, "--resume", "--workers", 1, "--sequence-length", 128).code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--resume", "--workers", 1, "--views", 2),
        ("--resume", "--workers", 1, "--seed", 1),
        ("other", "--resume", "--workers", 1),
        ("photos", "--resume", "--workers", MAX_WORKERS_A_CORE * default_workers() + 1),
        ("photos", "--resume", "--workers", 1, "--", "--project", "p"),
        ("photos",),
        ("nowhere", "--overwrite"),
        ("photos", "--overwrite", "--mean", "123,117,104"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
@pytest.mark.slow_beyond(2)
def test_a_refused_command_changes_nothing(
    arguments: tuple[object, ...], photos: Path, tmp_path: Path, run: Run
) -> None:
    output = tmp_path / "shards"
    assert run("build", photos, "--output", output, *OPTIONS).code == 0
    (output / "sequences/.part-000-00000-00000.parquet.0123.tmp").write_bytes(b"of a write that was killed")
    (tmp_path / "other").mkdir()
    before = snapshot(output)
    named = [tmp_path / a if a in ("photos", "other", "nowhere") else a for a in arguments]
    ended = run("build", "--output", output, *named)
    assert (ended.code, ended.err.count("\n"), ended.out) == (2, 1, ""), ended
    assert snapshot(output) == before
    assert run("verify", output).err.count("\n") == 1  # the leftover of the write, and nothing else


@pytest.mark.slow
def test_a_finished_set_goes_on_without_its_media_and_keeps_its_shards(photos: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "shards"
    assert run("build", photos, "--output", output, *OPTIONS).code == 0
    before = snapshot(output)
    shutil.rmtree(photos)
    refused = run("build", "--output", output, "--resume", "--workers", 1)
    assert (refused.code, refused.err.split("; ")[0]) == (2, f"{photos}: no such file or folder")
    assert snapshot(output) == before
    # what an unmounted disk leaves
    photos.mkdir()
    ended = run("build", "--output", output, "--resume", "--workers", 1)
    assert (ended.code, ended.err) == (0, "")
    after = snapshot(output)
    assert [name for name in before if name.startswith("part-") and before[name] != after[name]] == []
    assert after["manifest.json"][0] == before["manifest.json"][0]


@pytest.mark.parametrize("limit", [(), ("--limit", 9)])
@pytest.mark.slow_beyond(1)
def test_inputs_that_are_new_since_the_plan_are_told(
    limit: tuple[object, ...], photos: Path, tmp_path: Path, run: Run
) -> None:
    output = tmp_path / "shards"
    assert run("plan", photos, "--output", output, *OPTIONS, *limit).code == 0
    assert run("build", "--output", output, "--resume", "--workers", 1).err == ""
    Image.new("RGB", (50, 50)).save(photos / "a/new.png")
    Image.new("RGB", (50, 50)).save(photos / "b/newer.png")
    (photos / "b/new.txt").touch()
    told = {
        (): f"2 inputs are new since {output} was planned (first: photos/a/new.png), and are not packed",
        ("--limit", 9): f"11 inputs now, 9 when {output} was planned; new ones are not packed",
    }[limit]
    ended = run("build", photos, "--output", output, "--resume", "--workers", 1)
    assert (ended.code, ended.err) == (
        0,
        f"warning: {told}; --resume goes on with the plan that is there; --overwrite plans anew\n",
    )
    assert run("build", photos, "--output", output, *OPTIONS, "--overwrite").err == ""
    assert json.loads((output / "manifest.json").read_text())["totals"]["num_inputs"] == 11


def test_the_record_of_a_run_gives_back_every_option() -> None:
    config = BuildConfig(
        tubelet=(2, 8, 8),
        exclude=("a", "b"),
        classes=("x", "y"),
        labels="folder",
        decode_isolation="process",
        decode_timeout_s=3.0,
    )
    kept = json.loads(json.dumps(recorded(config)))
    back = BuildConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()})
    assert back == config
    assert output_affecting(back) == output_affecting(config)
    assert not {"resume", "overwrite", "workers"} & recorded(BuildConfig(resume=True, workers=3)).keys()


@pytest.mark.slow
def test_a_name_that_is_not_utf_8_is_not_new(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (b"\xff.png", "ö.png".encode(), b"a b.png"):
        noise = np.random.default_rng(len(name)).integers(0, 256, (40, 40, 3), np.uint8)
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            Image.fromarray(noise).save(file, "PNG")
    assert run("build", folder, "--output", tmp_path / "shards", "--workers", 1).code == 0
    assert run("build", folder, "--output", tmp_path / "shards", "--resume", "--workers", 1).err == ""
