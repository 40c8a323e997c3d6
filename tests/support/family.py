"""Builds in processes of their own, and all processes of such a build, found in /proc by a mark in their environment."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from patchpack.pipeline.execution.sandbox import module_search

_MARK = "PATCHPACK_TEST_BUILD"


class Family:
    """A command of the pipeline in a process group of its own, which it leads.

    `temporary` is its folder for temporary files; `addresses_kb` is the limit of each process's memory, as of ulimit.
    """

    def __init__(self, *arguments: object, temporary: Path | None = None, addresses_kb: int | None = None) -> None:
        self._mark = uuid.uuid4().hex
        environment = os.environ | module_search() | {_MARK: self._mark}
        if temporary is not None:
            environment["TMPDIR"] = str(temporary)
        command = [sys.executable, "-m", "patchpack", *map(str, arguments)]
        if addresses_kb is not None:
            command = ["sh", "-c", f'ulimit -v {addresses_kb}; exec "$@"', "sh", *command]
        self.launcher = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def parents(self) -> dict[int, int]:
        """Returns all processes that live, with the parent of each."""
        found = (_parent(int(name), f"{_MARK}={self._mark}") for name in os.listdir("/proc") if name.isdigit())
        return dict(pair for pair in found if pair)

    def servers(self) -> list[int]:
        """Returns what forks workers: one process, once it is there."""
        return [pid for pid, parent in self.parents().items() if parent == self.launcher.pid]

    def workers(self) -> list[int]:
        """Returns the worker processes."""
        parents = self.parents()
        return [pid for pid, parent in parents.items() if parents.get(parent) == self.launcher.pid]

    def lives_after(self, seconds: float) -> list[int]:
        """Returns what still lives when so many seconds have passed; at once where nothing does."""
        deadline = time.monotonic() + seconds
        while (living := list(self.parents())) and time.monotonic() < deadline:
            time.sleep(0.02)
        return living


def _parent(pid: int, mark: str) -> tuple[int, int] | None:
    """Returns a process and its parent; None where it has no such mark, or has ended."""
    try:
        if mark.encode() not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return None
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    # a dead one that nobody has waited for is no process any more
    return None if state == "Z" else (pid, int(parent))
