"""What the model is trained on; both losses count real things and never slots.

A loss is a sum and the number of things summed: the mean over any number of batches is then the sum of
sums over the sum of counts, and a batch with nothing to count adds 0, not NaN.

Classification: cross-entropy over segments that have a label. Reconstruction (MAE, arXiv 2111.06377): the squared error of
normalised pixels over hidden tokens.
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


def reconstruction_loss(predicted_BQP: torch.Tensor, target_BQP: torch.Tensor, is_there_BQ: torch.Tensor) -> Loss:
    """Returns the squared error of the hidden tokens, each the mean over its P pixels."""
    error_BQ = (predicted_BQP.float() - target_BQP).square().mean(dim=2)
    # where, not a product: what stands in the place of no token must not reach the sum even if it is not finite
    return Loss(torch.where(is_there_BQ, error_BQ, 0.0).sum(), is_there_BQ.sum())
