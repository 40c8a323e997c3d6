"""Faults of the machine in the middle of a build: full and read-only disks, jumping clocks, rivals, attempts made twice."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, tzinfo
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from conftest import Result, said
from support.accounts import OPTIONS, Undisturbed, accounted, contents, leftovers, num_files
from support.family import Family
from support.media_files import write_files
from support.planned import Work

from patchpack.pipeline.config import BuildConfig
from patchpack.pipeline.execution import folder as output_folder
from patchpack.pipeline.stages import finish
from patchpack.pipeline.stages import write as shards
from patchpack.pipeline.storage import files

Run = Callable[..., Result]


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the page, which is not compared, and takes longer to draw than all the rest."""
    monkeypatch.setattr(finish, "page_of", lambda *_: "")


def check_as_undisturbed(output: Path, undisturbed: Undisturbed, run: Run) -> None:
    """Checks that a dataset is the undisturbed one, that nothing else lies there, and that every input has its end."""
    assert contents(output) == undisturbed.contents
    assert leftovers(output) == []
    assert run("verify", output).code == 0
    assert sum(accounted(output)) == num_files(undisturbed.media)


@contextlib.contextmanager
def disk(folder: Path, size_bytes: int) -> Iterator[Callable[[str], None]]:
    """A disk of its own at a folder; yields what changes its options. Skips where disks cannot be mounted."""
    folder.mkdir()

    def mount(options: str) -> None:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")

    if os.geteuid() != 0:
        pytest.skip("no disk can be mounted here: that is root's to do")
    mount(f"size={size_bytes}")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


# of what a whole dataset takes: in the plan, in the shards, and behind them
@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.6, 0.9])
@pytest.mark.usefixtures("no_page")
def test_a_disk_that_is_full_costs_nothing_but_time(
    fraction: float, undisturbed: Undisturbed, tmp_path: Path, run: Run
) -> None:
    whole = sum(len(data) for data in undisturbed.contents.values())
    command = ("build", undisturbed.media, "--output", tmp_path / "disk/set", "--workers", 1, *OPTIONS)
    with disk(tmp_path / "disk", int(fraction * whole)) as change:
        ended = run(*command)
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert "No space left on device" in ended.err
        assert leftovers(tmp_path / "disk") == []
        change(f"size={4 * whole}")
        assert run(*command, "--resume").code == 0
        check_as_undisturbed(tmp_path / "disk/set", undisturbed, run)


@pytest.mark.parametrize("state", ["no folder", "an empty folder", "a plan", "a finished set"])
@pytest.mark.usefixtures("no_page")
@pytest.mark.slow
def test_an_output_that_can_only_be_read_is_one_line(
    state: str, undisturbed: Undisturbed, tmp_path: Path, run: Run
) -> None:
    output = tmp_path / "disk/set"
    command = ("build", undisturbed.media, "--output", output, "--workers", 1, *OPTIONS)
    with disk(tmp_path / "disk", 2**26) as change:
        if state == "an empty folder":
            output.mkdir()
        if state == "a plan":
            assert run("plan", *command[1:]).code == 0
        if state == "a finished set":
            assert run(*command).code == 0
        change("ro")
        before = sorted((tmp_path / "disk").rglob("*"))
        again = ("--resume",) if state.startswith("a ") else ()
        ended = run(*command, *again)
        assert ended.code in (1, 2) and ended.err.count("\n") == 1, ended
        assert "Read-only file system" in ended.err and "Traceback" not in ended.err
        assert sorted((tmp_path / "disk").rglob("*")) == before
        change("rw")
        assert run(*command, *again).code == 0
        check_as_undisturbed(output, undisturbed, run)


# a quarter of a second after the other it is today, tomorrow and yesterday; but for gRPC, whose core has a clock of its own
JUMPING_CLOCK = """
import sys, time
now = time.time
def jumping():
    if sys._getframe(1).f_globals.get("__name__", "").startswith("grpc"):
        return now()
    return now() + (0, 86_400, -86_400)[int(4 * time.monotonic()) % 3]
time.time = jumping
"""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("no_page")
@pytest.mark.slow
def test_a_clock_that_jumps_by_days_decides_nothing(
    workers: int, undisturbed: Undisturbed, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, jumps = time.time, itertools.cycle([0, 86_400, -86_400])

    class Jumping(datetime):
        """Of the record: a day apart from one time to the next, however soon that is asked for."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Jumping":
            return cls.fromtimestamp(real() + next(jumps), tz)

    # of workers, which are processes of their own
    write_files(tmp_path, {"code/sitecustomize.py": JUMPING_CLOCK.encode()})
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setattr(time, "time", time.time)
    monkeypatch.setattr(output_folder, "datetime", Jumping)
    exec(JUMPING_CLOCK, {})
    ended = run("build", undisturbed.media, "--output", tmp_path / "set", "--workers", workers, *OPTIONS)
    assert ended.code == 0, ended.err
    check_as_undisturbed(tmp_path / "set", undisturbed, run)
    record = json.loads((tmp_path / "set/_run.json").read_text())
    days = {stage["started"][:10] for stage in record["stages"]} | {record["started"][:10], record["finished"][:10]}
    assert len(days) >= 3, "the clock did not jump"
    for stage in record["stages"]:
        times = [stage["wall_s"], *stage["worker_s"].values()]
        assert all(0 <= seconds < 3600 for seconds in times), stage


@pytest.mark.slow
def test_of_two_builds_of_one_output_one_wins(undisturbed: Undisturbed, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "set"
    command = ("build", undisturbed.media, "--output", output, *OPTIONS)
    first = Family(*command, "--workers", 2)
    while not (output / "_run.json").exists():
        assert first.launcher.poll() is None
        time.sleep(0.002)
    os.kill(first.launcher.pid, signal.SIGSTOP)
    try:
        # of which none may go on with what the first is at, nor delete it
        refused = [run(*command, "--workers", 1, *more) for more in ((), ("--resume",), ("--overwrite",))]
    finally:
        os.kill(first.launcher.pid, signal.SIGCONT)
    assert [(ended.code, ended.err) for ended in refused] == [
        (
            2,
            f"{output}: another build is writing here; one output has one build; wait for it, or choose another --output\n",
        )
    ] * 3
    _, err = first.launcher.communicate(timeout=120)
    assert (first.launcher.returncode, said(err)) == (0, "")
    check_as_undisturbed(output, undisturbed, run)


def test_who_comes_second_leaves_the_folder_that_both_found_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config, first = str(tmp_path / "set"), BuildConfig(), contextlib.ExitStack()
    make_folder = files.make_folder

    def overtaken(path: str) -> None:
        monkeypatch.setattr(files, "make_folder", make_folder)
        first.enter_context(output_folder.held(folder, config))

    monkeypatch.setattr(files, "make_folder", overtaken)
    with pytest.raises(ValueError, match="another build is writing here"), output_folder.held(folder, config):
        pytest.fail("two hold it")
    assert (tmp_path / "set").is_dir()
    first.close()
    # and its holder takes it back, as it wrote nothing
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_shard_that_is_tried_again_is_the_same_file(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt may fail midway, and a runner may make several at once, in other processes than the first."""
    work = Work(tmp_path)
    expected = work.write()
    content = work.path.read_bytes()
    work.path.unlink()
    met = Barrier(times)
    decode = shards.decode_examples

    def midway(*args: Any) -> Any:
        # all are in the middle of their file at once
        if args[0][0].key == "f.jpg":
            met.wait(30)
        return decode(*args)

    def fails(*args: Any) -> Any:
        if args[0][0].key == "g.png":
            raise MemoryError
        return decode(*args)

    monkeypatch.setattr(shards, "decode_examples", fails)
    with pytest.raises(MemoryError):
        work.write()
    assert work.left_over() == []
    monkeypatch.setattr(shards, "decode_examples", midway)
    with ThreadPoolExecutor(times) as attempts:
        results = [attempt.result() for attempt in [attempts.submit(work.write) for _ in range(times)]]
    assert results == [expected] * times
    assert work.left_over() == [f"sequences/{work.path.name}"]
    assert work.path.read_bytes() == content
