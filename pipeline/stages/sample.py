"""Stage 4: how large each view of an example becomes, and so how many tokens it has.

Aspect-preserving sampling after NaViT (arXiv 2307.06304, section 3.2): draw the effective side
uniformly, so that height x width = side^2 with the aspect kept; then take the integer grid with the
least aspect error among those with n (1 +- 0.12) tokens. Every draw is a pure function of
(seed, example_id, view); everything after it is integer arithmetic, so that planning gives the same
answer on every machine. Gives up exact token counts (12 % either way) for the least aspect error: on
average 0.3 % at 1,024 tokens, 1.2 % at 256 and 6 % at 64 (sides uniform in 200..4000 px), where there are few grids.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import xxhash

from patchpack.pipeline.stages.records import Example, Reference, Reject, reject
from patchpack.schemas.geometry import MAX_GRID, Grid, Tubelet, ceil_div

# a grid may have n (1 +- 0.12) tokens for a requested n
SLACK_PERCENT = 12

# Planned counts take no grid whose aspect error is larger than 5 %, or the larger one of the requested grid.
MOST_ASPECT_ERROR = Fraction(105, 100)
# What a token more or less costs, in tokens of padding: above 1, so that nothing changes but for more padding than it saves.
TOKEN_COST = Fraction(115, 100)
# Counts that dropping may lead to, beside the nearest ones.
MOST_DROPS = 12

_NO_CAP = 2**62


@dataclass(frozen=True)
class Resolution:
    """A rule of --resolution: the effective side drawn from low..high pixels, or the native size if both are 0."""

    low: int
    high: int

    @property
    def native(self) -> bool:
        """Whether examples keep their own size."""
        return self.high == 0

    @classmethod
    def parse(cls, text: str) -> "Resolution":
        """Returns the rule that `side:64-256` or `native` stands for.

        Raises:
            ValueError: it is neither.
        """
        if text == "native":
            return cls(0, 0)
        kind, _, span = text.partition(":")
        low, dash, high = span.partition("-")
        if kind != "side" or not dash or not low.isdecimal() or not high.isdecimal() or not 1 <= int(low) <= int(high):
            raise ValueError(
                f"--resolution {text}: no such rule; it is side:LO-HI with 1 <= LO <= HI in pixels, or native; leave it out for side:64-256"
            )
        return cls(int(low), int(high))


def draw(seed: int, name: str, *numbers: int) -> int:
    """Returns 64 random bits that depend on nothing but the arguments.

    A raw word of the counter-based generator Philox: numpy promises its raw words, not its distributions.
    """
    key = xxhash.xxh3_128_intdigest("\0".join([str(seed), name, *map(str, numbers)]).encode())
    return int(np.random.Philox(key=key).random_raw())


def shuffled(count: int, seed: int, name: str, *numbers: int) -> list[int]:
    """Returns 0..count-1 in an order that depends on nothing but the arguments."""
    key = xxhash.xxh3_128_intdigest("\0".join([str(seed), name, *map(str, numbers)]).encode())
    words = np.random.Philox(key=key).random_raw(count)
    order: list[int] = np.argsort(words, kind="stable").tolist()
    return order


def size_of_side(side: int, height: int, width: int) -> tuple[int, int]:
    """Returns (height, width) in pixels with height x width = side^2 and the given aspect, to the nearest pixel."""
    return _rounded_root(Fraction(side * side * height, width)), _rounded_root(Fraction(side * side * width, height))


def nearest_grid(height: int, width: int, tokens: Fraction, cap: int, patch: tuple[int, int]) -> tuple[int, int]:
    """Returns the (h, w) of least aspect error among the grids of about the target number of tokens.

    Of equals, the one nearest the target count, then the fewer rows. Where no grid has n (1 +- 0.12) tokens, the
    whole numbers next to n are taken. Costs about 0.12 sqrt(n) candidates.

    Args:
        height: of the image, in px.
        width: of the image, in px.
        tokens: requested number of tokens n.
        cap: most tokens allowed, at least 1.
        patch: (height, width) of a token in px.
    """
    # integers from here on: fractions are ten times slower, and floats differ between machines
    top, bottom = min(tokens, Fraction(cap)).as_integer_ratio()
    fewest = max(1, ceil_div(top * (100 - SLACK_PERCENT), bottom * 100))
    most = min(cap, top * (100 + SLACK_PERCENT) // (bottom * 100))
    if most < fewest:
        fewest, most = max(1, top // bottom), max(1, min(cap, ceil_div(top, bottom)))
    # rows : columns of an undistorted grid is up : across
    up, across = height * patch[1], width * patch[0]
    # a first grid, from the rows nearest the undistorted ones
    middle = min(most, _rounded_root(Fraction(top * up, bottom * across)))
    rows = (h for step in range(most) for h in (middle - step, middle + step) if 1 <= h <= most)
    best = next(grid for grid in (_best_columns(h, fewest, most, up, across) for h in rows) if grid)
    large, small = _error(best, up, across)
    # a better one has h/w within a factor large/small of up/across, and h^2 = (h w)(h/w)
    low = math.isqrt(fewest * up * small // (across * large))
    high = math.isqrt(most * up * large // (across * small))
    for h in range(max(1, low), min(most, high) + 1):
        grid = _best_columns(h, fewest, most, up, across)
        if grid is None:
            continue
        error = _error(grid, up, across)
        worse = error[0] * small - large * error[1]
        nearer = (abs(grid[0] * grid[1] * bottom - top), grid[0]) < (abs(best[0] * best[1] * bottom - top), best[0])
        if worse < 0 or (worse == 0 and nearer):
            best, (large, small) = grid, error
    return best


def _error(grid: tuple[int, int], up: int, across: int) -> tuple[int, int]:
    """Returns the aspect error of a grid as (larger, smaller): their ratio is 1 where the aspect is kept."""
    tall, wide = grid[0] * across, grid[1] * up
    return (tall, wide) if tall > wide else (wide, tall)


def _best_columns(h: int, fewest: int, most: int, up: int, across: int) -> tuple[int, int] | None:
    """Returns the grid of h rows with the least aspect error within the token limits, or None if no width fits."""
    low, high = ceil_div(fewest, h), most // h
    if low > high:
        return None
    # exact = h across / up columns; w below it beats w + 1 where exact^2 < w (w + 1)
    below = max(1, h * across // up)
    nearest = below if (h * across) ** 2 <= below * (below + 1) * up**2 else below + 1
    return h, min(high, max(low, nearest))


def sample(
    example: Example, view: int, rule: Resolution, patch: Tubelet, cap: int, oversize: str, seed: int
) -> Reference | Reject:
    """Returns one view of an example with its size drawn and its grid chosen, or a reject if it cannot fit.

    Args:
        example: as probed.
        view: number of the view.
        rule: of --resolution.
        patch: the tubelet, (frames, height px, width px).
        cap: most tokens of one example.
        oversize: "shrink" takes a smaller grid of the same aspect, "reject" rejects.
        seed: of the build.
    """
    example = example.of_view(view)
    height, width = example.source_height, example.source_width
    steps = ceil_div(max(1, len(example.frame_pts)), patch[0])
    side = 0
    if rule.native:
        target = height, width
        h, w = (max(1, (2 * size + side) // (2 * side)) for size, side in zip(target, patch[1:], strict=True))
    else:
        side = rule.low + (draw(seed, example.example_id, view) * (rule.high - rule.low + 1) >> 64)
        target = size_of_side(side, height, width)
        h, w = nearest_grid(height, width, Fraction(side * side, patch[1] * patch[2]), _NO_CAP, patch[1:])
    uncapped = 0
    if steps * h * w > cap:
        if oversize == "reject" or steps > cap:
            return reject(example.source.key, "sample", "oversize", _oversize(steps, h * w, cap, oversize))
        side, uncapped = 0, steps * h * w
        h, w = nearest_grid(height, width, Fraction(cap // steps), cap // steps, patch[1:])
    if max(steps, h, w) > MAX_GRID:
        detail = f"grid {steps}x{h}x{w}; positions are int16, so at most {MAX_GRID} a side; use a larger --tubelet"
        return reject(example.source.key, "sample", "oversize", detail)
    return Reference(example, view, side, *target, Grid(steps, h, w), uncapped)


def candidate_lengths(reference: Reference, slack: Fraction, patch: Tubelet, cap: int) -> dict[int, tuple[int, Grid]]:
    """Returns the token counts an example may have, each with its cost in tokens and its grid, by rising count.

    Args:
        reference: with its requested grid.
        slack: most change of the side, as a fraction.
        patch: the tubelet, (frames, height px, width px).
        cap: most tokens of one example.
    """
    example, steps = reference.example, reference.grid[0]
    if not reference.side:  # native sizes stay, and those that were shrunk
        return {reference.num_tokens: (0, reference.grid)}
    grids = candidate_grids(
        example.source_height, example.source_width, reference.grid[1:], slack, cap // steps, patch[1:]
    )
    return {steps * count: (steps * cost, Grid(steps, h, w)) for count, (cost, (h, w)) in grids.items()}


@lru_cache(maxsize=2**16)  # photos of one camera have one size, and drawn sides are few
def candidate_grids(
    height: int, width: int, grid: tuple[int, int], slack: Fraction, cap: int, patch: tuple[int, int]
) -> dict[int, tuple[int, tuple[int, int]]]:
    """Returns {tokens: (cost in tokens, grid)} of the grids about the requested one, by rising count.

    Aspect errors stay within 5 % or that of the requested grid. The cost is a little more than the change of the count, and the
    count's part by which the aspect error grows; 0 for the requested grid alone.

    Args:
        height: of the source, in px.
        width: of the source, in px.
        grid: the requested one.
        slack: most change of the side, as a fraction.
        cap: most tokens of one frame step.
        patch: (height, width) of a token in px.
    """
    # rows : columns of an undistorted grid is up : across
    up, across = height * patch[1], width * patch[0]
    count, own_error = grid[0] * grid[1], Fraction(*_error(grid, up, across))
    most_error = max(own_error, MOST_ASPECT_ERROR)
    fewest, most = math.ceil(count / (1 + slack) ** 2), min(cap, math.floor(count * (1 + slack) ** 2))
    options = {count: (0, grid)}
    # h^2 = (h w) (h / w), and h / w is within a factor of the undistorted one
    lowest, highest = Fraction(fewest * up, across) / most_error, Fraction(most * up, across) * most_error
    for h in range(max(1, math.isqrt(math.floor(lowest))), min(MAX_GRID, math.isqrt(math.floor(highest))) + 1):
        undistorted = Fraction(h * across, up)
        for w in range(
            max(1, math.ceil(undistorted / most_error)), min(MAX_GRID, math.floor(undistorted * most_error)) + 1
        ):
            if fewest <= h * w <= most and (h, w) != grid:
                worse = max(Fraction(0), Fraction(*_error((h, w), up, across)) - own_error)
                cost = math.ceil(abs(h * w - count) * TOKEN_COST + worse * count)
                if h * w not in options or cost < options[h * w][0]:
                    options[h * w] = (max(1, cost), (h, w))
    return dict(sorted(options.items()))


def dropped_counts(num_tokens: int, slack: Fraction) -> list[tuple[int, int]]:
    """Returns the token counts an example may have by dropping some, (count, cost in tokens), by rising count.

    Args:
        num_tokens: without dropping.
        slack: most of them that are dropped, as a fraction.
    """
    most = math.floor(num_tokens * slack)
    # of many counts some, and all of the nearest: a sum that fits exactly is found with few
    numbers = sorted({most * part // MOST_DROPS for part in range(MOST_DROPS + 1)} | set(range(min(most, 8) + 1)))
    return [(num_tokens - number, math.ceil(number * TOKEN_COST)) for number in reversed(numbers)]


def _oversize(steps: int, step_tokens: int, cap: int, oversize: str) -> str:
    if steps > cap:
        return f"{steps} time steps; --max-tokens-per-example is {cap}; raise it or lower --clip-frames"
    what = (
        f"{step_tokens} tokens in one frame step"
        if step_tokens > cap
        else f"{steps * step_tokens} tokens in {steps} frame steps"
    )
    return f"{what}; --max-tokens-per-example is {cap} and --oversize is {oversize}; raise it or use --oversize shrink"


def _rounded_root(value: Fraction) -> int:
    """Returns the square root to the nearest whole number, at least 1."""
    # sqrt(x) rounds to r where (2r-1)^2 <= 4x < (2r+1)^2
    return max(1, (math.isqrt(math.floor(4 * value)) + 1) // 2)
