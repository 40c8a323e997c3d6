"""One file that cannot be read is a reject; storage that is gone is a failure; and a bug is called a bug."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from apache_beam.utils import retry
from conftest import Result
from PIL import Image
from support.markup import equal_part

from patchpack.pipeline.errors import BuildFailed
from patchpack.pipeline.execution import launch, plan_transforms, shard_transforms
from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.stages import sample
from patchpack.pipeline.stages import write as shards
from patchpack.pipeline.storage import reading
from patchpack.pipeline.storage.reading import MOST_IN_A_ROW, StorageGone, read_input

Run = Callable[..., Result]

OPTIONS = ("--workers", 1, "--sequence-length", 64, "--resolution", "side:32-64")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once, and counts failures from none."""
    monkeypatch.setattr(retry.Clock, "sleep", lambda self, seconds: None)
    monkeypatch.setattr(reading, "_in_a_row", 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (50 + number, 70), (0, 40 * number, 9)).save(folder / f"{number}.png")
    return folder


def contents(output: Path) -> dict[str, bytes]:
    """Returns what equal builds have equal."""
    places = [*output.iterdir(), *(output / "sequences").iterdir()]
    found = [path for path in places if path.is_file() and path.name != "_run.json"]
    return {path.name: equal_part(path.name, path.read_bytes()) for path in found}


def rejects_of(output: Path) -> list[tuple[str, str, str]]:
    rows = pq.read_table(output / "rejects.parquet").to_pylist()
    return [(row["key"], row["stage"], row["reason"]) for row in rows]


def failing(number: int, times: int = 10**9) -> Callable[[], str]:
    """Returns a call that fails so many times."""
    left = [times]

    def call() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, os.strerror(number))
        return "read"

    return call


def test_what_passes_is_tried_again_and_what_stays_is_this_files_fault(photos: Path) -> None:
    assert read_input(str(photos), failing(errno.EIO, times=4)) == "read"
    for number in (errno.EIO, errno.EINVAL, errno.ESTALE, errno.EACCES):
        with pytest.raises(DecodeError, match=os.strerror(number)) as refused:
            read_input(str(photos), failing(number))
        assert refused.value.reason == "unreadable"
    with pytest.raises(DecodeError) as refused:
        read_input(str(photos), failing(errno.ENOENT))
    assert refused.value.reason == "not_found"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC])
def test_what_the_machine_is_short_of_is_no_files_fault(number: int, photos: Path) -> None:
    with pytest.raises(OSError) as raised:
        read_input(str(photos), failing(number, times=1))
    assert raised.value.errno == number and not isinstance(raised.value, StorageGone)


def test_many_failures_in_a_row_are_the_storages(photos: Path) -> None:
    for _ in range(2):
        for _ in range(MOST_IN_A_ROW - 1):
            with pytest.raises(DecodeError):
                read_input(str(photos), failing(errno.EIO))
        # one that can be read says that the storage is there
        assert read_input(str(photos), lambda: "read") == "read"
    for _ in range(MOST_IN_A_ROW - 1):
        with pytest.raises(DecodeError):
            read_input(str(photos), failing(errno.EIO))
    with pytest.raises(StorageGone, match=f"{MOST_IN_A_ROW} files in a row cannot be read"):
        read_input(str(photos), failing(errno.EIO))


@pytest.mark.slow
def test_a_link_to_what_nobody_can_read_is_a_reject_and_the_rest_goes_on(
    photos: Path, tmp_path: Path, run: Run
) -> None:
    if not os.path.exists("/proc/self/mem"):
        pytest.skip("needs Linux's /proc")
    (photos / "bad.jpg").symlink_to("/proc/self/mem")
    ended = run("build", photos, "--output", tmp_path / "out", *OPTIONS)
    assert (ended.code, ended.err) == (0, "")
    assert rejects_of(tmp_path / "out") == [("photos/bad.jpg", "probe", "unreadable")]


@pytest.mark.slow
def test_a_file_that_fails_for_good_when_its_shard_is_written_is_a_reject(
    photos: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = shards._read_frames

    def fail(source: Any, *args: Any) -> Any:
        if source.key == "photos/3.png":
            raise OSError(errno.EIO, "503 service unavailable")
        return read(source, *args)

    monkeypatch.setattr(shards, "_read_frames", fail)
    ended = run("build", photos, "--output", tmp_path / "out", *OPTIONS)
    assert (ended.code, ended.err) == (0, "")
    assert rejects_of(tmp_path / "out") == [("photos/3.png", "write", "unreadable")]
    # it can be read again: the shard becomes what an undisturbed build writes
    monkeypatch.undo()
    assert run("build", "--output", tmp_path / "out", "--resume", "--workers", 1).code == 0
    assert run("build", photos, "--output", tmp_path / "whole", *OPTIONS).code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
@pytest.mark.slow
def test_a_folder_that_vanishes_fails_the_build_and_resume_completes_it(
    left: str, photos: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = launch._write_shards

    def vanish(*args: Any, **how: Any) -> None:
        photos.rename(tmp_path / "elsewhere")
        if left != "nothing":
            photos.mkdir()
        write(*args, **how)

    monkeypatch.setattr(launch, "_write_shards", vanish)
    ended = run("build", photos, "--output", tmp_path / "out", *OPTIONS)
    monkeypatch.undo()
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert f"{photos}: gone, or an empty folder; the inputs lie there" in ended.err
    assert "--max-reject-fraction" not in ended.err
    assert not (tmp_path / "out/manifest.json").exists() and not list((tmp_path / "out").glob("sequences/part-*"))
    shutil.rmtree(photos, ignore_errors=True)
    (tmp_path / "elsewhere").rename(photos)
    assert run("build", "--output", tmp_path / "out", "--resume", "--workers", 1).code == 0
    assert run("build", photos, "--output", tmp_path / "whole", *OPTIONS).code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_file_that_is_lost_stays_lost_until_it_is_back(photos: Path, tmp_path: Path, run: Run) -> None:
    assert run("plan", photos, "--output", tmp_path / "out", *OPTIONS).code == 0
    (photos / "2.png").rename(tmp_path / "2.png")
    command = ("build", "--output", tmp_path / "out", "--resume", "--workers", 1)
    assert run(*command).code == 0
    assert rejects_of(tmp_path / "out") == [("photos/2.png", "write", "not_found")]
    shard = next((tmp_path / "out").glob("sequences/part-*"))
    written = shard.stat().st_mtime_ns
    assert run(*command).code == 0
    # another file of that name is not the planned one
    (photos / "2.png").write_bytes(b"another")
    assert run(*command).code == 0
    assert shard.stat().st_mtime_ns == written
    (tmp_path / "2.png").rename(photos / "2.png")
    assert run(*command).code == 0
    assert rejects_of(tmp_path / "out") == []
    assert run("build", photos, "--output", tmp_path / "whole", *OPTIONS).code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_rejects_of_any_reason_are_tried_again_where_that_is_asked_for(photos: Path, tmp_path: Path, run: Run) -> None:
    assert run("plan", photos, "--output", tmp_path / "out", *OPTIONS).code == 0
    whole = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(whole[:-20] + bytes(20))
    command = ("build", "--output", tmp_path / "out", "--resume", "--workers", 1)
    assert run(*command).code == 0
    assert rejects_of(tmp_path / "out") == [("photos/2.png", "write", "broken")]
    (photos / "2.png").write_bytes(whole)
    assert run(*command).code == 0
    assert len(rejects_of(tmp_path / "out")) == 1
    assert run(*command, "--retry-rejects").code == 0
    assert run("build", photos, "--output", tmp_path / "whole", *OPTIONS).code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    told = "--retry-rejects: a new build has none yet; it goes with --resume; add it, or leave this out\n"
    assert run("build", photos, "--output", tmp_path / "new", "--retry-rejects").err == told


@pytest.mark.slow
def test_a_plan_made_while_storage_failed_is_not_kept(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(100):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"{number:02}.png")
    probe = plan_transforms.probe

    def fail(source: Any, *args: Any) -> Any:
        if source.key in ("many/03.png", "many/70.png"):
            raise OSError(errno.EIO, "503 service unavailable")
        return probe(source, *args)

    monkeypatch.setattr(plan_transforms, "probe", fail)
    ended = run("build", folder, "--output", tmp_path / "out", *OPTIONS)
    assert (ended.code, ended.err) == (
        1,
        f"{tmp_path}/out: 2 of 100 inputs cannot be read (first: many/03.png: 503 service unavailable); --max-reject-fraction is "
        "0.01, so the plan is not kept; see to the storage and go on with --resume, or raise it\n",
    )
    monkeypatch.undo()
    ended = run("build", "--output", tmp_path / "out", "--resume", "--workers", 1)
    assert (ended.code, ended.err) == (0, "")
    assert json.loads((tmp_path / "out/manifest.json").read_text())["totals"]["num_rejects"] == 0


def test_a_full_disk_ends_the_build_at_the_first_shard(
    photos: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("plan", photos, "--output", tmp_path / "out", "--shard-bytes", 60_000, *OPTIONS).code == 0
    calls = []

    def full(*args: Any, **options: Any) -> None:
        calls.append(args)
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "out/part"))

    monkeypatch.setattr(shard_transforms, "write_shard", full)
    ended = run("build", "--output", tmp_path / "out", "--resume", "--workers", 1)
    assert (ended.code, ended.err) == (
        1,
        f"{tmp_path}/out/part: No space left on device; nothing more can be written, so the build stops here; free space and go "
        "on with --resume\n",
    )
    assert len(calls) == 1
    monkeypatch.undo()
    assert run("build", "--output", tmp_path / "out", "--resume", "--workers", 1).code == 0


def test_a_bug_while_a_shard_is_written_is_called_one(
    photos: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr(shards, "patchify_layout", wrong)
    ended = run("build", photos, "--output", tmp_path / "out", *OPTIONS)
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert ended.err.startswith(
        "bug in patchpack: KeyError: 'x', writing sequences/part-000-00000-00000.parquet (pipeline/stages/write.py line "
    )
    assert "this is no fault of the data" in ended.err and "--resume" not in ended.err
    assert "in _fill" in json.loads((tmp_path / "out/_run.json").read_text())["traceback"]
    with pytest.raises(BuildFailed) as raised:
        run("build", "--output", tmp_path / "out", "--resume", "--workers", 1, "--debug")
    assert "in _fill" in str(raised.value.__cause__)


def test_a_bug_while_planning_is_called_one(
    photos: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(sample, "sample", wrong)
    ended = run("build", photos, "--output", tmp_path / "out", *OPTIONS)
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert ended.err.startswith("bug in patchpack: AttributeError: no such thing (pipeline/stages/sample.py line ")
    assert "Traceback" in json.loads((tmp_path / "out/_run.json").read_text())["traceback"]


def test_bare_numbers_are_told_with_their_file(photos: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").touch()
    ended = run("build", photos, "--output", tmp_path / "file/below", *OPTIONS)
    assert (ended.code, ended.err) == (1, f"{tmp_path}/file/below: Not a directory\n")
