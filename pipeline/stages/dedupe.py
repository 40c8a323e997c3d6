"""Stage 3: inputs of equal bytes: one is kept, by name and not by chance, and the others are rejects that name it.

The digest is xxh3_128 over the whole file, taken when it is probed: one more read of every file, at the speed of
the storage. Only equal bytes are equal here: an image saved twice is two images.
"""

from collections.abc import Iterable, Iterator

import xxhash

from patchpack.pipeline.inputs.opened import open_source
from patchpack.pipeline.stages.records import Example, Ignored, Reject, Source

_BLOCK_BYTES = 2**20

# instead of a bucket: an input that an earlier generation has packed
PACKED_BEFORE = -1

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


def rejects_of_copies(
    same: tuple[str, Iterable[tuple[str, int, int]]],
) -> Iterator[tuple[int, tuple[str, str, int]]]:
    """Yields, by bucket, the inputs of one content but one: key, the key that is kept, number of examples.

    Kept is the least key, or that of an input that was packed before. Goes through them twice and holds none: a placeholder
    image may have come a million times.

    Args:
        same: a digest, and of each input of that content the key, the bucket and how many examples it has.
    """
    _, inputs = same
    _, kept = min((bucket != PACKED_BEFORE, key) for key, bucket, _ in inputs)
    for key, bucket, num_examples in inputs:
        if key != kept and bucket != PACKED_BEFORE:
            yield bucket, (key, kept, num_examples)
