"""What --decode-isolation process costs: CPU and wall time of probing and decoding, isolated over plain.

    python benchmarks/isolation.py [FOLDER]

FOLDER: media, by default ../shared/media beside the checkout. Every file is probed and decoded to 256 tokens a frame
by the same functions, in this process and in a sandbox, in turn; medians over 5 rounds. Prints also what a start of
the sandbox takes: once a worker, and again after each crash.
"""

import statistics
import time
from pathlib import Path

from harness import SHARED, read, say_where

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.execution.sandbox import Limits, Sandbox
from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.media.video.decode import ClipTarget
from patchpack.pipeline.stages.probe import probe
from patchpack.pipeline.stages.records import Example, Source
from patchpack.pipeline.stages.write import _read_frames

ROUNDS = 5


def main() -> None:
    """Prints the table."""
    folder = read(__doc__, folder=SHARED / "media").folder
    say_where()
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    kinds = {"all": paths, "images": [p for p in paths if p.parent.name == "images"]}
    kinds["images under 100 kB"] = [path for path in kinds["images"] if path.stat().st_size < 100_000]
    for kind, chosen in kinds.items():
        if not chosen:
            continue
        plain, isolated = [], []
        for _ in range(ROUNDS):
            plain.append(_plain(chosen))
            isolated.append(_isolated(chosen))
        ratios = [
            statistics.median(one[n] for one in isolated) / statistics.median(one[n] for one in plain) for n in (0, 1)
        ]
        start_s = statistics.median(one[2] for one in isolated)
        print(
            f"{kind}: {len(chosen)} files, isolated / plain: CPU {ratios[0]:.3f}, wall {ratios[1]:.3f}; "
            f"start of a sandbox {start_s:.2f} s"
        )


def _plain(paths: list[Path]) -> tuple[float, float]:
    started, began = time.process_time(), time.perf_counter()
    _work(paths, lambda call, *args: call(*args))
    return time.process_time() - started, time.perf_counter() - began


def _isolated(paths: list[Path]) -> tuple[float, float, float]:
    """Returns CPU seconds of both processes and wall seconds, both without the start, and the wall seconds of the start."""
    began = time.perf_counter()
    sandbox = Sandbox(Limits(60.0, 2**33))
    sandbox.call(len, "")
    start_wall_s = time.perf_counter() - began
    start_cpu_s = sandbox.call(time.process_time)
    started, began = time.process_time(), time.perf_counter()
    _work(paths, sandbox.call)
    cpu_s, wall_s = time.process_time() - started, time.perf_counter() - began
    cpu_s += sandbox.call(time.process_time) - start_cpu_s
    sandbox.close()
    return cpu_s, wall_s, start_wall_s


def _work(paths: list[Path], run) -> None:
    """Probes and decodes every file; those that are rejected are part of the work."""
    config = PlanConfig()
    for path in paths * (4 if len(paths) < 20 else 1):
        source = Source(path.name, 0, path.name, path.stat().st_size)
        found = run(probe, source, str(path), config.clip_rule, config.max_pixels, config.max_bytes)[0]
        if isinstance(found, Example):
            try:
                target = [ClipTarget(found.frame_pts, 256, 256, found.random_access_pts)]
                run(_read_frames, source, str(path), target, config)
            except DecodeError:
                continue


if __name__ == "__main__":
    main()
