"""Several layouts of one dataset in one run: each batch is of one, and an epoch reads all of them.

The order of layouts is drawn anew every epoch, each as often as it has batches, so that the sizes of patches mix (FlexiViT
draws one a step). Every layout is read by a `PackedShards` of its own.
"""

from collections.abc import Iterator
from typing import Any, TypedDict

import numpy as np

from patchpack.trainer.data import LoaderState, PackedShards
from patchpack.trainer.order import random_words
from patchpack.trainer.slots import Batch


class MixedState(TypedDict):
    """Where a mixed loader stands: its epoch, its next batch, sequences of a step, and where each of its loaders is."""

    epoch: int
    batch: int
    step: int
    loaders: list[LoaderState]


class MixedShards:
    """Batches of all layouts of a dataset, epoch after epoch.

    Attributes:
        loaders: one a layout.
        epoch: the epoch of the next batch.
    """

    def __init__(self, path: str, layouts: list[int], *, seed: int = 0, **options: Any) -> None:
        """Opens a loader a layout.

        Args:
            path: the dataset's folder or URI.
            layouts: their numbers.
            seed: of the order.
            options: others of `PackedShards`.

        Raises:
            ValueError: as `PackedShards`.
            FormatError: likewise.
        """
        self.loaders = [PackedShards(path, layout=number, seed=seed, **options) for number in layouts]
        self.manifest, self._seed = self.loaders[0].manifest, seed
        self.epoch, self._batch = 0, 0

    def __len__(self) -> int:
        """Returns the number of batches in the current epoch."""
        return sum(map(len, self.loaders))

    def __iter__(self) -> Iterator[Batch]:
        """Yields the rest of the epoch."""
        order = self._order()
        running = [iter(loader) for loader in self.loaders]
        for number in range(self._batch, len(order)):
            batch = next(running[order[number]])
            last = number == len(order) - 1
            self.epoch, self._batch = (self.epoch + 1, 0) if last else (self.epoch, number + 1)
            yield batch

    def _order(self) -> list[int]:
        """Returns the layout of each batch of the epoch."""
        # a loader that has read all of its part of an epoch stands at the next one already
        counts = [loader.num_batches(self.epoch) for loader in self.loaders]
        layouts = np.repeat(np.arange(len(counts)), counts)
        words = random_words(len(layouts), self.manifest.dataset_digest, self._seed, self.epoch, "layouts")
        order: list[int] = layouts[np.argsort(words, kind="stable")].tolist()
        return order

    @property
    def skipped(self) -> dict[int, str]:
        """Broken sequences that came as empty ones, by their numbers, and what was wrong."""
        return {index: why for loader in self.loaders for index, why in loader.skipped.items()}

    def sources(self, indices: list[int]) -> list[str]:
        """Returns the keys of the examples in sequences, by number in the dataset."""
        return self.loaders[0].sources(indices)

    def state_dict(self) -> MixedState:
        """Returns where the loader stands, as JSON values."""
        states = [loader.state_dict() for loader in self.loaders]
        return {"epoch": self.epoch, "batch": self._batch, "step": self.loaders[0].step_size, "loaders": states}

    def load_state_dict(self, state: MixedState) -> None:
        """Makes the next iteration begin at the very batch that was next when the state was taken.

        Raises:
            ValueError: the state is of another dataset, or of loaders that cut other batches.
        """
        if len(state["loaders"]) != len(self.loaders):
            raise ValueError(
                f"{self.loaders[0].path}: the saved state is of {len(state['loaders'])} layouts, this run reads {len(self.loaders)}; "
                "a run resumes on the same ones; name them with --layout, or start anew"
            )
        if state["step"] != (size := self.loaders[0].step_size):
            raise ValueError(
                f"{self.loaders[0].path}: the saved state is of steps of {state['step']} sequences, this run's have {size}; the order of "
                "several layouts is one of their steps; use as many, by any number of processes, or name one layout with --layout"
            )
        for loader, own in zip(self.loaders, state["loaders"], strict=True):
            loader.load_state_dict(own)
        self.epoch, self._batch = state["epoch"], state["batch"]
