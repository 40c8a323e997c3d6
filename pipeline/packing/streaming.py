"""Packing of an unbounded stream, window by window, each as well as `pack` packs.

The examples of a window that make whole bins are packed together; the last ones, which would only half fill a bin, come first
in the next window. So each leaves at the latest with the window after its own. For loaders that cannot see the whole dataset;
where it can be seen, `pack` needs fewer bins.

Costs what `pack` costs for a window, and holds two windows of lengths. Gives up what a window does not see: padding in percent,
from `benchmarks/streaming.py` (100,000 examples), beside first-fit over 64 open bins and the packing of all at once:

    set                     capacity  window 256    1,024    4,096  first-fit    at once
    side_uniform_64_256          256       0.753    0.292    0.170      5.929      0.120
    side_uniform_64_256        1,024       0.684    0.167    0.047      0.575      0.007
    images_and_clips_4096      4,096       0.490    0.124    0.035      3.245      0.004
    native_photos_4096         4,096       1.918    1.519    1.414      5.062      1.386
    native_photos_16384       16,384       0.737    0.373    0.264      2.517      0.227
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.instance import read_integer
from patchpack.pipeline.packing.pack import pack

# The work of a window is a tenth of what `pack` allows for any number of examples.
EFFORT = 0.1
# Whole bins are filled to a part of one, so that they can be; where there are as many of them.
SPARE = 10


def num_in_whole_bins(lengths: npt.ArrayLike, capacity: int, max_segments: int | None = None) -> int:
    """Returns how many examples, from the first on, are enough for whole bins and not for more; all where none is whole.

    Args:
        lengths: (N,) integers, tokens of each.
        capacity: tokens of a bin.
        max_segments: most examples in one bin; None for no limit.
    """
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
    total = int(ends[-1]) if len(ends) else 0
    spare = capacity // SPARE if total >= SPARE * capacity else 0
    whole = (total - spare) // capacity
    if max_segments is not None:
        whole = max(whole, len(ends) // max_segments)
    if not whole:
        return len(ends)
    by_tokens = int(np.searchsorted(ends, whole * capacity - spare, side="right"))
    return by_tokens if max_segments is None else min(by_tokens, whole * max_segments)


def pack_stream(
    lengths: Iterable[int], capacity: int, *, max_segments: int | None = None, window: int = 1024, seed: int = 0
) -> Iterator[list[int]]:
    """Yields bins of a stream of examples, each as the numbers of its examples: 0, 1, ... in the order in which they come.

    The same arguments give the same bins. An example leaves at most two windows after it came.

    Args:
        lengths: tokens of each example, an unbounded iterable.
        capacity: tokens of a bin.
        max_segments: most examples in one bin; None for no limit.
        window: examples that are packed together.
        seed: of the packing of each window.

    Raises:
        ValueError: an argument is out of its range, or a length, when its window is reached.
    """
    window = read_integer("window", window)
    if window < 1:
        raise ValueError(f"window: {window}; the least is 1; leave it out for 1024")
    return _bins(iter(lengths), capacity, max_segments, window, seed)


def _bins(
    lengths: Iterator[int], capacity: int, max_segments: int | None, window: int, seed: int
) -> Iterator[list[int]]:
    pack([], capacity, max_segments=max_segments)  # wrong limits are named before the first example
    waiting: list[int] = []
    first = 0  # of those that wait
    while fresh := list(itertools.islice(lengths, window)):
        for number, length in enumerate(fresh, first + len(waiting)):
            if not 1 <= read_integer(f"lengths[{number}]", length) <= capacity:
                raise ValueError(
                    f"lengths[{number}]: {length}; it is 1 to the capacity, {capacity}; leave the example out"
                )
        num_carried = len(waiting)  # they wait no second time
        waiting += fresh
        num_packed = max(num_carried, num_in_whole_bins(waiting, capacity, max_segments))
        yield from _packed(waiting[:num_packed], first, capacity, max_segments, seed)
        first, waiting = first + num_packed, waiting[num_packed:]
    yield from _packed(waiting, first, capacity, max_segments, seed)


def _packed(lengths: list[int], first: int, capacity: int, max_segments: int | None, seed: int) -> list[list[int]]:
    """Returns the members of each bin, numbered from the first on."""
    packing = pack(lengths, capacity, max_segments=max_segments, seed=seed, effort=EFFORT)
    return [[first + number for number in of_bin] for of_bin in packing.members()]
