"""Pricing for column generation: the patterns of one bin that have the highest dual value, by integer dynamic programming.

A pattern says how many examples of each length share a bin: pairs (length index, number), indices ascending. Given
an integer dual value of each length, a table answers "what is the most a bin can hold", copies without limit (Gilmore and
Gomory, "A linear programming approach to the cutting-stock problem", Operations Research 9, 1961): one vector addition and
maximum over the capacity for every power of two of copies. Only lengths up to half the capacity of higher dual value than
every shorter one enter it: no bin holds two of the rest, so the best bin with any given length follows from the table in one
step. A pattern is read back by looking for a last length that explains a cell; cells are looked at once.

With `max_segments` the table has a second axis, the slots used. Costs capacity * lengths * log(copies), times the
slots where they bind; about a nanosecond a cell. All sums are int64, ties go to the longest length, nothing depends
on the order of a set or a dictionary. A second kind of table, which knew how many examples of each length there are, was
80 lines, 13 % slower in all, and closed one more of 20 sets of 60 triplets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Pattern = tuple[tuple[int, int], ...]

# Dual value 1 of a bin as an integer: 2**36 of it, times ten million bins, stay within int64.
ONE = 2**36
# A numpy call on few cells costs as much as one on some thousand.
CALL_CELLS = 4096


@dataclass
class Meter:
    """Work done against work allowed, in table cells: the deterministic stand-in for a clock."""

    allowed: float
    done: float = 0.0

    def add(self, cells: float) -> None:
        """Counts `cells` as done."""
        self.done += cells

    @property
    def left(self) -> bool:
        """Whether there is any work left."""
        return self.done < self.allowed


@dataclass(frozen=True)
class Shape:
    """What fits into a bin: (K,) lengths ascending, the capacity, and the slots where they can bind, otherwise None."""

    values_K: npt.NDArray[np.int64]
    capacity: int
    slots: int | None
    values: list[int] = field(default_factory=list)

    def most(self, index: int) -> int:
        """Returns how many examples of one length fit into a bin."""
        fit = self.capacity // self.values[index]
        return fit if self.slots is None else min(fit, self.slots)


def shape_of(values_K: npt.NDArray[np.int64], capacity: int, max_segments: int | None) -> Shape:
    """Returns the shape of a bin; `max_segments` is dropped where no bin can hold as many."""
    binds = max_segments is not None and max_segments < capacity // int(values_K[0])
    return Shape(values_K, capacity, max_segments if binds else None, values_K.tolist())


class Table:
    """The best bins for given dual values, copies without limit."""

    def __init__(self, shape: Shape, duals_K: npt.NDArray[np.int64], meter: Meter) -> None:
        self.shape, self.duals_K = shape, duals_K
        above_shorter = duals_K > np.concatenate(([0], np.maximum.accumulate(duals_K)[:-1]))
        self.items = np.flatnonzero(above_shorter & (2 * shape.values_K <= shape.capacity))
        layers = 1 if shape.slots is None else shape.slots  # slots beside the first example
        self.table = np.zeros((layers, shape.capacity + 1), dtype=np.int64)
        self.choice = np.full(self.table.shape, -1, dtype=np.int64)
        self.copies = np.zeros(self.table.shape, dtype=np.int64)
        self._fill(meter)
        rest_K = np.minimum(shape.capacity - shape.values_K, shape.capacity)
        self.value_K = duals_K + self.table[-1, rest_K]  # of the best bin with this length
        self.most = int(self.value_K.max())

    def _fill(self, meter: Meter) -> None:
        """Fills the table: cell (s, c) is the most that s examples within c tokens have."""
        table, scratch = self.table, np.empty_like(self.table)
        layers, width = table.shape
        limited = self.shape.slots is not None
        for index in self.items.tolist():
            value, dual = self.shape.values[index], int(self.duals_K[index])
            copies = 1
            # Doubling without a rest: 1, 2, 4, ... copies, each any number of times, reach every number.
            while copies * value < width and (not limited or copies < layers):
                down = copies if limited else 0
                step = copies * value
                with_it = scratch[: layers - down, : width - step]
                np.add(table[: layers - down, : width - step], copies * dual, out=with_it)
                np.maximum(table[down:, step:], with_it, out=table[down:, step:])
                meter.add(2 * with_it.size + CALL_CELLS)
                copies *= 2

    def patterns(self, heads: npt.NDArray[np.int64], meter: Meter) -> list[Pattern]:
        """Returns the best pattern with each of the `heads`, (H,) length indices."""
        limited = self.shape.slots is not None
        capacity_left = self.shape.capacity - self.shape.values_K[heads]
        slot = np.full(len(heads), len(self.table) - 1, dtype=np.int64)
        selected: list[list[tuple[int, int]]] = [[(head, 1)] for head in heads.tolist()]
        active = np.flatnonzero(self.table[slot, capacity_left] > 0)
        while len(active):
            self._explain(slot[active], capacity_left[active], meter)
            chosen, copies = (
                self.choice[slot[active], capacity_left[active]],
                self.copies[slot[active], capacity_left[active]],
            )
            for row, index, number in zip(active.tolist(), chosen.tolist(), copies.tolist(), strict=True):
                selected[row].append((index, number))
            capacity_left[active] -= copies * self.shape.values_K[chosen]
            if limited:
                slot[active] -= copies
            active = active[self.table[slot[active], capacity_left[active]] > 0]
        return [_merged(pairs) for pairs in selected]

    def _explain(self, slot: npt.NDArray[np.int64], capacity_left: npt.NDArray[np.int64], meter: Meter) -> None:
        """Finds for each cell a longest length that its best bin can end with, and how often."""
        width = self.table.shape[1]
        unknown = self.choice[slot, capacity_left] < 0
        values_I, duals_I = self.shape.values_K[self.items], self.duals_K[self.items]
        down = 0 if self.shape.slots is None else 1
        for cell in np.unique(slot[unknown] * width + capacity_left[unknown]).tolist():
            at, left = divmod(cell, width)
            fitting = int(np.searchsorted(values_I, left, side="right"))
            explains = self.table[at - down, left - values_I[:fitting]] + duals_I[:fitting] == self.table[at, left]
            meter.add(4 * fitting + CALL_CELLS)
            last = fitting - 1 - int(np.argmax(explains[::-1]))
            value, dual, copies = int(values_I[last]), int(duals_I[last]), 1
            total = int(self.table[at, left])
            while (copies + 1) * value <= left and at - down * (copies + 1) >= 0:
                if self.table[at - down * (copies + 1), left - (copies + 1) * value] + (copies + 1) * dual != total:
                    break
                copies += 1
            self.choice[at, left], self.copies[at, left] = self.items[last], copies


def _merged(pairs: list[tuple[int, int]]) -> Pattern:
    """Returns the pairs as a pattern: each index once, ascending."""
    total: dict[int, int] = {}
    for index, number in pairs:
        total[index] = total.get(index, 0) + number
    return tuple(sorted(total.items()))


@dataclass
class Priced:
    """What pricing found.

    Attributes:
        most: no bin has a higher dual value: the scale that makes the dual values a certificate.
        improving: patterns of a dual value over `ONE`.
        used: a packing of some examples by such patterns: (pattern, times).
        left_K: (K,) int64, the examples outside of it.
    """

    most: int
    improving: list[Pattern]
    used: list[tuple[Pattern, int]]
    left_K: npt.NDArray[np.int64]


def price(
    shape: Shape, duals_K: npt.NDArray[np.int64], counts_K: npt.NDArray[np.int64], passes: int, meter: Meter
) -> Priced:
    """Returns patterns of a dual value over `ONE` that can be used side by side.

    Patterns with the best bargains alone are all alike, and the master would need hundreds of rounds to price the
    bargains out. So patterns are taken as a packer takes bins: the most valuable first, as often as the examples
    that are left allow; what finds no examples any more waits for the next pass, whose table knows only the lengths
    that are left (measured on native_photos_16384: 7 rounds; best columns by dual value alone: not done after 60).
    """
    left = counts_K.tolist()
    improving: list[Pattern] = []
    used: list[tuple[Pattern, int]] = []
    most = 0
    for number in range(passes):
        left_K = np.array(left, dtype=np.int64)
        offers, most_now = _offers(shape, np.where(left_K > 0, duals_K, 0), left_K, meter)
        most = most if number else most_now
        taken = 0
        for pattern in offers:
            times = min(left[index] // copies for index, copies in pattern)
            if times:
                for index, copies in pattern:
                    left[index] -= times * copies
                improving.append(pattern)
                used.append((pattern, times))
                taken += 1
        if not taken or not meter.left:
            if not number and offers:  # nothing fits what is left as it is: the master may still want them
                improving.extend(offers[:64])
            break
    return Priced(most, improving, used, np.array(left, dtype=np.int64))


def _offers(
    shape: Shape, duals_K: npt.NDArray[np.int64], left_K: npt.NDArray[np.int64], meter: Meter
) -> tuple[list[Pattern], int]:
    """Returns the patterns of a dual value over `ONE`, the most valuable first, and the most that a bin can have."""
    if not ((left_K > 0) & (duals_K > 0)).any():
        return [], 0
    table = Table(shape, duals_K, meter)
    value_K = np.where(left_K > 0, table.value_K, 0)
    order = np.argsort(-value_K, kind="stable")
    return table.patterns(order[value_K[order] > ONE], meter), table.most


def first_fit(shape: Shape, counts_K: npt.NDArray[np.int64] | Sequence[int], meter: Meter) -> list[tuple[Pattern, int]]:
    """Returns a packing of all examples, longest first, a bin's contents repeated as often as the counts allow."""
    left_K = np.array(counts_K, dtype=np.int64)
    selected: list[tuple[Pattern, int]] = []
    live = np.flatnonzero(left_K)
    while len(live):
        pattern = fill_up(shape, left_K, {}, live)
        times = min(int(left_K[index]) // copies for index, copies in pattern)
        for index, copies in pattern:
            left_K[index] -= times * copies
        selected.append((pattern, times))
        if any(not left_K[index] for index, _ in pattern):
            live = live[left_K[live] > 0]
        meter.add(len(live) + CALL_CELLS)
    return selected


def fill_up(shape: Shape, left_K: npt.NDArray[np.int64], start: dict[int, int], live: npt.NDArray[np.int64]) -> Pattern:
    """Returns `start` with the longest examples that still fit added, again and again."""
    held = dict(start)
    capacity_left = shape.capacity - sum(shape.values[index] * copies for index, copies in held.items())
    slots = len(left_K) * shape.capacity if shape.slots is None else shape.slots - sum(held.values())
    values_live = shape.values_K[live]
    at = len(live) - 1
    while at >= 0 and capacity_left > 0 and slots > 0:
        at = min(at, int(np.searchsorted(values_live, capacity_left, side="right")) - 1)
        if at < 0:
            break
        index = int(live[at])
        copies = min(int(left_K[index]) - held.get(index, 0), capacity_left // shape.values[index], slots)
        if copies > 0:
            held[index] = held.get(index, 0) + copies
            capacity_left -= copies * shape.values[index]
            slots -= copies
        at -= 1
    return tuple(sorted(held.items()))
