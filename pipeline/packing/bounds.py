"""Lower bounds in closed form: numbers of bins that no packing can beat, each with its certificate.

Sum, segments and Martello-Toth's L2 ("Lower bounds and reduction procedures for the bin packing problem", Discrete
Applied Mathematics 28, 1990, section 3): O(K) numpy int64 on the K distinct lengths (no sum can leave it: see
`instance.MAX_CAPACITY`). Rounded: the dual feasible functions of Carlier, Clautiaux and Moukrim ("New reduction
procedures and lower bounds for the two-dimensional bin packing problem", Computers & Operations Research 34, 2007,
section 3.2: f_0), O(K * capacity), which see lengths that combine badly. Gives up what only the linear programme sees
(`columns`), and any interplay between resources or between lengths and `max_segments`.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.certificate import bound_of
from patchpack.pipeline.packing.instance import Histogram
from patchpack.pipeline.packing.result import Certificate

# Lengths times roundings looked at by `rounded_bound`: about 0.2 s. Above the capacity its proof is too long.
MAX_ROUNDED = 2**25
MAX_ROUNDED_CAPACITY = 2**17


def closed_form_bound(histogram: Histogram) -> Certificate:
    """Returns the best of the sum, L2 and segments, the simplest of equals; 0 for no examples, otherwise at least 1."""
    return max(_closed_forms(histogram), key=lambda certificate: certificate.bound)


def _closed_forms(histogram: Histogram) -> Iterator[Certificate]:
    """Yields the certificates in the order of preference among equals."""
    values_K, capacity = histogram.values, histogram.capacity
    yield _certificate(histogram, values_K, capacity)  # the sum, as if lengths could be cut
    ones_K = np.ones_like(values_K)
    yield _certificate(histogram, ones_K, histogram.max_segments, slot_dual=1)
    yield _certificate(histogram, (2 * values_K > capacity).astype(np.int64), 1)  # one bin each
    yield threshold_bound(histogram)


def threshold_bound(histogram: Histogram) -> Certificate:
    """Returns the best bound over all thresholds: L2, but for the count of lengths above half the capacity.

    For a threshold `a`, lengths above `capacity - a` need a bin each and share it with nothing from `a` on; lengths
    from `a` to `capacity - a` count as they are, shorter ones not at all. Only lengths that occur can be the best.
    """
    values_K, counts_K, capacity = histogram.values, histogram.counts, histogram.capacity
    num_halves = int(np.searchsorted(values_K, capacity // 2, side="right"))
    num_before = np.concatenate(([0], np.cumsum(counts_K)))
    total_before = np.concatenate(([0], np.cumsum(counts_K * values_K)))
    lone_from = np.searchsorted(values_K, capacity - values_K[:num_halves], side="right")
    shared = total_before[lone_from] - total_before[:num_halves]
    value = shared + capacity * (num_before[-1] - num_before[lone_from])
    threshold = int(values_K[np.argmax(value)]) if num_halves else 0
    duals_K = np.where(values_K > capacity - threshold, capacity, np.where(values_K >= threshold, values_K, 0))
    return _certificate(histogram, duals_K, capacity)


def rounded_bound(histogram: Histogram) -> Certificate:
    """Returns the best bound over all roundings of the lengths, at most `MAX_ROUNDED` values of them; otherwise the sum.

    With step `s`, lengths below half the capacity are rounded down to multiples of s, those above it up to what
    is left of the capacity when the rest is rounded down.
    """
    values_K, counts_K, capacity = histogram.values, histogram.counts, histogram.capacity
    if not 1 < capacity <= MAX_ROUNDED_CAPACITY:
        return _certificate(histogram, values_K, capacity)
    most = max(1, min(capacity // 2, MAX_ROUNDED // max(1, len(values_K))))
    steps = np.arange(1, most + 1) * (capacity // 2) // most
    best_step, best_bound = 1, -1
    for steps_J in np.array_split(steps, 1 + len(steps) * len(values_K) // 2**20):
        value_JK, scale_J = rounded_duals(values_K, capacity, steps_J[:, None])
        # Each dual value is at most its scale, twice the capacity: the total stays inside int64 up to 2**31 examples.
        bounds_J = -(-(value_JK @ counts_K) // scale_J)
        if int(bounds_J.max()) > best_bound:
            best_step, best_bound = int(steps_J[np.argmax(bounds_J)]), int(bounds_J.max())
    value_JK, scale_J = rounded_duals(values_K, capacity, np.array([[best_step]]))
    return _certificate(histogram, value_JK[0], int(scale_J[0]))


def rounded_duals(
    values_K: npt.NDArray[np.int64], capacity: int, steps_J1: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the rounded dual value of each length for each step, (J, K) int64, and the most a bin can have, (J,) int64."""
    whole_J1 = capacity // steps_J1
    below = 2 * (values_K // steps_J1)
    above = 2 * (whole_J1 - (capacity - values_K) // steps_J1)
    value_JK = np.where(2 * values_K < capacity, below, np.where(2 * values_K > capacity, above, whole_J1))
    return value_JK, 2 * whole_J1[:, 0]


def _certificate(histogram: Histogram, duals_K: npt.NDArray[np.int64], scale: int, slot_dual: int = 0) -> Certificate:
    """Returns the duals with the bound they prove."""
    bound = bound_of(histogram.counts, duals_K, scale)
    return Certificate(bound, histogram.values, duals_K, scale, slot_dual, histogram.resource)
