"""The records of a report that speak of examples and sequences by themselves, and what all its records are made of.

`schemas.report` says how to read them.
"""

from typing import Annotated, NamedTuple, TypedDict


class Within(NamedTuple):
    """The least and the greatest value that a figure can have."""

    least: float
    most: float


Number = int | float
Fraction = Annotated[float, Within(0, 1)]


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


class Clips(TypedDict):
    """Clips, as stored."""

    fps: Annotated[Distribution, "frames a second of each clip, in 1/s"]
    duration_s: Annotated[Distribution, "span of each clip, in s"]


class Captions(TypedDict):
    """Captions of the stored examples."""

    num_captioned: Annotated[int, "examples with a caption"]
    num_captions: Annotated[int, "captions"]


class AspectBin(TypedDict):
    """A hexagon of the aspect plane, by its centre; 0 is a square, 1 twice as wide as high, -1 half as wide."""

    source: Annotated[float, "log2 of width / height of the source"]
    realised: Annotated[float, "log2 of width / height as stored"]
    num_examples: Annotated[int, "examples in it"]


class WorstAspect(TypedDict):
    """An example whose aspect ratio changed."""

    key: Annotated[str, "key of its source"]
    sequence: Annotated[int, "number of its sequence, from 0"]
    segment: Annotated[int, "number of its segment in that, from 0"]
    aspect_error: Annotated[float, "larger aspect / smaller - 1, a ratio"]
    source_height: Annotated[int, "height of what is shown of the source, in px"]
    source_width: Annotated[int, "width of what is shown of the source, in px"]
    height: Annotated[int, "height as stored, in px"]
    width: Annotated[int, "width as stored, in px"]


class AspectPlane(TypedDict):
    """Aspect ratios as realised against those of the sources."""

    bins: Annotated[list[AspectBin], "hexagons that hold examples, by place"]
    worst: Annotated[list[WorstAspect], "examples whose aspect ratio changed most, the worst first"]


class ExampleDistributions(TypedDict):
    """Exact figures of examples; an effective side is the root of height x width."""

    tokens_per_example: Annotated[Distribution, "tokens of each example, in tokens"]
    effective_side_px: Annotated[Distribution, "effective side of each example, in px"]
    requested_side_px: Annotated[Distribution, "effective side that was drawn for each example, in px"]
    aspect_error: Annotated[Distribution, "larger aspect / smaller - 1, of each example and its source, a ratio"]
    side_change: Annotated[Distribution, "|effective side / requested - 1| of each example, a ratio"]
    scale: Annotated[Distribution, "effective side / source's of each example, a ratio"]
    kept_fraction: Annotated[Distribution, "tokens kept / tokens of the grid of each example, a fraction of 1"]


class SequenceDistributions(TypedDict):
    """Exact figures of sequences."""

    examples_per_sequence: Annotated[Distribution, "examples of each sequence"]
    sequence_fill: Annotated[Distribution, "real tokens / sequence length of each sequence, a fraction of 1"]
