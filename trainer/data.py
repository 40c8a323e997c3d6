"""Packed shards in, batches of torch tensors of one fixed shape out.

A sequence has its place in its file (docs/format.md), so any sequence of the dataset can be read alone:
one `pread` a column, one copy into the batch, one hash over the bytes. Nothing is decoded, joined or
padded here; that was paid for once, when the dataset was built.

Order. Sequences are numbered 0, 1, ... through the shard table (`index`). Epoch e reads view e mod
num_views and every sequence of it once, in the order that `trainer.order` draws.

Threads. Each of a few threads builds one whole batch; batches are handed out in their order, and no
more than `prefetch` wait at a time. Reading, copying and hashing all leave Python's lock.

Cost: `benchmarks/loader.py` measures the reading.
"""

import functools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NoReturn, TypedDict, cast

import numpy as np
import numpy.typing as npt
import torch

from patchpack.schemas import FormatError, Layout, Manifest, read_manifest, read_shard_table, sequence_digest
from patchpack.schemas.manifest import ShardRow, dataset_digest
from patchpack.schemas.sequence import array_columns
from patchpack.schemas.storage import join
from patchpack.trainer.opened import NO_LABEL, OpenShard, open_shard
from patchpack.trainer.order import SHUFFLE_WINDOW, epoch_order

Batch = dict[str, torch.Tensor]

# what an empty sequence or slot holds where it is not 0
EMPTY = {"labels": NO_LABEL, "all_labels": NO_LABEL, "index": -1}


class LoaderIdentity(TypedDict):
    """What decides the order of the sequences."""

    dataset_digest: str
    layout: int
    seed: int
    shuffle: bool
    drop_last: bool


class LoaderState(LoaderIdentity):
    """Where a loader stands: its next batch, and how many sequences of an epoch the processes take together before it."""

    batch_size: int
    world_size: int
    epoch: int
    batch: int


class PackedShards:
    """The batches of a dataset, epoch after epoch.

    Iterating runs from where the loader stands to the end of its epoch; the next iteration is the next
    epoch. One iteration at a time: a new one ends the one before, whose next batch is an error. It has its own
    threads: the workers of torch's DataLoader, each of which would read the whole epoch, are refused.

    A batch is a dict of tensors, B sequences of L tokens of width P and at most S segments:

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

    The last batch of an epoch has the same shape: it is filled with empty sequences (all padding,
    index -1), or left out with `drop_last`.

    Attributes:
        manifest: what the dataset says of itself.
        layout: the layout that is read.
        max_labels: the most of one example (M), or 0 where the dataset does not say.
        epoch: the epoch of the next batch.
    """

    def __init__(
        self,
        path: str,
        *,
        batch_size: int,
        layout: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        drop_last: bool = False,
        verify: bool = True,
        num_threads: int = 2,
        prefetch: int = 4,
        pin_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Reads manifest and shard table; shards are opened when their turn comes.

        Args:
            path: the dataset's folder, a local path or a URI that pyarrow can read.
            batch_size: sequences in a batch (B).
            layout: number of the layout in the manifest; sequences of other layouts are not read.
            shuffle: another order every epoch; otherwise the order of the shard table.
            seed: changes the order; it is mixed with the dataset digest, so 0 is as good as any.
            epoch: the epoch to begin with.
            drop_last: leave out the last batch of an epoch where it is not full (another order leaves
                out others); otherwise it is filled with empty sequences, and every sequence comes once.
            verify: check the stored digest of every sequence read (a fifth of the speed, benchmarks/loader.py).
            num_threads: batches made at a time; one thread reads 2-3 GB/s from memory, so more are for slow storage.
            prefetch: most batches made ahead and not yet taken.
            pin_memory: page-locked batches, for copies to CUDA that overlap with work.
            rank: which of the processes that train together this is; each reads its own part of every step of
                batch_size x world_size sequences (the sequences rank, rank + world_size, ... of it).
            world_size: how many they are. All have equally many batches; a state saved by one serves all.

        Raises:
            ValueError: an argument is out of its range, or the batch size over the number of sequences.
            FormatError: the dataset is unfinished, broken or too new.
        """
        self.path = path
        self.manifest: Manifest = read_manifest(path)
        if not 0 <= layout < len(self.manifest.layouts):
            raise ValueError(
                f"{path}: no layout {layout}; it has {len(self.manifest.layouts)}, counted from 0; choose one of them"
            )
        for name, value in {"batch_size": batch_size, "num_threads": num_threads, "prefetch": prefetch}.items():
            if value < 1:
                raise ValueError(f"{name} {value}: too small; the least is 1; give 1 or more")
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank {rank}: no such process; world_size is {world_size}, counted from 0; give 0 to world_size - 1"
            )
        self.layout: Layout = self.manifest.layouts[layout]
        self.max_labels = self.manifest.limits[layout]["max_labels"]
        self._rank, self._world_size = rank, world_size
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self._layout_number, self._seed, self._verify = layout, seed, verify
        self._num_threads, self._prefetch, self._pin_memory = num_threads, prefetch, pin_memory

        self._read_table()
        self._check_size()
        self.epoch, self._batch = epoch, 0
        self._iteration = 0
        # evicted shards are closed by their last reader's reference, never under its hands
        self._open = functools.lru_cache(maxsize=2 * SHUFFLE_WINDOW)(self._open_number)

    def __len__(self) -> int:
        """Returns the number of batches in the current epoch."""
        return self.num_batches(self.epoch)

    def __iter__(self) -> Iterator[Batch]:
        """Yields the rest of the epoch; errors of the reading threads are raised at the batch they belong to.

        Raises:
            RuntimeError: in one of several workers of a DataLoader, or where another iteration has begun since.
        """
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise RuntimeError(
                f"{self.path}: read by {worker.num_workers} workers of a DataLoader; each would read the whole epoch; PackedShards "
                "has threads of its own (num_threads): iterate over it directly"
            )
        self._iteration += 1
        iteration = self._iteration
        epoch, first, size = self.epoch, self._batch, self.batch_size * self._world_size
        order = self._order(epoch)
        numbers = range(first, self.num_batches(epoch))
        waiting: deque[Future[Batch]] = deque()
        threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="PackedShards")
        try:
            ahead = iter(numbers)
            for number in numbers:
                while len(waiting) < self._prefetch and (upcoming := next(ahead, None)) is not None:
                    indices = order[upcoming * size : (upcoming + 1) * size]
                    waiting.append(threads.submit(self._read_batch, indices[self._rank :: self._world_size]))
                batch = waiting.popleft().result()
                if iteration != self._iteration:
                    raise RuntimeError(
                        f"{self.path}: another iteration has begun, or the place was set; both would read the same batches; "
                        "make a second PackedShards to read twice"
                    )
                # before the yield, so that a state taken while this batch is in use names the next one
                last = number == numbers[-1]
                self.epoch, self._batch = (epoch + 1, 0) if last else (epoch, number + 1)
                yield batch
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def sources(self, indices: list[int]) -> list[str]:
        """Returns the keys of the examples in sequences, by number in the dataset; of empty ones (-1) none. Reads their shards."""
        keys = []
        for index in indices:
            if index < 0:
                continue
            number = int(np.searchsorted(self._first_index, index, side="right")) - 1
            rows = self._open(number).shard.read_metadata(["segments.list.element.source"])["segments"]
            keys += [segment["source"] for segment in rows[index - int(self._first_index[number])].as_py()]
        return keys

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration begin at the first batch of an epoch; one that is under way ends."""
        self._go_to(epoch, 0)

    def state_dict(self) -> LoaderState:
        """Returns where the loader stands, as JSON values: the next batch, and all that decides its content."""
        sizes: dict[str, int] = {"batch_size": self.batch_size, "world_size": self._world_size}
        return cast(LoaderState, {**self._identity(), **sizes, "epoch": self.epoch, "batch": self._batch})

    def load_state_dict(self, state: LoaderState) -> None:
        """Makes the next iteration begin at the very sequence that was next when the state was taken; one under way ends.

        Other numbers of processes, and of sequences in a batch, go on where it stood.

        Raises:
            ValueError: the state is of another dataset, or lies inside a batch.
        """
        saved = cast(dict[str, object], state)
        for name, value in self._identity().items():
            if saved.get(name) != value:
                raise ValueError(
                    f"{self.path}: {name} is {value}, the saved state has {saved.get(name)}; "
                    "a run resumes on the same dataset with the same batches; use the same one, or start anew"
                )
        own, done = self.batch_size * self._world_size, state["batch"] * state["batch_size"] * state["world_size"]
        if done % own:
            raise ValueError(
                f"{self.path}: the saved state stands at sequence {done} of its epoch, which is no multiple of {own} ({self._world_size} "
                f"processes with batches of {self.batch_size}); a run resumes with steps of as many sequences; choose sizes that divide it"
            )
        self._go_to(state["epoch"], done // own)

    def _read_table(self) -> None:
        """Reads which shards there are; raises FormatError where the table is that of another dataset."""
        path, layout = self.path, self._layout_number
        table = read_shard_table(path)
        digest = dataset_digest(self.manifest.layouts, table["digest"].to_pylist())
        if digest != self.manifest.dataset_digest:
            raise FormatError(
                f"{path}: manifest.json is of the dataset {self.manifest.dataset_digest}, shards.parquet of {digest}; a dataset has its own "
                "tables; copy it again, or finish it with build --resume"
            )
        self._table: list[ShardRow] = table.to_pylist()
        counts = table["num_sequences"].to_numpy()
        # first_index[i] is the number of shard i's first sequence
        self._first_index = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        views, layouts = table["view"].to_numpy(), table["layout"].to_numpy()
        self._shards_of_view = [
            np.flatnonzero((layouts == layout) & (views == view)) for view in np.unique(views[layouts == layout])
        ]

    def _check_size(self) -> None:
        """Checks that an epoch has a step; raises ValueError where it has not."""
        path, layout, batch_size, world_size = self.path, self._layout_number, self.batch_size, self._world_size
        counts = np.diff(self._first_index)
        fewest = min((int(counts[shards].sum()) for shards in self._shards_of_view), default=0)
        if fewest < 1:
            raise ValueError(
                f"{path}: no sequences of layout {layout}; training needs one; choose another layout or set"
            )
        if batch_size * world_size > fewest:
            every = "" if world_size == 1 else f" for each of {world_size} processes"
            raise ValueError(
                f"batch size {batch_size}{every}: {path} has {fewest} sequences of layout {layout} in an epoch; "
                f"a step is at most that; use {fewest // world_size} or less"
            )

    def __reduce__(self) -> NoReturn:
        """Refuses copies in other processes, which would all read the whole epoch.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{self.path}: PackedShards cannot be sent to another process; each would read the whole epoch; make one in each "
            "process, with its rank and world_size"
        )

    def _go_to(self, epoch: int, batch: int) -> None:
        self._iteration += 1
        self.epoch, self._batch = epoch, batch

    def _identity(self) -> LoaderIdentity:
        return {
            "dataset_digest": self.manifest.dataset_digest,
            "layout": self._layout_number,
            "seed": self._seed,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def _shards(self, epoch: int) -> npt.NDArray[np.int64]:
        return self._shards_of_view[epoch % len(self._shards_of_view)]

    def num_batches(self, epoch: int) -> int:
        """Returns the number of batches of an epoch, this process' part of them."""
        shards = self._shards(epoch)
        num_sequences = int((self._first_index[shards + 1] - self._first_index[shards]).sum())
        step = self.batch_size * self._world_size
        return num_sequences // step if self.drop_last else -(-num_sequences // step)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Returns the indices of an epoch's sequences in their order."""
        key = (self.manifest.dataset_digest, self._seed, epoch) if self.shuffle else None
        return epoch_order(self._first_index, self._shards(epoch), self.manifest.balance_step or 1, key)

    def _open_number(self, number: int) -> OpenShard:
        entry, classes = self._table[number], self.manifest.classes
        layout = self.manifest.layouts[entry["layout"]]
        num_classes = None if classes is None else len(classes)
        return open_shard(join(self.path, entry["path"]), layout, entry, num_classes, self.max_labels)

    def _new_batch(self) -> Batch:
        """Returns a batch that holds nothing yet, not even zeros: every byte is written once."""
        size, length, segments = self.batch_size, self.layout.sequence_length, self.layout.max_segments
        token_dtype = torch.from_numpy(np.empty(0, self.layout.token_dtype)).dtype
        shapes = {
            "tokens": ((size, length, self.layout.token_width), token_dtype),
            "segment_ids": ((size, length), torch.int32),
            "positions": ((size, length, 3), torch.int32),
            **{
                name: ((size, *shape), torch.int32)
                for name, (_, shape) in array_columns(self.layout).items()
                if name not in ("tokens", "segment_ids", "positions")
            },
            "starts": ((size, segments), torch.int32),
            "lengths": ((size, segments), torch.int32),
            "grids": ((size, segments, 3), torch.int32),
            "labels": ((size, segments), torch.int64),
            "weights": ((size, segments), torch.float32),
            **({"all_labels": ((size, segments, self.max_labels), torch.int64)} if self.max_labels > 1 else {}),
            "num_segments": ((size,), torch.int32),
            "num_tokens": ((size,), torch.int32),
            "index": ((size,), torch.int64),
        }
        return {
            name: torch.empty(shape, dtype=dtype, pin_memory=self._pin_memory)
            for name, (shape, dtype) in shapes.items()
        }

    def _read_batch(self, indices: npt.NDArray[np.int64]) -> Batch:
        batch = self._new_batch()
        arrays = {name: tensor.numpy() for name, tensor in batch.items()}  # views: what is written here is the batch
        numbers = np.searchsorted(self._first_index, indices, side="right") - 1
        for slot, (index, number) in enumerate(zip(indices.tolist(), numbers.tolist(), strict=True)):
            opened = self._open(number)
            row = index - int(self._first_index[number])
            columns = {name: opened.shard.read_array(name, row) for name in array_columns(self.layout)}
            if self._verify:
                digest, stored = sequence_digest(*columns.values()), int(opened.digests_R[row])
                if digest != stored:
                    raise FormatError(
                        f"{opened.shard.path} row {row}: digest is {digest:016x}, stored {stored:016x}; "
                        "its tokens, segment ids or positions changed after it was written; rebuild or copy again this shard"
                    )
            for name, values in columns.items():
                arrays[name][slot] = values
            for name, values in opened.counts.items():
                arrays[name][slot] = values[row]
            arrays["index"][slot] = index
        for name, array in arrays.items():  # empty sequences, where the last batch is not full
            array[len(indices) :] = EMPTY.get(name, 0)
        return batch
