"""The answer of a packer, and the check that trusts no packer.

`check_packing` recomputes everything from the lengths: O(N * R), no code shared with the solvers.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.instance import Capacity, Instance, Lengths, read_instance


@dataclass(frozen=True, eq=False)  # a generated == would ask an array for one truth value
class Certificate:
    """A dual value for each length, and the bound that follows from it.

    Attributes:
        bound: the number of bins that no packing beats.
        values: (K,) int64, the lengths that occur, ascending.
        duals: (K,) int64, the dual value of one example of each, at least 0.
        scale: the most that a bin can have of them.
        slot_dual: a part of each dual value that is paid for the example's slot, whatever its length. It proves nothing
            new but proves it faster: a bin has at most `slot_dual * max_segments` and what a knapsack over the
            rest of each dual value holds. 0 where max_segments does not bind.
        resource: whose lengths these are, where examples use several.
    """

    bound: int
    values: npt.NDArray[np.int64]
    duals: npt.NDArray[np.int64]
    scale: int
    slot_dual: int = 0
    resource: int = 0


@dataclass(frozen=True, eq=False)
class Packing:
    """Which example goes to which bin.

    Attributes:
        bin_index: (N,) int64, the bin of each example. Bins of like contents have neighbouring numbers (their order
            says something about them: shuffle bins before they are drawn in order); which of the examples of one
            length stands where is a seeded shuffle.
        num_bins: how many bins; none is empty.
        bound: proven least number of bins any packing of these examples needs.
        certificate: the proof of the bound, for `check_certificate`.
        why_open: what ended the search where the packing is not proven optimal; empty otherwise.
    """

    bin_index: npt.NDArray[np.int64]
    num_bins: int
    bound: int
    certificate: Certificate | None = None
    why_open: str = ""

    @property
    def proven_optimal(self) -> bool:
        """True where no packing of these examples has fewer bins, and that is proven."""
        return self.num_bins == self.bound

    def members(self) -> list[list[int]]:
        """Returns the numbers of the examples of each bin, ascending."""
        members: list[list[int]] = [[] for _ in range(self.num_bins)]
        for example, bin_number in enumerate(self.bin_index.tolist()):
            members[bin_number].append(example)
        return members


def check_packing(lengths: Lengths, capacity: Capacity, packing: Packing, max_segments: int | None = None) -> None:
    """Returns only where the packing is valid: each example once, no bin over a limit or empty.

    Args:
        lengths: (N,) or (N, R) integers, as given to `pack`.
        capacity: one integer, or R of them.
        packing: what is judged; of its bound only that it is possible (`check_certificate` judges the proof).
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
    np.add.at(loads, bin_index, instance.lengths.astype(np.int64))
    for over, resource in np.argwhere(loads > instance.capacity)[:1].tolist():
        of_resource = f" of resource {resource}" if instance.num_resources > 1 else ""
        raise ValueError(
            f"bin {over}: {loads[over, resource]}{of_resource}; the capacity is {instance.capacity[resource]}; do not use this packing"
        )
