"""Options of how examples are packed and sequences stored."""

from dataclasses import dataclass

from patchpack.options import amount, option
from patchpack.pipeline.inputs.text import described
from patchpack.pipeline.settings.sections import OUTPUT, PACKING
from patchpack.schemas.geometry import CODECS, NO_CODEC


@dataclass(frozen=True)
class PackingOptions:
    """Which example goes where."""

    # four images of the largest default side, or ~11 of the mean side
    sequence_length: int = option(
        1024, "tokens in a sequence, padding included", section=PACKING, common=True, metavar="L"
    )
    max_segments: int = option(64, "most examples in one sequence", section=PACKING, common=True, metavar="S")
    max_tokens_per_example: int | None = option(
        None, "most tokens of one example; left out: the sequence length", section=PACKING, common=True
    )
    oversize: str = option(
        "shrink",
        "what happens to an example over --max-tokens-per-example",
        section=PACKING,
        common=True,
        choices=("shrink", "reject"),
    )
    # far below the range that sides are drawn from
    resolution_slack: float = option(
        0.05,
        "most change of a drawn side, as a fraction, where that saves 1 of 1,000 sequences; 0: none; native sizes stay",
        section=PACKING,
        metavar="F",
    )
    captions: str = option(
        "none",
        "pack a caption of each example beside it, as text tokens with segment ids of their own: bytes of UTF-8, or the JSON file of "
        "a tokenizer of the tokenizers library; each view draws one of several captions",
        section=PACKING,
        common=True,
        metavar="none|bytes|FILE",
        record=described,
    )
    # as many as image tokens: with the default 64 of a caption, text then seldom ends a sequence
    text_length: int | None = option(
        None,
        "text tokens beside a sequence, padding included; left out: the sequence length",
        section=PACKING,
        metavar="T",
    )
    # SigLIP (arXiv 2303.15343) and SigLIP 2 train with 64
    max_text_tokens: int = option(64, "most tokens of one caption; the rest is cut off", section=PACKING, metavar="N")
    # packing gets no better above this (within 0.05 % of a global plan), and a group fits any worker
    group_size: int = option(16_384, "most examples packed together", section=PACKING)
    # off: only ranks that step together gain, and shards then hold whole steps whatever --shard-bytes
    balance_step: int | None = option(
        None,
        "store sequences in steps of W of near-equal attention cost, for W ranks that train together; left out: none",
        section=PACKING,
        metavar="W",
    )

    # large enough to stream, small enough to redo
    shard_bytes: int = option(
        256_000_000,
        "aim for shards of at most this many bytes, before a codec makes them fewer",
        section=OUTPUT,
        parse=amount,
        metavar="BYTES",
    )
    # off: a core reads about a fifth as fast (docs/decisions.md), which pays where storage is slow or far
    codec: str = option(
        NO_CODEC,
        "gradient-zstd: store tokens compressed without loss, about half as large or less, for object storage; the trainer decodes "
        "them as it reads",
        section=OUTPUT,
        common=True,
        choices=CODECS,
    )
    # one bad file in a hundred is usual for crawled data; more means something else is wrong
    max_reject_fraction: float = option(
        0.01,
        "fail when a larger fraction of the inputs is rejected (from 100 inputs on)",
        section=OUTPUT,
        common=True,
        metavar="F",
        affects_output=False,
    )
