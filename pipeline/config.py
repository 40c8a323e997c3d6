"""Every option of `plan` and `build`: name, default with its reason, help and rule, once."""

from collections.abc import Callable
from dataclasses import dataclass

from patchpack.options import amount, option, settle
from patchpack.pipeline import rules
from patchpack.pipeline.media.video.clips import PLACEMENTS, SLOW_POLICIES, ClipRule
from patchpack.pipeline.rules import default_workers
from patchpack.pipeline.stages.labels import read_class_names
from patchpack.schemas.geometry import Layout


def _integers(count: int) -> Callable[[str], tuple[int, ...]]:
    def parse(text: str) -> tuple[int, ...]:
        values = tuple(int(part) for part in text.split(","))
        if len(values) != count:
            raise ValueError(f"{len(values)} numbers; it takes {count}, separated by commas")
        return values

    return parse


def _floats(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if len(values) != 3:
        raise ValueError(f"{len(values)} numbers; it takes 3, separated by commas")
    return values


# the parts of --help
INPUT, SAMPLING, PATCHES, PACKING, OUTPUT, MEDIA, EXECUTION = SECTIONS = (
    "input",
    "sampling",
    "patches",
    "packing",
    "output",
    "media limits",
    "execution",
)


@dataclass(frozen=True)
class PlanConfig:
    """Options of `plan`: which inputs, and which example goes where."""

    # what is taken
    labels: str = option(
        "none",
        "where labels come from: the name of the parent folder, or nowhere",
        section=INPUT,
        common=True,
        choices=("none", "folder"),
    )
    # not part of the manifest's options, which are listed one by one: the names stand there as its classes
    classes: tuple[str, ...] | None = option(
        None,
        "with --labels folder: the class names and their order, from a text file of one name a line or another "
        "dataset, so that a split has the numbers of its training dataset",
        section=INPUT,
        common=True,
        parse=read_class_names,
        metavar="FILE|DATASET",
        affects_output=False,
    )
    exclude: tuple[str, ...] = option(
        (),
        "leave out inputs whose key matches; may be repeated",
        section=INPUT,
        common=True,
        metavar="GLOB",
        repeat=True,
    )
    limit: int | None = option(None, "take a seeded sample of N inputs", section=INPUT, common=True)
    any_suffix: bool = option(
        False,
        "try every file of a folder that is not hidden, whatever its suffix: its content decides; globs always do",
        section=INPUT,
    )
    dedupe: str = option(
        "none",
        "digest: of inputs with the same bytes keep the least key, and reject the others; reads every file once more",
        section=INPUT,
        choices=("none", "digest"),
    )
    # what most readers do, and what a folder of photos means
    animated: str = option(
        "first",
        "what an animated GIF, WebP, PNG or AVIF is: its first image, or clips as a video is",
        section=INPUT,
        choices=("first", "clip"),
    )

    # NaViT (arXiv 2307.06304, section 3.2) samples the effective side from 64 to R_max = 256
    resolution: str = option(
        "side:64-256",
        "side:LO-HI draws the effective side in px uniformly (height x width = side^2, aspect kept); "
        "native keeps the size, rounded to the grid",
        section=SAMPLING,
        common=True,
        metavar="RULE",
    )
    views: int = option(
        1,
        "variants of each example, each with its own drawn size; views stand for epochs",
        section=SAMPLING,
        common=True,
        metavar="V",
    )
    seed: int = option(0, "seed of every draw", section=SAMPLING, common=True)
    # 16 frames at 8 a second: two seconds, the clip of most video pretraining
    clip_frames: int = option(16, "frames in a clip", section=SAMPLING, common=True)
    fps: float = option(
        8.0, "frames a second in a clip, picked by presentation time", section=SAMPLING, common=True, metavar="F"
    )
    clips_per_video: int = option(
        1, "clips of each video, one in each of K equal parts", section=SAMPLING, common=True, metavar="K"
    )
    clip_placement: str = option(
        "uniform",
        "a clip lies in the middle of its part, or at random, drawn for each view",
        section=SAMPLING,
        choices=PLACEMENTS,
    )
    frame_stride: int | None = option(
        None, "take every N-th frame of the source instead of --fps frames a second", section=SAMPLING
    )
    # frames that repeat keep the time between frames the same in every clip
    slow_source: str = option(
        "repeat",
        "sources of fewer frames a second than --fps: repeat frames, take every native frame, or reject",
        section=SAMPLING,
        choices=SLOW_POLICIES,
    )

    # one frame of 16x16 pixels: the patch of ViT-B/16 and NaViT
    tubelet: tuple[int, int, int] = option(
        (1, 16, 16),
        "frames, height and width in px of the block of pixels that becomes one token",
        section=PATCHES,
        common=True,
        parse=_integers(3),
        metavar="T,H,W",
    )
    # 3 keeps about 50 dB against the exact resize at half the time (docs/decisions.md)
    decode_quality: str = option(
        "default",
        "how far JPEGs are decoded smaller: exact: never; default: to 3 times the target size at least; fast: to 2 times",
        section=PATCHES,
        choices=("exact", "default", "fast"),
    )
    # the usual ViT scaling of pixels to -1..1
    mean: tuple[float, ...] = option(
        (0.5, 0.5, 0.5),
        "mean of the channels, in 0..1; stored for the trainer",
        section=PATCHES,
        parse=_floats,
        metavar="R,G,B",
    )
    std: tuple[float, ...] = option(
        (0.5, 0.5, 0.5), "standard deviation likewise", section=PATCHES, parse=_floats, metavar="R,G,B"
    )

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
        256_000_000, "aim for shards of at most this many bytes", section=OUTPUT, parse=amount, metavar="BYTES"
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

    # half a gigabyte in Pillow's four bytes a pixel, which keeps a worker below one; a 108-megapixel phone fits
    max_pixels: int = option(
        120_000_000,
        "reject images and frames of more pixels, counted as four bytes each: WebP, AVIF, TIFF and progressive JPEG "
        "hold more while they are decoded, and reach it earlier",
        section=MEDIA,
        common=True,
        parse=amount,
        metavar="PX",
    )
    # an image's file is held whole, and with the pixels below a worker is to stay under 1 GB
    max_bytes: int = option(
        2**28,
        "reject larger files without reading them",
        section=MEDIA,
        common=True,
        parse=amount,
        metavar="BYTES",
    )
    # of what is left once odd headers are mended, nearly every warning comes with wrong pixels (benchmarks/jpeg_warnings.py)
    on_decoder_warning: str = option(
        "reject",
        "JPEGs whose decoder warns of damage: reject them, or keep what it made of them; segments and report then say",
        section=MEDIA,
        choices=("reject", "keep"),
    )
    # a sandbox costs time on every file (benchmarks/isolation.py), and valid collections crash no decoder
    decode_isolation: str = option(
        "none",
        "process: probe and decode in a sandbox, so that a file that crashes or hangs a decoder is a reject",
        section=MEDIA,
        choices=("none", "process"),
        affects_output=False,
    )
    decode_timeout_s: float | None = option(
        None,
        "with --decode-isolation process: reject a file that takes longer; left out: 60",
        section=MEDIA,
        metavar="SECONDS",
        affects_output=False,
    )

    workers: int = option(
        default_workers(),
        "local worker processes",
        section=EXECUTION,
        common=True,
        default_shown="one a core",
        affects_output=False,
        lasting=False,
    )
    media_backend: str = option(
        "auto",
        "what resizes images: Pillow, or torch (fast), which takes a quarter of the time; auto: torch where it is "
        "installed, the processor has AVX2 and no remote runner is given",
        section=EXECUTION,
        choices=("auto", "pillow", "fast"),
    )
    # a few hundred clips of the default size
    decode_cache_bytes: int = option(
        256_000_000,
        "most bytes of decoded clips that wait, so that clips of one video share a decode; 0: none",
        section=EXECUTION,
        parse=amount,
        metavar="BYTES",
        affects_output=False,
    )

    @property
    def layout(self) -> Layout:
        """The one layout of the shards of this build."""
        return Layout(self.sequence_length, self.max_segments, self.tubelet, mean=self.mean, std=self.std)

    @property
    def clip_rule(self) -> ClipRule:
        """How clips are taken of videos."""
        return ClipRule(
            self.clips_per_video,
            self.clip_frames,
            self.fps,
            self.frame_stride,
            self.slow_source,
            self.clip_placement,
            self.views,
        )

    @property
    def token_cap(self) -> int:
        """Most tokens of one example."""
        return self.max_tokens_per_example or self.sequence_length

    @property
    def decode_limit_s(self) -> float:
        """Most seconds for one file in a sandbox: ten times what the slowest valid files took us."""
        return 60.0 if self.decode_timeout_s is None else self.decode_timeout_s

    def __post_init__(self) -> None:
        """Checks every rule that needs no input.

        Raises:
            ValueError: naming the option, the value, the rule and the way out.
        """
        settle(self)
        rules.check(self)


@dataclass(frozen=True)
class BuildConfig(PlanConfig):
    """Options of `build`: those of `plan`, and what happens to the output."""

    resume: bool = option(
        False,
        "go on with an unfinished build of this output, with its options and inputs; finished shards are kept",
        section=OUTPUT,
        common=True,
        affects_output=False,
        lasting=False,
    )
    retry_rejects: bool = option(
        False,
        "with --resume: write anew the shards that lack examples which could not be read or decoded",
        section=OUTPUT,
        affects_output=False,
        lasting=False,
    )
    overwrite: bool = option(
        False,
        "replace the dataset in this output once the new one is planned; files of others are kept",
        section=OUTPUT,
        common=True,
        affects_output=False,
        lasting=False,
    )

    def __post_init__(self) -> None:
        """Checks every rule that needs no input; raises ValueError as `PlanConfig` does."""
        super().__post_init__()
        if self.retry_rejects and not self.resume:
            raise ValueError(
                "--retry-rejects: a new build has none yet; it goes with --resume; add it, or leave this out"
            )
        if self.resume and self.overwrite:
            raise ValueError(
                "--resume --overwrite: one keeps what the other deletes; give at most one; --resume goes on, --overwrite starts anew"
            )
