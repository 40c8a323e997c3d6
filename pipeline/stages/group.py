"""Stage 5: which examples are planned together.

A group is a hash of the key, so that clips and views of one source meet in it, whatever else is there and in whatever
order inputs arrive. Groups hold about `--group-size` examples; planning cuts larger ones.
"""

import xxhash

from patchpack.schemas.geometry import ceil_div


def num_groups(num_examples: int, group_size: int) -> int:
    """Returns how many groups there are; at least one, for rejects alone."""
    return max(1, ceil_div(num_examples, group_size))


def group_of(key: str, seed: int, num_groups: int) -> int:
    """Returns the group of an input: clips and views of one source share it."""
    return xxhash.xxh3_64_intdigest(f"{seed}\0{key}".encode()) % num_groups
