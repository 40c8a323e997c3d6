"""Planned counts: padding and sequences with and without them, and what they move.

    python benchmarks/planned.py [NUM_EXAMPLES]

NUM_EXAMPLES: 16,384 by default, one chunk of a plan. `sides`: NaViT draws, sides U(64,256) px, patch 16, aspects as cameras
and the web have them; an example may have the grids of every whole side within 10 %, of an aspect error of at most 5 % (or its
own). `dropped`: the same draws, or native photos of ../shared/lengths; an example may lose at most 5 % of its tokens. In
percent: padding with `pack` alone and with planned counts; sequences saved; of all examples those that moved, the change of
tokens on average; aspect error at the 99th percentile and at worst, before and after. Time: CPU of `pack` alone and of all.
"""

from fractions import Fraction
from functools import cache

import numpy as np
import numpy.typing as npt
from harness import SHARED, cpu, read, say_where

from patchpack.pipeline.packing import pack
from patchpack.pipeline.packing.counts.candidates import Candidates
from patchpack.pipeline.packing.counts.planned import plan_counts
from patchpack.pipeline.stages.sample import candidate_grids, dropped_counts, nearest_grid

ASPECTS = (
    (3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9), (1, 1), (4, 5), (5, 4), (5, 7), (1, 2), (2, 1),
    (517, 333), (431, 700), (640, 427), (427, 640), (500, 333), (375, 500),
)  # fmt: skip
PATCH = (16, 16)


def draws(num_examples: int) -> list[tuple[int, int, int]]:
    """Returns (height, width, side) of each example."""
    rng = np.random.default_rng(1)
    return [(*ASPECTS[rng.integers(len(ASPECTS))], int(rng.integers(64, 257))) for _ in range(num_examples)]


@cache
def grid_of(height: int, width: int, side: int, cap: int) -> tuple[int, int]:
    """Returns the grid of a drawn side."""
    return nearest_grid(height, width, Fraction(side * side, 256), cap, PATCH)


def side_grids(image: tuple[int, int, int], capacity: int) -> dict[int, tuple[int, tuple[int, int]]]:
    """Returns the grids an image may have: {tokens: (cost, grid)}."""
    height, width, side = image
    return candidate_grids(height, width, grid_of(height, width, side, capacity), Fraction(1, 10), capacity, PATCH)


def side_candidates(images: list[tuple[int, int, int]], capacity: int) -> Candidates:
    """Returns the counts that the images may have."""
    grids = (side_grids(image, capacity) for image in images)
    return Candidates.of([(count, cost) for count, (cost, _) in options.items()] for options in grids)


def aspect_error(grid: tuple[int, int], height: int, width: int) -> float:
    """Returns by how much the aspect of a grid is off, as a fraction."""
    ratio = grid[0] * width / (grid[1] * height)
    return max(ratio, 1 / ratio) - 1


def tell(name: str, capacity: int, candidates: Candidates, errors: list[dict[int, float]] | None = None) -> None:
    """Prints a line."""
    target = candidates.at(candidates.target())
    alone, alone_s = cpu(lambda: pack(target, capacity))
    planned, planned_s = cpu(lambda: plan_counts(candidates, capacity))
    counts = candidates.at(planned.choice)

    def padding(bins: int, tokens: npt.NDArray[np.int64]) -> float:
        return 100 * (1 - int(tokens.sum()) / (bins * capacity))

    line = (
        f"{name:<24}{capacity:>6}{alone.num_bins:>8}{planned.packing.num_bins:>8}{padding(alone.num_bins, target):>9.3f}"
        f"{padding(planned.packing.num_bins, counts):>9.3f}{100 * (1 - planned.packing.num_bins / alone.num_bins):>8.2f}"
        f"{100 * np.mean(counts != target):>8.2f}{100 * (counts.sum() / target.sum() - 1):>8.3f}{alone_s:>8.2f}{planned_s:>8.2f}"
    )
    for of in (target, counts) if errors else ():
        found = [100 * error[count] for error, count in zip(errors or (), of.tolist(), strict=True)]
        line += f"{np.percentile(found, 99):>9.2f}{max(found):>8.2f}"
    print(line, flush=True)


def main() -> None:
    """Prints the table."""
    num_examples = read(__doc__, num_examples=16_384).num_examples
    say_where("ortools")
    print(
        f"{'':<24}{'L':>6}{'alone':>8}{'planned':>8}{'padding':>9}{'planned':>9}{'saved':>8}{'moved':>8}{'tokens':>8}"
        f"{'CPU s':>8}{'CPU s':>8}{'aspect':>9}{'worst':>8}{'planned':>9}{'worst':>8}"
    )
    images = draws(num_examples)
    for capacity in (256, 512, 1024):
        listed = [side_grids(image, capacity) for image in images]
        errors = [
            {a * b: aspect_error((a, b), h, w) for _, (a, b) in options.values()}
            for options, (h, w, _) in zip(listed, images, strict=True)
        ]
        tell("sides", capacity, side_candidates(images, capacity), errors)
    for capacity in (256, 512, 1024):
        counts = [a * b for a, b in (grid_of(*image, capacity) for image in images)]
        tell("dropped, navit", capacity, Candidates.of(dropped_counts(count, Fraction(1, 20)) for count in counts))
    for name, capacity in (("native_photos_4096", 4096), ("images_and_clips_4096", 4096)):
        lengths = np.random.default_rng(0).choice(np.load(SHARED / "lengths" / f"{name}.npy"), num_examples).tolist()
        tell(
            f"dropped, {name}"[:23],
            capacity,
            Candidates.of(dropped_counts(count, Fraction(1, 20)) for count in lengths),
        )


if __name__ == "__main__":
    main()
