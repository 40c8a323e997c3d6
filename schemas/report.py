"""What report.json and the totals of manifest.json hold, key by key: docs/report.md and docs/report.schema.json are made of it.

Every key says what it counts and in which unit. Fractions are of 1, never percent; None stands where there is nothing to divide by
or nothing to count.
"""

from typing import Annotated, Literal, NamedTuple, TypedDict

from patchpack.schemas.geometry import LayoutRecord


class Within(NamedTuple):
    """The least and the greatest value that a figure can have."""

    least: float
    most: float


Number = int | float
Fraction = Annotated[float, Within(0, 1)]

CountName = Literal["num_sequences", "num_segments", "num_tokens"]
DistributionName = Literal[
    "tokens_per_example",
    "examples_per_sequence",
    "sequence_fill",
    "effective_side_px",
    "aspect_error",
    "side_change",
    "scale",
    "kept_fraction",
]


class Options(TypedDict, total=False):
    """Every option of a build that decides bytes, by its name in docs/cli.md with underscores; here those that a report reads."""

    sequence_length: Annotated[int, "tokens of a sequence, padding included"]
    max_tokens_per_example: Annotated[int | None, "most tokens of one example; null: what a sequence holds"]
    tubelet: Annotated[list[int], "frames, height in px, width in px of one token"]
    clip_frames: Annotated[int, "frames of a clip that is not cut short"]
    fps: Annotated[float, "frames of a clip a second of video"]
    codec: Annotated[str, "how tokens are stored: none or gradient-zstd"]


class Distribution(TypedDict):
    """Exact figures of one quantity, in its unit, and its histogram; quantiles are values that occur."""

    num: Annotated[int, "how many values there are: examples or sequences"]
    mean: Annotated[float | None, "arithmetic mean, in the unit of the quantity"]
    min: Annotated[Number | None, "least value, in the unit of the quantity"]
    p5: Annotated[Number | None, "5th percentile, in the unit of the quantity"]
    median: Annotated[Number | None, "50th percentile, in the unit of the quantity"]
    p95: Annotated[Number | None, "95th percentile, in the unit of the quantity"]
    max: Annotated[Number | None, "greatest value, in the unit of the quantity"]
    edges: Annotated[list[Number], "edges of the bins, one more than bins: [edge, next edge), the last bin closed"]
    counts: Annotated[list[int], "values in each bin"]
    num_above: Annotated[int, "values beyond the last edge"]


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
    num_steps: Annotated[int, "steps that are stored; 0 without --balance-step"]
    mean_max_over_mean: Annotated[float | None, "mean of maximum / mean over the stored steps, a ratio"]
    worst_max_over_mean: Annotated[float | None, "greatest maximum / mean of a stored step, a ratio"]
    fraction_within_limit: Annotated[
        Fraction | None, "stored steps within the limit of 1.02 / all of them, a fraction of 1"
    ]


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


class Frames(TypedDict):
    """Images, clips and their frames, as stored."""

    num_images: Annotated[int, "examples that are images"]
    num_clips: Annotated[int, "examples that are clips"]
    num_clip_frames: Annotated[int, "frames of all clips, repeated ones too"]
    num_repeated_clip_frames: Annotated[int, "frames of clips that repeat another"]
    num_clips_with_repeated_frames: Annotated[int, "clips with a repeated frame"]
    num_repeated_image_frames: Annotated[int, "frames that repeat an image to fill a tubelet"]
    clip_duration_s: Annotated[float, "length of all clips together, in s"]


class DecoderWarnings(TypedDict):
    """Examples that were kept in spite of a warning."""

    num_examples: Annotated[int, "examples with a warning"]
    texts: Annotated[dict[str, int], "examples by the decoder's words, numbers replaced by N; the most frequent few"]


class ClassCount(TypedDict):
    """One class."""

    label: Annotated[int, "number of the class, from 0"]
    name: Annotated[str, "name of the class"]
    num_examples: Annotated[int, "stored examples with that label"]


class OtherClasses(TypedDict):
    """All classes but the largest."""

    num_classes: Annotated[int, "classes that are not among the largest"]
    num_examples: Annotated[int, "stored examples with a label of theirs"]


class Classes(TypedDict):
    """Stored examples by class."""

    num_classes: Annotated[int, "classes"]
    num_labelled: Annotated[int, "examples with a label"]
    num_unlabelled: Annotated[int, "examples without a label"]
    largest: Annotated[list[ClassCount], "the largest classes, largest first"]
    rest: Annotated[OtherClasses, "all others together"]
    num_empty_classes: Annotated[int, "classes without an example"]


class Arranged(TypedDict):
    """How sequences are arranged."""

    step_balance: Annotated[StepBalance, "how evenly steps of several sequences cost"]
    mixing: Annotated[Mixing, "how well sequences mix lengths and sources"]


class Distributions(TypedDict):
    """Exact figures of examples and sequences; an effective side is the root of height x width."""

    tokens_per_example: Annotated[Distribution, "tokens of each example, in tokens"]
    examples_per_sequence: Annotated[Distribution, "examples of each sequence"]
    sequence_fill: Annotated[Distribution, "real tokens / sequence length of each sequence, a fraction of 1"]
    effective_side_px: Annotated[Distribution, "effective side of each example, in px"]
    aspect_error: Annotated[Distribution, "larger aspect / smaller - 1, of each example and its source, a ratio"]
    side_change: Annotated[Distribution, "|effective side / requested - 1| of each example, a ratio"]
    scale: Annotated[Distribution, "effective side / source's of each example, a ratio"]
    kept_fraction: Annotated[Distribution, "tokens kept / tokens of the grid of each example, a fraction of 1"]


class Report(Arranged, Distributions):
    """report.json: how well a dataset is packed; equal for equal datasets."""

    report_version: Annotated[int, "version of the meaning of these keys; a key more is not a new version"]
    dataset_digest: Annotated[str, "digest of the dataset, 32 hex digits"]
    recipe: Annotated[str | None, "name of the recipe that the options come from; null without one"]
    efficiency: Annotated[Efficiency, "real tokens over those of all sequences"]
    bounds: Annotated[list[ReportedBound], "each view and layout against its proven bound"]
    totals: Annotated[InputTotals, "what became of the inputs, and what was planned and stored"]
    rejects: Annotated[list[RejectCount], "rejects by stage and reason, most first"]
    attention_cost_per_sequence: Annotated[
        AttentionCost, "what attention inside segments costs a sequence, in pairs of tokens"
    ]
    frames: Annotated[Frames, "images, clips and their frames, as stored"]
    sizes: Annotated[Sizes | None, "what planning did so that examples fit; null where patchpack did not sample them"]
    decoder_warnings: Annotated[DecoderWarnings, "examples that were kept in spite of a warning"]
    classes: Annotated[Classes | None, "stored examples by class; null without classes"]
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
