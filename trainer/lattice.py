"""Pooling inside packed segments, from their grids alone: what F.conv3d, max_pool3d and avg_pool3d do to each clip by itself.

A token knows its place in its segment's grid, so its neighbours are found by counting, and what lies beyond the grid is padding.
Each offset of the kernel is one gather: 27 for 3 x 3 x 3. Strides divide all grids (`--grid-multiple`), so segments stay where they were,
a stride's product closer together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from patchpack.trainer.attention import Plan, Runs, make_plan

Steps = tuple[int, int, int]

KINDS = ("conv", "max", "average")


class Neighbours(NamedTuple):
    """One offset of a kernel: where it lies for each output, and whether that is in the grid.

    Attributes:
        index_BQ: token of the input.
        is_there_BQ: whether there is one.
    """

    index_BQ: torch.Tensor
    is_there_BQ: torch.Tensor


@dataclass(eq=False)
class Lattice:
    """Where the segments of a batch lie, and their grids; what is found out of them once serves every block.

    Attributes:
        runs: where the segments lie.
        grids_BS3: the (t, h, w) of each.
    """

    runs: Runs
    grids_BS3: torch.Tensor
    _pooled: dict[Steps, "Lattice"] = field(default_factory=dict)
    _neighbours: dict[tuple[Steps, Steps], list[Neighbours]] = field(default_factory=dict)
    _plans: dict[tuple[str, Steps, Steps], Plan] = field(default_factory=dict)

    def pooled(self, stride: Steps) -> "Lattice":
        """Returns where the segments lie once each is pooled."""
        factor, runs = prod(stride), self.runs
        if factor == 1:
            return self
        if stride not in self._pooled:
            moved = runs._replace(
                starts_BS=runs.starts_BS // factor,
                lengths_BS=runs.lengths_BS // factor,
                length=max(1, runs.length // factor),
                most_tokens=max(1, runs.most_tokens // factor),
            )
            strides = torch.tensor(stride, device=self.grids_BS3.device)
            self._pooled[stride] = Lattice(moved, self.grids_BS3 // strides)
        return self._pooled[stride]

    def neighbours(self, kernel: Steps, stride: Steps) -> list[Neighbours]:
        """Returns the offsets of a kernel in raster order; it is padded by half of itself on each side."""
        if (kernel, stride) not in self._neighbours:
            self._neighbours[kernel, stride] = list(_neighbours(self, kernel, stride))
        return self._neighbours[kernel, stride]

    def plan(self, backend: str, query_stride: Steps, key_stride: Steps) -> Plan:
        """Returns the plan of attention of the segments to themselves, queries and keys pooled."""
        which = backend, query_stride, key_stride
        if which not in self._plans:
            self._plans[which] = make_plan(backend, self.pooled(query_stride).runs, self.pooled(key_stride).runs)
        return self._plans[which]

    def slots(self) -> torch.Tensor:
        """Returns the slot of each token's segment, (B, L) int64, 0 in padding."""
        return (self.runs.segment_ids() - 1).clamp(min=0)

    def places(self) -> torch.Tensor:
        """Returns each token's (t, y, x) in its grid, (B, L, 3) int64."""
        slots_BL = self.slots()
        starts_BL = self.runs.starts_BS.long().gather(1, slots_BL)
        grids_BL3 = torch.take_along_dim(self.grids_BS3.long(), slots_BL[..., None], 1).clamp(min=1)
        at_BL = (torch.arange(self.runs.length, device=slots_BL.device) - starts_BL).clamp(min=0)
        _, h, w = grids_BL3.unbind(-1)
        return torch.stack([at_BL // (h * w), at_BL // w % h, at_BL % w], dim=-1)


def _neighbours(source: Lattice, kernel: Steps, stride: Steps) -> Iterator[Neighbours]:
    target = source.pooled(stride)
    slots_BQ = target.slots()
    starts_BQ = source.runs.starts_BS.long().gather(1, slots_BQ)
    grids_BQ3 = torch.take_along_dim(source.grids_BS3.long(), slots_BQ[..., None], 1)
    corners_BQ3 = target.places() * torch.tensor(stride, device=slots_BQ.device)
    corners_BQ3 = corners_BQ3 - torch.tensor([side // 2 for side in kernel], device=slots_BQ.device)
    _, h, w = grids_BQ3.unbind(-1)
    for offset in product(*map(range, kernel)):
        at_BQ3 = corners_BQ3 + torch.tensor(offset, device=slots_BQ.device)
        is_there_BQ = ((at_BQ3 >= 0) & (at_BQ3 < grids_BQ3)).all(dim=-1)
        t, y, x = at_BQ3.unbind(-1)
        yield Neighbours(torch.where(is_there_BQ, starts_BQ + (t * h + y) * w + x, 0), is_there_BQ)


class Pool(nn.Module):
    """Pools tokens of some channels, each by itself."""

    def __init__(self, kind: str, channels: int, kernel: Steps, stride: Steps) -> None:
        super().__init__()
        self.kind, self.kernel, self.stride = kind, kernel, stride
        if kind == "conv":
            # as torch's convolutions begin, uniform within the root of 1 / fan-in
            reach = prod(kernel) ** -0.5
            self.weight_NC = nn.Parameter(torch.empty(prod(kernel), channels).uniform_(-reach, reach))

    def forward(self, x_BLxC: torch.Tensor, lattice: Lattice) -> torch.Tensor:
        """Returns (B, Q, ..., C); the same weights for all that lies between."""
        pooled: torch.Tensor | None = None
        size, length, *inner = x_BLxC.shape
        rows_ND = x_BLxC.reshape(size * length, -1)
        first_B1 = length * torch.arange(size, device=x_BLxC.device)[:, None]
        for number, (index_BQ, is_there_BQ) in enumerate(lattice.neighbours(self.kernel, self.stride)):
            # rows of a table: whole rows are copied, and their gradients added, two to three times faster than by gather
            taken = F.embedding(index_BQ + first_B1, rows_ND).unflatten(-1, inner)
            is_there = is_there_BQ.view(*is_there_BQ.shape, *[1] * len(inner))
            if self.kind == "max":
                taken = torch.where(is_there, taken, -torch.inf)
                pooled = taken if pooled is None else torch.maximum(pooled, taken)
                continue
            part = torch.where(is_there, taken, 0.0)
            part = part * self.weight_NC[number] if self.kind == "conv" else part / prod(self.kernel)
            pooled = part if pooled is None else pooled + part
        if pooled is None:
            raise AssertionError("a kernel has at least one offset")
        # of padding there is no largest
        return torch.where(pooled == -torch.inf, 0.0, pooled) if self.kind == "max" else pooled
