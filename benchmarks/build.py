"""What Beam adds to the work on media, and what a second worker brings.

    python benchmarks/build.py [--views 24] [FOLDER]

FOLDER: media, by default ../shared/media beside the checkout. They are planned once, every view a size of its own. Then the
shards are written by a plain loop over `write_shard`, by `build --resume` with one worker, and with two. CPU seconds are
those of all processes, wall seconds those of the whole command; of both, those of the same on a single image are taken
off (imports, Beam's start). Medians of 3 rounds. The figure for two workers means something on two idle cores only.
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

ROUNDS = 3

LOOP = """
import json, sys
from pathlib import Path
from patchpack.pipeline.stages import saved
from patchpack.pipeline.stages import write as shards
from patchpack.pipeline.config import PlanConfig
folder, views = sys.argv[1:]
roots = json.loads((Path(folder) / "_run.json").read_text())["roots"]
config = PlanConfig(views=int(views), media_backend="pillow")
for shard in saved.planned_shards(folder):
    result = shards.write_shard(shard, saved.read_shard_rows(folder, shard), roots, folder, config, {})
    assert not result.failure, result.failure
"""


def main() -> None:
    """Prints the table."""
    options = read(__doc__, {"views": 24}, folder=str(SHARED / "media"))
    say_where()
    with tempfile.TemporaryDirectory() as scratch:
        single = Path(scratch) / "single"
        single.mkdir()
        Image.new("RGB", (64, 64)).save(single / "one.jpg")
        cost = {
            (name, folder): _medians(name, folder, options.views, Path(scratch))
            for folder in (str(single), options.folder)
            for name in ("loop", "1", "2")
        }
    cpu, wall = (
        {name: cost[name, options.folder][kind] - cost[name, str(single)][kind] for name in ("loop", "1", "2")}
        for kind in (0, 1)
    )
    print(f"{'':<18} {'CPU s':>8} {'wall s':>8}")
    for name, label in (("loop", "plain loop"), ("1", "build, 1 worker"), ("2", "build, 2 workers")):
        print(f"{label:<18} {cpu[name]:>8.2f} {wall[name]:>8.2f}")
    print(f"one worker / plain loop, CPU: {cpu['1'] / cpu['loop']:.3f}")
    print(f"one worker / two workers, wall: {wall['1'] / wall['2']:.2f}")


def _medians(name: str, folder: str, views: int, scratch: Path) -> tuple[float, float]:
    """Returns median CPU and wall seconds of writing the shards of a folder."""
    planned = scratch / "planned"
    shutil.rmtree(planned, ignore_errors=True)
    # small shards, so that two workers share them evenly
    rules = [
        "--views",
        str(views),
        "--media-backend",
        "pillow",
        "--shard-bytes",
        "8000000",
        "--max-reject-fraction",
        "1",
    ]
    _run([sys.executable, "-m", "patchpack", "plan", folder, "--output", str(planned), *rules])
    rounds = []
    for _ in range(ROUNDS):
        output = scratch / "output"
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(planned, output)
        if name == "loop":
            command = [sys.executable, "-c", LOOP, str(output), str(views)]
        else:
            build = ["build", folder, "--output", str(output), *rules, "--resume", "--workers", name]
            command = [sys.executable, "-m", "patchpack", *build]
        rounds.append(_run(command))
    cpu, wall = zip(*rounds, strict=True)
    return statistics.median(cpu), statistics.median(wall)


def _run(command: list[str]) -> tuple[float, float]:
    """Returns the CPU seconds of a command and all its processes, and its wall seconds."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])}: exit {done.returncode}\n{done.stderr}")
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu_s, time.perf_counter() - began


if __name__ == "__main__":
    main()
