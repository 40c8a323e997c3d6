"""The sandbox: same answers as without it, and whatever kills it costs one call."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.media_files import photo, video, write_files

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.execution.sandbox import Limits, Sandbox, isolated
from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.media.video.clips import ClipRule
from patchpack.pipeline.media.video.decode import ClipTarget
from patchpack.pipeline.stages.probe import probe
from patchpack.pipeline.stages.records import Source
from patchpack.pipeline.stages.write import _read_frames
from patchpack.pipeline.storage import files

ENOUGH = Limits(60, 2**32)


@pytest.fixture
def sandbox():
    """One sandbox for a test, ended behind it."""
    one = Sandbox(ENOUGH)
    yield one
    one.close()


def test_a_helper_answers_as_the_functions_themselves(sandbox: Sandbox, tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": photo(), "b.mp4": video(), "c.jpg": b"text", "d.jpg": photo()[:-9]})
    rule = (ClipRule(), 10**8, 10**8)
    for name in ("a.jpg", "b.mp4", "c.jpg", "d.jpg"):
        path = tmp_path / name
        source = Source(name, 0, name, path.stat().st_size if path.exists() else 0)
        found = sandbox.call(probe, source, str(path), *rule)
        assert found == probe(source, str(path), *rule)
        assert type(found[0]) is type(probe(source, str(path), *rule)[0])
    for call in (sandbox.call, lambda call, *args: call(*args)):
        with pytest.raises(FileNotFoundError):
            call(probe, Source("e.jpg", 0, "e.jpg", 0), str(tmp_path / "e.jpg"), *rule)
    for name, pts in (("a.jpg", ()), ("b.mp4", found_pts(tmp_path / "b.mp4"))):
        source = Source(name, 0, name, (tmp_path / name).stat().st_size)
        wanted = [ClipTarget(pts, 32, 48)]
        (mine,), size, _ = _read_frames(source, str(tmp_path / name), wanted, PlanConfig())
        (its,), its_size, warning = sandbox.call(_read_frames, source, str(tmp_path / name), wanted, PlanConfig())
        assert np.array_equal(its, mine) and its.dtype == mine.dtype and (its_size, warning) == (size, "")


def found_pts(path: Path) -> tuple[int, ...]:
    """Returns the target times of a video's clip."""
    (example,) = probe(Source("b", 0, "b", 0), str(path), ClipRule(1, 4), 10**8)
    return example.frame_pts


def test_names_that_are_no_utf_8_reach_the_helper(sandbox: Sandbox, tmp_path: Path) -> None:
    path = os.path.join(str(tmp_path), os.fsdecode(b"latin-\xe9\xff.jpg"))
    with open(path, "wb") as file:
        file.write(photo())
    source = Source("latin-%E9%FF.jpg", 0, os.path.basename(path), 0)
    assert sandbox.call(probe, source, path, ClipRule(), 10**8) == probe(source, path, ClipRule(), 10**8)


@pytest.mark.parametrize(
    ("call", "args", "reason", "detail"),
    [
        (os.abort, (), "crashed", "SIGABRT"),
        (signal.raise_signal, (signal.SIGSEGV,), "crashed", "SIGSEGV"),
        (signal.raise_signal, (signal.SIGKILL,), "crashed", "SIGKILL"),
        (os._exit, (3,), "crashed", "exit status 3"),
        (bytearray, (2**34,), "crashed", "out of memory"),
    ],
)
@pytest.mark.slow_beyond(2)
def test_a_crash_costs_one_call(sandbox: Sandbox, call, args, reason: str, detail: str) -> None:
    with pytest.raises(DecodeError, match=detail) as caught:
        sandbox.call(call, *args)
    assert caught.value.reason == reason
    # the next one is as good as new
    assert sandbox.call(len, "abc") == 3


@pytest.mark.parametrize(("call", "args"), [(time.sleep, (1000,)), (max, (range(10**12),))])
@pytest.mark.slow_beyond(1)
def test_a_call_that_takes_too_long_costs_that_call(call, args) -> None:
    # once asleep, once busy without ever letting go of the interpreter
    sandbox = Sandbox(Limits(0.3, 2**32))
    with pytest.raises(DecodeError, match="not done after 0.3 s") as caught:
        sandbox.call(call, *args)
    assert caught.value.reason == "timeout"
    assert sandbox.call(len, "abc") == 3
    sandbox.close()


def test_the_time_limit_is_for_each_call_and_not_for_all() -> None:
    sandbox = Sandbox(Limits(0.5, 2**32))
    for _ in range(4):
        assert sandbox.call(time.sleep, 0.2) is None
    sandbox.close()


def test_errors_of_the_storage_come_back_as_themselves(sandbox: Sandbox, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for call, path, kind in (
        (files.read, "not there", FileNotFoundError), (files.read, ".", IsADirectoryError),
        (files.read, "pipe", files.NotRegularError),
    ):  # fmt: skip
        with pytest.raises(kind):
            sandbox.call(call, str(tmp_path / path))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        sandbox.call(divmod, 1, 0)


@pytest.mark.parametrize("when", ["starting", "idle", "busy"])
@pytest.mark.slow_beyond(1)
def test_a_sandbox_ends_with_its_parent(when: str) -> None:
    code = (
        "import os, subprocess, sys, time; from patchpack.pipeline.execution.sandbox import Sandbox, Limits; "
        "start = subprocess.Popen.__init__; one = Sandbox(Limits(1000, 2**32))\n"
        "def shown(self, *args, **options): start(self, *args, **options); print(self.pid, flush=True)\n"
        "subprocess.Popen.__init__ = shown\n"
        "one.call(os.getpid); print('started', flush=True); sys.stdin.readline(); one.call(time.sleep, 1000)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout and parent.stdin
    pid = int(parent.stdout.readline())
    if when != "starting":
        assert parent.stdout.readline() == "started\n"
    if when == "busy":
        parent.stdin.write("\n")
        parent.stdin.flush()
        time.sleep(0.3)
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            # a dead one that nobody has waited for is no process any more
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nothing_is_started_where_it_was_not_asked_for() -> None:
    assert isolated(PlanConfig(), os.getpid) == os.getpid()
    config = PlanConfig(decode_isolation="process")
    first = isolated(config, os.getpid)
    assert first != os.getpid() and isolated(config, os.getpid) == first


def test_a_call_that_takes_more_memory_than_the_limit_costs_that_call() -> None:
    one = Sandbox(Limits(60, 2**31))
    try:
        with pytest.raises(DecodeError, match="ran out of memory") as raised:
            one.call(bytearray, 3 * 2**30)
        assert raised.value.reason == "crashed"
        assert one.call(divmod, 7, 2) == (3, 1)
    finally:
        one.close()
