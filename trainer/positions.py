"""Where a token lies in its example, as a model sees it.

Factorised embeddings (NaViT, arXiv 2307.06304, section 3.1 and appendix): one embedding an axis, of the coordinate itself
(absolute) or of its part of the side (fractional), put together by sum, product, or side by side (stack).

    learned     a table an axis; fractional coordinates lie between its rows (Pix2Struct's is absolute and summed)
    sinusoidal  fixed sines and cosines (Vaswani et al. 2017, section 3.5)
    fourier     a learned map of sines and cosines of learned frequencies, as NeRF's are fixed
    grid        one table of both sides, resized to each example's grid by bilinear interpolation (ViT and FlexiViT)
    rope        queries and keys turned by angles, a part of each head an axis (axial RoPE, arXiv 2403.13298)

Absolute ones keep the aspect ratio, fractional ones know where the edges are. Sines are defined everywhere; a table has
rows for so many positions, and a batch that has more is refused before the step (`most_positions`).
"""

import math
from itertools import pairwise

import torch
from torch import nn

KINDS = ("learned", "sinusoidal", "fourier", "grid", "rope")
COORDINATES = ("absolute", "fractional")
COMBINE = ("sum", "stack", "product")

NUM_FREQUENCIES = 32
# longest wavelength 2 pi x 10,000 tokens: Vaswani et al. 2017, section 3.5
MAX_PERIOD = 10_000.0
# of RoPE on images: arXiv 2403.13298, section 3.2
ROPE_PERIOD = 100.0
INIT_STD = 0.02


class Positions(nn.Module):
    """Embeds (t, y, x) by one of KINDS but rope."""

    def __init__(self, kind: str, coordinates: str, combine: str, num_axes: int, dim: int, most_positions: int) -> None:
        """Draws what is learned.

        Args:
            kind: one of KINDS.
            coordinates: one of COORDINATES.
            combine: one of COMBINE.
            num_axes: 2 (y, x) or 3 (t, y, x).
            dim: width of the model (D).
            most_positions: rows of a table.
        """
        super().__init__()
        self.kind, self.combine, self.num_axes = kind, combine, num_axes
        self.is_fractional, self.most_positions = coordinates == "fractional", most_positions
        # side by side they share the width
        edges = [dim * axis // num_axes for axis in range(num_axes + 1)]
        widths = [end - start for start, end in pairwise(edges)] if combine == "stack" else [dim] * num_axes
        if kind == "grid":
            self.table_HWD = nn.Parameter(torch.empty(most_positions, most_positions, dim))
            nn.init.trunc_normal_(self.table_HWD, std=INIT_STD)
        elif kind == "learned":
            # a product of small numbers would be none
            middle = 1.0 if combine == "product" else 0.0
            self.tables = nn.ParameterList(torch.empty(most_positions, width) for width in widths)
            for table in self.tables:
                nn.init.trunc_normal_(table, std=INIT_STD)
                with torch.no_grad():
                    table += middle
        elif kind == "fourier":
            exponents_F = torch.arange(NUM_FREQUENCIES) / NUM_FREQUENCIES
            self.frequencies_AF = nn.Parameter(torch.exp(-math.log(MAX_PERIOD) * exponents_F).repeat(num_axes, 1))
            self.maps = nn.ModuleList(
                nn.Linear(2 * NUM_FREQUENCIES, width, bias=combine == "product") for width in widths
            )
            for linear in self.maps.children():
                for name, parameter in linear.named_parameters():
                    nn.init.ones_(parameter) if name == "bias" else nn.init.trunc_normal_(parameter, std=INIT_STD)
        self.widths = widths

    def forward(self, positions_BL3: torch.Tensor, sizes_BL3: torch.Tensor) -> torch.Tensor:
        """Returns (B, L, D).

        Args:
            positions_BL3: (t, y, x).
            sizes_BL3: the grid of each token's example, (t, h, w); 1 in padding.
        """
        first = 3 - self.num_axes
        positions_BLA, sizes_BLA = positions_BL3[..., first:], sizes_BL3[..., first:]
        if self.kind == "grid":
            return self._between(positions_BLA[..., -2:], sizes_BLA[..., -2:])
        at_BLA = positions_BLA.float()
        if self.is_fractional:
            # from 0 to most_positions, so that frequencies mean the same
            at_BLA = (at_BLA + 0.5) / sizes_BLA * self.most_positions
        parts = [self._axis(axis, at_BLA[..., axis]) for axis in range(self.num_axes)]
        if self.combine == "stack":
            return torch.cat(parts, dim=-1)
        whole_BLD = parts[0]
        for part_BLD in parts[1:]:
            whole_BLD = whole_BLD + part_BLD if self.combine == "sum" else whole_BLD * part_BLD
        return whole_BLD

    def _axis(self, axis: int, at_BL: torch.Tensor) -> torch.Tensor:
        """Returns the embedding of one axis' coordinates."""
        if self.kind == "learned":
            table = self.tables[axis]
            if not self.is_fractional:
                rows: torch.Tensor = table[at_BL.long().clamp(max=self.most_positions - 1)]
                return rows
            return _interpolated(table, at_BL - 0.5)
        if self.kind == "fourier":
            angles_BLF = at_BL[..., None] * self.frequencies_AF[axis]
            embedded: torch.Tensor = self.maps[axis](torch.cat([angles_BLF.sin(), angles_BLF.cos()], dim=-1))
            return embedded
        return _sines(at_BL, self.widths[axis])

    def _between(self, at_BL2: torch.Tensor, sizes_BL2: torch.Tensor) -> torch.Tensor:
        """Returns the table resized to each example's grid, at its tokens."""
        side = self.most_positions
        centres_BL2 = (at_BL2 + 0.5) * side / sizes_BL2 - 0.5
        low_BL2 = centres_BL2.floor()
        part_BL2 = centres_BL2 - low_BL2
        whole: torch.Tensor | float = 0.0
        for down in (0, 1):
            for across in (0, 1):
                rows, columns = (
                    (low_BL2[..., axis] + step).clamp(0, side - 1).long() for axis, step in enumerate((down, across))
                )
                weights = [
                    part if step else 1 - part for part, step in zip(part_BL2.unbind(-1), (down, across), strict=True)
                ]
                whole = whole + self.table_HWD[rows, columns] * (weights[0] * weights[1])[..., None]
        if isinstance(whole, float):
            raise AssertionError("four corners were added")
        return whole


def _interpolated(table_ND: torch.Tensor, at_BL: torch.Tensor) -> torch.Tensor:
    """Returns what lies between a table's rows."""
    low_BL = at_BL.floor()
    last = len(table_ND) - 1
    below, above = ((low_BL + step).clamp(0, last).long() for step in (0, 1))
    part_BL1 = (at_BL - low_BL)[..., None]
    return table_ND[below] * (1 - part_BL1) + table_ND[above] * part_BL1


def _sines(at_BL: torch.Tensor, width: int) -> torch.Tensor:
    """Returns sines and cosines of a width, the last column 0 where that is odd."""
    count = width // 2
    exponents_F = torch.arange(count, device=at_BL.device) / max(1, count)
    angles_BLF = at_BL[..., None] * torch.exp(-math.log(MAX_PERIOD) * exponents_F)
    waves = [angles_BLF.sin(), angles_BLF.cos()]
    return torch.cat([*waves, at_BL.new_zeros(*at_BL.shape, width - 2 * count)], dim=-1)


def rope_angles(positions_BL3: torch.Tensor, num_axes: int, head_width: int) -> torch.Tensor:
    """Returns the angles by which pairs of a head's numbers are turned, (B, L, head_width / 2); some may be 0.

    Args:
        positions_BL3: (t, y, x).
        num_axes: 2 (y, x) or 3: each turns an equal part of the pairs.
        head_width: numbers of a head (K), even.
    """
    of_axis = head_width // 2 // num_axes
    exponents_F = torch.arange(of_axis, device=positions_BL3.device) / max(1, of_axis)
    frequencies_F = torch.exp(-math.log(ROPE_PERIOD) * exponents_F)
    angles = (positions_BL3[..., 3 - num_axes :, None] * frequencies_F).flatten(-2)
    return torch.nn.functional.pad(angles, (0, head_width // 2 - angles.shape[-1]))


def rotated(x_BLHK: torch.Tensor, angles_BLF: torch.Tensor) -> torch.Tensor:
    """Returns queries or keys turned by their angles, in their dtype."""
    cosines, sines = angles_BLF.cos()[:, :, None], angles_BLF.sin()[:, :, None]
    one, two = x_BLHK.float().chunk(2, dim=-1)
    return torch.cat([one * cosines - two * sines, one * sines + two * cosines], dim=-1).to(x_BLHK.dtype)
