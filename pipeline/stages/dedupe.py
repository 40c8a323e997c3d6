"""Stage 3: inputs of equal bytes: one is kept, by name and not by chance, and the others are rejects that name it.

The digest is xxh3_128 over the whole file, taken when it is probed: one more read of every file, at the speed of
the storage. Only equal bytes are equal here: an image saved twice is two images.
"""

from collections.abc import Iterable, Iterator

import xxhash

from patchpack.pipeline.stages.records import Example, Outcome, Reference, reject
from patchpack.pipeline.storage import files

_BLOCK_BYTES = 2**20


def with_digest(outcomes: list[Outcome], path: str) -> list[Outcome]:
    """Returns what probing a file gave, its examples with the digest of the file.

    Raises:
        OSError: it cannot be read.
    """
    if not any(isinstance(outcome, Example) for outcome in outcomes):
        return outcomes
    digest = xxhash.xxh3_128()
    with files.open_read(path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    name = digest.hexdigest()
    return [
        outcome._replace(source=outcome.source._replace(digest=name)) if isinstance(outcome, Example) else outcome
        for outcome in outcomes
    ]


def content_of(outcome: Outcome) -> str:
    """Returns what equal inputs have equal: the digest of an example's file; the key of what has none."""
    if isinstance(outcome, Example):
        return outcome.source.digest
    return f"key:{outcome.example.source.key if isinstance(outcome, Reference) else outcome.key}"


def keep_least(same: Iterable[Outcome]) -> Iterator[Outcome]:
    """Yields the outcomes of one content: of the least key as they are, and for each other example its key's Reject.

    Equal Rejects become one row when their group is planned. Goes through the outcomes twice and holds none of them: a
    placeholder image may have come a million times.
    """
    least = min((outcome.source.key for outcome in same if isinstance(outcome, Example)), default="")
    for outcome in same:
        if not isinstance(outcome, Example) or outcome.source.key == least:
            yield outcome
        else:
            yield reject(outcome.source.key, "dedupe", "duplicate", f"the same bytes as {least}")
