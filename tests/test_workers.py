"""Worker processes: forked by one server, heard of when they end, and gone with whoever started them."""

import gc
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from patchpack.collecting import uncollected
from patchpack.pipeline.execution import parent, workers
from patchpack.pipeline.execution.sandbox import module_search
from patchpack.pipeline.execution.worker import described

# where nothing listens, so that a worker waits there
NOWHERE = "localhost:1"


@pytest.fixture
def one() -> Iterator[workers.Workers]:
    """A server for a test, ended behind it."""
    made = workers.Workers("pillow")
    yield made
    made.close()


def children(pid: int) -> list[int]:
    """Returns the living children of a process; it has one thread."""
    return [
        int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if is_alive(int(child))
    ]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left_of(pids: list[int]) -> list[int]:
    """Returns which processes still live after five seconds; at once where none does."""
    deadline = time.monotonic() + 5
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def started(one: workers.Workers, number: int) -> tuple[list[int], "queue.Queue[str]"]:
    """Starts workers; returns their processes, and what will be said when one dies."""
    died: queue.Queue[str] = queue.Queue()
    for worker in range(number):
        one.start(f"worker_{worker}", NOWHERE, died.put)
    deadline = time.monotonic() + 60
    while len(pids := children(one._server.pid)) < number:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return pids, died


@pytest.mark.slow
def test_a_worker_that_dies_is_heard_of(one: workers.Workers) -> None:
    pids, died = started(one, 2)
    assert died.empty()
    # held open, the launcher's would keep the reader of a pipe waiting
    assert {os.readlink(f"/proc/{pid}/fd/2") for pid in (one._server.pid, *pids)} == {os.devnull}
    os.kill(pids[1], signal.SIGKILL)
    assert died.get(timeout=10) == "SIGKILL"
    one.let_go("worker_0")
    os.kill(pids[0], signal.SIGKILL)
    one.wait("worker_0")
    assert not is_alive(pids[0]) and died.empty()
    # and the next graph's start where these did, and count from zero
    one.begin()
    more, _ = started(one, 1)
    assert not set(more) & set(pids)


def test_what_workers_count_is_added_up_graph_by_graph(one: workers.Workers) -> None:
    lines: queue.Queue[bytes] = queue.Queue()
    one._server.stdout = iter(lines.get, b"")  # type: ignore[assignment]
    for line in (
        {"worker": "worker_0", "counts": {"num_probed": 1}},
        {"worker": "worker_1", "counts": {"num_probed": 20}},
        {"worker": "worker_0", "counts": {"num_probed": 300, "probe_us": 5}},
    ):
        lines.put(json.dumps(line).encode())
    lines.put(b"")
    one._listen()
    assert one.counts() == {"num_probed": 320, "probe_us": 5}
    one.begin()
    assert one.counts() == {}


@pytest.mark.slow
def test_workers_die_with_their_server_and_that_is_heard_of(one: workers.Workers) -> None:
    pids, died = started(one, 2)
    one._server.kill()
    assert [died.get(timeout=10) for _ in pids] == ["the process that starts workers is gone"] * 2
    assert not left_of(pids)
    one.start("late", NOWHERE, died.put)
    assert died.get(timeout=10) == "the process that starts workers is gone"


@pytest.mark.slow
def test_closing_ends_all_and_is_no_death(one: workers.Workers) -> None:
    pids, died = started(one, 2)
    one.close()
    assert one._server.returncode is not None
    assert not left_of(pids) and died.empty()


def test_what_is_refused_at_once_does_not_wait_for_imports() -> None:
    one = workers.Workers("pillow")
    one.close()
    assert one._server.returncode == -signal.SIGKILL


def test_graphs_of_one_build_share_their_workers() -> None:
    with workers.started(2, "pillow"), workers.of_build() as first:
        with workers.of_build() as second:
            assert second is first
        assert first._server.poll() is None
    assert first._server.returncode is not None
    with workers.started(1, "pillow"), workers.of_build() as alone:
        assert alone._server.poll() is None
    assert alone._server.returncode is not None


def test_an_error_is_one_short_line() -> None:
    assert described(MemoryError()) == "out of memory"
    assert described(ImportError("a\nb")) == "ImportError: a b"
    assert len(described(ValueError("x" * 10_000))) < 600


@pytest.mark.parametrize("its_thread", [False, True])
@pytest.mark.slow_beyond(1)
def test_a_process_ends_with_its_parent_even_when_that_is_gone_before_it_looks(its_thread: bool) -> None:
    code = (
        "import os, sys, time; from patchpack.pipeline.execution.parent import end_with; "
        f"print(os.getpid(), flush=True); end_with(int(sys.argv[1]), and_its_thread={its_thread}); time.sleep(1000)"
    )
    # 2**22 is no process: Linux numbers them below
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(2**22)], env=os.environ | module_search(), stdout=subprocess.DEVNULL
    )
    assert child.wait(timeout=10) == 1
    # and one whose parent, a shell, ends
    shell = subprocess.Popen(
        ["sh", "-c", f'"{sys.executable}" -c "$0" $$ & read line', code],
        env=os.environ | module_search(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert shell.stdin and shell.stdout
    pid = int(shell.stdout.readline())
    time.sleep(0.2)
    assert is_alive(pid)
    shell.communicate("\n", timeout=10)
    assert not left_of([pid])


def test_looking_can_be_ended() -> None:
    before = set(threading.enumerate())
    looking = parent.end_with(os.getppid(), and_its_thread=False)
    (thread,) = set(threading.enumerate()) - before
    looking.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("before", [True, False])
def test_garbage_is_looked_for_after_large_imports_as_before_them(before: bool) -> None:
    try:
        (gc.enable if before else gc.disable)()
        with pytest.raises(ImportError), uncollected():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == before
    finally:
        gc.enable()
