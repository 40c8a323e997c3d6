"""Images and their captions: two towers whose vectors of a pair point the same way (CLIP, arXiv 2103.00020; SigLIP, arXiv 2303.15343).

    images -> ViT -> pooled (B, S, D) -> linear -> length 1
    captions -> TextTower -> (B, S, D) -> linear -> length 1

The pairs of a step are those of all processes. Each compares its own with all, one process' vectors at a time.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from patchpack.trainer import losses
from patchpack.trainer.losses import Pairs
from patchpack.trainer.model import Model, Output
from patchpack.trainer.text import TextTower, text_runs
from patchpack.trainer.transformer import linear
from patchpack.trainer.vit import ViT

# of CLIP, section 2.5, where the scale begins and ends; and of SigLIP, section 3.2
CLIP_SCALE, CLIP_MOST_SCALE = 1 / 0.07, 100.0
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0


class TwoTowers(Model):
    """An image model without a head, and a text tower of its width."""

    def __init__(self, images: ViT, text: TextTower, loss: str) -> None:
        """Draws the projections from torch's global generator.

        Args:
            images: whose segments are pooled.
            text: of the same width.
            loss: "clip" or "siglip".
        """
        super().__init__(images.layout, images.limits, images.backend, images.drop_share)
        self.nothing, self.classify = "no segment has a caption", None
        self.is_softmax = loss == "clip"
        self.images, self.text = images, text
        dim = images.shape.dim
        self.project_image, self.project_text = (linear(dim, dim, bias=False) for _ in range(2))
        # of one number each, not of none: FSDP shares out the first axis
        self.log_scale_1 = nn.Parameter(torch.tensor([math.log(CLIP_SCALE if self.is_softmax else SIGLIP_SCALE)]))
        self.bias_1 = None if self.is_softmax else nn.Parameter(torch.tensor([SIGLIP_BIAS]))

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Output:
        """Returns the images' output, and the pairs."""
        seen: Output = self.images(batch)
        # segments beyond what the dataset has are none
        most = min(self.limits["max_segments"], batch["starts"].shape[1])
        image_BSD = self.project_image(seen.pooled_BSD[:, :most])
        text_BSD = self.project_text(self.text(batch)[:, :most])
        image_ND, text_ND = (F.normalize(part.float().flatten(0, 1), dim=-1) for part in (image_BSD, text_BSD))
        scale_1 = self.log_scale_1.exp()
        scale_1 = scale_1.clamp(max=CLIP_MOST_SCALE) if self.is_softmax else scale_1
        is_pair_N = (_caption_lengths(batch)[:, :most] > 0).flatten()
        return seen._replace(pairs=Pairs(image_ND, text_ND, is_pair_N, scale_1, self.bias_1))

    def check(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Checks a batch as its images are, and its captions.

        Raises:
            ValueError: a token id is beyond the vocabulary, or as `Model.check`.
        """
        self.images.check(batch)
        largest = int(batch["text_ids"].max())
        if largest >= self.text.vocabulary:
            raise ValueError(
                f"--vocabulary {self.text.vocabulary}: a caption has token {largest}; ids lie below it; give the tokenizer's get_vocab_size()"
            )

    def count(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns how many pairs there are."""
        return (_caption_lengths(batch) > 0).sum()

    def flops(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the useful FLOPs of a step on a batch, see `Model.flops`; those of comparing pairs are left out."""
        dim = self.images.shape.dim
        counts_BS = _caption_lengths(batch).double()
        text = len(self.text.blocks) * (24.0 * dim**2 * counts_BS + 4 * dim * counts_BS**2).sum()
        return self.images.flops(batch) + 3 * text

    def loss(self, output: Output, batch: Mapping[str, torch.Tensor]) -> losses.Loss:
        """Returns how far pairs are from each other, against all others of the step."""
        if output.pairs is None:
            raise AssertionError("its own outputs have pairs")
        return (losses.clip_loss if self.is_softmax else losses.siglip_loss)(output.pairs)


def _caption_lengths(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the text tokens of each segment, (B, S)."""
    return text_runs(batch["text_segment_ids"], batch["starts"].shape[1]).lengths_BS
