"""The linear programme of planned counts: column generation with a column for each move from one length to another."""

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.counts.candidates import Moves
from patchpack.pipeline.packing.exact.master import Master
from patchpack.pipeline.packing.exact.pricing import ONE, Meter, first_fit, price, shape_of

# Work at effort 1, in cells: some seconds. Passes of a pricing.
WORK, PASSES = 1e10, 4
# Percent of the prices that are length over capacity, while that finds patterns.
SMOOTH = 50
# Parts of the bins: rounds end when the last two have saved less than one.
ENOUGH = 100_000


def best_moves(
    counts_N: npt.NDArray[np.int64], capacity: int, max_segments: int | None, moves: Moves, effort: float
) -> npt.NDArray[np.int64]:
    """Returns how often each move is made, (M,) int64.

    Args:
        counts_N: (N,) int64, the target counts.
        capacity: tokens of a bin.
        max_segments: most examples in one bin; None for no limit.
        moves: between lengths.
        effort: scale of the work limit.
    """
    values_K = np.unique(np.concatenate([counts_N, moves.to]))
    counts_K = np.bincount(np.searchsorted(values_K, counts_N), minlength=len(values_K))
    source, to = np.searchsorted(values_K, moves.source), np.searchsorted(values_K, moves.to)
    reachable_K = counts_K.copy()
    np.add.at(reachable_K, to, moves.movable)
    shape, meter = shape_of(values_K, capacity, max_segments), Meter(effort * WORK)
    master = Master(counts_K, meter, rows_K=np.ones_like(counts_K))
    for offer in (counts_K, reachable_K):
        master.add(pattern for pattern, _ in first_fit(shape, offer, meter))
    columns = [
        master.move(*move)
        for move in zip(
            source.tolist(), to.tolist(), (moves.costs / capacity).tolist(), moves.movable.tolist(), strict=True
        )
    ]
    for index in np.unique(source).tolist():  # nothing moves twice
        limit = master.solver.Constraint(-master.solver.infinity(), float(counts_K[index]))
        for move in np.flatnonzero(source == index).tolist():
            limit.SetCoefficient(columns[move], 1.0)
    even_K = values_K * ONE // capacity
    smooth, saved, value = SMOOTH, [np.inf, np.inf], np.inf
    times = np.zeros(len(columns))
    while master.solve():
        times = np.array([column.solution_value() for column in columns])
        if not meter.left or sum(saved[-2:]) * ENOUGH <= master.value():
            break
        saved.append(value - master.value())
        value = master.value()
        duals_K = (smooth * even_K + (100 - smooth) * master.duals(ONE)) // 100
        priced = price(shape, duals_K, reachable_K, PASSES, meter)
        if not master.add(priced.improving):
            if not smooth:
                break
            smooth, saved = 0, [np.inf, np.inf]
    # what is below one example is carried on to the next move from the same count
    firsts = np.flatnonzero(np.diff(source, prepend=-1))
    before = np.cumsum(times) - times
    within = before - np.repeat(before[firsts], np.diff(firsts, append=len(source)))
    whole: npt.NDArray[np.int64] = (np.floor(within + times + 1e-6) - np.floor(within + 1e-6)).astype(np.int64)
    return whole
