"""Fewest bins, proven, for small instances: CP-SAT on counts of each distinct length.

The integer model of Kantorovich ("Mathematical methods of organizing and planning production",
Management Science 6, 1960), written on counts per distinct length instead of one 0-1 variable an
example, which removes the symmetry between equal examples; fixing the bins of the lengths above
half a bin and ordering the others by load removes most of that between bins. For k bins, from the
bound upwards, CP-SAT answers whether k suffice: a no raises the bound, a yes is optimal.

Costs up to `effort * WORK_LIMIT` of CP-SAT's deterministic time in all, on one thread, without a
clock. Gives up beyond some 60 examples, and often before where three lengths and more share a bin:
the symmetry that is left grows too fast. The only module that imports ortools (about a second):
import it lazily.
"""

import itertools

import numpy as np
import numpy.typing as npt
from ortools.sat.python import cp_model

from pipeline.packing.instance import Instance

# In CP-SAT's deterministic seconds; one is about two of a clock's. Four times as much proved nothing
# more on draws of 60 from NaViT sides, native photos, clips and U(20, 100) at capacity 150.
WORK_LIMIT = 1.0


def fewer_bins(
    instance: Instance, bound: int, num_bins: int, *, seed: int, effort: float
) -> tuple[npt.NDArray[np.int64] | None, int]:
    """Returns a packing with fewer than `num_bins` bins, or None, and the bound proven on the way.

    Args:
        instance: the question.
        bound: proven lower bound, below `num_bins`.
        num_bins: bins of the best packing known.
        seed: of the solver's draws.
        effort: scale of the work limit.

    Returns:
        The bin of each example, (N,) int64, or None where none was found; and the bound, which is
        `num_bins` where none exists.
    """
    distinct, kind, counts = np.unique(instance.lengths, axis=0, return_inverse=True, return_counts=True)
    work_left = effort * WORK_LIMIT
    while bound < num_bins and work_left > 0:
        model, num_of = _model(instance, distinct, counts, bound)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = seed % 2**31
        solver.parameters.max_deterministic_time = work_left
        # Level 2 puts every constraint into the linear relaxation, which sees that total loads
        # exceed total capacity: 7 of 17 hard draws of 60 were proven, 4 at the default level.
        solver.parameters.linearization_level = 2
        status = solver.solve(model)
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            solved = np.array([[solver.value(variable) for variable in row] for row in num_of])
            return _bin_of_each_example(solved, kind.reshape(-1)), bound
        if status == cp_model.MODEL_INVALID:
            raise RuntimeError(f"packing model: {model.validate()}")  # a bug of ours, not a question's
        if status != cp_model.INFEASIBLE:
            break  # the work limit
        bound += 1
        work_left -= solver.response_proto.deterministic_time
    return None, bound


def _model(
    instance: Instance,
    distinct: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    num_bins: int,
) -> tuple[cp_model.CpModel, list[list[cp_model.IntVar]]]:
    """Returns "do `num_bins` bins suffice?" and its variables: how many of a length in a bin.

    Args:
        instance: the limits of a bin.
        distinct: (K, R) int64, the distinct lengths.
        counts: (K,) int64, how many examples have each.
        num_bins: the bins allowed, no fewer than L2; some may stay empty.
    """
    model = cp_model.CpModel()
    large, large_of_bin = _large(instance, distinct, counts, num_bins)
    most = np.minimum(counts, (instance.capacity // distinct).min(axis=1)).tolist()
    num_of = [
        [
            model.new_constant(int(own == length)) if large[length] else model.new_int_var(0, most[length], "")
            for length in range(len(distinct))
        ]
        for own in large_of_bin
    ]
    for length, count in enumerate(counts.tolist()):
        model.add(sum(row[length] for row in num_of) == count)
    for row in num_of:
        model.add(sum(row) <= instance.max_segments)
    for resource, capacity in enumerate(instance.capacity.tolist()):
        column = distinct[:, resource].tolist()
        # One bin cannot leave unused more than all bins together do.
        unused = num_bins * capacity - int(instance.lengths[:, resource].sum())
        loads = [cp_model.LinearExpr.weighted_sum(row, column) for row in num_of]
        for load in loads:
            model.add_linear_constraint(load, max(0, capacity - unused), capacity)
        if resource == 0:
            # Bins that start alike are interchangeable: only their order by load is tried.
            for one, two in itertools.pairwise(range(num_bins)):
                if large_of_bin[one] == large_of_bin[two]:
                    model.add(loads[one] >= loads[two])
    return model, num_of


def _large(
    instance: Instance,
    distinct: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    num_bins: int,
) -> tuple[npt.NDArray[np.bool_], list[int]]:
    """Returns which lengths are above half a bin, and which of them each bin starts with.

    No two such examples share a bin, so which bins they go to is a matter of numbering and is
    fixed: (K,) bool, and for each of the `num_bins` bins the index of its length, -1 for none. Of
    several resources the one with the most such examples is taken.
    """
    above_half = 2 * distinct > instance.capacity  # (K, R)
    large = above_half[:, int(np.argmax(counts @ above_half))]
    large_of_bin = np.repeat(np.flatnonzero(large), counts[large]).tolist()
    return large, large_of_bin + [-1] * (num_bins - len(large_of_bin))


def _bin_of_each_example(num_of: npt.NDArray[np.int64], kind: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns the bin of each example, (N,) int64; equal examples go to bins in order.

    Args:
        num_of: (bins, K) int64, how many examples of each kind a bin holds.
        kind: (N,) int64, which of the K distinct lengths each example has.
    """
    bin_index = np.empty(len(kind), dtype=np.int64)
    for length, in_each_bin in enumerate(num_of.T):
        bin_index[kind == length] = np.repeat(np.arange(len(num_of)), in_each_bin)
    return bin_index
