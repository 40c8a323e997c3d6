"""Packed shards in, batches of torch tensors of one fixed shape out.

A sequence has its place in its file (docs/format.md), so any sequence of the dataset can be read alone:
one `preadv` a column, tokens straight into the batch, one hash over the bytes. Nothing is decoded, joined
or padded here; that was paid for once, when the dataset was built. Batches use the memory of earlier ones
that nobody holds any more (`slots`).

Order. Sequences are numbered 0, 1, ... through the shard table (`index`). Epoch e reads view e mod
num_views and every sequence of it once, in the order that `trainer.order` draws. All processes together
take the next sequences of it, step by step: so a place in it says nothing of batches or processes.

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
from patchpack.trainer.slots import Slot, Slots

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
    """Where a loader stands: how many sequences of its epoch all processes together have taken. It says nothing of batches."""

    epoch: int
    sequence: int


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
        world_size: processes that share a step.
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
        self._rank, self.world_size = rank, world_size
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self._layout_number, self._seed, self._verify = layout, seed, verify
        self._num_threads, self._prefetch = num_threads, prefetch
        self._columns = array_columns(self.layout)
        self._slots = Slots(self._shapes(), pin_memory=pin_memory)

        self._read_table()
        self._check_size()
        self.epoch, self._sequence = epoch, 0
        self._iteration = 0
        # evicted shards are closed by their last reader's reference, never under its hands
        self._open = functools.lru_cache(maxsize=2 * SHUFFLE_WINDOW)(self._open_number)

    def __len__(self) -> int:
        """Returns the number of batches that the next iteration yields: of the epoch, or of what is left of it."""
        return self._num_steps(self._num_sequences(self.epoch) - self._sequence)

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
        epoch, first, size = self.epoch, self._sequence, self.batch_size * self.world_size
        order = self._order(epoch)[first:]
        numbers = range(len(self))
        waiting: deque[tuple[Future[None], Slot]] = deque()
        threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="PackedShards")
        try:
            ahead = iter(numbers)
            for number in numbers:
                while len(waiting) < self._prefetch and (upcoming := next(ahead, None)) is not None:
                    indices = order[upcoming * size : (upcoming + 1) * size]
                    slot = self._slots.take()
                    reading = threads.submit(self._read_batch, indices[self._rank :: self.world_size], slot.arrays)
                    waiting.append((reading, slot))
                reading, slot = waiting[0]
                reading.result()
                if iteration != self._iteration:
                    raise RuntimeError(
                        f"{self.path}: another iteration has begun, or the place was set; both would read the same batches; "
                        "make a second PackedShards to read twice"
                    )
                waiting.popleft()
                batch = slot.lend()
                self._slots.give(slot)
                # before the yield, so that a state taken while this batch is in use names the next one
                last = number == numbers[-1]
                self.epoch, self._sequence = (epoch + 1, 0) if last else (epoch, first + (number + 1) * size)
                yield batch
                slot.note_copies()
                # what is lent is held by who has it
                del batch
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
            for _, slot in waiting:
                self._slots.give(slot)

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
        """Returns where the loader stands, as JSON values: the next sequence, and all that decides the order."""
        return {**self._identity(), "epoch": self.epoch, "sequence": self._sequence}

    def load_state_dict(self, state: LoaderState) -> None:
        """Makes the next iteration begin at the very sequence that was next when the state was taken; one under way ends.

        Other numbers of processes, and of sequences in a batch, go on where it stood: none comes twice, and none is left out but by
        `drop_last`. Where the sequences left make no step, the next epoch begins.

        Raises:
            ValueError: the state is of another dataset, or of another order.
        """
        saved = cast(dict[str, object], state)
        for name, value in self._identity().items():
            if saved.get(name) != value:
                raise ValueError(
                    f"{self.path}: {name} is {value}, the saved state has {saved.get(name)}; "
                    "a run resumes on the same dataset in the same order; use the same one, or start anew"
                )
        self._go_to(state["epoch"], state["sequence"])

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
        path, layout, batch_size, world_size = self.path, self._layout_number, self.batch_size, self.world_size
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

    def _go_to(self, epoch: int, sequence: int) -> None:
        self._iteration += 1
        if sequence and not self._num_steps(self._num_sequences(epoch) - sequence):
            epoch, sequence = epoch + 1, 0
        self.epoch, self._sequence = epoch, sequence

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
        """Returns the number of batches of a whole epoch, this process' part of them."""
        return self._num_steps(self._num_sequences(epoch))

    def _num_sequences(self, epoch: int) -> int:
        shards = self._shards(epoch)
        return int((self._first_index[shards + 1] - self._first_index[shards]).sum())

    def _num_steps(self, num_sequences: int) -> int:
        step = self.batch_size * self.world_size
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

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Returns shape and dtype of every tensor of a batch."""
        size, length, segments = self.batch_size, self.layout.sequence_length, self.layout.max_segments
        token_dtype = torch.from_numpy(np.empty(0, self.layout.token_dtype)).dtype
        return {
            "tokens": ((size, length, self.layout.token_width), token_dtype),
            **{name: ((size, *shape), torch.int32) for name, (_, shape) in self._columns.items() if name != "tokens"},
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

    def _read_batch(self, indices: npt.NDArray[np.int64], arrays: dict[str, np.ndarray]) -> None:
        """Writes sequences into the memory of a batch, and empty ones behind them."""
        # as they are stored; the batch has wider integers
        stored = {name: np.empty(shape, dtype) for name, (dtype, shape) in self._columns.items() if name != "tokens"}
        numbers = np.searchsorted(self._first_index, indices, side="right") - 1
        for at, (index, number) in enumerate(zip(indices.tolist(), numbers.tolist(), strict=True)):
            opened = self._open(number)
            row = index - int(self._first_index[number])
            columns = {"tokens": arrays["tokens"][at], **stored}
            opened.shard.read_into(row, columns)
            if self._verify:
                digest, due = sequence_digest(*columns.values()), int(opened.digests_R[row])
                if digest != due:
                    raise FormatError(
                        f"{opened.shard.path} row {row}: digest is {digest:016x}, stored {due:016x}; "
                        "its tokens, segment ids or positions changed after it was written; rebuild or copy again this shard"
                    )
            for name, values in stored.items():
                arrays[name][at] = values
            for name, values in opened.counts.items():
                arrays[name][at] = values[row]
            arrays["index"][at] = index
        for name, array in arrays.items():  # empty sequences, where the last batch is not full
            array[len(indices) :] = EMPTY.get(name, 0)
