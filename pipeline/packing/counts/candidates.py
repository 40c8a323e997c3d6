"""The token counts that each example may have, and what they cost."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

CandidateLengths = list[tuple[int, int]]  # (count, cost), counts ascending

# So that 2**31 costs add up below 2**62.
MAX_COST = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Candidates:
    """The token counts that each of N examples may have, and what they cost: ragged, flattened.

    Attributes:
        offsets: (N + 1,) int64; the candidate lengths of example i is entries offsets[i] to offsets[i + 1] of the others.
        counts: (M,) int64, ascending within a candidate lengths, each from 1 to the capacity.
        costs: (M,) int64, how far from what was requested, in tokens: 0 once in each list of candidate lengths, for the target count.
    """

    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    costs: npt.NDArray[np.int64]

    @classmethod
    def of(cls, candidates: Iterable[CandidateLengths]) -> Self:
        """Returns the candidate lengths of examples given as lists of (count, cost)."""
        listed = list(candidates)
        flat_M2 = np.array(
            [option for candidate_lengths in listed for option in candidate_lengths], dtype=np.int64
        ).reshape(-1, 2)
        offsets = np.cumsum([0, *map(len, listed)], dtype=np.int64)
        return cls(offsets, flat_M2[:, 0].copy(), flat_M2[:, 1].copy())

    def at(self, choice: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns the count of each example, (N,) int64, given an index into each candidate lengths."""
        counts_N: npt.NDArray[np.int64] = self.counts[self.offsets[:-1] + choice]
        return counts_N

    def target(self) -> npt.NDArray[np.int64]:
        """Returns the index of the target count in each list of candidate lengths, (N,) int64."""
        return np.flatnonzero(self.costs == 0) - self.offsets[:-1]


@dataclass(frozen=True, eq=False)
class Moves:
    """From which count to which other one examples may move: M of them.

    Attributes:
        source, to: (M,) int64, the counts.
        movable: (M,) int64, how many examples may.
        costs: (M,) float64, of one of them in tokens, on average.
        entries: (E,) int64, the entries of `Candidates` that the moves stand for: `movable[m]` for each, by rising cost.
    """

    source: npt.NDArray[np.int64]
    to: npt.NDArray[np.int64]
    movable: npt.NDArray[np.int64]
    costs: npt.NDArray[np.float64]
    entries: npt.NDArray[np.int64]


def check_candidates(candidates: Candidates, capacity: int) -> None:
    """Raises ValueError where the candidate lengths are not as documented; the capacity is known to be an integer above 0."""
    offsets, counts, costs = candidates.offsets, candidates.counts, candidates.costs
    for name, array in (("offsets", offsets), ("counts", counts), ("costs", costs)):
        if array.ndim != 1 or array.dtype != np.int64:
            raise ValueError(
                f"{name}: shape {array.shape}, dtype {array.dtype}; it is one row of int64; convert it first"
            )
    if not len(offsets) or offsets[0] or offsets[-1] != len(counts) or len(counts) != len(costs):
        raise ValueError(
            f"offsets: {offsets[:1]} to {offsets[-1:]}; they run from 0 to the {len(counts)} counts and as many costs"
        )
    for example in np.flatnonzero(np.diff(offsets) < 1)[:1].tolist():
        raise ValueError(
            f"candidate lengths {example}: empty; every example has the target count; leave the example out"
        )
    of_entry = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    for entry in np.flatnonzero((counts < 1) | (counts > capacity))[:1].tolist():
        raise ValueError(
            f"candidate lengths {of_entry[entry]}: count {counts[entry]}; it is 1 to the capacity, {capacity}; leave it out"
        )
    for entry in np.flatnonzero((costs < 0) | (costs > MAX_COST))[:1].tolist():
        raise ValueError(
            f"candidate lengths {of_entry[entry]}: cost {costs[entry]}; it is 0 to {MAX_COST}; use a larger unit"
        )
    descending = np.flatnonzero((np.diff(counts) <= 0) & (np.diff(of_entry) == 0))
    for entry in descending[:1].tolist():
        raise ValueError(
            f"candidate lengths {of_entry[entry]}: {counts[entry]} before {counts[entry + 1]}; counts ascend; sort and merge them"
        )
    for example in np.flatnonzero(np.bincount(of_entry[costs == 0], minlength=len(offsets) - 1) != 1)[:1].tolist():
        raise ValueError(
            f"candidate lengths {example}: not one cost of 0; it marks the target count; give 0 to that and no other"
        )
