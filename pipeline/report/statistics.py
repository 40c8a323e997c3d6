"""Exact distributions in bounded memory: counts of integers, their quantiles and a histogram with round edges.

Fractions are counted as whole steps of 1 / steps, so that sums are exact and equal on every machine.
"""

from collections import Counter

import numpy as np

from patchpack.schemas.figures import Distribution, Number
from patchpack.schemas.geometry import ceil_div

# as many bars as a terminal shows without scrolling
MAX_BINS = 24


def add_unique(counter: Counter[int], values: np.ndarray) -> None:
    """Adds how often each integer occurs in an array."""
    unique, counts = np.unique(values, return_counts=True)
    for value, count in zip(unique.tolist(), counts.tolist(), strict=True):
        counter[value] += count


def distribution(counts: Counter[int], steps: int = 1, edges: list[Number] | None = None) -> Distribution:
    """Returns mean, quantiles and histogram of values counted in steps of 1 / steps.

    Quantiles are nearest-rank: values that occur. The histogram's bins are [edge, next edge), the last one closed;
    fractions without given edges are drawn up to their 99th percentile, and `num_above` says how many lie beyond.
    """
    total = sum(counts.values())
    if not total:
        nothing: Distribution = {
            "num": 0,
            "mean": None,
            "min": None,
            "p5": None,
            "median": None,
            "p95": None,
            "max": None,
            "edges": [0, 1],
            "counts": [0],
            "num_above": 0,
        }
        return nothing
    values = sorted(counts)
    ranks = np.cumsum([counts[value] for value in values])

    def quantile(percent: int) -> int:
        return values[int(np.searchsorted(ranks, max(1, ceil_div(percent * total, 100))))]

    if edges is None and steps == 1:
        edges = _edges(values[0], values[-1], 1, 1)
    elif edges is None:
        # 1e-3 is the finest bin that says something about a fraction; a few outliers would hide the rest
        edges = _edges(0, quantile(99), max(1, steps // 1000), steps)
    heights = [0] * (len(edges) - 1)
    above = 0
    for value, count in counts.items():
        if value / steps > edges[-1]:
            above += count
        else:
            index = int(np.searchsorted(edges, value / steps, side="right")) - 1
            heights[min(index, len(heights) - 1)] += count
    mean = sum(value * count for value, count in counts.items()) / (total * steps)

    def in_units(value: int) -> Number:
        return value if steps == 1 else value / steps

    return {
        "num": total,
        "mean": mean,
        "min": in_units(values[0]),
        "p5": in_units(quantile(5)),
        "median": in_units(quantile(50)),
        "p95": in_units(quantile(95)),
        "max": in_units(values[-1]),
        "edges": edges,
        "counts": heights,
        "num_above": above,
    }


def _edges(low: int, high: int, least: int, steps: int) -> list[Number]:
    """Returns at most MAX_BINS + 1 edges around low..high, a round number (1, 2 or 5 times a power of ten) apart."""
    width = next(
        step
        for power in range(19)
        for step in (10**power, 2 * 10**power, 5 * 10**power)
        if step >= least and high // step - low // step < MAX_BINS
    )
    numbers = range(low // width * width, (high // width + 1) * width + 1, width)
    return [n if steps == 1 else n / steps for n in numbers]
