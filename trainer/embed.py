"""From stored tokens to embedded tokens: normalise on the device, project, add where the token lies.

Positions are factorised (NaViT, arXiv:2307.06304, section 2.1): the embedding of (t, y, x) is the sum of
one embedding an axis. Each axis takes sines and cosines of the absolute coordinate (Vaswani et al. 2017,
section 3.5) through a learned linear map. Why not a learned table: the format allows coordinates up to
32,767 and a dataset says nowhere how large its grids get, so a table would be sized by guess, and a model
could not read a dataset with larger images. Sines are defined everywhere, and near coordinates have near
embeddings. Why not fractions of the side: they lose the aspect ratio, which this product exists to keep.

Cost: one (L, P) x (P, D) product, and 3 of (L, 2F) x (2F, D) with F = 32.
"""

import math

import torch
from torch import nn

from patchpack.schemas import Layout

NUM_FREQUENCIES = 32
# longest wavelength 2 pi x 10,000 tokens: Vaswani et al. 2017, section 3.5
MAX_PERIOD = 10_000.0


class TokenEmbedding(nn.Module):
    """Embeds tokens as stored; padding becomes zeros whatever it holds."""

    def __init__(self, layout: Layout, dim: int) -> None:
        """Takes width, mean and std from the layout.

        Raises:
            ValueError: the tokens are not uint8.
        """
        super().__init__()
        if layout.token_dtype != "uint8":  # noqa: S105 (no password)
            raise ValueError(
                f"token dtype {layout.token_dtype}: not known; this trainer reads uint8 pixels; upgrade patchpack"
            )
        # inside a token the channel comes last (pt, ph, pw, C), so mean and std repeat for every pixel
        pixels = layout.token_width // layout.channels
        self.mean_P: torch.Tensor
        self.std_P: torch.Tensor
        self.register_buffer("mean_P", torch.tensor(layout.mean).repeat(pixels), persistent=False)
        self.register_buffer("std_P", torch.tensor(layout.std).repeat(pixels), persistent=False)
        self.project = nn.Linear(layout.token_width, dim, bias=False)
        self.position = PositionEmbedding(dim)
        self.masked_D = nn.Parameter(torch.zeros(dim))

    def normalise(self, tokens_BLP: torch.Tensor) -> torch.Tensor:
        """Returns (x / 255 - mean) / std of every channel, float32, same shape."""
        return (tokens_BLP.float() / 255 - self.mean_P) / self.std_P

    def forward(
        self,
        tokens_BLP: torch.Tensor,
        segment_ids_BL: torch.Tensor,
        positions_BL3: torch.Tensor,
        mask_BL: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns (B, L, D); where `mask_BL` is true the pixels are hidden and the position is not."""
        embedded_BLD: torch.Tensor = self.project(self.normalise(tokens_BLP))
        if mask_BL is not None:
            embedded_BLD = torch.where(mask_BL[..., None], self.masked_D.to(embedded_BLD.dtype), embedded_BLD)
        embedded_BLD = embedded_BLD + self.position(positions_BL3)
        return embedded_BLD * (segment_ids_BL != 0)[..., None]


class PositionEmbedding(nn.Module):
    """Embeds (t, y, x): a learned map of sines and cosines for each axis, summed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        exponents_F = torch.arange(NUM_FREQUENCIES) / NUM_FREQUENCIES
        self.frequencies_F: torch.Tensor
        self.register_buffer("frequencies_F", torch.exp(-math.log(MAX_PERIOD) * exponents_F), persistent=False)
        self.axes = nn.ModuleList(nn.Linear(2 * NUM_FREQUENCIES, dim, bias=False) for _ in range(3))

    def forward(self, positions_BL3: torch.Tensor) -> torch.Tensor:
        """Returns (B, L, D) for integer coordinates of any size."""
        angles_BL3F = positions_BL3[..., None] * self.frequencies_F
        waves_BL3W = torch.cat([angles_BL3F.sin(), angles_BL3F.cos()], dim=-1)
        parts_BLD: list[torch.Tensor] = [axis(waves_BL3W[:, :, number]) for number, axis in enumerate(self.axes)]
        return parts_BLD[0] + parts_BLD[1] + parts_BLD[2]
