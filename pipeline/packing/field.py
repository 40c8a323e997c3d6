"""The packers that the field runs, to compare with: next-fit, first-fit over a few open bins, best-fit decreasing.

Pure functions of counts, in the order given, one pass each: O(N), O(N * open bins) and O(N log N). None looks for the least
number of bins; `max_segments` closes a bin as its capacity does.
"""

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.instance import Lengths, read_instance
from patchpack.pipeline.packing.pack import pack

Ints = npt.NDArray[np.int64]

# open at once by default, as in benchmarks/packing.py
OPEN_BINS = 64


def next_fit(lengths: Lengths, capacity: int, max_segments: int | None = None) -> Ints:
    """Returns the bin of each example, (N,) int64: one open bin, closed by the first that it does not take (torchtune, seqio).

    Args:
        lengths: (N,) integers, 1 to the capacity.
        capacity: tokens of a bin.
        max_segments: most examples in one bin; None for no limit.

    Raises:
        ValueError: an argument is out of its range.
    """
    tokens, limit = _read(lengths, capacity, max_segments)
    number, load, count = -1, capacity, 0
    bins = np.empty(len(tokens), dtype=np.int64)
    for at, length in enumerate(tokens):
        if load + length > capacity or count == limit:
            number, load, count = number + 1, 0, 0
        load, count = load + length, count + 1
        bins[at] = number
    return bins


def first_fit(lengths: Lengths, capacity: int, max_segments: int | None = None, *, open_bins: int = OPEN_BINS) -> Ints:
    """Returns the bin of each example, (N,) int64: the first of the open ones that takes it.

    All are closed when `open_bins` are open and none takes it, as in Grain. Arguments and errors are those of `next_fit`.
    """
    tokens, limit = _read(lengths, capacity, max_segments)
    residuals: list[int] = []
    counts: list[int] = []
    closed = 0
    bins = np.empty(len(tokens), dtype=np.int64)
    for at, length in enumerate(tokens):
        place = 0
        while place < len(residuals) and residuals[place] < length:
            place += 1
        if place == len(residuals):
            if place == open_bins:
                closed, place = closed + open_bins, 0
                residuals, counts = [], []
            residuals.append(capacity)
            counts.append(0)
        residuals[place] -= length
        counts[place] += 1
        if counts[place] == limit:
            # still one of the open ones, but takes nothing
            residuals[place] = 0
        bins[at] = closed + place
    return bins


def best_fit_decreasing(lengths: Lengths, capacity: int, max_segments: int | None = None) -> Ints:
    """Returns the bin of each example, (N,) int64: longest first, each into the fullest bin that takes it (TRL, Axolotl).

    Arguments and errors are those of `next_fit`.
    """
    return pack(lengths, capacity, max_segments=max_segments, method="best-fit").bin_index


FIELD_PACKERS = {"next-fit": next_fit, "first-fit": first_fit, "best-fit-decreasing": best_fit_decreasing}


def _read(lengths: Lengths, capacity: int, max_segments: int | None) -> tuple[list[int], int]:
    instance = read_instance(lengths, capacity, max_segments)
    return instance.lengths[:, 0].tolist(), instance.max_segments
