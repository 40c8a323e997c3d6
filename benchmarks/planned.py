"""Planned counts: padding and sequences with and without them, and what they move.

    python benchmarks/planned.py [NUM_EXAMPLES]

NUM_EXAMPLES: 16,384 by default, one chunk of a plan. `sides`: NaViT draws, sides U(64,256) px, patch 16, aspects as cameras
and the web have them; an example may have the grids of every whole side within 10 %, of an aspect error of at most 5 % (or its
own). `dropped`: a million of the same draws, native photos, or images and clips of ../shared/lengths, of which a fraction of Beta
distribution is dropped (mean 0.3, at most 0.6): an example may keep 5 % more than drawn where that fills its sequence. In
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
from patchpack.pipeline.sampling.dropping import fill_up
from patchpack.pipeline.sampling.grids import candidate_grids, nearest_grid

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


def tell_dropped(name: str, capacity: int, lengths: npt.NDArray[np.int64], num_examples: int = 10**6) -> None:
    """Prints a line of examples of which tokens are dropped: alone, and with bins filled up."""
    rng = np.random.default_rng(0)
    tokens = np.minimum(rng.choice(lengths, num_examples), capacity)
    u, total = 0.5, 1 / 0.3 - 1
    rates = 0.6 * rng.beta(u * total, (1 - u) * total, num_examples)
    kept = np.maximum(1, np.floor(tokens * (1 - rates) + 0.5)).astype(np.int64)
    most = np.maximum(kept, np.minimum(tokens, np.floor(kept * 1.05))).astype(np.int64)
    packing, alone_s = cpu(lambda: pack(kept, capacity))

    def filled() -> npt.NDArray[np.int64]:
        counts = kept.copy()
        for members in packing.members():
            counts[members] = fill_up(kept[members].tolist(), most[members].tolist(), capacity)
        return counts

    counts, filled_s = cpu(filled)
    room = packing.num_bins * capacity
    print(
        f"{name:<24}{capacity:>6}{packing.num_bins:>8}{packing.num_bins:>8}{100 * (1 - kept.sum() / room):>9.4f}"
        f"{100 * (1 - counts.sum() / room):>9.4f}{0:>8.2f}{100 * np.mean(counts != kept):>8.2f}"
        f"{100 * (counts.sum() / kept.sum() - 1):>8.3f}{alone_s:>8.2f}{alone_s + filled_s:>8.2f}",
        flush=True,
    )


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
    grids = np.array([a * b for a, b in (grid_of(*image, 2**20) for image in images)])
    for capacity in (256, 512, 1024, 4096, 16384):
        tell_dropped("dropped, sides", capacity, grids)
    for name in ("native_photos_4096", "images_and_clips_4096", "native_photos_16384"):
        tell_dropped(f"dropped, {name}"[:23], int(name.rpartition("_")[2]), np.load(SHARED / "lengths" / f"{name}.npy"))


if __name__ == "__main__":
    main()
