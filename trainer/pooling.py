"""From tokens to one vector a segment, (B, S, D); zeros where there is no segment.

mean       of the segment's tokens: no parameters
attention  a learned query attends to them, then x + mlp(norm(x)): the head of NaViT (arXiv 2307.06304, section 3.1), as in Zhai et al.
(arXiv 2106.04560, section 2)
"""

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from patchpack.trainer.attention import Runs, attend, make_plan
from patchpack.trainer.embed import INIT_STD
from patchpack.trainer.transformer import Mlp, linear

KINDS = ("mean", "attention")


class MeanPooling(nn.Module):
    """The mean of each segment's tokens, float32."""

    def forward(self, features_BLD: torch.Tensor, runs: Runs, backend: str) -> torch.Tensor:
        """Returns (B, S, D): a product with the (S, L) membership, whose order of summation no device leaves open."""
        most = runs.most_segments
        starts_BS1, lengths_BS1 = (part[:, :most, None] for part in (runs.starts_BS, runs.lengths_BS))
        after_BSL = torch.arange(runs.length, device=features_BLD.device) - starts_BS1
        # full precision under autocast too: a mean over a thousand tokens outgrows bf16's 8 bits
        with torch.autocast(features_BLD.device.type, enabled=False):
            features_BLD = features_BLD.to(torch.promote_types(features_BLD.dtype, torch.float32))
            member_BSL = ((after_BSL >= 0) & (after_BSL < lengths_BS1)).to(features_BLD.dtype)
            pooled_BSD = member_BSL @ features_BLD / lengths_BS1.clamp(min=1)
        return F.pad(pooled_BSD, (0, 0, 0, runs.starts_BS.shape[1] - most))


class AttentionPooling(nn.Module):
    """What a learned query finds in each segment."""

    def __init__(self, dim: int, heads: int, *, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query_D = nn.Parameter(torch.empty(dim))
        nn.init.trunc_normal_(self.query_D, std=INIT_STD)
        self.project_query, self.project_key_value = linear(dim, dim, bias=bias), linear(dim, 2 * dim, bias=bias)
        self.out = linear(dim, dim, bias=bias)
        self.norm, self.mlp = nn.LayerNorm(dim, bias=bias), Mlp(dim, bias=bias)

    def forward(self, features_BLD: torch.Tensor, runs: Runs, backend: str) -> torch.Tensor:
        """Returns (B, S, D)."""
        size, slots = runs.starts_BS.shape
        there_BS = runs.lengths_BS > 0
        # one query a segment, each alone in its slot
        places_BS = torch.arange(slots, device=there_BS.device).expand(size, slots)
        queries = runs._replace(
            starts_BS=places_BS * there_BS, lengths_BS=there_BS.long(), length=slots, most_tokens=slots
        )
        k_BLHK, v_BLHK = self.project_key_value(features_BLD).unflatten(-1, (2, self.heads, -1)).unbind(2)
        query_HK = self.project_query(self.query_D).view(self.heads, -1)
        q_BSHK = query_HK.expand(size, slots, *query_HK.shape).to(k_BLHK.dtype)
        attended_BSHK = attend(q_BSHK, k_BLHK, v_BLHK, make_plan(backend, queries, runs))
        x_BSD: torch.Tensor = self.out(attended_BSHK.flatten(2))
        x_BSD = x_BSD + self.mlp(self.norm(x_BSD))
        return torch.where(there_BS[..., None], x_BSD.to(torch.promote_types(x_BSD.dtype, torch.float32)), 0.0)
