"""What `diff --json` prints and `patchpack.diff` returns, key by key.

A and B are the datasets in the order given. Names of figures are those of report.json, inner ones behind a dot; fractions are of 1.
"""

from typing import Annotated, Literal, TypedDict

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
    """One of the two datasets."""

    dataset: Annotated[str, "path or URI, without a password"]
    dataset_digest: Annotated[str, "digest of the dataset, 32 hex digits"]


class Row(TypedDict):
    """One figure or setting."""

    name: Annotated[str, "as in report.json, which has its unit; inner names behind a dot"]
    a: Annotated[object, "value of A; null where it does not say"]
    b: Annotated[object, "value of B; null where it does not say"]
    change: Annotated[Number | None, "B - A where both are numbers, in their unit"]


class Names(TypedDict):
    """Some names."""

    num: Annotated[int, "how many there are"]
    first: Annotated[list[str], "the first few"]


class OnlyIn(TypedDict):
    """Names that one of the two has alone."""

    a: Annotated[Names, "those of A"]
    b: Annotated[Names, "those of B"]


class Pair(TypedDict):
    """One distribution of both, as in report.json."""

    a: Annotated[Distribution, "that of A"]
    b: Annotated[Distribution, "that of B"]


class Comparison(TypedDict):
    """How two datasets differ."""

    comparison_version: Annotated[int, "version of the meaning of these keys; a key more is not a new version"]
    equal: Annotated[bool, "whether nothing differs, and the digests are equal"]
    equal_digests: Annotated[bool, "whether the shards are the same to the byte"]
    differing: Annotated[list[SectionName | NamesName], "the sections and kinds of names that differ"]
    a: Annotated[Side, "the first dataset"]
    b: Annotated[Side, "the second dataset"]
    sections: Annotated[dict[SectionName, list[Row]], "figures and settings of both, by section"]
    only_in: Annotated[dict[NamesName, OnlyIn], "names that one of the two has alone, by kind"]
    histograms: Annotated[dict[ChartName, Pair], "distributions of both, as in report.json"]
