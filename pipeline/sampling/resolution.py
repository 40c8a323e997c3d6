"""The rules of --resolution: which size a view of an example asks for, and the grid that it gets.

    native           the source's size, to the nearest cell (NaViT, arXiv 2307.06304, section 3.2, at full resolution)
    side:LO-HI       the effective side drawn uniformly, height x width = side^2 (NaViT, section 3.2)
    area:LO-HI       the area drawn uniformly, in px
    ...~normal(m,s)  drawn by a normal distribution truncated to -1..1, which stand for LO and HI (NaViT, appendix B.6)
    tokens:N,N2,...  one of several budgets, 0.8 N to N tokens of least aspect error (NaFlex: SigLIP 2, arXiv 2502.14786, section 2.4)
    pix2struct:N     the largest grid of at most N tokens that keeps the aspect, rounded down (arXiv 2210.03347, section 2)
    pixels:MIN-MAX   the source's size, made to lie between two areas in px (Qwen2-VL, arXiv 2409.12191, section 2.1)
    square:R         R x R px, whatever the aspect (ViT, arXiv 2010.11929)

All but square keep the aspect. A cell is the tubelet's stride times --grid-multiple, (height, width) in px.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from patchpack.pipeline.sampling.draws import integer, truncated_normal
from patchpack.pipeline.sampling.grids import NO_LIMIT, Size, budget_grid, nearest_grid, size_of_area
from patchpack.schemas.geometry import ceil_div

# NaViT draws from the normal distribution between these two, which stand for the least and the largest size
_LEAST, _MOST = -1.0, 1.0

_NO_CAP = 2**62
_NORMAL = re.compile(r"normal\((?P<mean>[^,()]+),(?P<sigma>[^,()]+)\)")


class Requested(NamedTuple):
    """The size that a rule asks for: (height, width) in px before it meets a grid, and the grid in cells.

    `is_drawn` says that the size was drawn from a range, so that planned counts may depart from it. `budget` is the most
    cells of the whole view, where the rule is about them.
    """

    target: Size
    grid: Size
    is_drawn: bool = False
    budget: int | None = None


@dataclass(frozen=True)
class Resolution:
    """A rule of --resolution.

    Attributes:
        kind: its name.
        numbers: in px, px of area or tokens, as the kind says; none of native.
        normal: mean and sigma of the truncated normal distribution, or None where draws are uniform.
        upsample: whether a result may be larger than its source; else only where one cell is.
        fit: --fit, which rounds native sizes: resize to the nearest cell, pad up, crop down.
    """

    kind: str
    numbers: tuple[int, ...] = ()
    normal: tuple[float, float] | None = None
    upsample: bool = True
    fit: str = "resize"

    @classmethod
    def parse(cls, text: str, upsample: bool = True, fit: str = "resize") -> "Resolution":
        """Returns the rule that a text stands for.

        Raises:
            ValueError: none has that form.
        """
        named, _, how = text.partition("~")
        kind, _, values = named.partition(":")
        if kind not in _RULES or (how and kind not in _DRAWN):
            raise _no_rule(text, f"it is one of {', '.join(_FORMS.values())}")
        numbers = _numbers(kind, values)
        if numbers is None:
            raise _no_rule(text, f"it is {_FORMS[kind]}")
        normal = _parse_normal(how) if how else None
        if how and normal is None:
            raise _no_rule(text, "a normal distribution is written ~normal(MEAN,SIGMA), SIGMA over 0, in quotes")
        return cls(kind, numbers, normal, upsample, fit)

    @property
    def is_drawn(self) -> bool:
        """Whether a size is drawn from a range."""
        return self.kind in _DRAWN

    @property
    def span(self) -> tuple[int, int]:
        """Least and largest effective side in px of a rule that draws."""
        low, high = self.numbers
        return (low, high) if self.kind == "side" else (math.isqrt(low), math.isqrt(high))

    def request(self, height: int, width: int, steps: int, cell: Size, word: int) -> Requested:
        """Returns what one view asks for.

        Args:
            height: of the source, in px.
            width: of the source, in px.
            steps: cells in time; budgets are of all of them together.
            cell: (height, width) in px.
            word: a random one, for what is drawn.
        """
        return _RULES[self.kind](self, height, width, steps, cell, word)

    def limits(self, height: int, width: int, cell: Size) -> Size:
        """Returns the most rows and columns that a grid of a source may have."""
        return NO_LIMIT if self.upsample else (max(1, height // cell[0]), max(1, width // cell[1]))

    def _draw(self, word: int) -> int:
        low, high = self.numbers
        if self.normal is None:
            return integer(word, low, high)
        part = (truncated_normal(word, *self.normal, _LEAST, _MOST) - _LEAST) / (_MOST - _LEAST)
        return low + math.floor(part * (high - low) + 0.5)


def _native(rule: Resolution, height: int, width: int, steps: int, cell: Size, word: int) -> Requested:
    sizes = list(zip((height, width), cell, strict=True))
    if rule.fit == "pad":
        # the pixels stay as they are, so that nothing is enlarged either
        h, w = (ceil_div(size, side) for size, side in sizes)
    elif rule.fit == "crop" or not rule.upsample:
        h, w = (max(1, size // side) for size, side in sizes)
    else:
        h, w = (max(1, (2 * size + side) // (2 * side)) for size, side in sizes)
    return Requested((height, width), (h, w))


def _drawn(rule: Resolution, height: int, width: int, steps: int, cell: Size, word: int) -> Requested:
    area = rule._draw(word) ** (2 if rule.kind == "side" else 1)
    area = area if rule.upsample else min(area, height * width)
    limits = rule.limits(height, width, cell)
    grid = nearest_grid(height, width, Fraction(area, cell[0] * cell[1]), _NO_CAP, cell, limits)
    return Requested(size_of_area(area, height, width), grid, is_drawn=True)


def _budget(rule: Resolution, height: int, width: int, steps: int, cell: Size, word: int) -> Requested:
    whole = rule.numbers[integer(word, 0, len(rule.numbers) - 1)]
    budget = max(1, whole // steps)
    target = size_of_area(budget * cell[0] * cell[1], height, width)
    grid = budget_grid(height, width, budget, cell, rule.limits(height, width, cell))
    return Requested(target, grid, budget=whole)


def _pix2struct(rule: Resolution, height: int, width: int, steps: int, cell: Size, word: int) -> Requested:
    budget = max(1, rule.numbers[0] // steps)
    rows, columns = rule.limits(height, width, cell)
    # sqrt(N / (height/cell x width/cell)) cells a cell of the source, rounded down
    h = min(budget, rows, max(1, math.isqrt(budget * height * cell[1] // (width * cell[0]))))
    w = min(budget, columns, max(1, math.isqrt(budget * width * cell[0] // (height * cell[1]))))
    return Requested(size_of_area(budget * cell[0] * cell[1], height, width), (h, w), budget=rule.numbers[0])


def _pixels(rule: Resolution, height: int, width: int, steps: int, cell: Size, word: int) -> Requested:
    least, most = rule.numbers
    sizes = list(zip((height, width), cell, strict=True))
    # to the nearest cell, halves to the even one, as Python's round and so the published code does
    h, w = (max(1, round(Fraction(size, side))) for size, side in sizes)
    target = height, width
    if h * w * cell[0] * cell[1] > most:
        # each side by the root of most / area, rounded down to cells, and no side is empty
        h, w = (max(1, math.isqrt(most * size * size // (height * width)) // side) for size, side in sizes)
        # a side of one cell takes more than its part
        budget = max(1, most // (cell[0] * cell[1]))
        h, w = min(h, budget), min(w, max(1, budget // h))
        h = min(h, max(1, budget // w))
        target = size_of_area(most, height, width)
    elif h * w * cell[0] * cell[1] < least and rule.upsample:
        h, w = (_cells_over(least * size * size, height * width, side) for size, side in sizes)
        target = size_of_area(least, height, width)
        if h * w * cell[0] * cell[1] > most:
            h, w = budget_grid(height, width, max(1, most // (cell[0] * cell[1])), cell)
    rows, columns = rule.limits(height, width, cell)
    return Requested(target, (min(h, rows), min(w, columns)))


def _square(rule: Resolution, height: int, width: int, steps: int, cell: Size, word: int) -> Requested:
    side = rule.numbers[0]
    return Requested((side, side), (max(1, side // cell[0]), max(1, side // cell[1])))


_Rule = Callable[[Resolution, int, int, int, Size, int], Requested]
_RULES: dict[str, _Rule] = {
    "native": _native,
    "side": _drawn,
    "area": _drawn,
    "tokens": _budget,
    "pix2struct": _pix2struct,
    "pixels": _pixels,
    "square": _square,
}
_DRAWN = ("side", "area")
_FORMS = {
    "native": "native",
    "side": "side:LO-HI with 1 <= LO <= HI in px",
    "area": "area:LO-HI with 1 <= LO <= HI in px of area",
    "tokens": "tokens:N or tokens:N,N2,... with N >= 1",
    "pix2struct": "pix2struct:N with N >= 1",
    "pixels": "pixels:MIN-MAX with 1 <= MIN <= MAX in px of area",
    "square": "square:R with R >= 1 in px",
}


def _numbers(kind: str, values: str) -> tuple[int, ...] | None:
    """Returns the numbers of a rule, or None where it takes others."""
    if kind == "native":
        return None if values else ()
    if kind in ("side", "area", "pixels"):
        low, dash, high = values.partition("-")
        parts = [low, high] if dash else []
    else:
        parts = values.split(",")
    if not parts or (kind in ("pix2struct", "square") and len(parts) > 1) or not all(map(str.isdecimal, parts)):
        return None
    numbers = tuple(map(int, parts))
    is_span = kind in ("side", "area", "pixels")
    return numbers if min(numbers) >= 1 and (not is_span or numbers[0] <= numbers[1]) else None


def _parse_normal(text: str) -> tuple[float, float] | None:
    match = _NORMAL.fullmatch(text)
    try:
        mean, sigma = (float(match[name]) for name in ("mean", "sigma")) if match else (0.0, 0.0)
    except ValueError:
        return None
    return (mean, sigma) if math.isfinite(mean) and math.isfinite(sigma) and sigma > 0 else None


def _no_rule(text: str, rule: str) -> ValueError:
    return ValueError(f"--resolution {text}: no such rule; {rule}; leave it out for side:64-256")


def _cells_over(square: int, over: int, side: int) -> int:
    """Returns the least whole number of cells of a side whose length is at least sqrt(square / over)."""
    cells = math.isqrt(square // over) // side
    while (cells * side) ** 2 * over < square:
        cells += 1
    return max(1, cells)
