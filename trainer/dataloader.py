"""Packed batches for those who have torch's DataLoader: its workers and all processes share an epoch, and none reads what another does.

    batches = StreamedShards("shards", batch_size=8)
    for epoch in range(10):
        batches.set_epoch(epoch)
        for batch in DataLoader(batches, batch_size=None, num_workers=4):
            ...

Batches come in the order of `PackedShards`, whatever the number of workers. A `schemas.Dataset` is the other, map-style view: single
sequences, for a sampler of one's own. What neither has is the place in an epoch to go on from: `PackedShards` alone, whose threads do what
workers do, has it.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from patchpack.trainer.data import PackedShards
from patchpack.trainer.slots import Batch


class StreamedShards(IterableDataset):  # type: ignore[type-arg]
    """An epoch's batches, for `DataLoader(..., batch_size=None)`.

    Worker w of W yields batches w, w + W, ..., which the DataLoader puts in their order. A copy in another process opens its own files.
    """

    def __init__(self, path: str, *, rank: int | None = None, world_size: int | None = None, **options: Any) -> None:
        """Opens the dataset, to see that it can be.

        Args:
            path: the dataset's folder or URI.
            rank: of this process; left out: that of torch.distributed, or 0.
            world_size: likewise.
            options: others of `PackedShards`; where there are workers, batches stay on the CPU.

        Raises:
            ValueError: as `PackedShards`.
            FormatError: likewise.
        """
        is_shared = dist.is_available() and dist.is_initialized()
        rank = (dist.get_rank() if is_shared else 0) if rank is None else rank
        world_size = (dist.get_world_size() if is_shared else 1) if world_size is None else world_size
        self._path, self._options = path, {**options, "rank": rank, "world_size": world_size}
        opened = PackedShards(path, **self._options)
        self._counts = [opened.num_batches(epoch) for epoch in range(len(opened.dataset.shards_of_view))]
        # in memory that workers see, so that persistent ones are at the same epoch
        self._epoch = torch.tensor(opened.epoch).share_memory_()

    def __len__(self) -> int:
        """Returns the number of batches of the epoch, of all workers."""
        return self._counts[int(self._epoch) % len(self._counts)]

    def set_epoch(self, epoch: int) -> None:
        """Sets which epoch the next iteration reads; without it every one reads the same."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Batch]:
        """Yields this worker's batches of the epoch."""
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        loader = PackedShards(self._path, **self._options)
        loader.set_epoch(int(self._epoch))
        return loader.part(first, every)
