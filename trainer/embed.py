"""From stored tokens to embedded tokens: normalise on the device and project, for one patch size or for several.

FlexiViT (Beyer et al., arXiv 2212.08013, section 3.4) has one projection for all patch sizes: its weights are resized so that a
patch enlarged by a linear map B gives what the patch itself gave, <B x, W'> = <x, W>. That is W' = pinv(B^T) W, exact
where B has as many independent columns, and the nearest where it has not. The maps are made once, in float64.

Cost: one (L, P) x (P, D) product, and for another patch size one (P, P0) x (P0, D) product more a batch.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from patchpack.schemas import Layout

INIT_STD = 0.02  # ViT and MAE initialise weights so; BERT, arXiv:1810.04805, before them


class Pixels(nn.Module):
    """What tokens hold, normalised."""

    def __init__(self, layout: Layout) -> None:
        """Takes mean and std from the layout.

        Raises:
            ValueError: the tokens are not uint8 pixels.
        """
        super().__init__()
        if layout.token_dtype != "uint8":  # noqa: S105 (no password)
            raise ValueError(
                f"token dtype {layout.token_dtype}: not known; this trainer reads uint8 pixels; upgrade patchpack"
            )
        self.channels = layout.channels
        self.mean_C: torch.Tensor
        self.std_C: torch.Tensor
        self.register_buffer("mean_C", torch.tensor(layout.mean), persistent=False)
        self.register_buffer("std_C", torch.tensor(layout.std), persistent=False)

    def normalise(self, tokens_BLP: torch.Tensor) -> torch.Tensor:
        """Returns (x / 255 - mean) / std of every channel, float32, same shape."""
        # inside a token the channel comes last (pt, ph, pw, C)
        pixels = tokens_BLP.unflatten(-1, (-1, self.channels)).float()
        normalised: torch.Tensor = (pixels / 255 - self.mean_C) / self.std_C
        return normalised.flatten(-2)


class PixelEmbedding(Pixels):
    """Embeds tokens as stored. Whatever padding holds, it becomes finite; nobody looks at it."""

    def __init__(self, layouts: Sequence[Layout], dim: int, *, bias: bool = False) -> None:
        """Takes widths, mean and std from the layouts; the weights are those of the first.

        Raises:
            ValueError: the tokens are not uint8 pixels.
        """
        first = layouts[0]
        super().__init__(first)
        self.project = nn.Linear(first.token_width, dim, bias=bias)
        nn.init.trunc_normal_(self.project.weight, std=INIT_STD)
        if bias:
            nn.init.zeros_(self.project.bias)
        self.widths = [layout.token_width for layout in layouts]
        for layout in layouts[1:]:
            matrix = torch.from_numpy(weight_resize(first, layout)).float()
            self.register_buffer(f"resize_{layout.token_width}", matrix, persistent=False)

    def forward(self, tokens_BLP: torch.Tensor) -> torch.Tensor:
        """Returns (B, L, D)."""
        return F.linear(self.normalise(tokens_BLP), self.weight(tokens_BLP.shape[-1]), self.project.bias)

    def weight(self, token_width: int) -> torch.Tensor:
        """Returns the projection of tokens of a width, (D, P)."""
        if token_width == self.widths[0]:
            return self.project.weight
        resized: torch.Tensor = self.project.weight @ getattr(self, f"resize_{token_width}").T
        return resized


def resize_matrix(source: int, target: int) -> np.ndarray:
    """Returns the linear map of bilinear resizing along one axis, (target, source) float64, without antialiasing."""
    centres = (np.arange(target) + 0.5) * source / target - 0.5
    low = np.floor(centres)
    matrix = np.zeros((target, source))
    for shift, part in ((0, 1 - (centres - low)), (1, centres - low)):
        np.add.at(matrix, (np.arange(target), np.clip(low + shift, 0, source - 1).astype(int)), part)
    return matrix


def weight_resize(source: Layout, target: Layout) -> np.ndarray:
    """Returns what makes weights for one layout of those for another, (P of the target, P of the source) float64.

    Raises:
        ValueError: the layouts differ in more than height and width of a token.
    """
    # pinv of a Kronecker product is that of its factors
    return _of_tokens(source, target, lambda source, target: np.linalg.pinv(resize_matrix(source, target).T))


def pixel_resize(source: Layout, target: Layout) -> np.ndarray:
    """Returns what makes pixels of one layout's tokens of another's, (P of the target, P of the source) float64.

    Raises:
        ValueError: as `weight_resize`.
    """
    return _of_tokens(source, target, resize_matrix)


def _of_tokens(source: Layout, target: Layout, of_side: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Returns the map of whole tokens that a map of each side makes; frames and channels stay."""
    (frames, *sides), (target_frames, *target_sides) = source.tubelet, target.tubelet
    if frames != target_frames or source.channels != target.channels:
        raise ValueError(
            f"layouts of {source.tubelet} x {source.channels} and {target.tubelet} x {target.channels}: no resize makes one of the other; "
            "a model of several layouts has tokens of one depth and number of channels; choose one with --layout"
        )
    down, across = (of_side(*pair) for pair in zip(sides, target_sides, strict=True))
    return np.kron(np.kron(np.eye(frames), np.kron(down, across)), np.eye(source.channels))
