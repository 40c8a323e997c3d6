"""What the model is trained on; both losses count real things and never slots.

A loss is a sum and the number of things summed: the mean over any number of batches is then the sum of
sums over the sum of counts, and a batch with nothing to count adds 0, not NaN.

Classification: cross-entropy over segments that have a label. Reconstruction (SimMIM, arXiv:2111.09886):
a share of each segment's tokens is hidden, the model predicts their pixels with one linear layer, and the
squared error of the normalised pixels counts over hidden tokens.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)


class Loss(NamedTuple):
    """Attributes: total, the differentiable sum; count, how many things were summed (both scalars on the device)."""

    total: torch.Tensor
    count: torch.Tensor  # type: ignore[assignment]  # a tuple has a method of this name, which nobody calls

    @property
    def mean(self) -> torch.Tensor:
        """The loss to minimise; 0 where nothing was counted."""
        return self.total / self.count.clamp(min=1)


def classification_loss(logits_BSK: torch.Tensor, labels_BS: torch.Tensor) -> Loss:
    """Returns the cross-entropy of labelled segments; label -1 (no label, no segment) does not count."""
    total = F.cross_entropy(logits_BSK.float().flatten(0, 1), labels_BS.flatten(), ignore_index=-1, reduction="sum")
    return Loss(total, (labels_BS != -1).sum())


def reconstruction_loss(pixels_BLP: torch.Tensor, target_BLP: torch.Tensor, mask_BL: torch.Tensor) -> Loss:
    """Returns the squared error of the hidden tokens, each the mean over its P pixels."""
    error_BL = (pixels_BLP.float() - target_BLP).square().mean(dim=2)
    # where, not a product: what stands outside the mask must not reach the sum even if it is not finite
    return Loss(torch.where(mask_BL, error_BL, 0.0).sum(), mask_BL.sum())


def draw_mask(
    segment_ids_BL: torch.Tensor, lengths_BS: torch.Tensor, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Returns (B, L) bool: floor(share x n) random tokens of each segment of n tokens, none of the padding.

    On the CPU and from a generator of its own, so that a run draws the same masks on every device and a
    resumed run the ones that were next. Two stable sorts: random order, then by segment.

    Args:
        segment_ids_BL: 1..S in runs by number, 0 = padding between and behind them.
        lengths_BS: tokens of each segment, 0 where there is none.
        share: 0..1.
        generator: moves on by B x L draws.
    """
    padding_last_BL = torch.where(segment_ids_BL == 0, torch.iinfo(segment_ids_BL.dtype).max, segment_ids_BL)
    order_BL = torch.rand(segment_ids_BL.shape, generator=generator).argsort(dim=1, stable=True)
    order_BL = order_BL.gather(1, padding_last_BL.gather(1, order_BL).argsort(dim=1, stable=True))
    # order_BL now holds the tokens of each segment in random order, one segment behind the other: hide the first few of each
    ids_BL = segment_ids_BL.gather(1, order_BL)
    ends_BS = lengths_BS.cumsum(dim=1)
    starts_BS, hidden_BS = ends_BS - lengths_BS, (lengths_BS.double() * share).long()
    segment_BL = (ids_BL - 1).clamp(min=0).long()
    rank_BL = torch.arange(segment_ids_BL.shape[1]) - starts_BS.gather(1, segment_BL)
    hidden_BL = (rank_BL < hidden_BS.gather(1, segment_BL)) & (ids_BL != 0)
    return torch.zeros_like(hidden_BL).scatter(1, order_BL, hidden_BL)
