"""What report.json and the totals of manifest.json hold, key by key: docs/report.md and docs/report.schema.json are made of it.

Every key says what it counts and in which unit. Fractions are of 1, never percent; None stands where there is nothing to divide by
or nothing to count.
"""

from typing import Annotated, Literal, TypedDict

from patchpack.schemas.figures import (
    AspectPlane,
    Captions,
    Classes,
    Clips,
    DecoderWarnings,
    ExampleDistributions,
    Fraction,
    Frames,
    Number,
    Options,
    SequenceDistributions,
)
from patchpack.schemas.geometry import LayoutRecord
from patchpack.schemas.whatif import Advice, WhatIf

CountName = Literal["num_sequences", "num_segments", "num_tokens"]
DistributionName = Literal[
    "tokens_per_example",
    "examples_per_sequence",
    "sequence_fill",
    "effective_side_px",
    "requested_side_px",
    "aspect_error",
    "side_change",
    "scale",
    "kept_fraction",
]


class Sizes(TypedDict):
    """What planning did so that examples fit; clips are among the examples."""

    num_examples: Annotated[int, "examples that were planned, clips among them, in all views"]
    num_clips: Annotated[int, "clips that were planned"]
    num_shrunk_clips: Annotated[int, "clips that were shrunk to the cap"]
    num_upscaled_clips: Annotated[int, "clips that are larger than their source"]
    num_short_clips: Annotated[int, "clips whose video ends before clip_frames"]
    num_slow_clips: Annotated[int, "clips of a source slower than fps"]
    num_slow_frames: Annotated[int, "frames repeated in the clips of slower sources"]
    num_shrunk: Annotated[int, "examples that were shrunk to the cap"]
    shrunk_side_median: Annotated[
        Fraction | None, "median of realised / requested side of the examples that were shrunk"
    ]
    shrunk_side_min: Annotated[Fraction | None, "least realised / requested side"]
    cap_for_all: Annotated[int | None, "least max_tokens_per_example that shrinks none, in tokens"]
    cap_for_95_percent: Annotated[
        int | None, "max_tokens_per_example that shrinks at most a twentieth of those that are shrunk now, in tokens"
    ]
    num_upscaled: Annotated[int, "examples that are larger than their source"]
    upscaled_side_median: Annotated[
        Number | None, "median of realised / source's side of those that are larger, a ratio"
    ]
    upscaled_side_max: Annotated[Number | None, "greatest realised / source's side, a ratio"]


class BoundCounts(TypedDict):
    """One view and layout as planned, against the proven least number of its sequences."""

    view: Annotated[int, "number of the view, from 0"]
    layout: Annotated[int, "number of the layout in layouts, from 0"]
    num_sequences: Annotated[int, "sequences that were planned"]
    bound: Annotated[int, "proven least number of sequences for the examples of all groups together"]
    num_moved: Annotated[
        int, "examples whose token count is not the one they asked for, so that sequences are fewer or fuller"
    ]
    num_chunks: Annotated[int, "sets of examples that were packed alone"]
    num_chunks_optimal: Annotated[int, "chunks whose own packing is proven optimal"]


class Bound(BoundCounts):
    """A bound in the manifest, with what its proof in bounds.parquet needs besides: see docs/format.md."""

    scale: Annotated[int, "most that the duals of one sequence add up to"]
    slot_dual: Annotated[int, "part of each dual that is paid for the example's segment"]


class ReportedBound(BoundCounts):
    """A bound, and how far the plan is from it."""

    gap: Annotated[int, "sequences above the bound"]
    gap_fraction: Annotated[float | None, "gap / bound, a ratio"]
    proven_optimal: Annotated[bool, "whether the gap is 0"]


class PlannedCounts(TypedDict):
    """What the plan holds."""

    num_sequences: Annotated[int, "sequences"]
    num_segments: Annotated[int, "examples in them"]
    num_tokens: Annotated[int, "real tokens in them, padding not counted"]


class PlannedTotals(PlannedCounts):
    """What the plan holds, and what decoding it takes."""

    num_shards: Annotated[int, "shards"]
    source_px: Annotated[int, "pixels to decode, all frames counted, in px"]
    source_bytes: Annotated[int | None, "size of the inputs' files, each once, in bytes; null where it is not known"]


class StoredTotals(PlannedCounts):
    """What the shards hold."""

    num_shards: Annotated[int, "shards"]
    bytes: Annotated[int, "size of all shards, in bytes"]


class ReportedTotals(StoredTotals):
    """What the shards hold, as the report counted it."""

    num_full_sequences: Annotated[int, "sequences without padding"]
    num_empty_sequences: Annotated[int, "sequences of padding alone: every example of theirs failed"]


class Totals(TypedDict):
    """The totals of a plan: what became of the inputs."""

    num_inputs: Annotated[int, "inputs that were listed and not ignored"]
    num_rejects: Annotated[int, "rejects; an input with several clips or views can have several"]
    ignored: Annotated[dict[str, int], "files that were passed over, by suffix or by why"]
    planned: Annotated[PlannedTotals, "what the plan holds"]
    sizes: Annotated[Sizes | None, "what planning did so that examples fit; null where patchpack did not sample them"]


class DatasetTotals(Totals):
    """The totals in a manifest."""

    stored: Annotated[StoredTotals, "what the shards hold"]


class InputTotals(TypedDict):
    """The totals in a report: what became of the inputs."""

    num_inputs: Annotated[int, "inputs that were listed and not ignored"]
    num_rejects: Annotated[int, "rows of rejects.parquet; an input with several clips or views can have several"]
    num_rejected_inputs: Annotated[int, "inputs with a reject, not counting videos of which a part is kept"]
    num_ignored: Annotated[int, "files that were passed over"]
    ignored: Annotated[dict[str, int], "files that were passed over, by suffix or by why, most first"]
    planned: Annotated[PlannedCounts, "what the plan holds"]
    stored: Annotated[ReportedTotals, "what the shards hold"]


class Efficiency(TypedDict):
    """Real tokens over those of all sequences."""

    efficiency: Annotated[Fraction | None, "real tokens / (sequences x sequence length), as stored, a fraction of 1"]
    padding_fraction: Annotated[Fraction | None, "padding / (sequences x sequence length), as stored, a fraction of 1"]
    planned_efficiency: Annotated[
        Fraction | None, "the efficiency of the plan, before any example failed, a fraction of 1"
    ]
    efficiency_at_bound: Annotated[
        Fraction | None, "the efficiency that no packing of the plan can exceed, a fraction of 1"
    ]


class RejectCount(TypedDict):
    """The rejects of one stage and reason."""

    stage: Annotated[str, "where: list, probe, dedupe, sample or write"]
    reason: Annotated[str, "why: one of the reasons in docs/format.md"]
    num_rejects: Annotated[int, "rows of rejects.parquet"]
    sample_keys: Annotated[list[str], "the first few keys of inputs, sorted"]


class AttentionCost(TypedDict):
    """What attention inside segments costs a sequence: the sum of n^2 over its examples of n tokens, in pairs of tokens."""

    mean: Annotated[float | None, "mean over sequences, in pairs of tokens"]
    max: Annotated[int, "that of the most expensive sequence, in pairs of tokens"]
    max_over_mean: Annotated[float | None, "max / mean, a ratio"]
    fraction_of_full: Annotated[Fraction | None, "sum over sequences / sum of their squared lengths, a fraction of 1"]


class StepBalance(TypedDict):
    """How evenly steps of several sequences cost: the maximum of their attention costs over the mean, 1 where all are equal."""

    balance_step: Annotated[int | None, "sequences of a stored step; null without --balance-step"]
    num_sequences: Annotated[int, "sequences of the steps that the figures speak of"]
    random_max_over_mean: Annotated[float | None, "mean of maximum / mean over steps drawn at random, a ratio"]
    random_by_ranks: Annotated[
        dict[str, float | None],
        "mean of maximum / mean over random steps of 8, 64 and 256 sequences, by their number, a ratio",
    ]
    num_steps: Annotated[int, "steps that are stored; 0 without --balance-step"]
    mean_max_over_mean: Annotated[float | None, "mean of maximum / mean over the stored steps, a ratio"]
    worst_max_over_mean: Annotated[float | None, "greatest maximum / mean of a stored step, a ratio"]
    fraction_within_limit: Annotated[
        Fraction | None, "stored steps within the limit of 1.02 / all of them, a fraction of 1"
    ]


class SegmentLimit(TypedDict):
    """Sequences that hold as many examples as max_segments lets them, and what stays empty in them."""

    num_at_limit: Annotated[int, "sequences with max_segments examples"]
    num_padding_tokens_at_limit: Annotated[int, "padding of these sequences, in tokens"]


class Storage(TypedDict):
    """What takes up the shards, and how much larger they are than the files they were made of."""

    bytes_by_column: Annotated[dict[str, int], "bytes of each column of the shards, the largest first, in bytes"]
    footer_bytes: Annotated[int, "what the shards hold besides, in bytes"]
    source_bytes: Annotated[int | None, "size of the inputs' files, each once, in bytes; null where it is not known"]
    factor: Annotated[float | None, "bytes of the shards / those of the inputs' files, a ratio"]


class Mixing(TypedDict):
    """How well sequences mix lengths and sources."""

    length_correlation: Annotated[
        float | None,
        "intraclass correlation of examples' token counts: 0 as at random, 1 where each sequence holds one length",
    ]
    source_span: Annotated[
        Fraction | None,
        "part of the listing between a sequence's first and last example, mean over sequences, a fraction of 1",
    ]
    random_source_span: Annotated[Fraction | None, "source_span if examples were dealt at random, a fraction of 1"]


class Arranged(TypedDict):
    """How sequences are arranged."""

    step_balance: Annotated[StepBalance, "how evenly steps of several sequences cost"]
    mixing: Annotated[Mixing, "how well sequences mix lengths and sources"]


class Earlier(TypedDict):
    """What a dataset was before inputs were added."""

    dataset_digest: Annotated[str, "digest of the dataset then, 32 hex digits"]
    num_shards: Annotated[int, "shards of it, the first ones"]
    num_sequences: Annotated[int, "sequences in them"]


class Report(Arranged, ExampleDistributions, SequenceDistributions):
    """report.json: how well a dataset is packed; equal for equal datasets."""

    report_version: Annotated[int, "version of the meaning of these keys; a key more is not a new version"]
    dataset_digest: Annotated[str, "digest of the dataset, 32 hex digits"]
    earlier: Annotated[list[Earlier], "what it was before each time that inputs were added, the first time first"]
    recipe: Annotated[str | None, "name of the recipe that the options come from; null without one"]
    efficiency: Annotated[Efficiency, "real tokens over those of all sequences"]
    bounds: Annotated[list[ReportedBound], "each view and layout against its proven bound"]
    totals: Annotated[InputTotals, "what became of the inputs, and what was planned and stored"]
    rejects: Annotated[list[RejectCount], "rejects by stage and reason, most first"]
    attention_cost_per_sequence: Annotated[
        AttentionCost, "what attention inside segments costs a sequence, in pairs of tokens"
    ]
    segment_limit: Annotated[SegmentLimit, "what max_segments costs"]
    aspect_plane: Annotated[AspectPlane, "aspect ratios as realised against those of the sources"]
    num_dropped_tokens: Annotated[int, "tokens of grids that --drop-tokens left out"]
    storage: Annotated[Storage, "what takes up the shards"]
    frames: Annotated[Frames, "images, clips and their frames, as stored"]
    clips: Annotated[Clips | None, "rates and spans of clips; null without clips"]
    captions: Annotated[Captions, "captions of the stored examples"]
    sizes: Annotated[Sizes | None, "what planning did so that examples fit; null where patchpack did not sample them"]
    decoder_warnings: Annotated[DecoderWarnings, "examples that were kept in spite of a warning"]
    classes: Annotated[Classes | None, "stored examples by class; null without classes"]
    advice: Annotated[
        list[Advice] | None,
        "changes of options that would make training cheaper, best first; null without a saved plan",
    ]
    what_if: Annotated[WhatIf | None, "the comparison behind the advice; null without a saved plan"]
    layouts: Annotated[list[LayoutRecord], "what fixes the shape of sequences and tokens, as in manifest.json"]
    config: Annotated[Options, "every option that decides bytes, by its name in docs/cli.md with underscores"]


class Prediction(Totals, Arranged):
    """What `plan` says of a build that was not made."""

    num_rejected_inputs: Annotated[int, "inputs with a reject, not counting videos of which a part is kept"]
    efficiency: Annotated[float, "real tokens / (sequences x sequence length), a fraction of 1"]
    bounds: Annotated[list[BoundCounts], "each view and layout against its proven bound"]
    predicted_bytes: Annotated[int, "size of all shards before a codec, in bytes"]
    predicted_decode_core_s: Annotated[float, "time to decode and resize, in s of one core"]
    rejects: Annotated[dict[str, int], "rejects by stage and reason"]
    config: Annotated[Options, "every option that decides bytes, by its name in docs/cli.md with underscores"]
