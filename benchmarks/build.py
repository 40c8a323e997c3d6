"""What Beam adds to the work on media, what a second worker brings, and what starting costs.

    python benchmarks/build.py [--views 24] [--rounds 3] [FOLDER]

FOLDER: media, by default ../shared/media beside the checkout. They are planned once, every view a size of its own. Then the
shards are written by a plain loop over `write_shard`, by two such loops beside each other, each of every other shard (what
two cores of this machine give without Beam), by `build --resume` with one worker, and with two. CPU seconds are
those of all processes, wall seconds those of the whole command; of both, what the same command takes when every shard is
there already is taken off (imports, starting, the report and its page). All take turns; medians of the rounds. Wall
seconds mean something on two idle cores only.

Starting is what a build of a single image costs until its shard is there; what ends it (tables, report and its page) is
shown beside it. Run it where only the extra `beam` is installed, as `./run_pipeline.sh` does: Beam imports pandas and more where it
finds them, as beside the tests. PYTHONDONTWRITEBYTECODE makes every process compile everything.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, SHARED, read, say_where
from PIL import Image

LOOP = """
import json, sys
from pathlib import Path
from patchpack.pipeline.stages import saved
from patchpack.pipeline.stages import write as shards
from patchpack.pipeline.config import PlanConfig
folder, views, first, step = sys.argv[1:]
roots = json.loads((Path(folder) / "_run.json").read_text())["roots"]
config = PlanConfig(views=int(views), media_backend="pillow")
for shard in list(saved.planned_shards(folder))[int(first) :: int(step)]:
    shards.write_shard(shard, saved.read_shard_rows(folder, shard), roots, folder, config, {})
"""
WAYS = {"loop": "plain loop", "loops": "two plain loops", "1": "build, 1 worker", "2": "build, 2 workers"}


def main() -> None:
    """Prints the tables."""
    options = read(__doc__, {"views": 24, "rounds": 3}, folder=str(SHARED / "media"))
    say_where()
    with tempfile.TemporaryDirectory() as scratch:
        single = Path(scratch) / "single"
        single.mkdir()
        Image.new("RGB", (64, 64)).save(single / "one.jpg")
        _print_starts(str(single), Path(scratch), options.rounds)
        cost = _medians(options.folder, options.views, options.rounds, Path(scratch))
    cpu, wall = ({way: cost[way][kind] for way in WAYS} for kind in (0, 1))
    print(f"\n{'':<18} {'CPU s':>8} {'wall s':>8}")
    for way, label in WAYS.items():
        print(f"{label:<18} {cpu[way]:>8.2f} {wall[way]:>8.2f}")
    print(f"one worker / plain loop, CPU: {cpu['1'] / cpu['loop']:.3f}")
    print(f"two workers / plain loop, CPU: {cpu['2'] / cpu['loop']:.3f}")
    print(f"one plain loop / two, wall: {wall['loop'] / wall['loops']:.2f}")
    print(f"one worker / two workers, wall: {wall['1'] / wall['2']:.2f}")


def _print_starts(single: str, scratch: Path, rounds: int) -> None:
    """Prints what a build of a single image costs."""
    print(f"{'a single image':<18} {'CPU s':>8} {'wall s':>8} {'start, wall s':>14} {'end, wall s':>12}")
    for workers in ("1", "2"):
        rows = []
        for _ in range(rounds):
            output = scratch / "started"
            shutil.rmtree(output, ignore_errors=True)
            build = ["build", single, "--output", str(output), "--media-backend", "pillow", "--workers", workers]
            began = time.time()
            cpu_s, wall_s = _run([sys.executable, "-m", "patchpack", *build])
            written = next((output / "sequences").iterdir()).stat().st_mtime
            rows.append((cpu_s, wall_s, written - began, began + wall_s - written))
        cpu_s, wall_s, start_s, end_s = map(statistics.median, zip(*rows, strict=True))
        print(f"{WAYS[workers]:<18} {cpu_s:>8.2f} {wall_s:>8.2f} {start_s:>14.2f} {end_s:>12.2f}")


def _medians(folder: str, views: int, rounds: int, scratch: Path) -> dict[str, tuple[float, float]]:
    """Returns median CPU and wall seconds of writing the shards of a folder, by way."""
    planned = scratch / "planned"
    shutil.rmtree(planned, ignore_errors=True)
    # small shards, so that two workers share them evenly
    rules = [
        *("--views", str(views), "--media-backend", "pillow"),
        *("--shard-bytes", "8000000", "--max-reject-fraction", "1"),
    ]
    _run([sys.executable, "-m", "patchpack", "plan", folder, "--output", str(planned), *rules])
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            output = scratch / "output"
            shutil.rmtree(output, ignore_errors=True)
            shutil.copytree(planned, output)
            if way.startswith("loop"):
                loops = 2 if way == "loops" else 1
                commands = [
                    [sys.executable, "-c", LOOP, str(output), str(views), str(first), str(loops)]
                    for first in range(loops)
                ]
            else:
                build = ["build", folder, "--output", str(output), *rules, "--resume", "--workers", way]
                commands = [[sys.executable, "-m", "patchpack", *build]]
            all_, again = _run(*commands), _run(*commands)
            taken[way].append((all_[0] - again[0], all_[1] - again[1]))
    return {way: (_median(rows, 0), _median(rows, 1)) for way, rows in taken.items()}


def _median(rows: list[tuple[float, float]], kind: int) -> float:
    return statistics.median(row[kind] for row in rows)


def _run(*commands: list[str]) -> tuple[float, float]:
    """Returns the CPU seconds of commands beside each other and all their processes, and the wall seconds of the last to end."""
    before, began = os.times(), time.perf_counter()
    running = [
        subprocess.Popen(one, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for one in commands
    ]
    for process in running:
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(process.args[:4])}: exit {process.returncode}\n{said}")  # type: ignore[index]
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu_s, time.perf_counter() - began


if __name__ == "__main__":
    main()
