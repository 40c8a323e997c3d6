"""Elastic fill of NaViT draws: how many bins are exactly full, and what that moves.

    python benchmarks/elastic.py [NUM_EXAMPLES]

NUM_EXAMPLES: 16,384 by default, one chunk of a plan. Sides U(64,256) px, patch 16, aspects as cameras and the web
have them; the candidate lengths of an example holds the grids of least aspect error for every whole side within 5 %. One line
a capacity; `clips`: every third example has 8 to 64 time steps, shrunk until it fits. Bins and efficiency beside
best-fit decreasing of the target counts (time: of the same process, its ratio last).
"""

import time
from fractions import Fraction
from functools import cache

import numpy as np
from harness import read, say_where

from patchpack.pipeline.packing import pack
from patchpack.pipeline.packing.counts.closing import CandidateLengths
from patchpack.pipeline.packing.counts.elastic import Candidates, fill
from patchpack.pipeline.stages.sample import nearest_grid

CAPACITIES = (256, 512, 1024, 2048, 4096)
ASPECTS = (
    (3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9), (1, 1), (4, 5), (5, 4), (5, 7), (1, 2), (2, 1),
    (517, 333), (431, 700), (640, 427), (427, 640), (500, 333), (375, 500),
)  # fmt: skip
SLACK = Fraction(105, 100)
# costs are ten-thousandths of the side
UNIT = 10_000


@cache
def tokens_of_side(height: int, width: int, side: int) -> int:
    """Returns the tokens of the grid that an effective side stands for."""
    h, w = nearest_grid(height, width, Fraction(side * side, 256), 2**15, (16, 16))
    return h * w


@cache
def candidate_lengths(height: int, width: int, side: int, steps: int, cap: int) -> CandidateLengths:
    """Returns the counts of the sides within the slack, each at the cost of the nearest side that has it."""
    target = tokens_of_side(height, width, side)
    costs = {target: 0}
    for other in range(-(-side * SLACK.denominator // SLACK.numerator), int(side * SLACK) + 1):
        tokens = tokens_of_side(height, width, other)
        if tokens * steps <= cap:
            costs[tokens] = min(costs.get(tokens, UNIT), abs(other - side) * UNIT // side)
    return [(tokens * steps, cost) for tokens, cost in sorted(costs.items())]


def draw_candidates(num_examples: int, cap: int, *, clips: bool, seed: int = 1) -> Candidates:
    """Returns the candidate lengths of examples drawn as in the module docstring."""
    rng = np.random.default_rng(seed)
    candidates = []
    for _ in range(num_examples):
        (height, width), side = ASPECTS[rng.integers(len(ASPECTS))], int(rng.integers(64, 257))
        steps = int(rng.integers(8, 65)) if clips and rng.integers(3) == 0 else 1
        while steps * tokens_of_side(height, width, side) > cap:
            side = side * 19 // 20
        candidates.append(candidate_lengths(height, width, side, steps, cap))
    return Candidates.of(candidates)


def main() -> None:
    """Prints the table."""
    num_examples = read(__doc__, num_examples=16_384).num_examples
    say_where()
    print(
        "             L   bins  best-fit  exactly full  efficiency  best-fit  side change  moved   token drift  "
        "options  seconds  x best-fit"
    )
    for clips in (False, True):
        for capacity in CAPACITIES:
            candidates = draw_candidates(num_examples, capacity, clips=clips)
            target = candidates.at(candidates.target())
            started = time.perf_counter()
            greedy = pack(target, capacity, method="best-fit")
            between = time.perf_counter()
            packing = fill(candidates, capacity)
            seconds, baseline = time.perf_counter() - between, between - started
            counts = candidates.at(packing.choice)
            loads = np.zeros(packing.num_bins, dtype=np.int64)
            np.add.at(loads, packing.bin_index, counts)
            costs = candidates.costs[candidates.offsets[:-1] + packing.choice]
            print(
                f"{'clips' if clips else 'images':8}{capacity:6}{packing.num_bins:7}{greedy.num_bins:10}"
                f"{np.mean(loads == capacity):14.4f}{counts.sum() / packing.num_bins / capacity:12.5f}"
                f"{target.sum() / greedy.num_bins / capacity:10.5f}{costs.mean() / UNIT:13.5f}{np.mean(costs > 0):7.4f}"
                f"{counts.sum() / target.sum() - 1:14.5f}{len(candidates.counts) / num_examples:9.2f}{seconds:9.2f}"
                f"{seconds / baseline:12.0f}"
            )


if __name__ == "__main__":
    main()
