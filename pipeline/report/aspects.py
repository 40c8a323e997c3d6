"""The aspect plane: how the aspect ratio of each example came out against that of its source, in hexagonal bins; and the worst.

Aspects are counted in steps of 1 / STEPS_PER_OCTAVE of a doubling, as integers, and these are binned: to the nearest centre of
a hexagonal grid, ties to the lower. Equal datasets give equal bins on every machine, and memory depends on how many bins there are.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchpack.pipeline.report.statistics import add_unique
from patchpack.schemas.figures import AspectBin, AspectPlane, WorstAspect

Ints = npt.NDArray[np.int64]

# fractions are counted in steps of 1e-4
RATIO_STEPS = 10_000
STEPS_PER_OCTAVE = 32
# a hexagon is a quarter of an octave wide, and rows stand 7 / 8 of that apart (a regular one: 0.866)
WIDTH, ROW = 8, 7
# what is wider or higher than 1:16 stands at the rim
_RIM = 4 * STEPS_PER_OCTAVE
_EDGES = 2.0 ** ((np.arange(-_RIM, _RIM) + 0.5) / STEPS_PER_OCTAVE)
_PAIR = 2**16
MAX_WORST = 6


class Sides(NamedTuple):
    """Height and width in px of what each example shows, and of the part of its source that it shows; (N,) int64 each."""

    height: Ints
    width: Ints
    source_height: Ints
    source_width: Ints


class Aspects:
    """The plane and the worst of the examples seen so far."""

    def __init__(self) -> None:
        """Starts without any."""
        self._pairs = Counter[int]()
        self._worst: list[tuple[int, int, int, WorstAspect]] = []

    def add(self, sides: Sides, errors_N: Ints, keys: pa.Array, sequences_N: Ints) -> None:
        """Adds examples.

        Args:
            sides: of each.
            errors_N: as `aspect_error` returned them.
            keys: (N,) of their sources.
            sequences_N: the place of the sequence of each in the dataset: it sorts as its number does.
        """
        source, shown = _steps(sides.source_height, sides.source_width), _steps(sides.height, sides.width)
        add_unique(self._pairs, source * _PAIR + shown)
        # the first of the worst, by number
        for at in np.argsort(-errors_N, kind="stable")[:MAX_WORST].tolist():
            row: WorstAspect = {
                "key": keys[at].as_py(),
                "sequence": int(sequences_N[at]),
                "segment": at - int(np.searchsorted(sequences_N, sequences_N[at])),
                "aspect_error": int(errors_N[at]) / RATIO_STEPS,
                "source_height": int(sides.source_height[at]),
                "source_width": int(sides.source_width[at]),
                "height": int(sides.height[at]),
                "width": int(sides.width[at]),
            }
            entry = int(errors_N[at]), -row["sequence"], -row["segment"], row
            self._keep(entry)

    def merge(self, other: "Aspects") -> None:
        """Adds the examples of another."""
        self._pairs.update(other._pairs)
        for entry in other._worst:
            self._keep(entry)

    def _keep(self, entry: tuple[int, int, int, WorstAspect]) -> None:
        (heapq.heappush if len(self._worst) < MAX_WORST else heapq.heappushpop)(self._worst, entry)

    def plane(self, number_of: Callable[[int], int] = int) -> AspectPlane:
        """Returns the bins that hold examples, by place, and the most stretched examples, the worst first.

        Args:
            number_of: numbers the place of a sequence in the dataset.
        """
        bins = Counter[tuple[int, int]]()
        for pair, count in self._pairs.items():
            # floor division puts a negative second half into the first
            x = (pair + _PAIR // 2) // _PAIR
            bins[hexagon(x, pair - x * _PAIR)] += count
        found: list[AspectBin] = [
            {"source": x / STEPS_PER_OCTAVE, "realised": y / STEPS_PER_OCTAVE, "num_examples": count}
            for (x, y), count in sorted(bins.items())
        ]
        ordered = sorted(self._worst, key=lambda entry: entry[:3], reverse=True)
        worst = [row | {"sequence": number_of(row["sequence"])} for error, *_, row in ordered if error]
        return {"bins": found, "worst": worst}


def aspect_error(sides: Sides) -> Ints:
    """Returns how far images are stretched, in steps of 1 / RATIO_STEPS, (N,) int64.

    The error is the larger aspect over the smaller, minus 1: an image drawn 2 % too wide or too high has 0.02.
    """
    one, other = sides.height * sides.source_width, sides.width * sides.source_height
    large, small = np.maximum(one, other), np.minimum(one, other)
    steps: Ints = (large * RATIO_STEPS + small // 2) // small - RATIO_STEPS
    return steps


def hexagon(x: int, y: int) -> tuple[int, int]:
    """Returns the centre of the hexagon that holds a point: even rows begin at 0, odd ones half a width later."""
    centres = []
    for row in (y // ROW, y // ROW + 1):
        shift = row % 2 * WIDTH // 2
        for column in ((x - shift) // WIDTH, (x - shift) // WIDTH + 1):
            centres.append((column * WIDTH + shift, row * ROW))
    return min(centres, key=lambda centre: ((centre[0] - x) ** 2 + (centre[1] - y) ** 2, centre))


def _steps(height_N: Ints, width_N: Ints) -> Ints:
    """Returns width / height on a scale of doublings, 0 for a square, in steps of 1 / STEPS_PER_OCTAVE."""
    return np.searchsorted(_EDGES, width_N / height_N) - _RIM
