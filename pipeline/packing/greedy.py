"""Best-fit decreasing: a good packing of any number of examples in milliseconds.

Longest first, each into the fullest open bin that still takes it (Johnson, "Near-optimal bin
packing algorithms", MIT thesis, 1973). One resource: open bins are kept by residual, and the
smallest sufficient residual is the lowest set bit of a Python integer, so an example costs
O(capacity / 64) whatever the number of bins. Several resources: longest and fullest are judged by
the sum of the relative amounts (Panigrahy et al., "Heuristics for vector bin packing", Microsoft
Research, 2011, section 2), and every open bin is looked at: O(N * bins * R) in numpy.
Gives up optimality: at most 11/9 of the optimum and a constant for one resource without
`max_segments`; where `max_segments` binds, long examples sit together and the short ones, sharing
bins only with each other, run into the limit.
"""

import heapq

import numpy as np
import numpy.typing as npt

from pipeline.packing.instance import Instance

# Above it a bit set of residuals is more work (128 KiB an example) than looking at the open bins.
MAX_BITSET_CAPACITY = 2**20


def best_fit_decreasing(instance: Instance) -> npt.NDArray[np.int64]:
    """Returns the bin of each example, (N,) int64, bins numbered in the order they were opened.

    Ties are broken by the lowest example, then the lowest bin.
    """
    if instance.num_resources == 1 and int(instance.capacity[0]) <= MAX_BITSET_CAPACITY:
        return best_fit_by_residual(instance)
    return best_fit_by_scan(instance)


def best_fit_by_residual(instance: Instance) -> npt.NDArray[np.int64]:
    """Returns best-fit decreasing's bins, (N,) int64, for one resource; no scan over bins."""
    capacity = int(instance.capacity[0])
    lengths = instance.lengths[:, 0]
    order = np.argsort(-lengths, kind="stable")
    bin_index = np.empty(instance.num_examples, dtype=np.int64)
    num_segments: list[int] = []  # of each bin
    open_bins: dict[int, list[int]] = {}  # residual -> heap of bins, the lowest first
    residuals = 0  # bit r is set where open_bins[r] is not empty
    for example, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        sufficient = residuals >> length
        if sufficient:
            residual = length + (sufficient & -sufficient).bit_length() - 1
            chosen = heapq.heappop(open_bins[residual])
            if not open_bins[residual]:
                residuals ^= 1 << residual
        else:
            residual = capacity
            chosen = len(num_segments)
            num_segments.append(0)
        bin_index[example] = chosen
        num_segments[chosen] += 1
        residual -= length
        # A bin that takes no more is closed: it is simply not put back.
        if residual and num_segments[chosen] < instance.max_segments:
            heapq.heappush(open_bins.setdefault(residual, []), chosen)
            residuals |= 1 << residual
    return bin_index


def best_fit_by_scan(instance: Instance) -> npt.NDArray[np.int64]:
    """Returns best-fit decreasing's bins, (N,) int64, for any number of resources."""
    lengths, capacity = instance.lengths, instance.capacity
    order = np.argsort(-relative_size(lengths, capacity), kind="stable")
    bin_index = np.empty(instance.num_examples, dtype=np.int64)
    residuals = np.tile(capacity, (instance.num_examples, 1))  # (bins, R); bins not opened at the end
    num_segments = np.zeros(instance.num_examples, dtype=np.int64)
    num_bins = 0
    for example in order.tolist():
        sufficient = np.flatnonzero((residuals[:num_bins] >= lengths[example]).all(axis=1))
        if len(sufficient):
            # Every candidate gets the same example, so the least residual now is the least after.
            chosen = sufficient[np.argmin(relative_size(residuals[sufficient], capacity))]
        else:
            chosen = num_bins
            num_bins += 1
        bin_index[example] = chosen
        num_segments[chosen] += 1
        residuals[chosen] -= lengths[example]
        if num_segments[chosen] == instance.max_segments:
            residuals[chosen] = -1  # closed: below every length
    return bin_index


def relative_size(amounts: npt.NDArray[np.int64], capacity: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns the sum over resources of amount / capacity, (K,) int64, in units of 2**-31.

    Integers, so that every processor ranks alike; and as no capacity exceeds 2**31, one more of a
    resource is always a larger size, so for one resource the order is that of the amounts.

    Args:
        amounts: (K, R) int64, each from 0 to its capacity.
        capacity: (R,) int64.
    """
    return ((amounts << 31) // capacity).sum(axis=1)
