"""From a size and a number of tokens to a grid, in integers alone, so that every machine finds the same one.

The grid taken is the one of least aspect error among those whose counts the rule allows: n (1 +- 0.12) tokens of a drawn
size, 0.8 N to N of a fixed budget. A cell is what one step of the grid covers, (height, width) in px: the tubelet's
stride, times the multiple that grids are to have. Gives up exact token counts for the least aspect error: of drawn
sizes on average 0.3 % at 1,024 tokens, 1.2 % at 256 and 6 % at 64 (sides uniform in 200..4000 px), where there are few grids.
"""

import math
from fractions import Fraction
from functools import lru_cache

from patchpack.schemas.geometry import MAX_GRID, ceil_div

Size = tuple[int, int]

# of a drawn size: a grid may have n (1 +- 0.12) tokens for a requested n
SLACK_PERCENT = 12
# of a fixed budget N: at least 0.8 N
BUDGET_PERCENT = 80

# Planned counts take no grid whose aspect error is larger than 5 %, or the larger one of the requested grid.
MOST_ASPECT_ERROR = Fraction(105, 100)
# What a token more or less costs, in tokens of padding: above 1, so that nothing changes but for more padding than it saves.
TOKEN_COST = Fraction(115, 100)

# rows and columns are unlimited
NO_LIMIT = (2**62, 2**62)


def size_of_area(area: int, height: int, width: int) -> Size:
    """Returns (height, width) in px of that area and of the given aspect, to the nearest pixel."""
    # sqrt(x) rounds to r where (2r-1)^2 <= 4x < (2r+1)^2
    tall = (math.isqrt(4 * area * height // width) + 1) // 2
    wide = (math.isqrt(4 * area * width // height) + 1) // 2
    return max(1, tall), max(1, wide)


def nearest_grid(height: int, width: int, tokens: Fraction, cap: int, cell: Size, limits: Size = NO_LIMIT) -> Size:
    """Returns the (h, w) of least aspect error among the grids of about the target number of tokens.

    Of equals, the one nearest the target count, then the fewer rows. Where no grid has n (1 +- 0.12) tokens, the
    whole numbers next to n are taken. Costs about 0.12 sqrt(n) candidates.

    Args:
        height: of the image, in px.
        width: of the image, in px.
        tokens: requested number of tokens n.
        cap: most tokens allowed, at least 1.
        cell: (height, width) of a token in px.
        limits: most rows and columns; where they allow too few tokens for the target, the grid is at them.
    """
    # integers from here on: fractions are ten times slower, and floats differ between machines
    top, bottom = tokens.as_integer_ratio()
    if top > cap * bottom:
        top, bottom = cap, 1
    fewest = max(1, ceil_div(top * (100 - SLACK_PERCENT), bottom * 100))
    most = min(cap, top * (100 + SLACK_PERCENT) // (bottom * 100))
    if most < fewest:
        fewest, most = max(1, top // bottom), max(1, min(cap, ceil_div(top, bottom)))
    return _least_error(height, width, (fewest, most), (top, bottom), cell, limits)


def budget_grid(height: int, width: int, budget: int, cell: Size, limits: Size = NO_LIMIT) -> Size:
    """Returns the (h, w) of least aspect error among the grids of 0.8 N to N tokens; of equals the larger.

    Args:
        height: of the image, in px.
        width: of the image, in px.
        budget: most tokens N, at least 1.
        cell: (height, width) of a token in px.
        limits: as for `nearest_grid`.
    """
    fewest = ceil_div(budget * BUDGET_PERCENT, 100)
    return _least_error(height, width, (fewest, budget), (budget, 1), cell, limits)


def _least_error(
    height: int, width: int, counts: tuple[int, int], target: tuple[int, int], cell: Size, limits: Size
) -> Size:
    """Returns the grid of least aspect error with a number of tokens in a range, at the target as nearly as may be."""
    # rows : columns of an undistorted grid is up : across
    up, across = height * cell[1], width * cell[0]
    (fewest, most), (top, bottom), (most_rows, most_columns) = counts, target, limits
    if most_rows * most_columns < fewest:
        return most_rows, most_columns
    # rows are looked at from the nearest to the undistorted ones down, then up; one that is better than another has h/w within
    # a factor large/small of up/across, and h^2 = (h w)(h/w)
    low, high = max(1, ceil_div(fewest, most_columns)), min(most, most_rows)
    middle = min(high, max(low, (math.isqrt(4 * top * up // (bottom * across)) + 1) // 2))
    best, large, small, off = (0, 0), 1, 0, 0
    for h, step in ((middle, -1), (middle + 1, 1)):
        while low <= h <= high:
            # exact = tall / up columns; w below it beats w + 1 where exact^2 < w (w + 1)
            tall = h * across
            w = tall // up
            if tall * tall > w * (w + 1) * up * up:
                w += 1
            if w > most_columns or not fewest <= h * w <= most:
                w = min(most // h, most_columns, max(ceil_div(fewest, h), w))
            if h * w >= fewest:
                wide = w * up
                larger, smaller = (tall, wide) if tall > wide else (wide, tall)
                # small is 0 before the first: everything is better than that
                difference = larger * small - large * smaller
                distance = abs(h * w * bottom - top)
                if difference < 0 or not small or (difference == 0 and (distance, h) < (off, best[0])):
                    best, large, small, off = (h, w), larger, smaller, distance
                    low = max(low, math.isqrt(fewest * up * small // (across * large)))
                    high = min(high, math.isqrt(most * up * large // (across * small)))
            h += step
    # few tokens and limits that are too low for the prime number of them
    return best if small else _least_error(height, width, (fewest - 1, most), target, cell, limits)


def aspect_error(grid: Size, up: int, across: int) -> tuple[int, int]:
    """Returns the aspect error of a grid as (larger, smaller): their ratio is 1 where the aspect is kept."""
    tall, wide = grid[0] * across, grid[1] * up
    return (tall, wide) if tall > wide else (wide, tall)


@lru_cache(maxsize=2**16)  # photos of one camera have one size, and drawn sides are few
def candidate_grids(
    height: int, width: int, grid: Size, slack: Fraction, cap: int, cell: Size, limits: Size = NO_LIMIT
) -> dict[int, tuple[int, Size]]:
    """Returns {tokens: (cost in tokens, grid)} of the grids about the requested one, by rising count.

    Aspect errors stay within 5 % or that of the requested grid. The cost is a little more than the change of the count, and the
    count's part by which the aspect error grows; 0 for the requested grid alone.

    Args:
        height: of the source, in px.
        width: of the source, in px.
        grid: the requested one.
        slack: most change of the side, as a fraction.
        cap: most tokens of one frame step.
        cell: (height, width) of a token in px.
        limits: most rows and columns.
    """
    # rows : columns of an undistorted grid is up : across; fractions are pairs of integers, ten times as fast as Fraction
    up, across = height * cell[1], width * cell[0]
    count, (own, of_own) = grid[0] * grid[1], aspect_error(grid, up, across)
    most, of_most = MOST_ASPECT_ERROR.as_integer_ratio()
    if own * of_most > most * of_own:
        most, of_most = own, of_own
    larger, smaller = (slack.numerator + slack.denominator) ** 2, slack.denominator**2
    fewest_tokens, most_tokens = ceil_div(count * smaller, larger), min(cap, count * larger // smaller)
    most_rows, most_columns = (min(MAX_GRID, limit) for limit in limits)
    options = {count: (0, grid)}
    # h^2 = (h w) (h / w), and h / w is within a factor of the undistorted one
    lowest = math.isqrt(fewest_tokens * up * of_most // (across * most))
    highest = math.isqrt(most_tokens * up * most // (across * of_most))
    a_token, in_tokens = TOKEN_COST.as_integer_ratio()
    for h in range(max(1, lowest), min(most_rows, highest) + 1):
        tall = h * across
        first = max(1, ceil_div(tall * of_most, up * most), ceil_div(fewest_tokens, h))
        last = min(most_columns, tall * most // (up * of_most), most_tokens // h)
        for w in range(first, last + 1):
            if (h, w) == grid:
                continue
            tokens, wide = h * w, w * up
            large, small = (tall, wide) if tall > wide else (wide, tall)
            # ceil(tokens more or less * TOKEN_COST + (aspect error - own) * count)
            worse = max(0, large * of_own - own * small) * in_tokens * count
            unit = small * of_own
            cost = max(1, ceil_div(abs(tokens - count) * a_token * unit + worse, in_tokens * unit))
            if tokens not in options or cost < options[tokens][0]:
                options[tokens] = (cost, (h, w))
    return dict(sorted(options.items()))
