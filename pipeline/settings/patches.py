"""Options of how pixels are cut into tokens."""

from dataclasses import dataclass

from patchpack.options import option
from patchpack.pipeline.settings.sections import PATCHES, floats, integers


@dataclass(frozen=True)
class PatchOptions:
    """How pixels become tokens."""

    # one frame of 16x16 pixels: the patch of ViT-B/16 and NaViT
    tubelet: tuple[int, int, int] = option(
        (1, 16, 16),
        "frames, height and width in px of the block of pixels that becomes one token",
        section=PATCHES,
        common=True,
        parse=integers(3),
        metavar="T,H,W",
    )
    stride: tuple[int, int, int] | None = option(
        None,
        "frames, height and width in px from one tubelet to the next, where they overlap; left out: edge to edge",
        section=PATCHES,
        parse=integers(3),
        metavar="T,H,W",
    )
    patch_sizes: tuple[int, ...] = option(
        (),
        "height and width of the tubelet in px; of several each view draws one, and a sequence holds one",
        section=PATCHES,
        common=True,
        parse=integers(),
        metavar="P[,P ...]",
    )
    grid_multiple: int = option(
        1,
        "make rows and columns of every grid a multiple of M, for models that merge or pool tokens",
        section=PATCHES,
        metavar="M",
    )
    align_tokens: int = option(
        1,
        "let every segment start at a multiple of M tokens, padding between them, for context parallelism",
        section=PATCHES,
        metavar="M",
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
        parse=floats(3),
        metavar="R,G,B",
    )
    std: tuple[float, ...] = option(
        (0.5, 0.5, 0.5), "standard deviation likewise", section=PATCHES, parse=floats(3), metavar="R,G,B"
    )
