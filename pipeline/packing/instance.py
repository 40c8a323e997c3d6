"""The question a packer answers, checked once so that nothing behind it checks again.

Examples of one length are interchangeable, so with one resource the question is a histogram: what follows costs
distinct lengths, not examples. Costs two passes over the lengths, which are not copied. Gives up capacities above
`MAX_CAPACITY`: in return every sum, shift and product in this package stays inside int64 without a check of its own.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

# A row stores its token count as int32 (design, section 5), so no bin can hold more. It also keeps
# `amount << 31` (greedy) below 2**62 and the sum of 2**32 lengths inside int64.
MAX_CAPACITY = 2**31 - 1

# Lengths below it are counted in a table; 2**18 examples at a time, which stay in the cache.
MAX_TABLE = 2**22
COUNT_BLOCK = 2**18

Lengths = npt.ArrayLike
Capacity = int | Sequence[int] | npt.NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Instance:
    """N examples that use R resources each, and the limits of one bin.

    Attributes:
        lengths: (N, R), any integer dtype, each at most the capacity of its resource; at least 1 of the first and
            at least 0 of the others (an image has no text tokens).
        capacity: (R,) int64, what one bin holds of each resource.
        max_segments: most examples in one bin; N (at least 1) where the caller set no limit.
    """

    lengths: npt.NDArray[np.integer]
    capacity: npt.NDArray[np.int64]
    max_segments: int

    @property
    def num_examples(self) -> int:
        """N."""
        return len(self.lengths)

    @property
    def num_resources(self) -> int:
        """R."""
        return len(self.capacity)


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many examples there are of each length of one resource, and the limits of one bin.

    Attributes:
        values: (K,) int64, the lengths that occur, ascending.
        counts: (K,) int64, how often, at least 1.
        capacity: what one bin holds.
        max_segments: most examples in one bin, at least 1; no more than there are examples.
        resource: whose lengths these are, where examples use several.
    """

    values: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    capacity: int
    max_segments: int
    resource: int = 0

    @property
    def num_examples(self) -> int:
        """N."""
        return int(self.counts.sum())

    @property
    def total(self) -> int:
        """The sum of all lengths."""
        return int(self.counts @ self.values)

    @property
    def segments_bind(self) -> bool:
        """Whether some bin could hold more examples than it may."""
        return self.max_segments < min(self.num_examples, self.capacity // int(self.values[0]))

    def without(self, used_K: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], "Histogram"]:
        """Returns which lengths are left beside the used examples, and how many of each."""
        left_K = self.counts - used_K
        kept = np.flatnonzero(left_K)
        return kept, replace(self, values=self.values[kept], counts=left_K[kept])


def histogram_of(instance: Instance, resource: int = 0) -> Histogram:
    """Returns the histogram of one resource's lengths."""
    lengths = instance.lengths[:, resource]
    most = int(lengths.max(initial=0))
    if most <= min(MAX_TABLE, max(2**16, 4 * len(lengths))):
        table = np.zeros(most + 1, dtype=np.int64)
        for start in range(0, len(lengths), COUNT_BLOCK):
            table += np.bincount(lengths[start : start + COUNT_BLOCK], minlength=most + 1)
        values = np.flatnonzero(table)
        counts = table[values]
    else:
        values, counts = np.unique(lengths, return_counts=True)
    values, counts = values.astype(np.int64), counts.astype(np.int64)
    return Histogram(values, counts, int(instance.capacity[resource]), instance.max_segments, resource)


def read_histogram(values: Lengths, counts: npt.ArrayLike, capacity: int, max_segments: int | None = None) -> Histogram:
    """Returns the question given as lengths and how often each occurs, every value checked.

    Args:
        values: (K,) integers, in any order, no length twice.
        counts: (K,) integers, each at least 0.
        capacity: what one bin holds.
        max_segments: most examples in one bin, or None for no limit.

    Raises:
        ValueError: a value is out of its range; the message names it (and its index).
    """
    instance = read_instance(values, capacity, None)
    counts_K = np.asarray(counts)
    if counts_K.shape != (len(instance.lengths),):
        raise ValueError(f"counts: shape {counts_K.shape}; it is ({len(instance.lengths)},); give one for each length")
    if len(counts_K) and counts_K.dtype.kind not in "iu":
        raise ValueError(f"counts: dtype {counts_K.dtype}; counts are integers; convert them first")
    for index in np.flatnonzero(counts_K < 0)[:1].tolist():
        raise ValueError(f"counts[{index}]: {counts_K[index]}; the least is 0; leave the length out")
    present = np.flatnonzero(counts_K)
    values_K = instance.lengths[present, 0].astype(np.int64)
    order = np.argsort(values_K, kind="stable")
    values_K, counts_K = values_K[order], counts_K[present].astype(np.int64)[order]
    for index in np.flatnonzero(values_K[1:] == values_K[:-1])[:1].tolist():
        raise ValueError(f"values: {values_K[index]} stands there twice; add up its counts")
    limit = max(1, int(counts_K.sum()))
    if max_segments is not None:
        limit = min(limit, _read_max_segments(max_segments))
    return Histogram(values_K, counts_K, int(instance.capacity[0]), limit)


def read_instance(lengths: Lengths, capacity: Capacity, max_segments: int | None) -> Instance:
    """Returns the question in its one shape, every value checked.

    Args:
        lengths: (N,) or (N, R) integers.
        capacity: one integer, or R of them.
        max_segments: most examples in one bin, or None for no limit.

    Raises:
        ValueError: a value is out of its range; the message names it (and its index).
    """
    capacities = _read_capacity(capacity)
    lengths_NR = _read_lengths(lengths, capacities)
    num_examples = len(lengths_NR)
    limit = max(1, num_examples)
    if max_segments is not None:
        # A limit above N never binds, and N fits every solver's integers.
        limit = min(limit, _read_max_segments(max_segments))
    return Instance(lengths_NR, np.array(capacities, dtype=np.int64), limit)


def _read_capacity(capacity: Capacity) -> list[int]:
    """Returns the R capacities as Python integers."""
    values: list[object] = np.atleast_1d(np.asarray(capacity, dtype=object)).tolist()
    if not values:
        raise ValueError(
            "capacity: no entries; every resource needs one; give an integer, or one for each column of lengths"
        )
    named = [("capacity" if np.ndim(capacity) == 0 else f"capacity[{r}]", value) for r, value in enumerate(values)]
    capacities = []
    for name, value in named:
        number = read_integer(name, value)
        if number < 1:
            raise ValueError(f"{name}: {number}; the least is 1; give what one bin holds")
        if number > MAX_CAPACITY:
            raise ValueError(f"{name}: {number}; the most is {MAX_CAPACITY}; count in a larger unit")
        capacities.append(number)
    return capacities


def _read_lengths(lengths: Lengths, capacities: list[int]) -> npt.NDArray[np.int64]:
    """Returns the lengths as (N, R), each from the least of its resource to its capacity; not a copy where none is needed."""
    num_resources = len(capacities)
    array = np.asarray(lengths)
    if array.shape == (0,):  # numpy calls an empty list float64, and it has no columns to compare
        return np.zeros((0, num_resources), dtype=np.int64)
    columns = array.shape[1] if array.ndim == 2 else 1
    if array.ndim not in (1, 2):
        raise ValueError(f"lengths: shape {array.shape}; the shape is (N,) or (N, R); give one row for each example")
    if columns != num_resources:
        raise ValueError(
            f"lengths: {columns} to an example; capacity has {num_resources}; give one capacity for each column of lengths"
        )
    if array.dtype.kind not in "iu":
        raise ValueError(f"lengths: dtype {array.dtype}; lengths are integers; convert them first")
    array_NR = array.reshape(len(array), num_resources)
    for resource, capacity in enumerate(capacities):
        column = array_NR[:, resource]
        least = 1 if resource == 0 else 0
        # Compared before any cast (uint64 would wrap) and as Python integers (numpy would turn both into float64).
        if len(column) and (int(column.min()) < least or int(column.max()) > capacity):
            index = int(np.flatnonzero((column < least) | (column > capacity))[0])
            name = f"lengths[{index}]" if array.ndim == 1 else f"lengths[{index}, {resource}]"
            if column[index] < least:
                raise ValueError(f"{name}: {column[index]}; the least is {least}; leave the example out")
            raise ValueError(
                f"{name}: {column[index]}; the capacity is {capacity}; shrink the example or raise the capacity"
            )
    # uint64 mixes with no other integer; the values are known to be small by now
    return array_NR.astype(np.int64) if array_NR.dtype == np.uint64 else array_NR


def _read_max_segments(max_segments: int) -> int:
    """Returns the most examples in one bin, at least 1."""
    number = read_integer("max_segments", max_segments)
    if number < 1:
        raise ValueError(f"max_segments: {number}; the least is 1; leave it out for no limit")
    return number


def read_integer(name: str, value: object) -> int:
    """Returns a Python or numpy integer as a Python one; 3.0 is not an integer."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"{name}: {value!r}; it is an integer; round it first") from error
