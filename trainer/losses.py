"""What the model is trained on; all losses count real things and never slots.

A loss is a sum and the number of things summed: the mean over any number of batches is then the sum of
sums over the sum of counts, and a batch with nothing to count adds 0, not NaN.

Classification: cross-entropy over segments that have a label, or a yes or no of every class where they may have several; weighted.
Reconstruction (MAE, arXiv 2111.06377): the squared error of normalised pixels over hidden tokens. Pairs (CLIP, arXiv 2103.00020;
SigLIP, arXiv 2303.15343): each image against all captions of the step, and the other way round, those of one process at a time, so
that no process ever holds all products.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch.utils.checkpoint import checkpoint

from patchpack.trainer.parallel import gathered, owned

# of what is not there, among logits: finite, so that no gradient is 0 x infinity
NEVER = -1e30


class Loss(NamedTuple):
    """Attributes: total, the differentiable sum; count, how many things were summed (both scalars on the device)."""

    total: torch.Tensor
    count: torch.Tensor  # type: ignore[assignment]  # a tuple has a method of this name, which nobody calls

    @property
    def mean(self) -> torch.Tensor:
        """The loss to minimise; 0 where nothing was counted."""
        return self.total / torch.where(self.count > 0, self.count, 1)


class Pairs(NamedTuple):
    """What a model says of images and their captions.

    Attributes:
        image_ND: vectors of length 1, float32, of N slots.
        text_ND: likewise.
        is_pair_N: whether there are an image and a caption.
        scale_1: by which products of vectors are multiplied.
        bias_1: that is added to them, of SigLIP.
    """

    image_ND: torch.Tensor
    text_ND: torch.Tensor
    is_pair_N: torch.Tensor
    scale_1: torch.Tensor
    bias_1: torch.Tensor | None


def label_weights(labels_BS: torch.Tensor, weights_BS: torch.Tensor) -> torch.Tensor:
    """Returns what each segment counts, (B, S): its weight, or 0 without a label."""
    return torch.where(labels_BS >= 0, weights_BS, 0.0)


def classification_loss(logits_BSK: torch.Tensor, labels_BS: torch.Tensor, weights_BS: torch.Tensor) -> Loss:
    """Returns the weighted cross-entropy of labelled segments; label -1 (no label, no segment) does not count."""
    error_N = F.cross_entropy(logits_BSK.float().flatten(0, 1), labels_BS.flatten(), ignore_index=-1, reduction="none")
    counts_BS = label_weights(labels_BS, weights_BS)
    return Loss((error_N * counts_BS.flatten()).sum(), counts_BS.sum())


def multilabel_loss(logits_BSK: torch.Tensor, labels_BSM: torch.Tensor, weights_BS: torch.Tensor) -> Loss:
    """Returns the weighted sum over all classes of the binary cross-entropy of labelled segments.

    Args:
        logits_BSK: of K classes.
        labels_BSM: all labels of each segment, the first ones; -1 where there are fewer.
        weights_BS: of each segment.
    """
    is_there_BSM = labels_BSM >= 0
    target_BSK = torch.zeros_like(logits_BSK, dtype=torch.float32)
    target_BSK = target_BSK.scatter_reduce(2, labels_BSM.clamp(min=0), is_there_BSM.float(), "amax")
    counts_BS = label_weights(labels_BSM[..., 0], weights_BS)
    error_BS = F.binary_cross_entropy_with_logits(logits_BSK.float(), target_BSK, reduction="none").sum(dim=2)
    return Loss(torch.where(counts_BS > 0, error_BS * counts_BS, 0.0).sum(), counts_BS.sum())


def reconstruction_loss(predicted_BQP: torch.Tensor, target_BQP: torch.Tensor, is_there_BQ: torch.Tensor) -> Loss:
    """Returns the squared error of the hidden tokens, each the mean over its P pixels."""
    error_BQ = (predicted_BQP.float() - target_BQP).square().mean(dim=2)
    # where, not a product: what stands in the place of no token must not reach the sum even if it is not finite
    return Loss(torch.where(is_there_BQ, error_BQ, 0.0).sum(), is_there_BQ.sum())


def clip_loss(pairs: Pairs) -> Loss:
    """Returns the mean of both ways of the cross-entropy of each one's own partner among all of the step.

    Over all processes, the sum of what they return is that of one process with all pairs.
    """
    is_there_WN = gathered(pairs.is_pair_N)
    matched_N = pairs.scale_1 * (pairs.image_ND * pairs.text_ND).sum(dim=1)
    from_images_N = _log_sums(pairs.image_ND, pairs.text_ND, is_there_WN, pairs.scale_1)
    from_captions_N = _log_sums(pairs.text_ND, pairs.image_ND, is_there_WN, pairs.scale_1)
    error_N = (from_images_N + from_captions_N) / 2 - matched_N
    return Loss(torch.where(pairs.is_pair_N, error_N, 0.0).sum(), pairs.is_pair_N.sum())


def siglip_loss(pairs: Pairs) -> Loss:
    """Returns the sum over own images and all captions of the step of -log sigmoid: of pairs, and of the opposite of all others.

    What counts are pairs, as in the paper: an image weighs as much as the captions it is compared with.
    """
    bias_1 = torch.zeros_like(pairs.scale_1) if pairs.bias_1 is None else pairs.bias_1
    total = pairs.scale_1.new_zeros(())
    for is_own, text_ND, is_there_N in zip(owned(), gathered(pairs.text_ND), gathered(pairs.is_pair_N), strict=True):
        total = total + checkpoint(_sigmoid_sum, pairs, text_ND, is_there_N, bias_1, is_own, use_reentrant=False)
    return Loss(total, pairs.is_pair_N.sum())


def _log_sums(
    own_ND: torch.Tensor, others_ND: torch.Tensor, is_there_WN: torch.Tensor, scale_1: torch.Tensor
) -> torch.Tensor:
    """Returns log sum exp of each one's scaled products with the others of all processes, (N,)."""
    sums_N = torch.full_like(own_ND[:, 0], NEVER)
    for part_ND, is_there_N in zip(gathered(others_ND), is_there_WN, strict=True):
        part_N = checkpoint(_log_sum, own_ND, part_ND, is_there_N, scale_1, use_reentrant=False)
        sums_N = torch.logaddexp(sums_N, part_N)
    return sums_N


def _log_sum(
    own_ND: torch.Tensor, part_MD: torch.Tensor, is_there_M: torch.Tensor, scale_1: torch.Tensor
) -> torch.Tensor:
    return torch.where(is_there_M, scale_1 * own_ND @ part_MD.T, NEVER).logsumexp(dim=1)


def _sigmoid_sum(
    pairs: Pairs, text_MD: torch.Tensor, is_there_M: torch.Tensor, bias_1: torch.Tensor, is_own: bool
) -> torch.Tensor:
    logits_NM = pairs.scale_1 * pairs.image_ND @ text_MD.T + bias_1
    sign_NM = (2 * torch.eye(len(logits_NM), device=logits_NM.device) if is_own else torch.zeros_like(logits_NM)) - 1
    counts_NM = pairs.is_pair_N[:, None] & is_there_M
    return torch.where(counts_NM, -F.logsigmoid(sign_NM * logits_NM), 0.0).sum()
