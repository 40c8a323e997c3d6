"""One transformer block over packed tokens; only attention looks at more than one of them.

Pre-norm, x + attention(norm(x)), then x + mlp(norm(x)). NaViT norms queries and keys and has no biases, as ViT-22B (arXiv 2302.05442,
section 2); ViT has biases and no such norm.

Cost: 12 D^2 multiplications a token, and 2 n D for the attention of a segment of n tokens. Padding takes part in the former and
changes nothing.
"""

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from patchpack.trainer.attention import Plan, attend
from patchpack.trainer.embed import INIT_STD
from patchpack.trainer.positions import rotated

MLP_RATIO = 4  # ViT, arXiv:2010.11929, table 1


class Block(nn.Module):
    """A block of width D with H heads."""

    def __init__(self, dim: int, heads: int, *, bias: bool = False, qk_norm: bool = True) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, bias=bias)
        self.attention = Attention(dim, heads, bias=bias, qk_norm=qk_norm)
        self.mlp_norm = nn.LayerNorm(dim, bias=bias)
        self.mlp = Mlp(dim, bias=bias)

    def forward(self, x_BLD: torch.Tensor, plan: Plan, angles_BLF: torch.Tensor | None = None) -> torch.Tensor:
        """Returns (B, L, D); `angles_BLF` are those of RoPE."""
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), plan, angles_BLF)
        narrowed_BLD: torch.Tensor = self.mlp(self.mlp_norm(x_BLD))
        return x_BLD + narrowed_BLD


class Attention(nn.Module):
    """Attention of every token to those of its segment."""

    def __init__(self, dim: int, heads: int, *, bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(dim, 3 * dim, bias=bias)
        self.query_norm = nn.LayerNorm(dim // heads, bias=False) if qk_norm else nn.Identity()
        self.key_norm = nn.LayerNorm(dim // heads, bias=False) if qk_norm else nn.Identity()
        self.out = linear(dim, dim, bias=bias)

    def forward(self, x_BLD: torch.Tensor, plan: Plan, angles_BLF: torch.Tensor | None) -> torch.Tensor:
        """Returns (B, L, D)."""
        q_BLHK, k_BLHK, v_BLHK = self.qkv(x_BLD).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q_BLHK, k_BLHK = self.query_norm(q_BLHK), self.key_norm(k_BLHK)
        if angles_BLF is not None:
            q_BLHK, k_BLHK = rotated(q_BLHK, angles_BLF), rotated(k_BLHK, angles_BLF)
        # under autocast the norms return float32, and the kernels take one dtype
        attended_BLHK = attend(q_BLHK.to(v_BLHK.dtype), k_BLHK.to(v_BLHK.dtype), v_BLHK, plan)
        out_BLD: torch.Tensor = self.out(attended_BLHK.flatten(2))
        return out_BLD


class Mlp(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, dim: int, *, bias: bool, dim_out: int | None = None) -> None:
        super().__init__()
        self.widen = linear(dim, MLP_RATIO * dim, bias=bias)
        self.narrow = linear(MLP_RATIO * dim, dim_out or dim, bias=bias)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Returns the same shape, or another width."""
        narrowed_BLD: torch.Tensor = self.narrow(F.gelu(self.widen(x_BLD)))
        return narrowed_BLD


def linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    """Returns a linear layer as ViTs begin with."""
    made = nn.Linear(inputs, outputs, bias=bias)
    nn.init.trunc_normal_(made.weight, std=INIT_STD)
    if bias:
        nn.init.zeros_(made.bias)
    return made
