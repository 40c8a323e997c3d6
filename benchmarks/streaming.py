"""Padding of a stream against its look-back K and its delay, beside best-fit decreasing of the whole dataset.

    python benchmarks/streaming.py [FOLDER]

FOLDER: length sets, by default ../shared/lengths beside the checkout; each in one seeded random order.
Prints the table in the docstring of pipeline/packing/streaming.py, then one for a bounded delay.
"""

import time

import numpy as np
from harness import SHARED, read, say_where

from patchpack.pipeline.packing import pack
from patchpack.pipeline.packing.streaming import Stream

SETS = (("side_uniform_64_256", 1024), ("images_and_clips_4096", 4096), ("native_photos_4096", 4096))
LOOKBACKS = (1, 4, 16, 64, 256)
DELAYS = (64, 256, 1024, 4096)


def padding(lengths: list[int], capacity: int, lookback: int, max_delay: int | None = None) -> tuple[float, float]:
    """Returns the padding fraction of a stream, and the seconds it took."""
    started = time.perf_counter()
    stream = Stream(capacity, lookback=lookback, max_delay=max_delay)
    num_bins = sum(len(stream.push(length)) for length in lengths) + len(stream.close())
    return 1 - sum(lengths) / (num_bins * capacity), time.perf_counter() - started


def main() -> None:
    """Prints the tables."""
    folder = read(__doc__, folder=SHARED / "lengths").folder
    say_where()
    print(
        "padding fraction      "
        + "".join(f"  K={lookback:<5}" for lookback in LOOKBACKS)
        + " sorted    us/example at K=64"
    )
    shuffled = {}
    for name, capacity in SETS:
        stored = np.load(folder / f"{name}.npy")
        lengths = stored[np.argsort(np.random.Philox(key=7).random_raw(len(stored)), kind="stable")].tolist()
        shuffled[name] = lengths
        found = [padding(lengths, capacity, lookback) for lookback in LOOKBACKS]
        best = 1 - sum(lengths) / (pack(lengths, capacity, method="best-fit").num_bins * capacity)
        cells = "".join(f"  {fraction:.4f} " for fraction, _ in found)
        print(f"{name:22}{cells}  {best:.4f}    {found[3][1] / len(lengths) * 1e6:.1f}")
    print("\npadding at K=64       " + "".join(f"  D={delay:<5}" for delay in DELAYS) + " none")
    for name, capacity in SETS:
        cells = "".join(f"  {padding(shuffled[name], capacity, 64, delay)[0]:.4f} " for delay in (*DELAYS, None))
        print(f"{name:22}{cells}")


if __name__ == "__main__":
    main()
