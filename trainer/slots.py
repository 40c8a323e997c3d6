"""Memory of batches, used again when nobody holds a batch that was made of it.

A fresh batch costs more in page faults than in copying: tens of megabytes that the system has to zero first. A slot is lent out as tensors;
it is free again when they, and whatever was sliced from them, are gone. Who keeps batches keeps them: then there are more slots, and nothing
is ever overwritten.

Copies to CUDA that still run hold nothing. A slot is written again only after all that was queued when the batch behind its own was asked for.
"""

import threading
import weakref

import numpy as np
import torch

from patchpack.schemas.dataset import Shapes

Batch = dict[str, torch.Tensor]


class Slot:
    """Memory of one batch.

    Attributes:
        arrays: to write to, by name.
    """

    def __init__(self, shapes: Shapes, *, pin_memory: bool) -> None:
        # numpy asks for large pages, of which fewer are zeroed one by one; only torch has page-locked ones
        self.arrays: dict[str, np.ndarray] = {
            name: torch.empty(shape, dtype=_torch_dtype(dtype), pin_memory=True).numpy()
            if pin_memory
            else np.empty(shape, dtype)
            for name, (shape, dtype) in shapes.items()
        }
        self._lent: list[weakref.ref[np.ndarray]] = []
        self._pinned = pin_memory
        self._queued: torch.cuda.Event | None = None

    def lend(self) -> Batch:
        """Returns tensors over the memory; all that shares their memory keeps the slot from being used."""
        views = {name: array.view() for name, array in self.arrays.items()}
        self._lent = [weakref.ref(view) for view in views.values()]
        # a tensor of an array holds the array, and so do all its slices
        return {name: torch.from_numpy(view) for name, view in views.items()}

    @property
    def is_free(self) -> bool:
        """Whether nobody holds what was lent."""
        return all(view() is None for view in self._lent)

    def note_copies(self) -> None:
        """Notes what is queued on the device: a copy of this slot may be among it."""
        if self._pinned:
            self._queued = torch.cuda.Event()
            self._queued.record()

    def wait(self) -> None:
        """Waits for the copies that were noted."""
        if self._queued is not None:
            self._queued.synchronize()
            self._queued = None


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    """Returns torch's dtype of numpy's."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


class Slots:
    """As many slots as batches are held at a time; threads may take and give them."""

    def __init__(self, shapes: Shapes, *, pin_memory: bool) -> None:
        self._shapes, self._pin_memory = shapes, pin_memory
        # the one given last is the last
        self._slots: list[Slot] = []
        self._lock = threading.Lock()

    def take(self) -> Slot:
        """Returns a slot that is free, and is given to nobody else before it is lent."""
        with self._lock:
            # the one that was used last may still be in the processor's cache
            free = next((at for at in reversed(range(len(self._slots))) if self._slots[at].is_free), None)
            slot = None if free is None else self._slots.pop(free)
        if slot is None:
            return Slot(self._shapes, pin_memory=self._pin_memory)
        slot.wait()
        return slot

    def give(self, slot: Slot) -> None:
        """Takes a slot back, lent or not: it is used again once it is free."""
        with self._lock:
            self._slots.append(slot)
