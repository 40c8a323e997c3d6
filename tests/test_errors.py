"""One line for everything that goes wrong: what it is, the value, the rule, the way out."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL, Result
from PIL import Image
from support.manifests import change_manifest

from patchpack.pipeline.versions import library_versions

Run = Callable[..., Result]


@pytest.mark.parametrize(
    "case",
    ["missing", "empty", "nothing", "conflict", "no inputs", "not empty", "unknown", "beam", "dask", "bad value"],
)
def test_wrong_use_is_one_line_and_exit_2(case: str, media: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "hollow").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    picture = next(media.rglob("*.png"))
    output = tmp_path / "out"
    arguments, message = {
        "missing": (
            (tmp_path / "nope",),
            f"{tmp_path}/nope: no such file or folder; inputs are folders, files, globs or URIs; check the path",
        ),
        "empty": (
            (tmp_path / "hollow",),
            f"{tmp_path}/hollow: no media found; at least one image or video is needed; check the path",
        ),
        "nothing": (
            (f"{tmp_path}/full/*.txt",),
            f"{tmp_path}/full/*.txt: no media found (ignored: 1 (no media by content)); at least one image or video is needed; check "
            "the path",
        ),
        "conflict": (
            (picture, picture),
            f"{picture.name}: two inputs of this key, {picture} and {picture}; keys are unique; name each input once, or their common folder",
        ),
        "no inputs": ((), "no inputs; build takes folders, files, globs or URIs; name at least one"),
        "not empty": (
            (media, "--output", tmp_path / "full"),
            f"{tmp_path}/full: not empty (1 entries); a build starts in an empty output; use --resume to go on, --append to add inputs, "
            "--overwrite to replace the dataset in it, or another --output",
        ),
        "unknown": (
            (media, "--sequence-lenght", 4),
            "--sequence-lenght: no such option; the nearest is --sequence-length; see patchpack build --help",
        ),
        "beam": (
            (media, "--", "--max-segments", "3"),
            "--max-segments: no option of Beam's; options after -- go to Beam; put ours before --",
        ),
        "dask": (
            (media, "--", "--runner", "DaskRunner"),
            "--runner DaskRunner: it loses data silently (Beam 2.77); use another runner; leave it out to run on this machine",
        ),
        "bad value": (
            (media, "--max-segments", 0),
            "--max-segments 0: no example fits; the least is 1; leave it out for 64",
        ),
    }[case]
    place = () if "--output" in arguments else ("--output", output)
    ended = run("build", *place, "--workers", 1, *arguments)
    assert (ended.code, ended.err, ended.out) == (2, message + "\n", "")
    assert not output.exists(), "a refused build left its output folder behind"


def test_two_builds_into_one_output_are_refused(media: Path, tmp_path: Path, run: Run) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    ended = run("build", media, "--output", tmp_path, "--workers", 1, "--overwrite")
    os.close(handle)
    assert (ended.code, ended.err) == (
        2,
        f"{tmp_path}: another build is writing here; one output has one build; wait for it, or choose another --output\n",
    )


def test_resume_refuses_other_options_and_other_inputs(reference: Path, media: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(reference, tmp_path / "shards")
    command = ("build", *sorted(media.iterdir()), "--output", tmp_path / "shards", "--workers", 1, "--resume", *SMALL)
    other = run(*command, "--seed", 3)
    assert (other.code, other.err) == (
        2,
        f"--seed: 3 now, 0 when {tmp_path}/shards was begun; what goes on or grows has the same options; leave it out, or use --overwrite\n",
    )
    fewer = run("build", media, "--output", tmp_path / "shards", "--workers", 1, "--resume", *SMALL)
    assert fewer.code == 2
    assert "; --resume goes on with the same inputs in the same order; leave them out, or use --overwrite" in fewer.err


def test_verify_of_a_broken_or_missing_set_is_one_line(reference: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(reference, tmp_path / "shards")
    change_manifest(tmp_path / "shards", config=None)
    for command in (("verify",), ("report",), ("inspect",)):
        number = (0,) if command == ("inspect",) else ()
        for folder in (tmp_path / "shards", tmp_path / "nowhere"):
            ended = run(*command, folder, *number)
            assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1), (command, folder)
            assert str(folder) in ended.err


@pytest.mark.slow
def test_too_many_rejects_fail_a_build_that_is_otherwise_finished(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(98):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"{number}.png")
    for number in range(2):
        (folder / f"bad{number}.png").write_bytes(b"nothing")
    command = ("build", folder, "--output", tmp_path / "shards", "--workers", 1)
    ended = run(*command)
    assert (ended.code, ended.err) == (
        1,
        f"{tmp_path}/shards: 2 of 100 inputs rejected; --max-reject-fraction is 0.01, so no manifest was written; see "
        f"rejects.parquet; to accept them: build --output {tmp_path}/shards --resume --max-reject-fraction X\n",
    )
    assert "98" in ended.out
    assert not (tmp_path / "shards/manifest.json").exists()
    written = next((tmp_path / "shards").glob("sequences/part-*")).stat().st_mtime_ns
    again = ("build", "--output", tmp_path / "shards", "--workers", 1, "--resume")
    assert run(*again).code == 1
    assert run(*again, "--max-reject-fraction", 0.02).code == 0
    assert next((tmp_path / "shards").glob("sequences/part-*")).stat().st_mtime_ns == written
    assert run("verify", tmp_path / "shards").code == 0


def test_nothing_but_rejects_is_a_failure_that_names_the_first(tmp_path: Path, run: Run) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").touch()
    ended = run("build", tmp_path / "bad", "--output", tmp_path / "shards", "--workers", 1)
    assert (ended.code, ended.err) == (
        1,
        f"{tmp_path}/shards: nothing to write, all 1 inputs were rejected (first: bad/a.jpg: empty, 0 bytes); "
        "at least one must be readable; see _plan/rejects-*.parquet\n",
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_a_worker_of_other_versions_fails_with_one_line(
    workers: int, media: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = library_versions("pillow")
    monkeypatch.setattr(
        "patchpack.pipeline.execution.launch.library_versions", lambda backend: mine | {"pillow": "1.0"}
    )
    ended = run("build", media, "--output", tmp_path / "shards", "--workers", workers, "--media-backend", "pillow")
    assert ended.code == 1
    assert (
        ended.err
        == f"worker: pillow {mine['pillow']} (launcher: 1.0); workers and launcher run the same versions; install constraints.txt on both\n"
    )
