"""What report.json and the totals of manifest.json hold, key by key.

Fractions are of 1, never percent; None stands where there is nothing to divide by or nothing to count.
"""

from typing import Literal, TypedDict

from patchpack.schemas.geometry import LayoutRecord

Number = int | float

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
    """Every option of a build that decides bytes; here those that a report reads."""

    sequence_length: int
    max_tokens_per_example: int | None
    tubelet: list[int]
    clip_frames: int
    fps: float
    codec: str


class Distribution(TypedDict):
    """Exact figures of one quantity, and its histogram: bins [edge, next edge), the last one closed."""

    num: int
    mean: float | None
    min: Number | None
    p5: Number | None
    median: Number | None
    p95: Number | None
    max: Number | None
    edges: list[Number]
    counts: list[int]
    # values beyond the last edge
    num_above: int


class Sizes(TypedDict):
    """What planning did so that examples fit.

    `shrunk_side_*` are realised over requested side, `upscaled_side_*` realised over the source's; `cap_for_all` is the
    least --max-tokens-per-example that shrinks none, `cap_for_95_percent` one that shrinks at most a twentieth of those
    that are shrunk now.
    """

    num_examples: int
    num_clips: int
    num_shrunk_clips: int
    num_upscaled_clips: int
    # clips whose video ends early
    num_short_clips: int
    # clips of a source slower than --fps, and the frames repeated in them
    num_slow_clips: int
    num_slow_frames: int
    num_shrunk: int
    shrunk_side_median: Number | None
    shrunk_side_min: Number | None
    cap_for_all: int | None
    cap_for_95_percent: int | None
    num_upscaled: int
    upscaled_side_median: Number | None
    upscaled_side_max: Number | None


class BoundCounts(TypedDict):
    """One (view, layout): its sequences as planned, the proven least number of them, and its chunks, packed alone.

    `num_moved` examples have another token count than they asked for.
    """

    view: int
    layout: int
    num_sequences: int
    bound: int
    num_moved: int
    num_chunks: int
    num_chunks_optimal: int


class Bound(BoundCounts):
    """A bound in the manifest, with what its proof in bounds.parquet needs besides: see docs/format.md."""

    scale: int
    slot_dual: int


class ReportedBound(BoundCounts):
    """A bound, and how far the plan is from it."""

    gap: int
    gap_fraction: float | None
    proven_optimal: bool


class PlannedCounts(TypedDict):
    """What the plan holds."""

    num_sequences: int
    num_segments: int
    num_tokens: int


class PlannedTotals(PlannedCounts):
    """What the plan holds, and what decoding it takes."""

    num_shards: int
    source_px: int


class StoredTotals(PlannedCounts):
    """What the shards hold."""

    num_shards: int
    bytes: int


class ReportedTotals(StoredTotals):
    """What the shards hold, as the report counted it."""

    num_full_sequences: int
    # every example of theirs failed
    num_empty_sequences: int


class Totals(TypedDict):
    """The totals of a plan: what became of the inputs. `ignored` counts them by reason."""

    num_inputs: int
    num_rejects: int
    ignored: dict[str, int]
    planned: PlannedTotals
    # None where the examples were not sampled by patchpack
    sizes: Sizes | None


class DatasetTotals(Totals):
    """The totals in a manifest."""

    stored: StoredTotals


class InputTotals(TypedDict):
    """The totals in a report; an input with several clips or views can be rejected more than once."""

    num_inputs: int
    num_rejects: int
    num_rejected_inputs: int
    num_ignored: int
    ignored: dict[str, int]
    planned: PlannedCounts
    stored: ReportedTotals


class Efficiency(TypedDict):
    """Real tokens over those of all sequences: as stored, as planned, and where no packing could be fuller."""

    efficiency: float | None
    padding_fraction: float | None
    planned_efficiency: float | None
    efficiency_at_bound: float | None


class RejectCount(TypedDict):
    """How many rejects one stage and reason has, and the first few keys."""

    stage: str
    reason: str
    num_rejects: int
    sample_keys: list[str]


class AttentionCost(TypedDict):
    """Pairs of tokens inside segments, the sum of n^2, per sequence; `fraction_of_full` is of L^2."""

    mean: float | None
    max: int
    max_over_mean: float | None
    fraction_of_full: float | None


class StepBalance(TypedDict):
    """How evenly steps of `num_sequences` cost; the means are over steps, and None without --balance-step."""

    balance_step: int | None
    num_sequences: int
    random_max_over_mean: float | None
    num_steps: int
    mean_max_over_mean: float | None
    worst_max_over_mean: float | None
    fraction_within_limit: float | None


class Mixing(TypedDict):
    """How well sequences mix lengths and sources: correlation of lengths, span of the listing, and that at random."""

    length_correlation: float | None
    source_span: float | None
    random_source_span: float | None


class Frames(TypedDict):
    """Images, clips and their frames."""

    num_images: int
    num_clips: int
    num_clip_frames: int
    num_repeated_clip_frames: int
    num_clips_with_repeated_frames: int
    num_repeated_image_frames: int
    clip_duration_s: float


class DecoderWarnings(TypedDict):
    """Examples that were kept in spite of a warning, and the most frequent texts, numbers left out."""

    num_examples: int
    texts: dict[str, int]


class ClassCount(TypedDict):
    """Examples of one class."""

    label: int
    name: str
    num_examples: int


class OtherClasses(TypedDict):
    """All classes but the largest."""

    num_classes: int
    num_examples: int


class Classes(TypedDict):
    """Examples by class, the largest first."""

    num_classes: int
    num_labelled: int
    num_unlabelled: int
    largest: list[ClassCount]
    rest: OtherClasses
    num_empty_classes: int


class Arranged(TypedDict):
    """How sequences are arranged."""

    step_balance: StepBalance
    mixing: Mixing


class Distributions(TypedDict):
    """Exact figures of examples (tokens, side, aspect, scale) and sequences (examples, fill)."""

    tokens_per_example: Distribution
    examples_per_sequence: Distribution
    sequence_fill: Distribution
    effective_side_px: Distribution
    # the larger aspect over the smaller, minus 1
    aspect_error: Distribution
    # |effective side / requested side - 1|
    side_change: Distribution
    # effective side / source's effective side
    scale: Distribution
    # tokens / all tokens of the grid
    kept_fraction: Distribution


class Report(Arranged, Distributions):
    """report.json: equal for equal datasets."""

    report_version: int
    dataset_digest: str
    # the name of the recipe that the options come from
    recipe: str | None
    efficiency: Efficiency
    bounds: list[ReportedBound]
    totals: InputTotals
    rejects: list[RejectCount]
    attention_cost_per_sequence: AttentionCost
    frames: Frames
    sizes: Sizes | None
    decoder_warnings: DecoderWarnings
    classes: Classes | None
    layouts: list[LayoutRecord]
    config: Options


class Prediction(Totals, Arranged):
    """What `plan` says of a build that was not made; `rejects` counts them by stage and reason; bytes are those before a codec."""

    num_rejected_inputs: int
    efficiency: float
    bounds: list[BoundCounts]
    predicted_bytes: int
    predicted_decode_core_s: float
    rejects: dict[str, int]
    config: Options
