"""Attention inside segments: the block-diagonal mask that makes packed equal alone.

A token attends to the tokens of its own segment and to nothing else. Padding is segment 0 and attends
to padding: nothing real sees it, and a row of the softmax without any key, which would be NaN, does
not come up. Masked scores are -inf before the softmax, so the weight between two segments is exactly 0,
and so is its gradient.

Cost: torch's fused kernel with a boolean mask; O(L^2) time whatever the segments, and one (B, 1, L, L)
boolean mask a batch, shared by all layers. Given up: skipping blocks that are all masked (FlexAttention
on CUDA), which pays from some thousand tokens a sequence on.
"""

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)


def segment_mask(segment_ids_BL: torch.Tensor) -> torch.Tensor:
    """Returns (B, 1, L, L) bool: whether the query of a row may see the key of a column, for every head."""
    return (segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :])[:, None]


def packed_attention(
    q_BHLK: torch.Tensor, k_BHLK: torch.Tensor, v_BHLK: torch.Tensor, mask_B1LL: torch.Tensor
) -> torch.Tensor:
    """Returns softmax(q k^T / sqrt(K)) v inside each segment, (B, H, L, K).

    Args:
        q_BHLK: queries of H heads of width K.
        k_BHLK: keys.
        v_BHLK: values; finite in padding too, since 0 * NaN is NaN.
        mask_B1LL: from `segment_mask`.
    """
    return F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, attn_mask=mask_B1LL)
