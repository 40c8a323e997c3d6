"""Nothing is left behind: no thread, no descriptor, no process that waits, however an iteration ends."""

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.synthetic_set import write_set
from test_dataset import open_files

from patchpack.schemas import FormatError
from patchpack.trainer.data import PackedShards


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("PackedShards")]


def abandoned(folder: str) -> None:
    for _ in PackedShards(folder, batch_size=1):
        return


def failing_consumer(folder: str) -> None:
    with pytest.raises(KeyError):
        for batch in PackedShards(folder, batch_size=1):
            batch["no such name"]


def failing_reader(folder: str) -> None:
    os.truncate(next(Path(folder).glob("sequences/*1.parquet")), 100)
    with pytest.raises(FormatError):
        list(PackedShards(folder, batch_size=1))


def failing_check(folder: str) -> None:
    with pytest.raises(ZeroDivisionError):
        list(PackedShards(folder, batch_size=1, check=lambda batch: 1 // 0))


@pytest.mark.parametrize("end", [abandoned, failing_consumer, failing_reader, failing_check])
def test_however_an_iteration_ends(end: object, tmp_path: Path) -> None:
    write_set(str(tmp_path))
    assert callable(end)
    end(str(tmp_path))
    assert reading_threads() == []
    gc.collect()  # a traceback holds its frames, and they hold the files
    assert open_files(tmp_path) == 0


INTERRUPTED = """
import os, signal, sys, threading
from patchpack import PackedShards
for number, batch in enumerate(PackedShards(sys.argv[1], batch_size=1, num_threads=2)):
    if number == 3:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        threading.Event().wait(60)
"""


@pytest.mark.slow
def test_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    write_set(str(tmp_path))
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(tmp_path)], capture_output=True, text=True, timeout=40)  # fmt: skip
    assert done.returncode == -signal.SIGINT and done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert done.stderr.count("Traceback") == 1


LEFT_OPEN = """
import sys
from patchpack import PackedShards
batches = iter(PackedShards(sys.argv[1], batch_size=1, num_threads=2, prefetch=2))
next(batches)
"""


@pytest.mark.slow
def test_an_iteration_left_open_does_not_keep_the_program(tmp_path: Path) -> None:
    write_set(str(tmp_path))
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN, str(tmp_path)], capture_output=True, text=True, timeout=40)  # fmt: skip
    assert done.returncode == 0 and not done.stderr


FORKED = """
import os, sys
from patchpack import PackedShards
loader = PackedShards(sys.argv[1], batch_size=1, num_threads=2, prefetch=2)
batches = iter(loader)
first = [int(next(batches)["index"][0]) for _ in range(3)]
child = os.fork()
if not child:
    try:
        next(batches)
    except RuntimeError as error:
        print(error)
    own = [int(batch["index"][0]) for batch in PackedShards(sys.argv[1], batch_size=1)]
    print(own[:3] == first, len(own), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
rest = [int(batch["index"][0]) for batch in batches]
print(len(first + rest), len(set(first + rest)))
"""


@pytest.mark.slow
def test_a_fork_in_the_middle_harms_neither(tmp_path: Path) -> None:
    write_set(str(tmp_path))
    done = subprocess.run([sys.executable, "-c", FORKED, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    refused, child, parent = done.stdout.splitlines()
    assert refused.startswith("an iteration in a process that was forked from its own: its threads stayed there;")
    assert child == "True 13" and parent == "13 13"
