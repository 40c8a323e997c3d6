"""Packed shards in, batches of torch tensors of one fixed shape out.

Sequences are read by `schemas.Dataset`, each alone and straight into the memory of a batch; batches use the memory of earlier ones that
nobody holds any more (`slots`).

Order. Epoch e reads view e mod num_views and every sequence of it once, in the order that `trainer.order` draws. All processes together
take the next sequences of it, step by step: so a place in it says nothing of batches or processes.

Threads. Each thread builds one whole batch; batches are handed out in their order, and no more than `prefetch` wait at a time (`ahead`).
Reading, copying and hashing all leave Python's lock; one thread reads more than a device trains on, and more of them only cost CPU.

Cost: `benchmarks/loader.py` measures the reading.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NoReturn, TypedDict, Unpack, cast

import numpy as np
import numpy.typing as npt
import torch

from patchpack.schemas import Dataset, Layout, Manifest
from patchpack.schemas.cache import ShardCache
from patchpack.schemas.dataset import OnCorrupt, fill_empty
from patchpack.schemas.errors import without_secrets
from patchpack.schemas.storage import is_uri
from patchpack.trainer.ahead import Reader, ReaderOptions, check_counts
from patchpack.trainer.order import SHUFFLE_WINDOW, Epochs
from patchpack.trainer.slots import Batch

# two windows of 64 shards of the usual 256 MB are 33 GB
CACHE_BYTES = 50 * 10**9

Last = Literal["pad", "drop"]


class LoaderIdentity(TypedDict):
    """What decides the order of the sequences."""

    dataset_digest: str
    layout: int
    seed: int
    shuffle: bool
    last: Last
    window: int


class LoaderState(LoaderIdentity):
    """Where a loader stands: how many sequences of its epoch all processes together have taken. It says nothing of batches."""

    epoch: int
    sequence: int


class PackedShards:
    """The batches of a dataset, epoch after epoch.

    Iterating runs from where the loader stands to the end of its epoch; the next iteration is the next
    epoch. One iteration at a time: a new one ends the one before, whose next batch is an error. It has its own
    threads: the workers of torch's DataLoader, each of which would read the whole epoch, are refused (`trainer.dataloader` is for them).

    A batch is a dict of tensors, B sequences of L tokens of width P and at most S segments. It stays as it is for as long as anybody holds it.

        tokens        (B, L, P)  the layout's dtype, uint8 in format version 1
        segment_ids   (B, L)     int32, 1..S, 0 = padding
        positions     (B, L, 3)  int32, (t, y, x)
        keep_order    (B, L)     int32, the rank of each token of its segment in the order to keep them, from 0: where
                                 tokens were dropped, so that a model may drop more; not in other datasets
        text_ids      (B, T)     int32, tokens of the captions, and
        text_segment_ids (B, T)  int32, the segment of each, 0 = padding: where captions are packed; not in other datasets
        starts        (B, S)     int32, first token of each segment, 0 where there is none
        lengths       (B, S)     int32, tokens of each segment, 0 where there is none
        grids         (B, S, 3)  int32, tubelets along (t, h, w), 0 where there is none
        labels        (B, S)     int64, the segment's first label, -1 where there is none
        all_labels    (B, S, M)  int64, all labels of each segment, -1 where there are fewer: where an example has several
        weights       (B, S)     float32, of the segment's example; 0 where there is none
        num_segments  (B,)       int32
        num_tokens    (B,)       int32, real ones
        index         (B,)       int64, number of the sequence in the dataset, -1 for an empty sequence

    and what `also` asks for (`trainer.ready`). The last batch of an epoch has the same shape: it is filled with empty sequences (all padding,
    index -1), or left out with `last="drop"`.

    Attributes:
        dataset: gives single sequences.
        manifest: what the dataset says of itself.
        layout: the layout that is read.
        max_labels: the most of one example (M), or 0 where the dataset does not say.
        max_segments: the most in one sequence of the dataset, at most S.
        max_seqlen: tokens of the longest segment of the dataset, for varlen attention.
        world_size: processes that share a step.
        epoch: the epoch of the next batch.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        batch_size: int,
        layout: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        window: int = SHUFFLE_WINDOW,
        epoch: int = 0,
        last: Last = "pad",
        verify: bool = True,
        cache: str | None = None,
        cache_bytes: int = CACHE_BYTES,
        on_corrupt: OnCorrupt = "raise",
        rank: int = 0,
        world_size: int = 1,
        **reading: Unpack[ReaderOptions],
    ) -> None:
        """Reads manifest and shard table; shards are opened when their turn comes.

        Args:
            path: the dataset's folder, a local path or a URI that pyarrow can read.
            batch_size: sequences in a batch (B).
            layout: number of the layout in the manifest; sequences of other layouts are not read.
            shuffle: another order every epoch; otherwise the order of the shard table.
            seed: changes the order; it is mixed with the dataset digest, so 0 is as good as any.
            window: shards that are shuffled together; fewer of them for a small cache.
            epoch: the epoch to begin with.
            last: the last batch of an epoch, where it is not full: filled with empty sequences ("pad"), so that every sequence comes once, or
                left out ("drop"; another order leaves out others).
            verify: check the stored digest of every sequence read (an eighth of the speed, benchmarks/loader.py).
            cache: a local folder for copies of the shards of a store, which processes and runs may share; None: read where they are.
            cache_bytes: the most that all copies have together; two windows at least.
            on_corrupt: what a broken sequence does: it ends the iteration ("raise"), or comes as an empty one, named in `skipped` ("skip").
            rank: which of the processes that train together this is; each reads its own part of every step of
                batch_size x world_size sequences (the sequences rank, rank + world_size, ... of it).
            world_size: how many they are. All have equally many batches; a state saved by one serves all.
            reading: threads, device, and what is made ready: see `ReaderOptions`.

        Raises:
            ValueError: an argument is out of its range, or the batch size over the number of sequences.
            FormatError: the dataset is unfinished, broken or too new.
        """
        self.path = path = os.fspath(path)
        kept = open_cache([path], cache, cache_bytes)
        self.dataset = Dataset(path, layout=layout, verify=verify, cache=kept, on_corrupt=on_corrupt)
        self.manifest: Manifest = self.dataset.manifest
        self.layout: Layout = self.dataset.layout
        self.max_labels = self.dataset.max_labels
        limits = self.manifest.limits[layout]
        self.max_segments, self.max_seqlen = limits["max_segments"], limits["max_segment_tokens"]
        check_counts({"batch_size": batch_size})
        check_rank(rank, world_size)
        if last not in ("pad", "drop"):
            raise ValueError(f"last {last!r}: not known; it is 'pad' or 'drop'; choose one")
        self._rank, self.world_size = rank, world_size
        self.batch_size, self.shuffle, self.last = batch_size, shuffle, last
        self._seed = seed
        self._reader = Reader(self.dataset.shapes(batch_size), self.layout, **reading)
        self._epochs = Epochs(self.dataset, seed=seed, shuffle=shuffle, window=window)
        if kept is not None:
            kept.check_fits(self.dataset.sizes(), window)
        self._check_size()
        self._check_groups(0)
        self.epoch, self._sequence = epoch, 0
        self._iteration = 0

    def __len__(self) -> int:
        """Returns the number of batches that the next iteration yields: of the epoch, or of what is left of it."""
        return self._num_steps(self._epochs.num_sequences(self.epoch) - self._sequence)

    def __iter__(self) -> Iterator[Batch]:
        """Yields the rest of the epoch; errors of the reading threads are raised at the batch they belong to.

        Raises:
            RuntimeError: in one of several workers of a DataLoader, or where another iteration has begun since.
        """
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise RuntimeError(
                f"{self.path}: read by {worker.num_workers} workers of a DataLoader; each would read the whole epoch; PackedShards "
                "has threads of its own (num_threads): iterate over it directly, or give the DataLoader a StreamedShards"
            )
        yield from self.part(0, 1)

    def part(self, first: int, every: int) -> Iterator[Batch]:
        """Yields batches first, first + every, ... of the rest of the epoch, for one of several readers of this process' share."""
        self._iteration += 1
        iteration = self._iteration
        epoch, start, size = self.epoch, self._sequence, self.step_size
        order, count = self._epochs.order(epoch)[start:], len(self)

        def fill(step: int, arrays: Mapping[str, np.ndarray]) -> None:
            self._read(order[step * size : (step + 1) * size][self._rank :: self.world_size].tolist(), arrays)

        batches = self._reader.read(range(first, count, every), fill)
        fetching = self.dataset.fetched_ahead(self._shards_from(epoch, order), self._epochs.window)
        with fetching, contextlib.closing(batches):
            for step, batch in batches:
                if iteration != self._iteration:
                    raise RuntimeError(
                        f"{self.path}: another iteration has begun, or the place was set; both would read the same batches; "
                        "make a second PackedShards to read twice"
                    )
                # before the yield, so that a state taken while this batch is in use names the next one
                is_last = step == count - 1
                self.epoch, self._sequence = (epoch + 1, 0) if is_last else (epoch, start + (step + 1) * size)
                yield batch
                del batch

    @property
    def skipped(self) -> dict[int, str]:
        """Broken sequences that came as empty ones (`on_corrupt="skip"`), by their numbers, and what was wrong."""
        return self.dataset.skipped

    @property
    def step_size(self) -> int:
        """Sequences that all processes take together."""
        return self.batch_size * self.world_size

    def sources(self, indices: list[int]) -> list[str]:
        """Returns the keys of the examples in sequences, by number in the dataset; of empty ones (-1) none. Reads their shards."""
        return self.dataset.sources(indices)

    def num_batches(self, epoch: int) -> int:
        """Returns the number of batches of a whole epoch, this process' part of them."""
        return self._num_steps(self._epochs.num_sequences(epoch))

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration begin at the first batch of an epoch; one that is under way ends."""
        self._go_to(epoch, 0)

    def state_dict(self) -> LoaderState:
        """Returns where the loader stands, as JSON values: the next sequence, and all that decides the order."""
        return {**self._identity(), "epoch": self.epoch, "sequence": self._sequence}

    def load_state_dict(self, state: LoaderState) -> None:
        """Makes the next iteration begin at the very sequence that was next when the state was taken; one under way ends.

        Other numbers of processes, and of sequences in a batch, go on where it stood: none comes twice, and none is left out but by
        `last="drop"`. Where the sequences left make no step, the next epoch begins. Groups of near-equal cost that the new steps would
        cut are warned of.

        Raises:
            ValueError: the state is of another dataset, or of another order.
        """
        check_identity(self.path, cast(Mapping[str, object], state), self._identity())
        self._go_to(state["epoch"], state["sequence"])
        self._check_groups(self._sequence)

    def _shards_from(self, epoch: int, order: npt.NDArray[np.int64]) -> list[int]:
        """Returns the shards of an epoch, from the window on in which the rest of its order begins."""
        shards, window = self._epochs.shards(epoch), self._epochs.window
        if not len(order):
            return []
        first = int(np.flatnonzero(shards == self.dataset.shard_of(int(order[0])))[0])
        return [int(number) for number in shards[first // window * window :]]

    def _read(self, indices: Sequence[int], arrays: Mapping[str, np.ndarray]) -> None:
        """Writes sequences into the memory of a batch, and empty ones behind them."""
        self.dataset.read_batch(indices, arrays)
        fill_empty(arrays, slice(len(indices), None))

    def _check_size(self) -> None:
        """Checks that an epoch has a step; raises ValueError where it has not."""
        path, layout = self.path, self.dataset.layout_number
        fewest = min(map(self._epochs.num_sequences, range(len(self.dataset.shards_of_view))), default=0)
        if fewest < 1:
            raise ValueError(
                f"{path}: no sequences of layout {layout}; training needs one; choose another layout or set"
            )
        if self.step_size > fewest:
            every = "" if self.world_size == 1 else f" for each of {self.world_size} processes"
            raise ValueError(
                f"batch size {self.batch_size}{every}: {path} has {fewest} sequences of layout {layout} in an epoch; "
                f"a step is at most that; use {fewest // self.world_size} or less"
            )

    def _check_groups(self, sequence: int) -> None:
        """Warns where steps from a place of the epoch on cut the dataset's groups of near-equal cost."""
        group, size = self.manifest.balance_step, self.step_size
        if not group or not self.shuffle:
            return
        smaller, larger = sorted((group, size))
        if larger % smaller or sequence % smaller:
            warnings.warn(
                f"{self.path}: steps of {size} sequences from sequence {sequence} of the epoch on cut its groups of {group} of near-equal cost; "
                "whole ones need steps that divide a group, or whole groups in a step; the order is exact all the same",
                stacklevel=3,
            )

    def __reduce__(self) -> NoReturn:
        """Refuses copies in other processes, which would all read the whole epoch.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{self.path}: PackedShards cannot be sent to another process; each would read the whole epoch; make one in each "
            "process, with its rank and world_size, or use a StreamedShards"
        )

    def _go_to(self, epoch: int, sequence: int) -> None:
        self._iteration += 1
        if sequence and not self._num_steps(self._epochs.num_sequences(epoch) - sequence):
            epoch, sequence = epoch + 1, 0
        self.epoch, self._sequence = epoch, sequence

    def _identity(self) -> LoaderIdentity:
        return {
            "dataset_digest": self.manifest.dataset_digest,
            "layout": self.dataset.layout_number,
            "seed": self._seed,
            "shuffle": self.shuffle,
            "last": self.last,
            "window": self._epochs.window,
        }

    def _num_steps(self, num_sequences: int) -> int:
        return num_sequences // self.step_size if self.last == "drop" else -(-num_sequences // self.step_size)


def open_cache(paths: Sequence[str], cache: str | None, max_bytes: int) -> ShardCache | None:
    """Returns the cache for datasets, None where none is asked for; warns where a store is read without one."""
    if cache is not None:
        return ShardCache(cache, max_bytes)
    for path in paths:
        if is_uri(path) and not path.startswith("file://"):
            warnings.warn(
                f"{without_secrets(path)}: read in its store, three requests a sequence in every epoch; a cache asks for a shard once; "
                "give cache=FOLDER (--cache)",
                stacklevel=3,
            )
    return None


def check_rank(rank: int, world_size: int) -> None:
    """Checks which process of how many this is; raises ValueError where there is no such one."""
    if not 0 <= rank < world_size:
        raise ValueError(
            f"rank {rank}: no such process; world_size is {world_size}, counted from 0; give 0 to world_size - 1"
        )


def check_identity(path: str, saved: Mapping[str, object], own: Mapping[str, object]) -> None:
    """Checks that a saved state is of a loader of this order; raises ValueError where it is not."""
    for name, value in own.items():
        if saved.get(name) != value:
            raise ValueError(
                f"{path}: {name} is {value}, the saved state has {saved.get(name)}; "
                "a run resumes on the same dataset in the same order; use the same one, or start anew"
            )
