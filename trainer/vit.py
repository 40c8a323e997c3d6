"""A small NaViT (arXiv:2307.06304): a vision transformer over packed sequences.

    tokens -> embed -> depth x [x + attention(norm(x)), x + mlp(norm(x))] -> norm -> features (B, L, D)
    features -> mean of each segment -> pooled (B, S, D) -> classes            where the dataset has classes
    features -> pixels of every token                                          where it has none

Pre-norm blocks, norm of queries and keys and no biases, as NaViT takes over from ViT-22B
(arXiv:2302.05442, section 2). Only attention and pooling look at more than one token, and both are
block-diagonal by segment id: so an example is seen as if it were alone, wherever it was packed.
Pooling is a mean where NaViT attends: it has no parameters, and an empty segment gives exact zeros.

Cost: 12 D^2 multiplications a token and block, 2 L D for attention, and S D for pooling: a product with
the (S, L) membership matrix instead of a scatter, whose order of summation CUDA does not fix.
Padding takes part in all of it and changes none of it.
"""

from typing import NamedTuple

import torch
from torch import nn

from patchpack.schemas import Layout
from patchpack.trainer.attention import packed_attention, segment_mask
from patchpack.trainer.embed import TokenEmbedding

MLP_RATIO = 4  # ViT, arXiv:2010.11929, table 1
INIT_STD = 0.02  # ViT and MAE initialise weights so; BERT, arXiv:1810.04805, before them


class Output(NamedTuple):
    """What the model says of a batch.

    Attributes:
        features_BLD: every token; constant in padding.
        pooled_BSD: every segment; zeros where there is none.
        logits_BSK: classes of every segment, or None for a model without classes.
        pixels_BLP: normalised pixels of every token, or None for a model with classes.
    """

    features_BLD: torch.Tensor
    pooled_BSD: torch.Tensor
    logits_BSK: torch.Tensor | None
    pixels_BLP: torch.Tensor | None


class NaViT(nn.Module):
    """The model; what it predicts follows from whether the dataset has classes."""

    def __init__(self, layout: Layout, num_classes: int | None, *, dim: int, depth: int, heads: int) -> None:
        """Draws the weights from torch's global generator.

        Args:
            layout: gives token width, mean and std; sequence length and max_segments are free.
            num_classes: classes of the head, or None to reconstruct masked tokens.
            dim: width of the model (D).
            depth: blocks.
            heads: attention heads; they divide dim.

        Raises:
            ValueError: sizes below 1, heads that do not divide dim, or tokens that are not pixels.
        """
        super().__init__()
        if min(dim, depth, heads) < 1 or dim % heads:
            raise ValueError(
                f"--dim {dim} --depth {depth} --heads {heads}: no such model; "
                "all are at least 1 and heads divide dim; change one"
            )
        self.embed = TokenEmbedding(layout, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.classify = None if num_classes is None else nn.Linear(dim, num_classes)
        self.reconstruct = nn.Linear(dim, layout.token_width) if num_classes is None else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens_BLP: torch.Tensor,
        segment_ids_BL: torch.Tensor,
        positions_BL3: torch.Tensor,
        max_segments: int,
        mask_BL: torch.Tensor | None = None,
    ) -> Output:
        """Returns features, pooled segments and predictions.

        Args:
            tokens_BLP: as stored; or already float pixels of 0..255, for gradients by the input.
            segment_ids_BL: 1..S, 0 = padding.
            positions_BL3: (t, y, x).
            max_segments: S; a constant, so that every batch has the same shape.
            mask_BL: true where a token's pixels are hidden from the model; None hides none.
        """
        x_BLD = self.embed(tokens_BLP, segment_ids_BL, positions_BL3, mask_BL)
        attends_B1LL = segment_mask(segment_ids_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, attends_B1LL)
        features_BLD = self.norm(x_BLD)
        pooled_BSD = pool_segments(features_BLD, segment_ids_BL, max_segments)
        logits_BSK = None if self.classify is None else self.classify(pooled_BSD)
        pixels_BLP = None if self.reconstruct is None else self.reconstruct(features_BLD)
        return Output(features_BLD, pooled_BSD, logits_BSK, pixels_BLP)


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim, bias=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.query_norm = nn.LayerNorm(dim // heads, bias=False)
        self.key_norm = nn.LayerNorm(dim // heads, bias=False)
        self.attended = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = nn.LayerNorm(dim, bias=False)
        self.widen = nn.Linear(dim, MLP_RATIO * dim, bias=False)
        self.narrow = nn.Linear(MLP_RATIO * dim, dim, bias=False)

    def forward(self, x_BLD: torch.Tensor, attends_B1LL: torch.Tensor) -> torch.Tensor:
        """Returns (B, L, D)."""
        x_BLD = x_BLD + self._attend(self.attention_norm(x_BLD), attends_B1LL)
        narrowed_BLD: torch.Tensor = self.narrow(nn.functional.gelu(self.widen(self.mlp_norm(x_BLD))))
        return x_BLD + narrowed_BLD

    def _attend(self, x_BLD: torch.Tensor, attends_B1LL: torch.Tensor) -> torch.Tensor:
        size, length, dim = x_BLD.shape
        qkv_BL3HK = self.qkv(x_BLD).view(size, length, 3, self.heads, dim // self.heads)
        q_BHLK, k_BHLK, v_BHLK = qkv_BL3HK.permute(2, 0, 3, 1, 4)
        # under autocast the norms return float32 and the fused kernel wants one dtype
        q_BHLK, k_BHLK = self.query_norm(q_BHLK).to(v_BHLK.dtype), self.key_norm(k_BHLK).to(v_BHLK.dtype)
        attended_BHLK = packed_attention(q_BHLK, k_BHLK, v_BHLK, attends_B1LL)
        attended_BLD: torch.Tensor = self.attended(attended_BHLK.transpose(1, 2).reshape(size, length, dim))
        return attended_BLD


def pool_segments(features_BLD: torch.Tensor, segment_ids_BL: torch.Tensor, max_segments: int) -> torch.Tensor:
    """Returns the mean of each segment's tokens, (B, S, D) float32; zeros where there is no segment."""
    numbers_S1 = torch.arange(1, max_segments + 1, device=segment_ids_BL.device)[:, None]
    # full precision under autocast too: a mean over a thousand tokens outgrows bf16's 8 bits
    with torch.autocast(features_BLD.device.type, enabled=False):
        member_BSL = (segment_ids_BL[:, None, :] == numbers_S1).to(torch.float32)
        sum_BSD = member_BSL @ features_BLD.float()
        return sum_BSD / member_BSL.sum(dim=2, keepdim=True).clamp(min=1)
