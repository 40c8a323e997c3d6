"""How fast the trainer reads random sequences on one thread, in CPU time, against a memory map of the same files; and what else a loader costs.

    python benchmarks/loader.py [SHARDS] [--rounds 15] [--megabytes 400] [--written]

Without SHARDS it writes datasets of the three shapes below to a temporary folder, sequences of 16x16 px patches (768 bytes a token) and
row groups as `build` makes them. Then, in rounds in which all ways take turns (CPU seconds of the whole process; ratios are of the same
round, so that a busy machine cancels out; the files are in the page cache):

- memory map: maps made for the epoch, each sequence in the loader's order copied from them into arrays that are new for each batch, tokens as
  they are, segment ids and positions as int32: what a map-style dataset and its collate function do. The baseline. It gives no counts,
  labels or grids, and checks nothing.
- memory map, one batch: into the same arrays again and again, whoever may still hold them.
- preadv: the bytes alone, without conversion, into one batch: what reading without a map costs at least.
- loader: `PackedShards` with one thread, without and with digests.

Each shape has a process of its own: what a process has freed before, it gives to new arrays without a page fault. The files are put out of the
page cache first, and read into it by the ways themselves: as trainers find them. Just written they lie in it in larger pieces, which a memory
map finds in a fifth less time and preadv in a tenth: --written leaves them so, and ratios are 0.1 to 0.2 lower.

Then the memory an epoch takes beside the slots that batches lie in, the metadata of 256 sequences, the first batch, and 10,000 shards.
`benchmarks/loader_peers.py` has other libraries' loaders.
"""

import dataclasses
import math
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from harness import ROOT, Result, cpu, read, say_where

# the maker of datasets is the tests'
sys.path.append(str(ROOT / "tests"))

from support.memory import own_peak_bytes
from support.synthetic_set import write_set, write_shard

from patchpack.schemas import Layout, Shard, read_shard_table
from patchpack.schemas.geometry import NO_CODEC
from patchpack.schemas.manifest import SHARD_TABLE_SCHEMA, dataset_digest, read_manifest, table_bytes
from patchpack.schemas.sequence import array_columns, rows_per_group
from patchpack.trainer.data import PackedShards
from patchpack.trainer.order import Epochs

NUM_SHARDS = 8
MANY_SHARDS = 10_000
# batches of 10,000 shards, which open some ten times as many as may be open
MANY_BATCHES = 400

Batch = dict[str, np.ndarray]


class Shape(NamedTuple):
    """Tokens of a sequence, sequences of a batch, and the least speed without and with digests, in memory maps."""

    length: int
    batch_size: int
    goals: tuple[float, float]


SHAPES = (Shape(4096, 8, (1.1, 0.95)), Shape(1024, 8, (1.0, 0.85)), Shape(256, 16, (0.95, 0.8)))


class Files(NamedTuple):
    """Where the sequences of a dataset lie.

    Attributes:
        paths: of the shards.
        places: of each sequence its shard, and where each raw column begins.
        columns: dtype and shape of each raw column.
        order: the sequences of an epoch.
    """

    paths: list[str]
    places: list[tuple[int, list[int | None]]]
    columns: dict[str, tuple[np.dtype, tuple[int, ...]]]
    order: npt.NDArray[np.int64]

    def batches(self, size: int) -> Iterator[list[tuple[int, list[int | None]]]]:
        """Yields the places of each batch of an epoch."""
        for start in range(0, len(self.order), size):
            yield [self.places[index] for index in self.order[start : start + size]]


def files_of(loader: PackedShards) -> Files:
    """Returns where the sequences of a loader's first epoch lie, in its order."""
    paths, places = [], []
    for name in read_shard_table(loader.path)["path"].to_pylist():
        paths.append(os.path.join(loader.path, name))
        with Shard(paths[-1]) as shard:
            places += [(len(paths) - 1, shard.places(row)) for row in range(shard.num_sequences)]
    order = Epochs(loader.dataset, seed=0, shuffle=True).order(0)
    return Files(paths, places, array_columns(loader.layout), order)


def read_mapped(files: Files, size: int, *, new_arrays: bool) -> Iterator[Batch]:
    """Yields the batches of an epoch, copied from memory maps made for it."""
    maps = [np.memmap(path, np.uint8, "r") for path in files.paths]
    kinds = {
        name: (dtype, shape, dtype.itemsize * math.prod(shape), dtype if name == "tokens" else np.dtype(np.int32))
        for name, (dtype, shape) in files.columns.items()
    }
    batch: Batch = {}
    for places in files.batches(size):
        if new_arrays or not batch:
            batch = {name: np.empty((size, *shape), kept) for name, (_, shape, _, kept) in kinds.items()}
        for at, (number, starts) in enumerate(places):
            mapped = maps[number]
            for (name, (dtype, shape, width, _)), start in zip(kinds.items(), starts, strict=True):
                batch[name][at] = mapped[start : start + width].view(dtype).reshape(shape)
        yield batch


def read_bytes(files: Files, size: int) -> Iterator[Batch]:
    """Yields one batch again and again, its bytes read with preadv."""
    descriptors = [os.open(path, os.O_RDONLY) for path in files.paths]
    batch = {name: np.empty((size, *shape), dtype) for name, (dtype, shape) in files.columns.items()}
    for places in files.batches(size):
        for at, (number, starts) in enumerate(places):
            for array, start in zip(batch.values(), starts, strict=True):
                os.preadv(descriptors[number], [array[at].data], start)
        yield batch
    for descriptor in descriptors:
        os.close(descriptor)


def read_loader(loader: PackedShards) -> Iterator[object]:
    """Yields the batches of the first epoch."""
    loader.set_epoch(0)
    yield from loader


def take(batches: Iterable[object]) -> None:
    """Takes every batch, and holds it until the next one is there, as a loop over a loader does."""
    for _ in batches:
        pass


def forget(folder: str) -> None:
    """Puts the files of a folder out of the page cache."""
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def ratios(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, list[float]]]:
    """Returns the median CPU seconds of each way, and its speed in each round, where that of each other way is 1."""
    seconds: dict[str, list[float]] = {name: [cpu(way)[1]] for name, way in ways.items()}  # into the page cache
    seconds = {name: [] for name in seconds}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(cpu(way)[1])
    speeds = {
        name: [
            statistics.median(base / own for base, own in zip(seconds[other], values, strict=True)) for other in seconds
        ]
        for name, values in seconds.items()
    }
    return {name: (statistics.median(values), speeds[name]) for name, values in seconds.items()}


def alone(work: Callable[..., Result], *arguments: object) -> Result:
    """Returns what a function gives in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        return processes.submit(work, *arguments).result()


def verdict(is_met: bool) -> str:
    """Returns how a goal ends."""
    return "met" if is_met else "missed"


def report_speed(folder: str, batch_size: int, rounds: int, goals: tuple[float, float] | None) -> None:
    """Prints the table of one dataset."""
    loaders = {verify: PackedShards(folder, batch_size=batch_size, verify=verify) for verify in (False, True)}
    layout = loaders[True].layout
    ways: dict[str, Callable[[], object]] = {}
    # encoded tokens are in no memory map
    if layout.codec == NO_CODEC:
        files = files_of(loaders[True])
        ways["memory map"] = lambda: take(read_mapped(files, batch_size, new_arrays=True))
        ways["memory map, one batch"] = lambda: take(read_mapped(files, batch_size, new_arrays=False))
        ways["preadv"] = lambda: take(read_bytes(files, batch_size))
    ways["loader"] = lambda: take(read_loader(loaders[False]))
    ways["loader, digests"] = lambda: take(read_loader(loaders[True]))
    num_sequences = len(loaders[True].dataset)
    num_bytes = num_sequences * sum(
        dtype.itemsize * math.prod(shape) for dtype, shape in array_columns(layout).values()
    )
    print(
        f"\nL = {layout.sequence_length}, P = {layout.token_width}, B = {batch_size}: {num_sequences} sequences, {num_bytes / 1e6:.0f} MB"
    )
    print(f"{'':24}{'CPU s':>8}{'GB/s':>7}{'x map':>7}{'x one batch':>13}  goal (x map)")
    due = dict(zip(("loader", "loader, digests"), goals or (), strict=False))
    for name, (seconds, speeds) in ratios(ways, rounds).items():
        columns = f"{speeds[0]:7.2f}{speeds[1]:13.2f}" if layout.codec == NO_CODEC else ""
        goal = f"  {due[name]:.2f} {verdict(round(speeds[0], 2) >= due[name])}" if name in due else ""
        print(f"{name:24}{seconds:8.3f}{num_bytes / seconds / 1e9:7.2f}{columns}{goal}", flush=True)


def report_first_batch(folder: str, batch_size: int) -> None:
    """Prints how long after opening a dataset its first batch is there, in the time of a batch."""
    loader = PackedShards(folder, batch_size=batch_size)
    take(loader)
    started = time.perf_counter()
    take(loader)
    batch_s = (time.perf_counter() - started) / loader.num_batches(1)
    opening, first = [], []
    for _ in range(9):
        started = time.perf_counter()
        batches = iter(PackedShards(folder, batch_size=batch_size))
        opening.append(time.perf_counter() - started)
        next(batches)
        first.append(time.perf_counter() - started)
        batches.close()
    times = statistics.median(first) / batch_s
    print(
        f"L = {loader.layout.sequence_length}: first batch {1e3 * statistics.median(first):.1f} ms after opening began (manifest and table "
        f"{1e3 * statistics.median(opening):.1f} ms), a batch {1e3 * batch_s:.1f} ms: {times:.1f} batch times; goal 3: {verdict(times <= 3)}"
    )


def peak_bytes(folder: str, batch_size: int) -> tuple[int, int]:
    """Returns the memory that an epoch takes at its peak, and that of its slots."""
    before = own_peak_bytes()
    loader = PackedShards(folder, batch_size=batch_size)
    take(loader)
    slots = loader._reader._slots._slots
    return own_peak_bytes() - before, sum(array.nbytes for slot in slots for array in slot.arrays.values())


def report_memory(folder: str, batch_size: int) -> None:
    """Prints the peak memory of an epoch, in a process of its own."""
    peak, slots = alone(peak_bytes, folder, batch_size)
    print(
        f"peak extra memory of an epoch: {peak / 1e6:.0f} MB, slots {slots / 1e6:.0f} MB; "
        f"goal slots + 100 MB: {verdict(peak <= slots + 100e6)}"
    )


def report_metadata(folder: str) -> None:
    """Prints how long the metadata of 256 sequences of one shard take."""
    dataset = PackedShards(folder, batch_size=1).dataset
    entry = dataset._table[0]
    path = os.path.join(folder, entry["path"])
    columns = [
        "num_tokens",
        "num_segments",
        *(f"segments.list.element.{name}" for name in ("num_tokens", "labels", "source")),
    ]
    indices = list(range(min(256, entry["num_sequences"])))

    def read_some() -> None:
        with Shard(path) as shard:
            shard.read_metadata(columns)

    ways = {
        "opening their shard, with all counts, grids and labels": lambda: dataset._open_number(0),
        "opening their shard, and tokens, labels and key of each segment": read_some,
        "keys alone, of an open dataset": lambda: dataset.sources(indices),
    }
    for name, way in ways.items():
        way()
        milliseconds = 1e3 * statistics.median(cpu(way)[1] for _ in range(15))
        print(f"metadata of 256 sequences, {name}: {milliseconds:.1f} ms of CPU; goal 5: {verdict(milliseconds <= 5)}")


def report_many_shards(folder: str) -> None:
    """Prints how long a dataset of 10,000 shards takes to open, and the most descriptors that reading it needs."""
    layout = Layout(sequence_length=24, max_segments=5, tubelet=(1, 2, 2))
    row = write_set(folder, layouts=(layout,), rows_per_shard=(2,))
    shard = write_shard(os.path.join(folder, "sequences/one"), row, layout, 0, 0, "0") | {"layout": 0}
    names = [f"sequences/part-000-00000-{number:05}.parquet" for number in range(MANY_SHARDS)]
    for name in names:
        shutil.copyfile(os.path.join(folder, "sequences/one"), os.path.join(folder, name))
    with open(os.path.join(folder, "shards.parquet"), "wb") as file:
        file.write(table_bytes([shard | {"path": name} for name in names], SHARD_TABLE_SCHEMA))
    manifest = read_manifest(folder)
    digest = dataset_digest(manifest.layouts, [shard["digest"]] * MANY_SHARDS)
    with open(os.path.join(folder, "manifest.json"), "wb") as file:
        file.write(dataclasses.replace(manifest, dataset_digest=digest).to_bytes())
    started = time.perf_counter()
    loader = PackedShards(folder, batch_size=8)
    opening = time.perf_counter() - started
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - started
    before = len(os.listdir("/proc/self/fd")) - len(loader.dataset._opened)
    most = max(len(os.listdir("/proc/self/fd")) - before for _, _ in zip(range(MANY_BATCHES), batches, strict=False))
    batches.close()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    print(
        f"{MANY_SHARDS:,} shards: opened in {opening:.2f} s, first batch after {first:.2f} s; goal 2: {verdict(first <= 2)}; "
        f"at most {most} more descriptors ({soft} allowed)"
    )


def main() -> None:
    """Measures the dataset that is named, or ones made for it."""
    asked = read(__doc__, {"rounds": 15, "megabytes": 400, "batch-size": 8, "written": False}, shards="")
    say_where("torch", "xxhash")
    if asked.shards:
        report_speed(asked.shards, asked.batch_size, asked.rounds, None)
        return
    with tempfile.TemporaryDirectory() as parent:
        folders = {}
        for shape in SHAPES:
            layout = Layout(sequence_length=shape.length, max_segments=64, tubelet=(1, 16, 16))
            count = max(1, round(1e6 * asked.megabytes / layout.token_bytes / NUM_SHARDS))
            folders[shape] = os.path.join(parent, str(shape.length))
            write_set(
                folders[shape],
                layouts=(layout,),
                rows_per_shard=(count,) * NUM_SHARDS,
                rows_per_group=rows_per_group(layout),
            )
            if not asked.written:
                forget(folders[shape])
            alone(report_speed, folders[shape], shape.batch_size, asked.rounds, shape.goals)
        print()
        for shape, folder in folders.items():
            report_first_batch(folder, shape.batch_size)
        report_memory(folders[SHAPES[1]], SHAPES[1].batch_size)
        report_metadata(folders[SHAPES[2]])
        report_many_shards(os.path.join(parent, "many"))


if __name__ == "__main__":
    main()
