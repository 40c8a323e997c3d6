"""Options of how large each view of an example becomes, which part and which frames and tokens of it are taken."""

from dataclasses import dataclass, field

from patchpack.options import option
from patchpack.pipeline.media.video.clips import PLACEMENTS, SLOW_POLICIES
from patchpack.pipeline.settings.sections import SAMPLING


@dataclass(frozen=True)
class SamplingOptions:
    """What each view of an example is, by the rules in `patchpack.pipeline.sampling`."""

    # its options stand in the manifest one by one, and so does its name
    recipe: str | None = option(
        None,
        "options of a method of the field (navit, flexivit, naflex, pix2struct, vit, vivit, mvit or sora), or of a TOML file; "
        "options that are typed win",
        section=SAMPLING,
        common=True,
        metavar="NAME|FILE",
        affects_output=False,
    )
    recipe_name: str | None = field(default=None, metadata={"lasting": True})
    # NaViT (arXiv 2307.06304, section 3.2) samples the effective side from 64 to R_max = 256
    resolution: str = option(
        "side:64-256",
        "side:LO-HI draws the effective side in px (height x width = side^2, aspect kept), area:LO-HI the area, both "
        "uniformly or by '~normal(MEAN,SIGMA)' behind it; native keeps the size, rounded to the grid; tokens:N,N2,... "
        "takes one of several budgets; pix2struct:N; pixels:MIN-MAX in px of area; square:R distorts",
        section=SAMPLING,
        common=True,
        metavar="RULE",
    )
    # small sources gain nothing by it; but budgets are then not used up
    upsample: str = option(
        "allow",
        "whether results may be larger than their sources; never: only where one token is",
        section=SAMPLING,
        choices=("allow", "never"),
    )
    # a stretch of a percent or two, which nobody sees, and no pixel lost
    fit: str = option(
        "resize",
        "what becomes of the remainder to whole tokens: resize stretches it away; pad keeps the aspect and fills up with the "
        "mean colour; crop cuts it off",
        section=SAMPLING,
        choices=("resize", "pad", "crop"),
    )
    # off by default, as in NaViT: patch n' pack varies sizes instead
    crop: str = option(
        "none",
        "inception:LO-HI: each view shows a random part of LO to HI of the area, drawn anew",
        section=SAMPLING,
        metavar="RULE",
    )
    flip: bool = option(False, "mirror every other view, by chance", section=SAMPLING)
    drop_tokens: str = option(
        "none",
        "leave out tokens of each view at random: constant:P, beta:MEAN,MAX, resolution:LO-HI rising with the side drawn, "
        "'schedule:A->B' over the views; the order to keep them is stored",
        section=SAMPLING,
        common=True,
        metavar="RULE",
    )
    # as much as sides may change
    drop_slack: float = option(
        0.05,
        "most tokens that an example keeps beyond what --drop-tokens leaves, as a fraction, where they would be padding; "
        "0: none",
        section=SAMPLING,
        metavar="F",
    )
    views: int = option(
        1,
        "variants of each example, each with its own size, clip, crop, patch size and kept tokens; views stand for epochs",
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
    temporal_remainder: str = option(
        "repeat",
        "frames that do not fill a last tubelet: repeat the last one until they do, or drop them",
        section=SAMPLING,
        choices=("repeat", "drop"),
    )
    # frames that repeat keep the time between frames the same in every clip
    slow_source: str = option(
        "repeat",
        "sources of fewer frames a second than --fps: repeat frames, take every native frame, or reject",
        section=SAMPLING,
        choices=SLOW_POLICIES,
    )
