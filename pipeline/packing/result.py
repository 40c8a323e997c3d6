"""The answer of a packer, and the check that trusts no packer.

`check_packing` recomputes everything from the lengths: O(N * R), no code shared with the solvers.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.packing.instance import Capacity, Instance, Lengths, read_instance


@dataclass(frozen=True, eq=False)  # a generated == would ask an array for one truth value
class Packing:
    """Which example goes to which bin.

    Attributes:
        bin_index: (N,) int64, the bin of each example. Bins are numbered by first appearance:
            example 0 is in bin 0, and each new bin met along the examples has the next number.
        num_bins: how many bins; none is empty.
        bound: proven least number of bins any packing of these examples needs.
    """

    bin_index: npt.NDArray[np.int64]
    num_bins: int
    bound: int

    @property
    def proven_optimal(self) -> bool:
        """True where no packing of these examples has fewer bins, and that is proven."""
        return self.num_bins == self.bound


def number_bins(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns the labels of bins, (N,) int64, renumbered 0, 1, ... by first appearance.

    Args:
        labels: (N,) int64, equal for examples of one bin, otherwise free.
    """
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def check_packing(lengths: Lengths, capacity: Capacity, packing: Packing, max_segments: int | None = None) -> None:
    """Returns only where the packing is valid: each example once, no bin over a limit or empty.

    Args:
        lengths: (N,) or (N, R) integers, as given to `pack`.
        capacity: one integer, or R of them.
        packing: what is judged. Whether its bound is proven is not judged, only that it is
            possible.
        max_segments: most examples in one bin, or None for no limit.

    Raises:
        ValueError: the packing is wrong; the message names the first example or bin that is.
    """
    instance = read_instance(lengths, capacity, max_segments)
    bin_index = np.asarray(packing.bin_index)
    _check_every_example_has_a_bin(instance, bin_index, packing.num_bins)
    _check_every_bin(instance, bin_index, packing.num_bins)
    if packing.bound > packing.num_bins:
        raise ValueError(
            f"bound: {packing.bound} with {packing.num_bins} bins; no packing beats its bound; do not use this packing"
        )


def _check_every_example_has_a_bin(instance: Instance, bin_index: npt.NDArray[np.int64], num_bins: int) -> None:
    """Raises ValueError where an example is lost: no entry, or an entry that is no bin."""
    expected = (instance.num_examples,)
    if bin_index.shape != expected or bin_index.dtype != np.int64:
        raise ValueError(
            f"bin_index: shape {bin_index.shape}, dtype {bin_index.dtype}; it is {expected}, int64; do not use this packing"
        )
    for example in np.flatnonzero((bin_index < 0) | (bin_index >= num_bins))[:1].tolist():
        raise ValueError(
            f"bin_index[{example}]: {bin_index[example]}; bins are 0 to {num_bins - 1}; do not use this packing"
        )


def _check_every_bin(instance: Instance, bin_index: npt.NDArray[np.int64], num_bins: int) -> None:
    """Raises ValueError where a bin is empty, holds too many examples or too much."""
    counts = np.bincount(bin_index, minlength=num_bins)
    for empty in np.flatnonzero(counts == 0)[:1].tolist():
        raise ValueError(f"bin {empty}: empty; every bin holds an example; do not use this packing")
    for crowded in np.flatnonzero(counts > instance.max_segments)[:1].tolist():
        raise ValueError(
            f"bin {crowded}: {counts[crowded]} examples; max_segments is {instance.max_segments}; do not use this packing"
        )
    loads = np.zeros((num_bins, instance.num_resources), dtype=np.int64)
    np.add.at(loads, bin_index, instance.lengths)
    for over, resource in np.argwhere(loads > instance.capacity)[:1].tolist():
        of_resource = f" of resource {resource}" if instance.num_resources > 1 else ""
        raise ValueError(
            f"bin {over}: {loads[over, resource]}{of_resource}; the capacity is {instance.capacity[resource]}; do not use this packing"
        )
