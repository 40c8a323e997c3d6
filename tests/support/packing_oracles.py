"""Slow and obvious answers to packing questions, and questions to ask; nothing here is shared with the packers."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st
from ortools.sat.python import cp_model

from patchpack.pipeline.packing import Packing


def questions(max_size: int, max_capacity: int = 12, min_resources: int = 1, max_resources: int = 1) -> Any:
    """Draws (lengths, capacity, max_segments): (N, R) rows, R capacities, a limit or None."""

    def rows(capacity: list[int]) -> Any:
        row = st.tuples(*(st.integers(1, most) for most in capacity))
        limit = st.none() | st.integers(1, 4)
        return st.tuples(st.lists(row, min_size=1, max_size=max_size), st.just(capacity), limit)

    return st.lists(st.integers(1, max_capacity), min_size=min_resources, max_size=max_resources).flatmap(rows)


def fewest_bins(rows: list[tuple[int, ...]], capacity: list[int], max_segments: int | None) -> int:
    """Returns the optimum by trying every way to split the examples into bins: slow and obvious."""
    best = len(rows)

    def place(example: int, bins: list[list[int]]) -> None:
        nonlocal best
        if example == len(rows):
            best = min(best, len(bins))
            return
        for members in bins:
            members.append(example)
            if fits(members):
                place(example + 1, bins)
            members.pop()
        if len(bins) + 1 < best:
            place(example + 1, [*bins, [example]])

    def fits(members: list[int]) -> bool:
        if max_segments is not None and len(members) > max_segments:
            return False
        return all(sum(rows[m][r] for m in members) <= most for r, most in enumerate(capacity))

    place(0, [])
    return best


def assert_valid(rows: list[tuple[int, ...]], capacity: list[int], max_segments: int | None, packing: Packing) -> None:
    """Checks a packing in plain Python; shares nothing with check_packing."""
    bins: dict[int, list[tuple[int, ...]]] = {}
    assert packing.bin_index.dtype == np.int64
    for row, number in zip(rows, packing.bin_index.tolist(), strict=True):
        bins.setdefault(number, []).append(row)
    # Without a gap: no bin is empty.
    assert sorted(bins) == list(range(packing.num_bins))
    for members in bins.values():
        assert max_segments is None or len(members) <= max_segments
        for resource, most in enumerate(capacity):
            assert sum(row[resource] for row in members) <= most
    assert packing.bound <= packing.num_bins


def fewest_bins_by_cp_sat(lengths: list[int], capacity: int, max_segments: int | None, at_most: int) -> int:
    """Returns the optimum, known to be at most `at_most`, of a boolean for each example and bin: proven by CP-SAT."""
    model = cp_model.CpModel()
    used = [model.new_bool_var(f"used{b}") for b in range(at_most)]
    inside = [[model.new_bool_var(f"{e} in {b}") for b in range(at_most)] for e in range(len(lengths))]
    for choices in inside:
        model.add_exactly_one(choices)
    for b, is_used in enumerate(used):
        members = [choices[b] for choices in inside]
        model.add(sum(n * member for n, member in zip(lengths, members, strict=True)) <= capacity * is_used)
        if max_segments is not None:
            model.add(sum(members) <= max_segments)
    for earlier, later in itertools.pairwise(used):
        model.add(earlier >= later)
    model.minimize(sum(used))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    assert solver.solve(model) == cp_model.OPTIMAL
    return round(solver.objective_value)


def best_fit_one_by_one(lengths: list[int], capacity: int, max_segments: int | None) -> int:
    """Returns the bins of best-fit decreasing, an example at a time; of equally full bins, the one with fewest."""
    bins: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        open_bins = [b for b in bins if sum(b) + length <= capacity and (max_segments is None or len(b) < max_segments)]
        if open_bins:
            max(open_bins, key=lambda b: (sum(b), -len(b))).append(length)
        else:
            bins.append([length])
    return len(bins)


def slow_correlation(bins: list[list[int]]) -> Fraction | None:
    """Returns ICC(1) for groups of unequal sizes, as textbooks have it (one-way random effects)."""
    bins = [members for members in bins if members]
    everyone = [length for members in bins for length in members]
    if len(bins) < 2 or len(everyone) == len(bins):
        return None
    mean = Fraction(sum(everyone), len(everyone))
    means = [Fraction(sum(members), len(members)) for members in bins]
    between = sum(len(members) * (own - mean) ** 2 for members, own in zip(bins, means, strict=True)) / (len(bins) - 1)
    within = sum((length - own) ** 2 for members, own in zip(bins, means, strict=True) for length in members)
    within /= len(everyone) - len(bins)
    squares = sum(len(members) ** 2 for members in bins)
    usual = (len(everyone) - Fraction(squares, len(everyone))) / (len(bins) - 1)
    spread = between + (usual - 1) * within
    return (between - within) / spread if spread else None
