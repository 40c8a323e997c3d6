"""How fast the trainer reads: sequences and bytes a second, against reading the same files and nothing else.

    python benchmarks/loader.py [SHARDS]

Without SHARDS it writes 512 sequences of 1,024 tokens of 16x16 pixels (0.4 GB) to a temporary folder
first. The baselines: each file read whole into memory, np.frombuffer over it: what the disk (here: the page
cache) gives with no shuffling, no copy into batches and no digest; and a memory map of the same files, its
sequences copied in the loader's own order into batches. Each line is the best of three passes that take
turns, so that a busy machine disturbs all alike; CPU time is of the whole process. Encoded tokens are in no memory map.
"""

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from harness import ROOT, read, say_where

# the maker of datasets is the tests'
sys.path.append(str(ROOT / "tests"))

from support.synthetic_set import write_set

from patchpack.schemas import Layout, Shard, read_shard_table
from patchpack.schemas.geometry import NO_CODEC
from patchpack.schemas.sequence import array_columns
from patchpack.trainer.data import PackedShards
from patchpack.trainer.order import epoch_order

BATCH_SIZE = 8
PASSES = 3
THREADS = (1, 2, 4)


def read_plain(folder: str) -> None:
    """Reads every shard whole, one after the other."""
    for name in read_shard_table(folder)["path"].to_pylist():
        with open(os.path.join(folder, name), "rb") as file:
            np.frombuffer(file.read(), np.uint8)


def read_mapped(loader: PackedShards) -> None:
    """Copies every sequence of an epoch, in its order, from memory maps made for it into new batches."""
    folder, columns = loader.path, array_columns(loader.layout)
    maps, places = [], []
    for name in read_shard_table(folder)["path"].to_pylist():
        maps.append(np.memmap(os.path.join(folder, name), np.uint8, "r"))
        with Shard(os.path.join(folder, name)) as shard:
            places += [(len(maps) - 1, shard.places(row)) for row in range(shard.num_sequences)]
    widths = [dtype.itemsize * math.prod(shape) for dtype, shape in columns.values()]
    order = epoch_order(np.arange(len(places) + 1), np.arange(len(places)), 1, ("order",))
    for start in range(0, len(order), BATCH_SIZE):
        part = order[start : start + BATCH_SIZE]
        batch = [np.empty((len(part), width), np.uint8) for width in widths]
        for at, index in enumerate(part):
            number, starts = places[index]
            for array, width, place in zip(batch, widths, starts, strict=True):
                array[at] = maps[number][place : place + width]


def read_batches(loader: PackedShards) -> None:
    """Takes every batch of one epoch."""
    for _ in loader:
        pass


def measure(work: Callable[[], None]) -> tuple[float, float]:
    """Returns wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def report(folder: str) -> None:
    """Prints one line a way of reading."""
    table = read_shard_table(folder)
    num_sequences = sum(table["num_sequences"].to_pylist())
    num_bytes = sum(table["bytes"].to_pylist())
    say_where("torch", "xxhash")
    print(f"{num_sequences} sequences, {num_bytes / 1e6:.0f} MB in {len(table)} shards, batches of {BATCH_SIZE}\n")
    ways: dict[str, Callable[[], None]] = {"plain read (baseline)": lambda: read_plain(folder)}
    if PackedShards(folder, batch_size=BATCH_SIZE).layout.codec == NO_CODEC:
        ways["memory map"] = lambda: read_mapped(PackedShards(folder, batch_size=BATCH_SIZE))
    for threads in THREADS:
        for verify in (True, False):
            loader = PackedShards(folder, batch_size=BATCH_SIZE, num_threads=threads, verify=verify)
            name = f"loader, {threads} thread{'s' * (threads > 1)}, {'verify' if verify else 'no verify'}"
            ways[name] = lambda loader=loader: read_batches(loader)
    read_plain(folder)  # into the page cache
    times = {name: (float("inf"), float("inf")) for name in ways}
    for _ in range(PASSES):
        for name, work in ways.items():
            times[name] = min(times[name], measure(work))
    base = times["plain read (baseline)"][0]
    print(f"{'':32}{'sequences/s':>12}{'MB/s':>8}{'wall s':>8}{'CPU s':>8}{'speed':>8}")
    for name, (wall, cpu) in times.items():
        print(
            f"{name:32}{num_sequences / wall:12,.0f}{num_bytes / wall / 1e6:8,.0f}{wall:8.3f}{cpu:8.3f}{base / wall:8.2f}"
        )
    for threads in THREADS:
        plural = "s" * (threads > 1)
        with_verify, without = (times[f"loader, {threads} thread{plural}, {kind}"] for kind in ("verify", "no verify"))
        ratio = without[0] / with_verify[0]
        print(
            f"verify, {threads} thread{plural}: {ratio:.2f} of the speed without, {with_verify[1] / without[1]:.2f} of its CPU"
        )


def main() -> None:
    """Measures the dataset that is named, or one made for it."""
    given = read(__doc__, shards="").shards
    if given:
        report(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(sequence_length=1024, max_segments=64, tubelet=(1, 16, 16))
        write_set(folder, layouts=(layout,), rows_per_shard=(64,) * 8)
        report(folder)


if __name__ == "__main__":
    main()
