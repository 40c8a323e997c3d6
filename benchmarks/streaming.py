"""Padding of a stream packed window by window, beside first-fit over a few open bins and the packing of all at once.

    python benchmarks/streaming.py [FOLDER]

FOLDER: length sets, by default ../shared/lengths beside the checkout; each in one seeded random order. Percent of padding; CPU
microseconds an example for windows of 1,024. Prints the table in the docstring of pipeline/packing/streaming.py.
"""

from functools import partial

import numpy as np
from harness import SHARED, cpu, read, say_where
from packing import first_fit_over_open_bins

from patchpack.pipeline.packing import pack, pack_stream

SETS = (
    ("side_uniform_64_256", 256),
    ("side_uniform_64_256", 1024),
    ("images_and_clips_4096", 4096),
    ("native_photos_4096", 4096),
    ("native_photos_16384", 16384),
)
WINDOWS = (256, 1024, 4096)


def num_bins_of(lengths: list[int], capacity: int, window: int) -> int:
    """Returns the bins of a stream."""
    return sum(1 for _ in pack_stream(lengths, capacity, window=window))


def main() -> None:
    """Prints the table."""
    folder = read(__doc__, folder=SHARED / "lengths").folder
    say_where()
    print(
        f"{'set':<24}{'capacity':>8}"
        + "".join(f"{f'{window:,}':>12}" for window in WINDOWS)
        + f"{'first-fit':>11}{'at once':>10}{'us each':>10}"
    )
    for name, capacity in SETS:
        stored = np.load(folder / f"{name}.npy")
        lengths = stored[np.argsort(np.random.Philox(key=7).random_raw(len(stored)), kind="stable")].tolist()
        each = 0.0
        total, line = sum(lengths), f"{name:<24}{capacity:>8}"
        for window in WINDOWS:
            num_bins, seconds = cpu(partial(num_bins_of, lengths, capacity, window))
            each = seconds / len(lengths) * 1e6 if window == 1024 else each
            line += f"{100 * (1 - total / (num_bins * capacity)):>12.3f}"
        for num_bins in (first_fit_over_open_bins(lengths, capacity), pack(lengths, capacity).num_bins):
            line += f"{100 * (1 - total / (num_bins * capacity)):>11.3f}"
        print(f"{line}{each:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
