"""The proof of a bound, and its judge: integers only, trusting neither solver nor packer.

A certificate gives every length an integer dual value u >= 0 such that no bin that respects the limits has more of it than
`scale`. Then each bin pays for at most `scale` of the examples' total dual value, and no packing has fewer than ceil(total /
scale) bins: weak duality for Gilmore and Gomory's linear programme ("A linear programming approach to the cutting-stock
problem", Operations Research 9, 1961). Every bound of this package is such a proof: the sum of lengths (u = length),
the segments (u = 1), Martello and Toth's L2 and other dual feasible functions, and the linear programme itself.

What no bin has more of than the scale is an exact question, asked in the order of cost: one pass over the distinct lengths
(`_threshold_proves`: enough for all bounds in closed form, whatever the capacity), a knapsack over the capacity, a
knapsack over capacity and examples. A knapsack costs capacity * log2(copies) for every distinct length, in numpy:
milliseconds at capacity 1,024; 0.2 s for 3,700 lengths at 16,384. It knows how many examples of each length there are.
The third table is max_segments times larger and only built where the second is not enough. Gives up, and says so,
beyond `MAX_WORK` and `MAX_CELLS`.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.instance import Capacity, Histogram, Lengths, histogram_of, read_instance
from patchpack.pipeline.packing.result import Certificate, Packing

# Cells of a knapsack table touched by one proof; 2**35 take about half a minute.
MAX_WORK = 2**35
MAX_CELLS = 2**25  # of one table, 256 MiB
# A table's largest value is below twice the scale, which int64 must hold.
MAX_SCALE = 2**61


def bound_of(counts_K: npt.NDArray[np.int64], duals_K: npt.NDArray[np.int64], scale: int) -> int:
    """Returns ceil(total dual value / scale)."""
    return -(-total_dual(counts_K, duals_K) // scale)


def total_dual(counts_K: npt.NDArray[np.int64], duals_K: npt.NDArray[np.int64]) -> int:
    """Returns the dual value of all examples, in Python's integers: a sum of products may leave int64."""
    return sum(count * dual for count, dual in zip(counts_K.tolist(), duals_K.tolist(), strict=True))


def check_certificate(
    lengths: Lengths, capacity: Capacity, certificate: Certificate | Packing, max_segments: int | None = None
) -> None:
    """Returns only where the certificate proves its bound for these examples.

    Args:
        lengths: (N,) or (N, R) integers, as given to `pack`.
        capacity: one integer, or R of them.
        certificate: what is judged, or a packing that carries it; then it must prove the packing's bound.
        max_segments: most examples in one bin, or None for no limit.

    Raises:
        ValueError: the bound is not proven; the message says where the proof fails.
    """
    instance = read_instance(lengths, capacity, max_segments)
    claimed = certificate.bound
    candidate = certificate.certificate if isinstance(certificate, Packing) else certificate
    if candidate is None:
        raise ValueError("certificate: none; the bound is not proven; take a packing that `pack` returned")
    if not 0 <= candidate.resource < instance.num_resources:
        raise ValueError(
            f"certificate: resource {candidate.resource}; there are {instance.num_resources}; do not use it"
        )
    check_bound(histogram_of(instance, candidate.resource), candidate, claimed)


def check_bound(histogram: Histogram, certificate: Certificate, claimed: int) -> None:
    """Returns only where the certificate proves that no packing of the histogram has fewer than `claimed` bins.

    Raises:
        ValueError: as `check_certificate`.
    """
    _check_form(histogram, certificate)
    proven = bound_of(histogram.counts, certificate.duals, certificate.scale)
    if not claimed <= proven:
        raise ValueError(f"bound: {claimed}; its certificate proves {proven}; do not use this bound")
    if not _every_bin_is_within_scale(certificate, histogram.counts, histogram.capacity, histogram.max_segments):
        raise ValueError(
            f"certificate: a bin may have a dual value over {certificate.scale}; it proves no bound; do not use it"
        )


def _check_form(histogram: Histogram, certificate: Certificate) -> None:
    """Checks that a certificate has the right form for these lengths."""
    for name in ("values", "duals"):
        array = getattr(certificate, name)
        if array.shape != histogram.values.shape or array.dtype != np.int64:
            raise ValueError(
                f"certificate: {name} of shape {array.shape}, dtype {array.dtype};"
                f" {histogram.values.shape}, int64, are needed; do not use it"
            )
    if not np.array_equal(certificate.values, histogram.values):
        raise ValueError("certificate: made for other lengths; it proves nothing about these; do not use it")
    if not 1 <= certificate.scale <= MAX_SCALE:
        raise ValueError(f"certificate: scale {certificate.scale}; it is 1 to {MAX_SCALE}; do not use it")
    if certificate.slot_dual < 0 or (certificate.duals < 0).any():
        raise ValueError("certificate: a negative dual; the least is 0; do not use it")


def _every_bin_is_within_scale(
    certificate: Certificate, counts_K: npt.NDArray[np.int64], capacity: int, max_segments: int
) -> bool:
    """Returns whether no bin within the limits has a dual value over the scale."""
    usable = (certificate.duals > 0) & (certificate.values <= capacity)  # the rest adds nothing to any bin
    values_K, duals_K, counts_K = certificate.values[usable], certificate.duals[usable], counts_K[usable]
    if not len(values_K):
        return True
    beside_slots_K = np.maximum(duals_K - min(certificate.slot_dual, MAX_SCALE), 0)
    left = certificate.scale - certificate.slot_dual * max_segments
    for dual_K, scale in ((beside_slots_K, left), (duals_K, certificate.scale)):
        if scale >= 0 and _threshold_proves(values_K, dual_K, scale, capacity):
            return True
    smallest = int(values_K[0])
    segments_bind = max_segments < capacity // smallest
    proofs = [(beside_slots_K, left)] if certificate.slot_dual else []
    proofs += [] if segments_bind and certificate.slot_dual else [(duals_K, certificate.scale)]
    for dual_K, scale in proofs:
        if scale >= 0 and _knapsack_proves(values_K, dual_K, counts_K, scale, capacity, None):
            return True
    return segments_bind and _knapsack_proves(
        values_K, duals_K, counts_K, certificate.scale, capacity, min(max_segments, capacity // smallest)
    )


def _threshold_proves(
    values_K: npt.NDArray[np.int64], dual_K: npt.NDArray[np.int64], scale: int, capacity: int
) -> bool:
    """Returns whether one pass shows that no bin has a dual value over the scale.

    Let `least` be the smallest length of any dual value. A length above `capacity - least` shares its bin with nothing
    of dual value: its own must be within the scale. Where all others have at most `scale * length / capacity`, so
    are bins full of them.
    """
    if (dual_K > scale).any():
        return False
    values_K, dual_K = values_K[dual_K > 0], dual_K[dual_K > 0]
    if not len(values_K):
        return True
    shared = values_K <= capacity - int(values_K[0])
    pairs = zip(values_K[shared].tolist(), dual_K[shared].tolist(), strict=True)
    return all(dual * capacity <= scale * value for value, dual in pairs)


def _knapsack_proves(
    values_K: npt.NDArray[np.int64],
    dual_K: npt.NDArray[np.int64],
    counts_K: npt.NDArray[np.int64],
    scale: int,
    capacity: int,
    max_segments: int | None,
) -> bool:
    """Returns whether the most valuable bin is within the scale; stops at the first that is not.

    best[s, c] is the most that s examples of c tokens in all can have, or that c tokens can where segments do
    not count. Copies are taken in powers of two (Martello and Toth, "Knapsack Problems", 1990, section 3.2), so that
    a length costs log2(copies) passes over the table.
    """
    most = capacity if max_segments is None else max_segments
    parcels = list(_parcels(values_K, dual_K, counts_K, capacity, most))
    shape = (1 if max_segments is None else max_segments + 1, capacity + 1)
    if shape[0] * shape[1] > MAX_CELLS or shape[0] * shape[1] * len(parcels) > MAX_WORK:
        raise ValueError(
            f"certificate: {len(values_K)} lengths at capacity {capacity}; the proof takes more than {MAX_CELLS} cells"
            f" or {MAX_WORK} steps; it cannot be checked here"
        )
    best = np.zeros(shape, dtype=np.int64)
    for size, dual, copies in parcels:
        if dual > scale:  # alone it fits a bin; and the sum below cannot leave int64
            return False
        slots = 0 if max_segments is None else copies
        with_it = best[: shape[0] - slots, : capacity + 1 - size] + dual
        np.maximum(best[slots:, size:], with_it, out=best[slots:, size:])
        if int(best[-1, -1]) > scale:
            return False
    return True


def _parcels(
    values_K: npt.NDArray[np.int64],
    dual_K: npt.NDArray[np.int64],
    counts_K: npt.NDArray[np.int64],
    capacity: int,
    most: int,
) -> Iterator[tuple[int, int, int]]:
    """Yields (size, dual, copies): 1, 2, 4, ... copies of each length and the rest, any number of which can be made."""
    for value, dual, count in zip(values_K.tolist(), dual_K.tolist(), counts_K.tolist(), strict=True):
        left = min(count, capacity // value, most) if dual else 0
        copies = 1
        while left > 0:
            copies = min(copies, left)
            yield copies * value, copies * dual, copies
            left -= copies
            copies *= 2
