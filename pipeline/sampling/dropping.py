"""The rules of --drop-tokens: which fraction of a view's tokens is left out, and which tokens are kept.

    none             all tokens are kept
    constant:P       a fraction P is dropped (NaViT, arXiv 2307.06304, section 3.3)
    beta:MEAN,MAX    a fraction of Beta distribution between 0 and MAX (NaViT, appendix B.7: variance 0.3 u (1 - u) of
                     u = fraction / MAX)
    resolution:LO-HI from LO of the smallest side to HI of the largest, and about it a normal distribution of sigma 0.02
                     cut off at two sigma (NaViT, appendix B.7, with the side in the place of the length)
    schedule:A->B    from A of the first view to B of the last along a sigmoid (NaViT, appendix B.7); views are epochs

Kept counts and positions depend on (seed, example_id, view) alone. What is kept is the beginning of a random order of all
tokens, which is stored: a trainer that keeps fewer takes the beginning of that.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from patchpack.pipeline.sampling.draws import beta, permutation, truncated_normal
from patchpack.schemas.geometry import ceil_div

# NaViT, appendix B.7
BETA_VARIANCE = 0.3
SIGMA = 0.02
MOST_SIGMAS = 2
# so that the first and the last view are within 1 % of the two ends: sigmoid(5) = 0.993
SCHEDULE_ENDS = 5.0


@dataclass(frozen=True)
class Dropping:
    """A rule of --drop-tokens: its kind and its two numbers."""

    kind: str = "none"
    first: float = 0.0
    second: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Dropping":
        """Returns the rule that a text stands for.

        Raises:
            ValueError: none has that form.
        """
        kind, _, values = text.partition(":")
        if kind not in _SEPARATORS:
            raise _no_rule(text, f"it is one of {', '.join(_FORMS.values())}")
        separator = _SEPARATORS[kind]
        try:
            numbers = [float(part) for part in re.split(separator, values)] if separator or values else []
        except ValueError as error:
            raise _no_rule(text, f"it is {_FORMS[kind]}") from error
        ordered = kind == "schedule" or numbers == sorted(numbers)
        expected = 0 if kind == "none" else 1 if kind == "constant" else 2
        if len(numbers) != expected or not ordered or not all(0 <= number < 1 for number in numbers):
            raise _no_rule(text, f"it is {_FORMS[kind]}")
        return cls(kind, *numbers)

    @property
    def drops(self) -> bool:
        """Whether any token is ever left out."""
        return self.kind != "none"

    def rate(
        self, word: int, seed: int, example_id: str, view: int, num_views: int, side: float, span: tuple[int, int]
    ) -> float:
        """Returns the fraction that is dropped of one view, 0 <= rate < 1.

        Args:
            word: a random one.
            seed: of the build.
            example_id: of the example.
            view: its number.
            num_views: of the build.
            side: effective side in px that the view asks for.
            span: least and largest of them.
        """
        first, second = self.first, self.second
        if self.kind == "constant":
            return first
        if self.kind == "beta":
            u = first / second if second else 0.0
            if not 0 < u < 1:
                return first
            # alpha + beta + 1 = u (1 - u) / variance
            total = 1 / BETA_VARIANCE - 1
            return second * beta(u * total, (1 - u) * total, seed, f"drop\0{example_id}", view)
        if self.kind == "resolution":
            low, high = span
            mean = first + (second - first) * ((side - low) / (high - low) if high > low else 0.5)
            reach = MOST_SIGMAS * SIGMA
            drawn = truncated_normal(word, mean, SIGMA, mean - reach, mean + reach)
            return min(max(0.0, drawn), math.nextafter(1.0, 0.0))
        if self.kind == "schedule":
            part = view / (num_views - 1) if num_views > 1 else 0.5
            return first + (second - first) / (1 + math.exp(-SCHEDULE_ENDS * (2 * part - 1)))
        return 0.0


def num_kept(num_tokens: int, rate: float) -> int:
    """Returns how many of so many tokens are kept: to the nearest, and at least one."""
    return max(1, math.floor(num_tokens * (1 - rate) + 0.5))


def most_tokens(most_kept: int, rate: float) -> int:
    """Returns the most tokens of which at most so many are kept."""
    tokens = math.floor((most_kept + 0.5) / (1 - rate)) + 1
    while tokens > most_kept and num_kept(tokens, rate) > most_kept:
        tokens -= 1
    return tokens


def kept_tokens(num_tokens: int, kept: int, seed: int, example_id: str, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of the kept tokens in raster order, (kept,) int64, and the rank of each in the order to keep them."""
    order = permutation(num_tokens, seed, f"keep\0{example_id}", view)[:kept]
    ranks = np.argsort(order, kind="stable")
    return order[ranks], ranks


def fill_up(kept: list[int], most: list[int], capacity: int, align: int = 1) -> list[int]:
    """Returns how many tokens each example of a sequence keeps so that as few as may be are padding.

    What is free is shared out by the number of tokens, and what is then still free goes to the first that take it.

    Args:
        kept: of each example.
        most: that it may keep.
        capacity: tokens of the sequence.
        align: an example takes up a multiple of it.
    """
    runs = [ceil_div(count, align) for count in kept]
    room = [max(0, ceil_div(limit, align) - run) for limit, run in zip(most, runs, strict=True)]
    free = capacity // align - sum(runs)
    shares = [min(has, free * run // sum(runs)) for has, run in zip(room, runs, strict=True)]
    left = free - sum(shares)
    for at, has in enumerate(room):
        more = min(left, has - shares[at])
        shares[at] += more
        left -= more
    return [
        max(count, min(limit, (run + share) * align))
        for count, limit, run, share in zip(kept, most, runs, shares, strict=True)
    ]


_SEPARATORS: dict[str, str] = {"none": "", "constant": ",", "beta": ",", "resolution": "-", "schedule": "->"}
_FORMS = {
    "none": "none",
    "constant": "constant:P with 0 <= P < 1",
    "beta": "beta:MEAN,MAX with 0 <= MEAN <= MAX < 1",
    "resolution": "resolution:LO-HI with 0 <= LO <= HI < 1",
    "schedule": "schedule:A->B in quotes, both at least 0 and below 1",
}


def _no_rule(text: str, rule: str) -> ValueError:
    return ValueError(f"--drop-tokens {text}: no such rule; {rule}; leave it out for none")
