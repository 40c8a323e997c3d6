"""What is left of each length while bins are filled, and the exact sums that can be made of it.

A bin is taken as often as its lengths allow, so what follows grows with the distinct lengths and not with the examples.
Sums are looked for in blocks of the lengths that are left, from the requested one on: most are found in the first block.
"""

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.instance import Histogram
from patchpack.pipeline.packing.slots import Patterns

# Lengths looked at together.
BLOCK = 512
# A look costs as much as so many lengths looked at.
LOOK = 4096
# Bins after which lengths that ran out are left out of what is looked at.
SWEEP = 64


class Left:
    """The examples that are in no bin yet, and the bins so far.

    Attributes:
        left_V: (capacity + 1,) int64, how many examples of each length are left.
        alive: the lengths that may be left, ascending.
        work: lengths that may still be looked at; a nanosecond each.
    """

    def __init__(self, histogram: Histogram, work: int) -> None:
        self.capacity, self.values_K = histogram.capacity, histogram.values
        self.left_V = np.zeros(histogram.capacity + 1, dtype=np.int64)
        self.left_V[histogram.values] = histogram.counts
        self.alive = histogram.values
        self.work = work
        self._bins: list[npt.NDArray[np.int64]] = []
        self._repeats: list[int] = []

    def close(self, lengths: list[int], most: int | None = None) -> int:
        """Makes a bin of lengths that are taken already, again as often as they are left; returns how often in all."""
        values, copies = np.unique(np.array(lengths, dtype=np.int64), return_counts=True)
        more = int((self.left_V[values] // copies).min())
        more = more if most is None else min(more, most - 1)
        self.left_V[values] -= more * copies
        self._bins.append(np.repeat(values, copies))
        self._repeats.append(1 + more)
        if len(self._repeats) % SWEEP == 0:
            self.alive = self.alive[self.left_V[self.alive] > 0]
        return 1 + more

    def patterns(self) -> Patterns:
        """Returns the bins so far."""
        sizes = [len(bin_E) for bin_E in self._bins]
        classes_E = np.searchsorted(self.values_K, np.concatenate([np.zeros(0, np.int64), *self._bins]))
        return Patterns(classes_E, np.repeat(np.arange(len(sizes)), sizes), np.array(self._repeats, dtype=np.int64))

    def longest(self, space: int) -> int | None:
        """Returns the longest length that is left and fits, or None."""
        high = int(np.searchsorted(self.alive, space, side="right"))
        self.work -= LOOK
        while high:
            block = self.alive[max(0, high - BLOCK) : high]
            present = self.left_V[block] > 0
            last = len(block) - 1 - int(np.argmax(present[::-1]))
            if present[last]:
                return int(block[last])
            high -= len(block)
        return None

    def nearest(self, length: int) -> int | None:
        """Returns the length that is left and nearest to the given one, of a block around it, or None."""
        at = int(np.searchsorted(self.alive, length))
        block = self.alive[max(0, at - BLOCK // 2) : at + BLOCK // 2]
        block = block[self.left_V[block] > 0]
        return int(block[np.argmin(np.abs(block - length))]) if len(block) else None

    def longer_halves(self, spaces: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Returns where in `alive` the longer one of two lengths may stand that add up to each space: from, to."""
        lows = np.searchsorted(self.alive, (spaces + 1) // 2)
        return lows, np.searchsorted(self.alive, spaces - self.alive[0], side="right")

    def pair(self, space: int, low: int, high: int, near: int) -> tuple[int, int] | None:
        """Returns two lengths that are left and add up to the space, the longer one as near as can be to the given one.

        It is looked for in `alive[low:high]`, in blocks from the end on; the first block that has any is taken.
        """
        while high > low:
            block = self.alive[max(low, high - BLOCK) : high]
            fits = (self.left_V[block] > 0) & (self.left_V[space - block] > 0)
            if 2 * int(block[0]) == space and self.left_V[block[0]] < 2:
                fits[0] = False
            self.work -= len(block) + LOOK
            found = block[fits]
            if len(found):
                longer = int(found[np.argmin(np.abs(found - near))])
                return longer, space - longer
            high -= len(block)
        return None
