"""Splits by hash: which part of a dataset an input belongs to, whatever else is there, and whatever is added later."""

import math
import re
from typing import NamedTuple

import xxhash

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Split(NamedTuple):
    """A part of a dataset: its name, and the part of all hashes that is its own, from `low` up to `high`."""

    name: str
    low: float
    high: float


def parse_splits(text: str) -> tuple[Split, ...]:
    """Returns the splits that `train:0.98,val:0.02` stands for.

    Raises:
        ValueError: a name is no folder's, or the fractions do not add up to 1.
    """
    names, fractions = [], []
    for part in text.split(","):
        name, _, number = part.partition(":")
        try:
            fraction = float(number)
        except ValueError:
            fraction = 0.0
        if not _NAME.fullmatch(name) or name in names or not 0 < fraction <= 1:
            raise _no_splits(text)
        names.append(name)
        fractions.append(fraction)
    ends = [math.fsum(fractions[: number + 1]) for number in range(len(fractions))]
    if abs(ends[-1] - 1) > 1e-9:
        raise _no_splits(text)
    ends[-1] = 1.0
    return tuple(map(Split, names, [0.0, *ends[:-1]], ends))


def split_of(value: str, splits: tuple[Split, ...]) -> str:
    """Returns the name of the split that a key, or a value of --split-column, belongs to.

    Neither the seed nor other inputs change it, so that what was trained on stays out of validation.
    """
    place = xxhash.xxh3_64_intdigest(f"split\0{value}".encode()) / 2**64
    return next((split.name for split in splits if place < split.high), splits[-1].name)


def _no_splits(text: str) -> ValueError:
    return ValueError(
        f"--split {text}: no splits; they are NAME:FRACTION,NAME:FRACTION,... with names of folders, each once, and fractions that add "
        "up to 1, such as train:0.98,val:0.02"
    )
