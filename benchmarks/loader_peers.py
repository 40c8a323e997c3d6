"""The CPU time that other libraries' loaders take for the same sequences, against ours with digests.

    pip install mosaicml-streaming litdata webdataset datasets safetensors
    python benchmarks/loader_peers.py [--only mosaicml-streaming] [--rounds 5] [--megabytes 400]

The sequences of the three shapes of `benchmarks/loader.py` are written in each library's own format, uncompressed (tokens, segment ids and
positions; numpy arrays where the format has them, bytes where not), and read in random order in this process, without workers, as its
documentation advises; each batch is collated into new arrays as a batch of ours has them: tokens as they are, segment ids and positions as
int32. Ours also has counts, labels and grids, and checks each sequence; of the others none does.

- mosaicml-streaming: MDS shards of 64 MB, StreamingDataset(shuffle=True) in torch's DataLoader.
- litdata: chunks of 64 MB, StreamingDataset(shuffle=True, batch_decode=False) in its StreamingDataLoader.
- webdataset: tar files of 64 MB; shards are shuffled, then sequences in a buffer of 64: it has no random access.
- datasets (Hugging Face): Arrow files in memory maps, load_from_disk, torch's DataLoader(shuffle=True); as arrays in
  numpy's format, and as bytes.
- safetensors: one file a shard, one slice of its tensors a sequence.
- memory map: of our own files, as in `benchmarks/loader.py`.

Rounds in which all take turns, CPU seconds of the whole process; speeds are of the same round. A library that is not there is left out: some
ask for versions of numpy that others refuse, and then are measured in environments of their own.
"""

import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from harness import ROOT, read, say_where
from loader import NUM_SHARDS, SHAPES, Batch, files_of, forget, ratios, read_loader, read_mapped, take

# the maker of datasets is the tests'
sys.path.append(str(ROOT / "tests"))

from support.synthetic_set import write_set
from torch.utils.data import DataLoader

from patchpack.schemas import Dataset, Layout, Shard
from patchpack.schemas.sequence import array_columns, rows_per_group
from patchpack.trainer.data import PackedShards

FILE_BYTES = 64 << 20
# sequences that webdataset shuffles together
BUFFER = 64

Sequence = dict[str, np.ndarray]


class Source(NamedTuple):
    """The sequences that are written, and how many make a batch."""

    dataset: Dataset
    batch_size: int

    def shards(self) -> Iterator[list[Sequence]]:
        """Yields the sequences of each shard as they are stored."""
        for entry in self.dataset._table:
            with Shard(os.path.join(self.dataset.path, entry["path"])) as shard:
                names = array_columns(shard.layout)
                yield [{name: shard.read_array(name, row) for name in names} for row in range(shard.num_sequences)]

    def sequences(self) -> Iterator[Sequence]:
        """Yields all sequences."""
        for sequences in self.shards():
            yield from sequences

    def collate(self, sequences: Iterable[Sequence]) -> Batch:
        """Returns sequences, or their bytes, as a batch of new arrays."""
        rows = list(sequences)
        batch = {}
        for name, (dtype, shape) in array_columns(self.dataset.layout).items():
            batch[name] = np.empty((len(rows), *shape), dtype if name == "tokens" else np.int32)
            for at, row in enumerate(rows):
                value = row[name]
                batch[name][at] = np.frombuffer(value, dtype).reshape(shape) if isinstance(value, bytes) else value
        return batch


def leave_benchmarks() -> None:
    """Makes imports look in this folder last: it has a file of the name of MDS' package."""
    own = [path for path in sys.path if os.path.realpath(path) == str(ROOT / "benchmarks")]
    sys.path[:] = [path for path in sys.path if path not in own] + own


def write_mds(folder: str, source: Source) -> None:
    """Writes MDS shards."""
    leave_benchmarks()
    from streaming import MDSWriter

    columns = array_columns(source.dataset.layout).items()
    kinds = {name: f"ndarray:{dtype.name}:{','.join(map(str, shape))}" for name, (dtype, shape) in columns}
    with MDSWriter(out=folder, columns=kinds, size_limit=FILE_BYTES) as writer:
        for sequence in source.sequences():
            writer.write(sequence)


def read_mds(folder: str, source: Source) -> Iterable[object]:
    """Returns what gives the batches of an epoch, each time it is iterated."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=source.batch_size)
    return DataLoader(dataset, batch_size=source.batch_size, collate_fn=source.collate)


def stored(item: tuple[str, int]) -> Sequence:
    """Returns a sequence by its dataset and number, for litdata, which writes in another process."""
    path, index = item
    dataset = Dataset(path)
    number = dataset._shard_of(index)
    shard = dataset._open(number).shard
    row = index - int(dataset.first_index[number])
    return {name: np.array(shard.read_array(name, row)) for name in array_columns(shard.layout)}


def write_litdata(folder: str, source: Source) -> None:
    """Writes litdata's chunks."""
    from litdata import optimize

    items = [(source.dataset.path, index) for index in range(len(source.dataset))]
    optimize(fn=stored, inputs=items, output_dir=folder, chunk_bytes=FILE_BYTES, num_workers=1, verbose=False)


def read_litdata(folder: str, source: Source) -> Iterable[object]:
    """Returns what gives the batches of an epoch, each time it is iterated."""
    from litdata import StreamingDataLoader, StreamingDataset

    # its default decodes the neighbours of each sequence too, which a shuffle never asks for: 20 times slower at 256 tokens
    dataset = StreamingDataset(folder, shuffle=True, batch_decode=False)
    return StreamingDataLoader(dataset, batch_size=source.batch_size, num_workers=0, collate_fn=source.collate)


def write_webdataset(folder: str, source: Source) -> None:
    """Writes tar files."""
    import webdataset

    with webdataset.ShardWriter(os.path.join(folder, "%05d.tar"), maxsize=FILE_BYTES, verbose=0) as writer:
        for number, sequence in enumerate(source.sequences()):
            writer.write({"__key__": f"{number:08}", **{name: array.tobytes() for name, array in sequence.items()}})


def read_webdataset(folder: str, source: Source) -> Iterable[object]:
    """Returns what gives the batches of an epoch, each time it is iterated."""
    import webdataset

    files = sorted(os.path.join(folder, name) for name in os.listdir(folder))
    dataset = webdataset.WebDataset(files, shardshuffle=len(files), empty_check=False).shuffle(BUFFER)
    return dataset.batched(source.batch_size, collation_fn=source.collate)


def write_table(folder: str, source: Source, kinds: dict[str, object], value: Callable[[np.ndarray], object]) -> None:
    """Writes Arrow files of columns of the given kinds."""
    from datasets import Dataset as Table
    from datasets import Features, concatenate_datasets

    features = Features(kinds)
    parts = [
        Table.from_dict({name: [value(each[name]) for each in sequences] for name in kinds}, features=features)
        for sequences in source.shards()
    ]
    concatenate_datasets(parts).save_to_disk(folder, max_shard_size=FILE_BYTES)


def write_arrays(folder: str, source: Source) -> None:
    """Writes Arrow files of arrays."""
    from datasets import Array2D, List, Value

    columns = array_columns(source.dataset.layout).items()
    kinds = {
        name: Array2D(shape, dtype.name) if len(shape) > 1 else List(Value(dtype.name), shape[0])
        for name, (dtype, shape) in columns
    }
    write_table(folder, source, kinds, lambda array: array)


def read_arrays(folder: str, source: Source) -> Iterable[object]:
    """Returns what gives the batches of an epoch, each time it is iterated."""
    from datasets import load_from_disk

    table = load_from_disk(folder).with_format("numpy")
    return DataLoader(table, batch_size=source.batch_size, shuffle=True, collate_fn=source.collate)


def write_binary(folder: str, source: Source) -> None:
    """Writes Arrow files of binary columns."""
    from datasets import Value

    kinds = {name: Value("binary") for name in array_columns(source.dataset.layout)}
    write_table(folder, source, kinds, lambda array: array.tobytes())


def read_binary(folder: str, source: Source) -> Iterable[object]:
    """Returns what gives the batches of an epoch, each time it is iterated."""
    from datasets import load_from_disk

    return DataLoader(load_from_disk(folder), batch_size=source.batch_size, shuffle=True, collate_fn=source.collate)


def write_safetensors(folder: str, source: Source) -> None:
    """Writes one file a shard."""
    from safetensors.numpy import save_file

    for number, sequences in enumerate(source.shards()):
        arrays = {name: np.stack([sequence[name] for sequence in sequences]) for name in sequences[0]}
        save_file(arrays, os.path.join(folder, f"{number:05}.safetensors"))


class Slices:
    """Sequences of safetensors files by their numbers."""

    def __init__(self, folder: str) -> None:
        from safetensors import safe_open

        self.files = [
            safe_open(os.path.join(folder, name), framework="numpy", device="cpu")
            for name in sorted(os.listdir(folder))
        ]
        self.slices = [{name: file.get_slice(name) for name in file.keys()} for file in self.files]  # noqa: SIM118
        self.rows = [slices["tokens"].get_shape()[0] for slices in self.slices]
        self.places = [(number, row) for number, count in enumerate(self.rows) for row in range(count)]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sequence:
        number, row = self.places[index]
        return {name: part[row] for name, part in self.slices[number].items()}


def read_safetensors(folder: str, source: Source) -> Iterable[object]:
    """Returns what gives the batches of an epoch, each time it is iterated."""
    return DataLoader(Slices(folder), batch_size=source.batch_size, shuffle=True, collate_fn=source.collate)


Write = Callable[[str, Source], None]
Read = Callable[[str, Source], Iterable[object]]

# by the names of their packages, up to a comma: how they are written and read, and the least that our speed is to be in theirs
PEERS: dict[str, tuple[Write, Read, float | None]] = {
    "mosaicml-streaming": (write_mds, read_mds, 2),
    "litdata": (write_litdata, read_litdata, 2),
    "webdataset": (write_webdataset, read_webdataset, 2),
    "datasets": (write_arrays, read_arrays, 2),
    "datasets, bytes": (write_binary, read_binary, 2),
    "safetensors": (write_safetensors, read_safetensors, None),
}


def installed(only: str) -> list[str]:
    """Returns the peers, all or those of one package, that are there, and says which are not."""
    there = []
    for name in PEERS:
        if only and only != name.split(",")[0]:
            continue
        try:
            importlib.metadata.version(name.split(",")[0])
            there.append(name)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: not installed; left out")
    return there


def report(folder: str, source: Source, peers: list[str], rounds: int) -> None:
    """Writes the sequences once for each library, and prints one line for each."""
    ours = PackedShards(source.dataset.path, batch_size=source.batch_size)
    files = files_of(ours)
    ways: dict[str, Callable[[], object]] = {"ours, digests": lambda: take(read_loader(ours))}
    ways["memory map"] = lambda: take(read_mapped(files, source.batch_size, new_arrays=True))
    num_sequences = len(source.dataset)
    for name in peers:
        write, open_peer, _ = PEERS[name]
        own = os.path.join(folder, name)
        os.makedirs(own)
        write(own, source)
        batches = open_peer(own, source)
        found = sum(len(batch["tokens"]) for batch in batches)
        if found != num_sequences:
            print(f"{name}: gives {found} sequences of {num_sequences}")
        ways[name] = lambda batches=batches: take(batches)
    forget(folder)
    print(f"\nL = {source.dataset.layout.sequence_length}, B = {source.batch_size}: {num_sequences} sequences")
    print(f"{'':24}{'CPU s':>8}{'ours is faster':>16}  goal")
    for name, (seconds, speeds) in ratios(ways, rounds).items():
        times, due = 1 / speeds[0], PEERS[name][2] if name in PEERS else None
        goal = "" if due is None else f"  {due:.1f} {'met' if times >= due else 'missed'}"
        print(f"{name:24}{seconds:8.3f}{times:15.2f}x{goal}", flush=True)


def main() -> None:
    """Measures the libraries that are installed."""
    asked = read(__doc__, {"only": "", "rounds": 5, "megabytes": 400})
    peers = installed(asked.only)
    say_where("torch", "xxhash", *dict.fromkeys(name.split(",")[0] for name in peers))
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            layout = Layout(sequence_length=shape.length, max_segments=64, tubelet=(1, 16, 16))
            count = max(1, round(1e6 * asked.megabytes / layout.token_bytes / NUM_SHARDS))
            own = os.path.join(folder, "ours")
            write_set(
                own, layouts=(layout,), rows_per_shard=(count,) * NUM_SHARDS, rows_per_group=rows_per_group(layout)
            )
            report(folder, Source(Dataset(own), shape.batch_size), peers, asked.rounds)


if __name__ == "__main__":
    main()
