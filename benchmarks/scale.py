"""What planning a great many inputs costs: CPU, memory of every process, bytes that are shuffled, and what a second worker brings.

    python benchmarks/scale.py [NUM_INPUTS] [--workers 1,2] [--options "--sequence-length 256"]

NUM_INPUTS: 1,000,000 by default, rows of a table that name files. Probing them is synthetic, a function of the key: sizes of 200 to
4,000 px a side, nothing is opened. All the rest is `patchpack plan` as it is. CPU seconds are those of all processes, start included.
Wall seconds, and what a second worker brings, mean something on idle cores only.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from harness import read, say_where

# read by every Python that starts with this folder in its path: workers too
SYNTHETIC = """
import os
import xxhash

if os.environ.get("PATCHPACK_SYNTHETIC"):
    from patchpack.pipeline.stages import probe
    from patchpack.pipeline.stages.records import Example, example_id

    def synthetic(source, path, *rule):
        drawn = xxhash.xxh3_64_intdigest(source.key.encode())
        size = 200 + drawn % 3801, 200 + (drawn >> 20) % 3801
        source = source._replace(size_bytes=drawn % 4_000_000, head=drawn)
        return [Example(source, 0, example_id(source.key, 0), *size)]

    probe.probe = synthetic
"""
ROWS_A_GROUP = 50_000


def main() -> None:
    """Prints the table."""
    options = read(__doc__, {"workers": "1,2", "options": ""}, num_inputs=1_000_000)
    say_where("apache-beam", "ortools")
    count = options.num_inputs
    print(
        f"{'workers':>7}{'wall s':>9}{'CPU s':>9}{'us an input':>13}  {'peak MB, by process':<28}{'shuffled':>12}{'plan':>10}"
    )
    walls: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "media").mkdir()
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SYNTHETIC)
        table = folder / "inputs.parquet"
        names = [f"{n // 1000:06}/{n:012}.jpg" for n in range(count)]
        pq.write_table(pa.table({"path": names}), table, row_group_size=ROWS_A_GROUP)
        for workers in map(int, options.workers.split(",")):
            output = folder / f"plan-{workers}"
            command = [sys.executable, "-m", "patchpack", "plan", str(table), "--media-root", str(folder / "media")]
            command += ["--output", str(output), "--workers", str(workers), *shlex.split(options.options)]
            path = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH")]))
            wall, cpu, peaks, shuffled = watched(command, {"PATCHPACK_SYNTHETIC": "1", "PYTHONPATH": path}, output)
            walls[workers] = wall
            plan = sum(file.stat().st_size for file in (output / "_plan").iterdir())
            peak = " ".join(f"{most / 1e6:.0f}" for most in sorted(peaks, reverse=True))
            print(
                f"{workers:>7}{wall:>9.1f}{cpu:>9.1f}{cpu / count * 1e6:>13.1f}  {peak:<28}{shuffled / count:>8.0f} B/in"
                f"{plan / count:>5.0f} B/in",
                flush=True,
            )
            kinds = Counter(name.name.split("-")[0] for name in (output / "_plan").iterdir())
            print(f"{'':>7}  {kinds['part']} groups", flush=True)
    if {1, 2} <= walls.keys():
        print(f"two workers {walls[1] / walls[2]:.2f} x as fast as one")


def watched(command: list[str], environment: dict[str, str], output: Path) -> tuple[float, float, list[int], int]:
    """Runs a command; returns wall s, CPU s, the peak bytes of each of its processes, and the most bytes that waited in the shuffle."""
    began = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    shuffled = 0
    ended = threading.Event()

    def look() -> None:
        nonlocal shuffled
        while not ended.wait(0.2):
            for pid in family(process.pid):
                peaks[pid] = max(peaks.get(pid, 0), peak_bytes(pid))
            shuffled = max(shuffled, sum(size_of(file) for file in (output / "_plan" / "shuffle").glob("*")))

    watcher = threading.Thread(target=look)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    ended.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)}: exit {process.returncode}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, [*peaks.values()], shuffled


def family(pid: int) -> list[int]:
    """Returns a process and all that descend from it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        every = Path(f"/proc/{pid}/task").iterdir()
        children += [child for task in every for child in (task / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(one for child in {*map(int, children)} for one in family(child))]


def peak_bytes(pid: int) -> int:
    """Returns the most resident memory that a process had; 0 where it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def size_of(path: Path) -> int:
    """Returns the bytes of a file; 0 where it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


if __name__ == "__main__":
    main()
