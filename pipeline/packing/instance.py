"""The question a packer answers, checked once so that nothing behind it checks again.

Costs one pass over the lengths. Gives up capacities above `MAX_CAPACITY`: in return every sum,
shift and product in this package stays inside int64 without a check of its own.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# A row stores its token count as int32 (design, section 5), so no bin can hold more. It also keeps
# `amount << 31` (greedy) below 2**62 and the sum of 2**32 lengths inside int64.
MAX_CAPACITY = 2**31 - 1

Lengths = npt.ArrayLike
Capacity = int | Sequence[int] | npt.NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Instance:
    """N examples that use R resources each, and the limits of one bin.

    Attributes:
        lengths: (N, R) int64, each from 1 to the capacity of its resource.
        capacity: (R,) int64, what one bin holds of each resource.
        max_segments: most examples in one bin; N (at least 1) where the caller set no limit.
    """

    lengths: npt.NDArray[np.int64]
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
    values: list[object] = [capacity] if np.ndim(capacity) == 0 else list(capacity)
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
    """Returns the lengths as (N, R) int64, each from 1 to its capacity."""
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
        # Compared before the cast (uint64 would wrap) and with a Python integer (an int64 array
        # would turn both into float64).
        column = array_NR[:, resource]
        for index in np.flatnonzero((column < 1) | (column > capacity))[:1].tolist():
            name = f"lengths[{index}]" if array.ndim == 1 else f"lengths[{index}, {resource}]"
            if column[index] < 1:
                raise ValueError(f"{name}: {column[index]}; the least is 1; leave the example out")
            raise ValueError(
                f"{name}: {column[index]}; the capacity is {capacity}; shrink the example or raise the capacity"
            )
    return array_NR.astype(np.int64)


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
