"""The order in which an epoch reads the sequences of its view.

A shuffled epoch draws an order of the shards and cuts it into windows of them; the
sequences of a window are shuffled together. Up to that many shards this is a uniform shuffle of the
whole view; beyond it, the reader never holds more than two windows of files open. Of a dataset with a
`balance_step` of W, whole steps of W sequences (of near-equal attention cost) are shuffled instead,
and the order inside each; the sequences that are in no step come last, so that those before them keep
their steps. Every draw is made of raw words of Philox: no state, no clock, the same on every machine.

Cost: 24 bytes a sequence of the view (steps: 32) while the order is drawn and 8 after. Given up: an order
uniform over datasets of more shards than a window has (their examples were already spread over shards by
a hash of the key).
"""

import numpy as np
import numpy.typing as npt
import xxhash

from patchpack.schemas import Dataset

# shards whose sequences are shuffled together: two windows of open files stay far below the usual
# limit of 1,024, and 64 shards of 256 MB hold some 20,000 sequences of 1,024 tokens
SHUFFLE_WINDOW = 64


def random_words(count: int, *key: object) -> npt.NDArray[np.uint64]:
    """Returns `count` raw words of the counter-based generator Philox, a pure function of the key."""
    seed = xxhash.xxh3_128_intdigest("/".join(str(part) for part in key).encode())
    return np.random.Philox(key=seed).random_raw(count)


class Epochs:
    """What each epoch of a dataset reads, and in which order: epoch e is view e mod num_views."""

    def __init__(self, dataset: Dataset, *, seed: int, shuffle: bool, window: int = SHUFFLE_WINDOW) -> None:
        """Takes a dataset, and of its order the seed, whether there is one at all, and how many shards are shuffled together.

        Raises:
            ValueError: there is no such window.
        """
        if not 1 <= window <= SHUFFLE_WINDOW:
            raise ValueError(
                f"window {window}: shards that are shuffled together, all of them open; it is 1 to {SHUFFLE_WINDOW}; leave it out for the most"
            )
        self._dataset, self._seed, self._shuffle, self.window = dataset, seed, shuffle, window

    def num_sequences(self, epoch: int) -> int:
        """Returns how many sequences an epoch reads."""
        shards, first_index = self._shards(epoch), self._dataset.first_index
        return int((first_index[shards + 1] - first_index[shards]).sum())

    def shards(self, epoch: int) -> npt.NDArray[np.int64]:
        """Returns the numbers of an epoch's shards in the order of its windows."""
        return shard_order(self._shards(epoch), self._key(epoch))

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Returns the numbers of an epoch's sequences in their order."""
        step_size = self._dataset.manifest.balance_step or 1
        return epoch_order(self._dataset.first_index, self._shards(epoch), step_size, self._key(epoch), self.window)

    def _key(self, epoch: int) -> tuple[object, ...] | None:
        return (self._dataset.manifest.dataset_digest, self._seed, epoch) if self._shuffle else None

    def _shards(self, epoch: int) -> npt.NDArray[np.int64]:
        views = self._dataset.shards_of_view
        return views[epoch % len(views)]


def epoch_order(
    first_index: npt.NDArray[np.int64],
    shards: npt.NDArray[np.int64],
    step_size: int,
    key: tuple[object, ...] | None,
    window: int = SHUFFLE_WINDOW,
) -> npt.NDArray[np.int64]:
    """Returns the numbers of the sequences of some shards in the order to read them.

    Args:
        first_index: (num_shards + 1,) number of the first sequence of each shard of the dataset, and of the one after all.
        shards: numbers of the shards that are read.
        step_size: sequences that are shuffled as one; every shard begins with whole steps.
        key: of the draws; None for the order of the shards.
        window: shards whose sequences are shuffled together.
    """
    if key is None:
        return np.concatenate([np.arange(first_index[shard], first_index[shard + 1]) for shard in shards])
    shards = shard_order(shards, key)
    windows, rests = [], []
    for number, start in enumerate(range(0, len(shards), window)):
        steps_SW, rest = _steps(first_index, shards[start : start + window], step_size)
        steps_SW = steps_SW[_shuffled(len(steps_SW), *key, number)]
        if step_size > 1:
            inside = random_words(steps_SW.size, *key, number, "inside").reshape(steps_SW.shape)
            steps_SW = np.take_along_axis(steps_SW, np.argsort(inside, axis=1, kind="stable"), axis=1)
        windows.append(steps_SW.ravel())
        rests.append(rest[_shuffled(len(rest), *key, number, "rest")])
    return np.concatenate(windows + rests)


def shard_order(shards: npt.NDArray[np.int64], key: tuple[object, ...] | None) -> npt.NDArray[np.int64]:
    """Returns the numbers of shards in the order in which windows of them are read."""
    return shards if key is None else shards[_shuffled(len(shards), *key, "shards")]


def _steps(
    first_index: npt.NDArray[np.int64], shards: npt.NDArray[np.int64], size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the sequences of shards that are in whole steps, (number of steps, W), and those that are not."""
    steps, rests = [], []
    for first, end in zip(first_index[shards], first_index[shards + 1], strict=True):
        whole = end - (end - first) % size
        steps.append(np.arange(first, whole).reshape(-1, size))
        rests.append(np.arange(whole, end))
    return np.concatenate(steps), np.concatenate(rests)


def _shuffled(count: int, *key: object) -> npt.NDArray[np.intp]:
    return np.argsort(random_words(count, *key), kind="stable")
