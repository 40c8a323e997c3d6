"""Several datasets in one stream of batches, each as often as its weight says.

Position n of the stream is a sequence of the dataset that a word of Philox draws for n, by the weights; of each dataset the sequences come
in the order of its own epochs (`trainer.order`), one epoch after the other. So a sequence comes once in each epoch of its dataset, and the
stream says nothing of batches or processes: position and sequences taken of each are the state, on any number of them.

Cost: a word and a search a sequence. Given up: batches of one dataset, and with them groups of near-equal cost (`--balance-step`).
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict, Unpack, cast

import numpy as np
import numpy.typing as npt

from patchpack.schemas import Dataset, Layout
from patchpack.schemas.dataset import OnCorrupt
from patchpack.trainer.ahead import Reader, ReaderOptions, check_counts
from patchpack.trainer.data import CACHE_BYTES, check_identity, check_rank, open_cache
from patchpack.trainer.order import SHUFFLE_WINDOW, Epochs, random_words
from patchpack.trainer.slots import Batch

# positions whose datasets are drawn at a time
BLOCK = 4096


class MixtureIdentity(TypedDict):
    """What decides the stream."""

    dataset_digests: list[str]
    layout: int
    weights: list[float]
    seed: int
    shuffle: bool
    window: int


class MixtureState(MixtureIdentity):
    """Where a mixture stands: sequences of the stream that all processes have taken, and how many of each dataset these are."""

    position: int
    taken: list[int]


class Mixture:
    """An endless stream of batches of several datasets.

    Batches are those of `PackedShards`, and one tensor more: `dataset` (B,) int64, which of the datasets each sequence is of; `index` is its
    number there.
    Iterating goes on where the last iteration stood.

    Attributes:
        datasets: in the order of their paths.
        weights: of each, adding up to 1.
        position: sequences of the stream that all processes have taken.
        taken: of each dataset.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        batch_size: int,
        weights: Sequence[float] | None = None,
        layout: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        window: int = SHUFFLE_WINDOW,
        verify: bool = True,
        cache: str | None = None,
        cache_bytes: int = CACHE_BYTES,
        on_corrupt: OnCorrupt = "raise",
        rank: int = 0,
        world_size: int = 1,
        **reading: Unpack[ReaderOptions],
    ) -> None:
        """Opens the datasets.

        Args:
            paths: their folders or URIs.
            batch_size: sequences in a batch (B), of any of them.
            weights: parts of the stream, in any unit; left out: their numbers of sequences, so that their epochs take equally long.
            layout: its number in each.
            shuffle: as of `PackedShards`.
            seed: likewise.
            window: likewise.
            verify: likewise.
            cache: likewise; a shard is fetched when its first sequence is read.
            cache_bytes: likewise, for a window of each dataset.
            on_corrupt: likewise.
            rank: likewise.
            world_size: likewise.
            reading: threads, device, and what is made ready: see `ReaderOptions`.

        Raises:
            ValueError: an argument is out of its range, or the datasets have batches of other shapes, pixels or classes.
            FormatError: one is unfinished, broken or too new.
        """
        check_counts({"batch_size": batch_size})
        check_rank(rank, world_size)
        kept = open_cache(paths, cache, cache_bytes)
        self.datasets = [
            Dataset(path, layout=layout, verify=verify, cache=kept, on_corrupt=on_corrupt) for path in paths
        ]
        _check_alike(self.datasets)
        if kept is not None:
            largest = [sorted(dataset.sizes(), reverse=True)[:window] for dataset in self.datasets]
            kept.check_fits([size for own in largest for size in own], window * len(paths))
        self._epochs = [Epochs(dataset, seed=seed, shuffle=shuffle, window=window) for dataset in self.datasets]
        sizes = [float(each.num_sequences(0)) for each in self._epochs]
        self.weights = _checked_weights(sizes if weights is None else weights, len(self.datasets))
        self.layout, self.batch_size, self.world_size = self.datasets[0].layout, batch_size, world_size
        self._seed, self._shuffle, self._rank = seed, shuffle, rank
        most = max(dataset.max_labels for dataset in self.datasets)
        for dataset in self.datasets:
            dataset.max_labels = most
        shapes = self.datasets[0].shapes(batch_size) | {"dataset": ((batch_size,), np.dtype(np.int64))}
        self._reader = Reader(shapes, self.layout, **reading)
        self.position, self.taken = 0, [0] * len(self.datasets)
        self._iteration = 0

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches without an end; errors of the reading threads are raised at the batch they belong to.

        Raises:
            RuntimeError: another iteration has begun since.
        """
        self._iteration += 1
        iteration = self._iteration
        batches = self._reader.read(self._steps(), self._fill)
        try:
            for step, batch in batches:
                if iteration != self._iteration:
                    raise RuntimeError(
                        "a mixture: another iteration has begun, or the place was set; both would read the same batches; make a second Mixture "
                        "to read twice"
                    )
                self.position, self.taken = step.position, step.taken
                yield batch
                del batch
        finally:
            batches.close()

    @property
    def epochs(self) -> list[int]:
        """The epoch of each dataset's next sequence."""
        return [Place.after(taken, each).epoch for taken, each in zip(self.taken, self._epochs, strict=True)]

    def state_dict(self) -> MixtureState:
        """Returns where the mixture stands, as JSON values, and all that decides the stream."""
        return {**self._identity(), "position": self.position, "taken": list(self.taken)}

    def load_state_dict(self, state: MixtureState) -> None:
        """Makes the next iteration begin at the very sequence that was next when the state was taken.

        Other numbers of processes, and of sequences in a batch, go on where it stood.

        Raises:
            ValueError: the state is of other datasets, or of another stream.
        """
        check_identity("a mixture", cast(Mapping[str, object], state), self._identity())
        self._iteration += 1
        self.position, self.taken = state["position"], list(state["taken"])

    def _identity(self) -> MixtureIdentity:
        return {
            "dataset_digests": [dataset.manifest.dataset_digest for dataset in self.datasets],
            "layout": self.datasets[0].layout_number,
            "weights": self.weights,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "window": self._epochs[0].window,
        }

    def _steps(self) -> Iterator["Step"]:
        """Yields this process' part of each step."""
        size, position, taken = self.batch_size * self.world_size, self.position, np.array(self.taken)
        streams = [_stream(count, each) for count, each in zip(self.taken, self._epochs, strict=True)]
        while True:
            chosen = self._chosen(position, size)
            indices = [next(streams[number]) for number in chosen.tolist()]
            position, taken = position + size, taken + np.bincount(chosen, minlength=len(streams))
            own = slice(self._rank, None, self.world_size)
            yield Step(chosen[own].tolist(), indices[own], position, taken.tolist())

    def _chosen(self, position: int, count: int) -> npt.NDArray[np.int64]:
        """Returns the datasets of so many positions of the stream from one on, (count,)."""
        bounds = np.cumsum(self.weights)[:-1]
        first, end = position // BLOCK, -(-(position + count) // BLOCK)
        words = np.concatenate([random_words(BLOCK, "mixture", self._seed, number) for number in range(first, end)])
        own = words[position - first * BLOCK :][:count]
        return np.searchsorted(bounds, own / 2.0**64, side="right")

    def _fill(self, step: "Step", arrays: Mapping[str, np.ndarray]) -> None:
        for at, (number, index) in enumerate(zip(step.datasets, step.indices, strict=True)):
            self.datasets[number].read_into(index, arrays, at)
            arrays["dataset"][at] = number


class Step(NamedTuple):
    """One process' sequences of a step: the dataset and number of each, and where the stream stands behind it."""

    datasets: list[int]
    indices: list[int]
    position: int
    taken: list[int]


class Place(NamedTuple):
    """A place in the epochs of one dataset."""

    epoch: int
    sequence: int

    @staticmethod
    def after(taken: int, epochs: Epochs) -> "Place":
        """Returns where a dataset stands when so many sequences are taken."""
        epoch = 0
        while taken >= (size := epochs.num_sequences(epoch)):
            epoch, taken = epoch + 1, taken - size
        return Place(epoch, taken)


def _stream(taken: int, epochs: Epochs) -> Iterator[int]:
    """Yields the sequences of a dataset, epoch after epoch, from a place on."""
    epoch, first = Place.after(taken, epochs)
    while True:
        yield from epochs.order(epoch)[first:].tolist()
        epoch, first = epoch + 1, 0


def _checked_weights(weights: Sequence[float], count: int) -> list[float]:
    """Returns weights that add up to 1; raises ValueError where they are none."""
    if len(weights) != count or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(
            f"weights {list(weights)}: of {count} datasets; each has one, over 0; leave out what is not to be read"
        )
    return [weight / math.fsum(weights) for weight in weights]


def _check_alike(datasets: Sequence[Dataset]) -> None:
    """Checks that batches of all datasets are of one shape and one meaning; raises ValueError where they are not."""
    if not datasets:
        raise ValueError("a mixture of no datasets: there is nothing to read; give their paths")
    first = datasets[0]
    for other in datasets:
        if not len(other):
            raise ValueError(f"{other.path}: no sequences of its layout; a mixture needs one of each; leave it out")
        for field in dataclasses.fields(Layout):
            own, theirs = getattr(first.layout, field.name), getattr(other.layout, field.name)
            if own != theirs and field.name not in ("resize", "codec"):
                raise ValueError(
                    f"{other.path}: {field.name} is {theirs}, {first.path} has {own}; a mixture has batches of one shape; build them alike"
                )
        if first.manifest.classes != other.manifest.classes:
            raise ValueError(
                f"{other.path}: its classes are not those of {first.path}; a label means one class in all of a mixture; build them with one "
                "--classes FILE"
            )
