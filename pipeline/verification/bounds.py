"""What `verify` checks of the bounds: each is proven again from `bounds.parquet`, whose examples are those that were planned."""

from collections import Counter
from collections.abc import Iterator, Mapping

import pyarrow.compute as pc

from patchpack.pipeline.packing.proof import ProvenBound, check
from patchpack.schemas import FormatError, Manifest
from patchpack.schemas.manifest import BOUND_TABLE_NAME, BOUND_TABLE_SCHEMA, MANIFEST_NAME, read_table
from patchpack.schemas.storage import join

# of a view and layout, how many examples there are of each number of tokens
Lengths = Mapping[tuple[int, int], Counter[int]]


def bound_problems(folder: str, manifest: Manifest, stored: Lengths | None) -> Iterator[str]:
    """Yields bounds that their proof does not prove, and proofs of other examples than those of this dataset.

    Args:
        folder: of the dataset.
        manifest: of it.
        stored: what the shards hold; None where that is not known.
    """
    path = join(folder, BOUND_TABLE_NAME)
    try:
        table = read_table(folder, BOUND_TABLE_NAME, BOUND_TABLE_SCHEMA)
    except FormatError as error:
        yield str(error)
        return
    if problem := _sum_problem(table["length"].to_pylist(), table["num_examples"].to_pylist(), manifest):
        yield f"{path}: {problem}; the proofs are of what was planned; rebuild the dataset"
    for entry in manifest.bounds:
        key = entry["view"], entry["layout"]
        where = f"{join(folder, MANIFEST_NAME)}: view {key[0]}, layout {key[1]}"
        rows = table.filter((pc.field("view") == key[0]) & (pc.field("layout") == key[1]))
        try:
            check(ProvenBound(entry, rows), manifest.layouts[key[1]])
        except (ValueError, KeyError, IndexError) as error:
            yield f"{where}: a bound of {entry['bound']} is not proven by {BOUND_TABLE_NAME} ({error}); rebuild the dataset"
        planned = dict(zip(rows["length"].to_pylist(), rows["num_examples"].to_pylist(), strict=True))
        more = [
            length for length, count in (stored or {}).get(key, Counter()).items() if count > planned.get(length, 0)
        ]
        if more:
            yield (
                f"{where}: more examples of {min(more)} tokens are stored than {BOUND_TABLE_NAME} has; its bound is of others; "
                "rebuild the dataset"
            )


def _sum_problem(lengths: list[int], numbers: list[int], manifest: Manifest) -> str:
    planned = manifest.totals["planned"]
    num_segments, num_tokens = sum(numbers), sum(map(int.__mul__, lengths, numbers))
    if num_segments != planned["num_segments"]:
        return f"num_segments is {num_segments}; {MANIFEST_NAME} has {planned['num_segments']} planned"
    # lengths are what examples take up; where they are aligned, that is more than their tokens, and says nothing exact
    is_aligned = any(layout.align_tokens > 1 for layout in manifest.layouts)
    if num_tokens < planned["num_tokens"] or (not is_aligned and num_tokens > planned["num_tokens"]):
        return f"num_tokens is {num_tokens}; {MANIFEST_NAME} has {planned['num_tokens']} planned"
    return ""
