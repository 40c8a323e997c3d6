"""Lower bounds: numbers of bins that no packing can beat.

Sum, segments and Martello-Toth's L2 ("Lower bounds and reduction procedures for the bin packing
problem", Discrete Applied Mathematics 28, 1990, section 3), each resource on its own; the largest
counts. O(R * N log N), numpy int64 throughout (no sum can leave it: see `instance.MAX_CAPACITY`).
Gives up what only a linear programme sees (lengths that combine badly), and any interplay between
resources or between lengths and `max_segments`.
"""

import numpy as np
import numpy.typing as npt

from pipeline.packing.instance import Instance


def lower_bound(instance: Instance) -> int:
    """Returns the largest bound of this module: 0 for no examples, else at least 1."""
    if instance.num_examples == 0:
        return 0
    bounds = [segments_bound(instance.num_examples, instance.max_segments)]
    for lengths, capacity in zip(instance.lengths.T, instance.capacity.tolist(), strict=True):
        bounds.append(sum_bound(lengths, capacity))
        bounds.append(martello_toth_bound(lengths, capacity))
    return max(bounds)


def segments_bound(num_examples: int, max_segments: int) -> int:
    """Returns the bins that `num_examples` need at `max_segments` in each."""
    return -(-num_examples // max_segments)


def sum_bound(lengths: npt.NDArray[np.int64], capacity: int) -> int:
    """Returns the bins that lengths, (N,) int64, would need if they could be cut."""
    return -(-int(lengths.sum()) // capacity)


def martello_toth_bound(lengths: npt.NDArray[np.int64], capacity: int) -> int:
    """Returns Martello and Toth's L2 of lengths, (N,) int64.

    Lengths above half the capacity need a bin each. For a threshold `a` those up to
    `capacity - a` leave room that lengths from `a` to half the capacity may use; what does not fit
    there needs further bins. L2 is the largest such count over all `a`; only 0 and lengths that
    occur can be the best `a`.
    """
    ascending = np.sort(lengths)
    total_before = np.concatenate(([0], np.cumsum(ascending)))  # (N + 1,) sum of the first i
    num_halves = int(np.searchsorted(ascending, capacity // 2, side="right"))  # 2 * length <= capacity
    num_large = len(ascending) - num_halves
    thresholds = np.concatenate(([0], np.unique(ascending[:num_halves])))
    small_from = np.searchsorted(ascending, thresholds, side="left")
    # Large lengths above capacity - a share with nothing that is counted: they are left out.
    large_to = np.searchsorted(ascending, capacity - thresholds, side="right")
    num_shared = large_to - num_halves
    held = total_before[large_to] - total_before[small_from]
    further = -(-(held - num_shared * capacity) // capacity)
    return num_large + max(0, int(further.max()))
