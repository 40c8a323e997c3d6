"""What reading from a store costs: ms and requests a sequence, read where it lies or by way of the local cache.

    python benchmarks/remote.py [LATENCY_MS]
    python benchmarks/remote.py --only shuffle

A server of S3's kind on this machine waits LATENCY_MS before each answer; pyarrow's own client reads it. 16 shards of
64 sequences of 256 tokens of 16x16 pixels, windows of 4 shards, sequences shuffled inside each. The baseline opens each
shard in the store and asks for each column of each sequence, on one thread, as the loader does without a cache.

The table of --only shuffle needs no store: how far the labels of a batch are from those of the dataset, and how far apart in an
epoch the sequences of one shard come, for windows of several sizes and for a uniform shuffle. Labels of examples are
independent draws, as a hash of the key spreads them over shards, or all of a shard are alike, as a listing by class would.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from harness import ROOT, read, say_where

# the maker of datasets and the store are the tests'
sys.path.append(str(ROOT / "tests"))

from support.object_store import ObjectStore, serving
from support.synthetic_set import write_set

from patchpack.schemas import Layout, Shard, read_shard_table
from patchpack.schemas.cache import Ahead, RemoteShard, ShardCache
from patchpack.schemas.sequence import array_columns

NUM_SHARDS, ROWS, WINDOW = 16, 64, 4
# of the table of shuffles: a large dataset of photos, classes as frequent as 1/rank
SHUFFLED_SHARDS, SHUFFLED_ROWS, EXAMPLES, CLASSES, BATCH = 1024, 64, 8, 100, 256


def order(shards: int, rows: int, window: int, epoch: int = 0) -> Iterator[tuple[int, int, int]]:
    """Yields (place of the shard, shard, row) of an epoch: shards in a drawn order, sequences shuffled inside windows."""
    draws = np.random.default_rng(epoch)
    drawn = draws.permutation(shards)
    for start in range(0, shards, window):
        places = np.repeat(np.arange(start, min(start + window, shards)), rows)
        in_shard = np.tile(np.arange(rows), len(places) // rows)
        for at in draws.permutation(len(places)):
            yield int(places[at]), int(drawn[places[at]]), int(in_shard[at])


def read_epoch(open_shard: Callable[[int, int], Shard], layout: Layout, epoch: int = 0) -> None:
    """Reads every sequence of an epoch; open_shard takes a shard's place in the epoch and its number."""
    opened: dict[int, Shard] = {}
    for place, number, row in order(NUM_SHARDS, ROWS, WINDOW, epoch):
        shard = opened.get(number) or opened.setdefault(number, open_shard(place, number))
        for column in array_columns(layout):
            shard.read_array(column, row)
    for shard in opened.values():
        shard.close()


def report(name: str, store: ObjectStore, work: Callable[[], None]) -> float:
    """Prints one line and returns ms a sequence."""
    store.requests.clear()
    started = time.perf_counter()
    work()
    each = (time.perf_counter() - started) * 1e3 / (NUM_SHARDS * ROWS)
    print(f"{name:44}{each:9.2f}{store.requests.total() / (NUM_SHARDS * ROWS):12.3f}", flush=True)
    return each


def compare(latency_ms: float) -> None:
    """Prints a line a way of reading."""
    layout = Layout(sequence_length=256, max_segments=16, tubelet=(1, 16, 16))
    with tempfile.TemporaryDirectory() as folder, serving() as store:
        write_set(folder, layouts=(layout,), rows_per_shard=(ROWS,) * NUM_SHARDS)
        table = read_shard_table(folder).to_pylist()
        for row in table:
            store.objects[f"b/set/{row['path']}"] = (Path(folder) / row["path"]).read_bytes()
        shards = [RemoteShard(store.uri(f"b/set/{row['path']}"), row["digest"], row["bytes"]) for row in table]
        total = sum(shard.num_bytes for shard in shards)
        print(f"{total / 1e6:.0f} MB in {NUM_SHARDS} shards of {ROWS} sequences; {latency_ms:g} ms a request\n")
        print(f"{'':44}{'ms a seq.':>9}{'req. a seq.':>12}")
        store.latency_s = latency_ms / 1e3

        def cached(local: ShardCache, epoch: int) -> None:
            places = {place: number for place, number, _ in order(NUM_SHARDS, ROWS, WINDOW, epoch)}
            local.check_fits([shard.num_bytes for shard in shards], WINDOW)
            with Ahead(local, [shards[places[place]] for place in range(NUM_SHARDS)], WINDOW) as ahead:
                read_epoch(lambda place, _: Shard(ahead.path(place)), layout, epoch)

        direct = report(
            "in the store (baseline)", store, lambda: read_epoch(lambda _, number: Shard(shards[number].uri), layout)
        )
        for part in (1, 0.75):
            local = ShardCache(f"{folder}/{part}", int(total * part))
            for epoch in (0, 1):
                name = f"cache of {part:.0%} of it, epoch {epoch}"
                each = report(name, store, lambda local=local, epoch=epoch: cached(local, epoch))
                print(f"{'':44}{direct / each:9.0f} times as fast")


def shuffles() -> None:
    """Prints how far shuffles in windows are from a uniform one."""
    draws = np.random.default_rng(1)
    frequencies = 1 / np.arange(1, CLASSES + 1)
    frequencies /= frequencies.sum()
    spread = draws.choice(CLASSES, (SHUFFLED_SHARDS * SHUFFLED_ROWS, EXAMPLES), p=frequencies)
    by_class = np.repeat(np.sort(draws.choice(CLASSES, SHUFFLED_SHARDS, p=frequencies)), SHUFFLED_ROWS)[:, None]
    print(
        f"{SHUFFLED_SHARDS} shards of {SHUFFLED_ROWS} sequences of {EXAMPLES} examples, {CLASSES} classes; batches of {BATCH} sequences"
    )
    print("total variation between the labels of a batch and of the dataset: mean over batches\n")
    print(f"{'window':>8}{'by hash':>10}{'by class':>10}{'apart':>8}")
    for window in (1, 4, 16, 64, 256, SHUFFLED_SHARDS):
        epoch = np.array(
            [number * SHUFFLED_ROWS + row for _, number, row in order(SHUFFLED_SHARDS, SHUFFLED_ROWS, window)]
        )
        place = np.argsort(epoch)  # of each sequence in the epoch
        apart = np.abs(place[0::SHUFFLED_ROWS] - place[1::SHUFFLED_ROWS]).mean() / len(epoch)
        name = "uniform" if window == SHUFFLED_SHARDS else str(window)
        print(f"{name:>8}{variation(spread[epoch]):10.4f}{variation(by_class[epoch]):10.4f}{apart:8.4f}")


def variation(labels: np.ndarray) -> float:
    """Returns the mean total variation between the labels (sequences, examples) of a batch and all of them."""
    due = np.bincount(labels.ravel(), minlength=CLASSES) / labels.size
    batches = labels.reshape(-1, BATCH * labels.shape[1])
    found = np.stack([np.bincount(batch, minlength=CLASSES) for batch in batches]) / batches.shape[1]
    return float(np.abs(found - due).sum(axis=1).mean() / 2)


def main() -> None:
    """Measures what is asked for."""
    given = read(__doc__, {"only": ""}, latency_ms=30.0)
    say_where("xxhash")
    if given.only != "shuffle":
        compare(given.latency_ms)
    else:
        shuffles()


if __name__ == "__main__":
    main()
