"""Options of `plan` and `build`, put together out of `patchpack.pipeline.settings`, and what follows from them."""

import functools
from dataclasses import dataclass

from patchpack.options import option, settle
from patchpack.pipeline import rules
from patchpack.pipeline.inputs.facts import Columns
from patchpack.pipeline.media.video.clips import ClipRule
from patchpack.pipeline.sampling.dropping import Dropping
from patchpack.pipeline.sampling.framing import Crop, Framing, framed
from patchpack.pipeline.sampling.resolution import Resolution
from patchpack.pipeline.settings.inputs import InputOptions
from patchpack.pipeline.settings.packing import PackingOptions
from patchpack.pipeline.settings.patches import PatchOptions
from patchpack.pipeline.settings.running import RunningOptions
from patchpack.pipeline.settings.sampling import SamplingOptions
from patchpack.pipeline.settings.sections import OUTPUT
from patchpack.pipeline.stages.sample import Policy
from patchpack.schemas.geometry import Box, Layout


@dataclass(frozen=True)
class PlanConfig(RunningOptions, PackingOptions, PatchOptions, SamplingOptions, InputOptions):
    """Options of `plan`: which inputs, and which example goes where."""

    @functools.cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts of the shards of this build: one, or one a patch size."""
        tubelets = [(self.tubelet[0], side, side) for side in self.patch_sizes] or [self.tubelet]
        return tuple(
            Layout(
                self.sequence_length,
                self.max_segments,
                tubelet,
                mean=self.mean,
                std=self.std,
                stride=self.stride or (0, 0, 0),
                grid_multiple=self.grid_multiple,
                align_tokens=self.align_tokens,
                keep_order=self.dropping.drops,
                text_length=0 if self.captions == "none" else self.text_length or self.sequence_length,
                codec=self.codec,
            )
            for tubelet in tubelets
        )

    @functools.cached_property
    def rule(self) -> Resolution:
        """The rule of --resolution."""
        return Resolution.parse(self.resolution, self.upsample == "allow", self.fit)

    @functools.cached_property
    def dropping(self) -> Dropping:
        """The rule of --drop-tokens."""
        return Dropping.parse(self.drop_tokens)

    @functools.cached_property
    def policy(self) -> Policy:
        """What decides the views of an example."""
        return Policy(
            layouts=self.layouts,
            resolution=self.rule,
            cap=self.token_cap,
            oversize=self.oversize,
            seed=self.seed,
            dropping=self.dropping,
            crop=Crop.parse(self.crop),
            flips=self.flip,
            drops_remainder=self.temporal_remainder == "drop",
            num_views=self.views,
            captions=self.captions,
            max_text_tokens=self.max_text_tokens,
        )

    @functools.cached_property
    def columns(self) -> Columns:
        """Columns of tables, and members of tars, that say something."""
        return Columns(
            path=self.path_column,
            image=self.image_column,
            id=self.id_column,
            label=self.label_column,
            captions=self.caption_column,
            weight=self.weight_column,
            boxes=self.box_column,
            box_format=self.box_format,
            keep=self.keep_column,
            split=self.split_column,
        )

    @property
    def has_labels(self) -> bool:
        """Whether examples have labels."""
        return self.labels != "none" or self.label_column is not None

    @property
    def labels_shown(self) -> str:
        """Where labels come from, as it was typed."""
        return f"--labels {self.labels}" if self.label_column is None else f"--label-column {self.label_column}"

    @property
    def moves_sizes(self) -> bool:
        """Whether drawn sizes may move for packing: not where tokens are dropped, whose number moves, or beside captions."""
        return bool(self.resolution_slack) and not self.dropping.drops and self.captions == "none"

    def framing(self, box: Box, height: int, width: int, *, is_shrunk: bool) -> Framing:
        """Returns which part of its source an example shows, and at which size.

        Args:
            box: that its view takes.
            height: of its grid, in px.
            width: of its grid, in px.
            is_shrunk: whether a cap made its grid smaller.
        """
        return framed(self.fit, box, height, width, keeps_size=self.rule.kind == "native" and not is_shrunk)

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
    append: bool = option(
        False,
        "add inputs to the dataset in this output, which has not been given them yet, with its options; what is packed stays as it is",
        section=OUTPUT,
        common=True,
        affects_output=False,
        lasting=False,
    )
    from_plan: str | None = option(
        None,
        "start from the plan that plan --output saved there; inputs are those of the plan, and may lie elsewhere now",
        section=OUTPUT,
        metavar="FOLDER",
        affects_output=False,
        lasting=False,
    )

    def __post_init__(self) -> None:
        """Checks every rule that needs no input; raises ValueError as `PlanConfig` does."""
        super().__post_init__()
        if self.append:
            _check_alone(self)
        if self.retry_rejects and not self.resume:
            raise ValueError(
                "--retry-rejects: a new build has none yet; it goes with --resume; add it, or leave this out"
            )
        if self.resume and self.overwrite:
            raise ValueError(
                "--resume --overwrite: one keeps what the other deletes; give at most one; --resume goes on, --overwrite starts anew"
            )


def _check_alone(config: BuildConfig) -> None:
    """Checks what else --append is given; raises ValueError as `PlanConfig` does."""
    others = {"--resume": config.resume, "--overwrite": config.overwrite, "--from-plan": config.from_plan is not None}
    if other := next((name for name, given in others.items() if given), None):
        raise ValueError(
            f"--append {other}: inputs are added to a finished dataset, by a plan of their own; give --append alone; what was begun with it "
            "goes on with --resume alone"
        )
    if config.limit is not None:
        raise ValueError(
            f"--append: this dataset is a sample, with --limit {config.limit}; a sample of inputs that grow is another one; build it anew, "
            "with --overwrite"
        )
