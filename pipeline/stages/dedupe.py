"""Stage 3: inputs of equal bytes: one is kept, by name and not by chance, and the others are rejects that name it.

The digest is xxh3_128 over the whole file, taken when it is probed: one more read of every file, at the speed of
the storage. Only equal bytes are equal here: an image saved twice is two images.
"""

from collections.abc import Iterable, Iterator

import xxhash

from patchpack.pipeline.inputs.opened import open_source
from patchpack.pipeline.stages.records import Example, Ignored, Reject, Source, reject

_BLOCK_BYTES = 2**20

Probed = Example | Reject | Ignored


def with_digest(probed: list[Probed], source: Source, path: str) -> list[Probed]:
    """Returns what probing an input gave, its examples with the digest of its content.

    Raises:
        OSError: it cannot be read.
    """
    if not any(isinstance(outcome, Example) for outcome in probed):
        return probed
    digest = xxhash.xxh3_128()
    with open_source(source, path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    name = digest.hexdigest()
    return [
        outcome._replace(source=outcome.source._replace(digest=name)) if isinstance(outcome, Example) else outcome
        for outcome in probed
    ]


def keep_least(same: Iterable[Example]) -> Iterator[Example | Reject]:
    """Yields the examples of one content: of the least key as they are, and for each other its key's Reject.

    Equal Rejects become one row when their group is planned. Goes through the examples twice and holds none of them: a
    placeholder image may have come a million times.
    """
    least = min(example.source.key for example in same)
    for example in same:
        if example.source.key == least:
            yield example
        else:
            yield reject(example.source.key, "dedupe", "duplicate", f"the same bytes as {least}")
