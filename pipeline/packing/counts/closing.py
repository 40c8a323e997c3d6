"""Closing one bin: the cheapest counts that fill it exactly.

Multiple-choice subset sum by dynamic programming over reachable sums (Kellerer, Pferschy and Pisinger,
"Knapsack Problems", 2004, chapter 11): the least cost of every sum, one example after the other, then traced
back. Sums count from the smallest options of the examples that are in the bin anyway, so a row is as long as
what is still open, not as the capacity. Whether anything fits at all is asked first, of bit sets.

Costs O(options * open tokens) in numpy, 0.1-0.5 ms a bin of 16 free examples; a factor of `places` more where
those are fewer than the free examples. Exact: gives up nothing.
"""

import numpy as np
import numpy.typing as npt

CandidateLengths = list[tuple[int, int]]  # (count, cost), counts ascending

# Above the sum of any 2**31 costs (elastic.MAX_COST); one more cost on top stays inside int64.
_UNREACHED = 2**62


def choose(
    heads: list[CandidateLengths], free: list[CandidateLengths], full: int, places: int, *, exact: bool
) -> list[int] | None:
    """Returns the cheapest counts that fill a bin: one of each head and, or 0, of each free candidate lengths.

    Of equally cheap ones, those that leave out the last free candidate lengths.

    Args:
        heads: candidate lengths of the examples that are in the bin.
        free: candidate lengths of those that may be.
        full: what the counts are to add up to.
        places: most free examples taken.
        exact: None where nothing adds up to `full`; otherwise the largest sum that something does.
    """
    # a head counts from its smallest option; a free example may also be left out
    least = [candidate_lengths[0][0] for candidate_lengths in heads] + [0] * len(free)
    steps = [
        [(count - base, cost) for count, cost in candidate_lengths]
        for candidate_lengths, base in zip([*heads, *free], least, strict=True)
    ]
    capacity_left = full - sum(least)
    if capacity_left < 0 or (exact and not _reaches(capacity_left, steps[: len(heads)], free, places)):
        return None
    limited = places < len(free)
    # least cost of each sum; a row for each number of free examples taken, where that is limited
    values = np.full((places + 1 if limited else 1, capacity_left + 1), _UNREACHED, dtype=np.int64)
    values[0, 0] = 0
    layers = [values]
    for number, candidate_lengths in enumerate(steps):
        is_free = number >= len(heads)
        layers.append(_extended(layers[-1], candidate_lengths, down=int(limited and is_free), optional=is_free))
    reached = int(np.flatnonzero(layers[-1].min(axis=0) < _UNREACHED)[-1])
    taken = _traced(layers, steps, len(heads), reached, limited)
    return [base + step if step is not None else 0 for base, step in zip(least, taken, strict=True)]


def _reaches(capacity_left: int, heads: list[CandidateLengths], free: list[CandidateLengths], places: int) -> bool:
    """Returns whether any counts add up to room, whatever they cost: much faster than at the least cost."""
    limited = places < len(free)
    mask = (1 << capacity_left + 1) - 1
    reached = [1] + [0] * places * limited  # bit s: sum s; one dataset for each number of free examples, where limited
    for candidate_lengths in heads:
        reached[0] = _shifted(reached[0], candidate_lengths) & mask
    for candidate_lengths in free:
        for number in reversed(range(limited, len(reached))):
            reached[number] |= _shifted(reached[number - limited], candidate_lengths) & mask
    return any(sums >> capacity_left & 1 for sums in reached)


def _shifted(sums: int, candidate_lengths: CandidateLengths) -> int:
    shifted = 0
    for step, _ in candidate_lengths:
        shifted |= sums << step
    return shifted


def _extended(
    values: npt.NDArray[np.int64], candidate_lengths: CandidateLengths, *, down: int, optional: bool
) -> npt.NDArray[np.int64]:
    """Returns the least cost of each sum, (rows, sums) int64, with one more example, `down` rows further down."""
    if not optional and candidate_lengths == [(0, 0)]:
        return values
    extended = values.copy() if optional else np.full_like(values, _UNREACHED)
    num_rows, num_sums = values.shape
    for step, cost in candidate_lengths:
        if step < num_sums:
            target = extended[down:, step:]
            np.minimum(target, values[: num_rows - down, : num_sums - step] + cost, out=target)
    return extended


def _traced(
    layers: list[npt.NDArray[np.int64]], steps: list[CandidateLengths], num_heads: int, sum_: int, limited: bool
) -> list[int | None]:
    """Returns what each example adds to the sum at the least cost, None where it is left out."""
    row = int(np.argmin(layers[-1][:, sum_]))
    taken: list[int | None] = []
    for number in reversed(range(len(steps))):
        is_free = number >= num_heads
        before, cost = layers[number], layers[number + 1][row, sum_]
        if is_free and before[row, sum_] == cost:
            taken.append(None)
            continue
        down = int(limited and is_free)
        step = next(
            step
            for step, price in steps[number]
            if step <= sum_ and down <= row and before[row - down, sum_ - step] + price == cost
        )
        taken.append(step)
        row, sum_ = row - down, sum_ - step
    return taken[::-1]
