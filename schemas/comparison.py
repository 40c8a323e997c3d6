"""What `diff --json` prints and `patchpack.diff` returns, key by key.

A and B are the datasets in the order given. Names of figures are those of report.json, inner ones behind a dot; fractions are of 1.
"""

from typing import Literal, TypedDict

from patchpack.schemas.figures import Distribution, Number

# options; counts of inputs, examples and frames; efficiency and bounds; statistics of distributions; costs and mixing; what was made
# to fit; rejects by stage and reason; layouts; classes, with those that have another number in B
SectionName = Literal[
    "config", "counts", "efficiency", "distributions", "arrangement", "sizes", "rejects", "layouts", "classes"
]
# keys that are stored or rejected; keys that are rejected, not counting videos of which a part is kept; names of classes
NamesName = Literal["inputs", "rejected", "class_names"]
ChartName = Literal["tokens_per_example", "examples_per_sequence", "sequence_fill"]


class Side(TypedDict):
    """One of the two datasets; `dataset` is its path or URI, without a password."""

    dataset: str
    dataset_digest: str


class Row(TypedDict):
    """One figure or setting; None where a dataset does not say. `change` is B - A where both are numbers."""

    name: str
    a: object
    b: object
    change: Number | None


class Names(TypedDict):
    """How many names there are, and the first few."""

    num: int
    first: list[str]


class OnlyIn(TypedDict):
    """Names that one of the two has alone."""

    a: Names
    b: Names


class Pair(TypedDict):
    """One distribution of both, as in report.json."""

    a: Distribution
    b: Distribution


class Comparison(TypedDict):
    """How two datasets differ. `differing` names the sections and names that do; equal: none, and equal digests."""

    comparison_version: int
    equal: bool
    # the shards are the same to the byte
    equal_digests: bool
    differing: list[SectionName | NamesName]
    a: Side
    b: Side
    sections: dict[SectionName, list[Row]]
    only_in: dict[NamesName, OnlyIn]
    histograms: dict[ChartName, Pair]
