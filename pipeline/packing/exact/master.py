"""The master of column generation: the linear programme over the patterns found so far, solved by GLOP.

    least sum x_p   with   sum_p copies_kp * x_p + y_k - y_(k-1) >= count_k  for each length k,   x, y >= 0

y_k says how many places of length k + 1 are used for length k instead: the dual-optimal inequality "a longer length
has no lower dual value" as columns (Valerio de Carvalho, "Using extra dual cuts to accelerate column generation", INFORMS
Journal on Computing 17, 2005). They keep prices in order from the first round on; on native_photos_16384 the master
stays 30 bins higher after ten rounds without them. They need not be dropped at the end: a place that takes a longer
example takes a shorter one, so each solution with them is one without, with equal value (`columns._place`).
His second kind of cut, for a length split into two, was not needed and is wrong under max_segments.

GLOP through `pywraplp`, which keeps the basis between solves, imports in 0.1 s (MathOpt: 0.4 s, of protocol buffers
that every solve pays for again) and has no threads. Its work is limited by its deterministic time and counted in
simplex iterations. Prices become integers at once; nothing relies on their last bits.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from ortools.linear_solver import pywraplp

from patchpack.pipeline.packing.exact.pricing import Meter, Pattern

# Work of an iteration, in cells, for each row and column; measured: 1 ms at 3,700 rows and 10,000 columns.
ITERATION_CELLS = 60.0
# Work that GLOP counts as a second of its deterministic time, in cells.
CELLS_A_SECOND = 2.5e9
# Of a call of the solver, and of a column: made, offered or read.
SOLVE_CELLS, COLUMN_CELLS = 3e5, 1e4


def solve(solver: pywraplp.Solver, meter: Meter, *, dual: bool = False) -> bool:
    """Solves a programme from where it stands, within the work that is left, and counts it; False where GLOP gave up."""
    limit = max(0.0, meter.allowed - meter.done) / CELLS_A_SECOND
    solver.SetSolverSpecificParametersAsString(
        # presolve would forget the basis
        f"use_preprocessing: false use_dual_simplex: {str(dual).lower()} max_deterministic_time: {limit:.3f}"
    )
    status = solver.Solve()
    size = solver.NumConstraints() + solver.NumVariables()
    meter.add(SOLVE_CELLS + size * (200 + ITERATION_CELLS * solver.iterations()))
    return bool(status == pywraplp.Solver.OPTIMAL)


class Master:
    """The linear programme over the patterns so far."""

    def __init__(
        self, counts_K: npt.NDArray[np.int64], meter: Meter, rows_K: npt.NDArray[np.int64] | None = None
    ) -> None:
        """Makes the programme for these counts; `rows_K` is above 0 where a length has a row, as counts are otherwise."""
        self.meter = meter
        rows_K = counts_K if rows_K is None else rows_K
        self.live = np.flatnonzero(rows_K)
        # the row of each length: its own, or where there is none, that of the longest shorter one
        self.row_of = (np.cumsum(rows_K > 0) - 1).tolist()
        self.solver = pywraplp.Solver.CreateSolver("GLOP")
        infinity = self.solver.infinity()
        self.rows = [self.solver.Constraint(float(count), infinity) for count in counts_K[self.live].tolist()]
        self.objective = self.solver.Objective()
        self.objective.SetMinimization()
        self.patterns: list[Pattern] = []
        self.columns: list[pywraplp.Variable] = []
        self.known: set[Pattern] = set()
        for shorter, longer in zip(self.rows, self.rows[1:], strict=False):
            moved = self.solver.NumVar(0.0, infinity, "")
            shorter.SetCoefficient(moved, 1.0)
            longer.SetCoefficient(moved, -1.0)
        self.counts_K = counts_K.copy()
        self.demanded = False

    def add(self, patterns: Iterable[Pattern]) -> int:
        """Adds the patterns that are new and returns how many; places of lengths without a row go to shorter ones."""
        added = 0
        for whole_pattern in patterns:
            pattern = self._projected(whole_pattern)
            if not pattern or pattern in self.known:
                continue
            column = self.solver.NumVar(0.0, self.solver.infinity(), "")
            self.objective.SetCoefficient(column, 1.0)
            for index, copies in pattern:
                self.rows[self.row_of[index]].SetCoefficient(column, float(copies))
            self.known.add(pattern)
            self.patterns.append(pattern)
            self.columns.append(column)
            added += 1
        self.meter.add(2 * COLUMN_CELLS * added)
        return added

    def move(self, source: int, to: int, cost: float, most: int) -> pywraplp.Variable:
        """Adds and returns a column: so many examples of one length are of another one instead, at a cost in bins."""
        moved = self.solver.NumVar(0.0, float(most), "")
        self.objective.SetCoefficient(moved, cost)
        self.rows[self.row_of[source]].SetCoefficient(moved, 1.0)
        self.rows[self.row_of[to]].SetCoefficient(moved, -1.0)
        return moved

    def _projected(self, pattern: Pattern) -> Pattern:
        """Returns the pattern with each length that has no row in the place of the longest shorter one that has."""
        if len(self.live) == len(self.row_of):
            return pattern
        copies_of: dict[int, int] = {}
        for index, copies in pattern:
            if (row := self.row_of[index]) >= 0:
                kept = int(self.live[row])
                copies_of[kept] = copies_of.get(kept, 0) + copies
        return tuple(copies_of.items())

    def narrowed(self, left_K: npt.NDArray[np.int64]) -> "Master":
        """Returns a master of the lengths that are left alone, and the patterns found so far."""
        narrow = Master(left_K, self.meter)
        self.meter.add(COLUMN_CELLS * len(self.patterns))
        narrow.add(self.patterns)
        return narrow

    def demand(self, left_K: npt.NDArray[np.int64]) -> None:
        """Asks for these counts from now on."""
        for index in np.flatnonzero(left_K != self.counts_K).tolist():
            self.rows[self.row_of[index]].SetBounds(float(left_K[index]), self.solver.infinity())
        self.counts_K = left_K.copy()
        self.demanded = True

    def solve(self) -> bool:
        """Solves to optimality; False where GLOP gave up."""
        dual, self.demanded = self.demanded, False
        return solve(self.solver, self.meter, dual=dual)

    def value(self) -> float:
        """Returns the bins of the solution."""
        return float(self.objective.Value())

    def whole_bins(self) -> int:
        """Returns the bins of the solution, rounded up; GLOP's last digits do not make another bin."""
        return int(np.ceil(self.value() - 1e-6 * max(1.0, self.value() * 1e-4)))

    def duals(self, one: int) -> npt.NDArray[np.int64]:
        """Returns the prices of the lengths, (K,) int64 in units of 1 / one, rounded down, at least 0."""
        prices_K = np.zeros(len(self.row_of), dtype=np.int64)
        prices = np.array([row.dual_value() for row in self.rows])
        prices_K[self.live] = np.maximum(np.floor(prices * one), 0.0).astype(np.int64)
        return prices_K

    def solution(self) -> list[tuple[Pattern, float]]:
        """Returns the patterns in use and how often."""
        self.meter.add(COLUMN_CELLS / 10 * len(self.columns))
        values = [column.solution_value() for column in self.columns]
        return [(pattern, value) for pattern, value in zip(self.patterns, values, strict=True) if value > 1e-9]
