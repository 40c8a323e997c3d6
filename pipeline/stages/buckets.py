"""Buckets: inputs that are probed together, by a hash of their keys, so that equal keys meet and workers share the work.

A bucket is what a killed plan loses at most of its probing. There are enough of them for many workers, and so few that
what a bucket has for each group are rows and not a row.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import xxhash

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.inputs.split import parse_splits, split_of
from patchpack.pipeline.stages.list import OF_OTHER_SPLIT, source_place
from patchpack.pipeline.stages.records import Ignored, KeyConflict, LabelRow, Reject, Source
from patchpack.schemas.geometry import ceil_div

# as many inputs, a minute of probing local files; fewer where there would be too few buckets for many cores. From a million inputs on
# more, as their root: a part of a table is what a bucket has for a group, and with ten times the inputs there are ten times the
# groups, whose parts would each be a tenth
BUCKET_INPUTS = 4096
ENOUGH_BUCKETS = 64
LEAST_INPUTS = 16
ROOT_OF = 16
MOST_BUCKETS = 4096

LABEL_OF_NONE = "(label of no input)"


def num_buckets(num_inputs: int) -> int:
    """Returns how many buckets so many inputs are spread over; at least one."""
    few = min(ENOUGH_BUCKETS, ceil_div(num_inputs, LEAST_INPUTS))
    many = min(ceil_div(num_inputs, BUCKET_INPUTS), math.isqrt(num_inputs // ROOT_OF), MOST_BUCKETS)
    return max(1, few, many)


def bucket_of(key: str, num_buckets: int) -> int:
    """Returns the bucket of an input."""
    return xxhash.xxh3_64_intdigest(key.encode()) % num_buckets


def distinct(
    sources: Iterable[Source], labels: Iterable[LabelRow], roots: list[str]
) -> Iterator[Source | KeyConflict | Ignored]:
    """Yields each key's source once, with the labels of its key, and a KeyConflict for every other source of that key.

    Args:
        sources: of one bucket, in any order.
        labels: of its keys, from --labels FILE, in any order.
        roots: of the inputs, by number.
    """
    named: dict[str, dict[str, None]] = {}
    for row in sorted(labels, key=lambda row: row.number):
        named.setdefault(row.key, {})[row.label] = None
    first: dict[str, Source] = {}
    for source in sources:
        if source.key in first:
            one, two = sorted((source_place(first[source.key], roots), source_place(source, roots)))
            yield KeyConflict(source.key, (one, two))
        else:
            first[source.key] = source
    for key in sorted(first):
        source, of_key = first[key], named.pop(key, None)
        yield source if of_key is None else source._replace(facts=source.facts._replace(labels=tuple(of_key)))
    yield from (Ignored(key, LABEL_OF_NONE) for key in named)


def of_split(rows: Sequence[Source | Reject], config: PlanConfig) -> Iterator[Source | Reject | Ignored]:
    """Yields what belongs to the split of this build, and of other splits that it does not."""
    if config.split_name is None:
        yield from rows
        return
    splits = parse_splits(config.split or "")
    for row in rows:
        value = (row.facts.split if isinstance(row, Source) else "") or row.key
        yield row if split_of(value, splits) == config.split_name else Ignored(row.key, OF_OTHER_SPLIT)
