"""Who is asked, and when to stop: the one way into the packers.

Best-fit decreasing first; where it meets the lower bound it is optimal and nothing else runs. Else,
up to `MAX_EXACT_EXAMPLES` examples, CP-SAT. The answer is always the best packing so far with the
bound proven so far. A pure function of its arguments: one thread, no clock, ties broken explicitly.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.packing.bounds import lower_bound
from pipeline.packing.greedy import best_fit_decreasing
from pipeline.packing.instance import Capacity, Instance, Lengths, read_instance, read_integer
from pipeline.packing.result import Packing, number_bins

METHODS = ("auto", "best-fit", "exact")

# CP-SAT on bins and lengths stops finishing somewhere between 60 and 240 examples (issue 3).
MAX_EXACT_EXAMPLES = 60


def pack(
    lengths: Lengths,
    capacity: Capacity,
    *,
    max_segments: int | None = None,
    seed: int = 0,
    effort: float = 1.0,
    method: Literal["auto", "best-fit", "exact"] = "auto",
) -> Packing:
    """Returns which example goes to which bin, in few bins, with a proven bound on how few.

    The same arguments give the same answer. Bins are numbered by first appearance along the
    examples.

    Args:
        lengths: (N,) integers, or (N, R) where an example uses R resources; each at least 1.
        capacity: what a bin holds: one integer, or R of them.
        max_segments: most examples in one bin; None for no limit.
        seed: of the solver's draws; best-fit draws nothing.
        effort: scale of the solver's deterministic work limit; 1 is a few seconds at most.
        method: "auto" takes the best it can prove or find; "best-fit" never calls a solver; "exact"
            is "auto" that refuses what is too large for the solver.

    Raises:
        ValueError: an argument is out of its range; the message names it (and its index).
    """
    instance = read_instance(lengths, capacity, max_segments)
    _check_request(instance, effort, method)
    seed = read_integer("seed", seed)
    bin_index = best_fit_decreasing(instance)
    bound = lower_bound(instance)
    num_bins = _num_bins(bin_index)
    if method != "best-fit" and bound < num_bins and instance.num_examples <= MAX_EXACT_EXAMPLES:
        # Imported here: ortools takes longer to import than most groups take to pack.
        from pipeline.packing.exact import fewer_bins

        better, bound = fewer_bins(instance, bound, num_bins, seed=seed, effort=effort)
        if better is not None:
            bin_index, num_bins = better, _num_bins(better)
    return Packing(number_bins(bin_index), num_bins, bound)


def _num_bins(bin_index: npt.NDArray[np.int64]) -> int:
    """Returns how many bins hold at least one example."""
    return len(np.unique(bin_index))


def _check_request(instance: Instance, effort: float, method: str) -> None:
    """Raises ValueError for a method or an effort that cannot be used on this instance."""
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; it is one of {', '.join(METHODS)}; leave it out for auto")
    if not effort > 0:  # also true of nan
        raise ValueError(f"effort: {effort}; it is above 0; leave it out for 1.0")
    if method == "exact" and instance.num_examples > MAX_EXACT_EXAMPLES:
        raise ValueError(
            f"method 'exact': {instance.num_examples} examples; the most is {MAX_EXACT_EXAMPLES}; use method 'auto'"
        )
