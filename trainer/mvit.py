"""MViT (Fan et al., arXiv 2104.11227): attention whose queries, keys and values are pooled, inside packed sequences.

Four stages; at the first block of each but the first the queries are pooled by 1 x 2 x 2, so that the grid shrinks, and the last block
before it doubles the channels (section 3.2, table 2). Keys and values are pooled to one small grid in all stages: by 1 x 8 x 8,
1 x 4 x 4, 1 x 2 x 2 and not at all. Pooling is a depthwise convolution of 3 x 3 x 3 over each segment's own grid (`lattice`), followed by a
norm; the way around it takes the largest. Instead of a class token the mean of each segment; a table of positions an axis, as the
paper's separable ones.

Needs grids of multiples of 8 (`build --recipe mvit`), all of whose tokens are there.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import nn

from patchpack.schemas import Layout
from patchpack.schemas.manifest import Limits
from patchpack.trainer.attention import Runs, attend
from patchpack.trainer.embed import PixelEmbedding
from patchpack.trainer.lattice import Lattice, Pool, Steps
from patchpack.trainer.model import Model, Output, token_sizes
from patchpack.trainer.pooling import MeanPooling
from patchpack.trainer.positions import Positions
from patchpack.trainer.transformer import Mlp, linear

NUM_STAGES = 4
# what three strides of two need
GRID_MULTIPLE = 8
KERNEL: Steps = (3, 3, 3)


class Step(NamedTuple):
    """What one block does: its width and that of the next, its heads, and its strides."""

    dim: int
    dim_out: int
    heads: int
    query_stride: Steps
    key_stride: Steps


def steps_of(dim: int, depth: int, heads: int) -> Iterator[Step]:
    """Yields the blocks of a model; of 16 as the paper's MViT-B: 1, 2, 11 and 2 a stage.

    Args:
        dim: width of the first stage; doubled from stage to stage, as are the heads.
        depth: blocks, at least one a stage.
        heads: of the first stage.
    """
    side = max(1, depth // 8)
    stages = [number for number, count in enumerate((1, side, depth - 1 - 2 * side, side)) for _ in range(count)]
    for at, stage in enumerate(stages):
        begins, ends = at > 0 and stages[at - 1] != stage, at + 1 < depth and stages[at + 1] != stage
        side_of_key = 8 >> stage
        yield Step(
            dim << stage,
            dim << (stage + ends),
            heads << stage,
            (1, 2, 2) if begins else (1, 1, 1),
            # the grid has shrunk with the queries; the keys of a block are pooled from its input
            (1, 2 * side_of_key, 2 * side_of_key) if begins else (1, side_of_key, side_of_key),
        )


class MViT(Model):
    """The model; it needs classes."""

    def __init__(
        self,
        layout: Layout,
        limits: Limits,
        num_classes: int,
        *,
        dim: int,
        depth: int,
        heads: int,
        most_positions: int,
        pool: str = "conv",
        attention: str = "dense",
    ) -> None:
        """Draws the weights from torch's global generator.

        Args:
            layout: that it reads.
            limits: the most that its sequences have.
            num_classes: classes of the head.
            dim: width of the first stage.
            depth: blocks of all stages.
            heads: of the first stage.
            most_positions: rows of the tables of positions.
            pool: one of `lattice.KINDS`, of queries, keys and values.
            attention: backend, see `attention`.

        Raises:
            ValueError: the layout's grids cannot be pooled three times, tokens were dropped, or there is no such model.
        """
        if layout.grid_multiple % GRID_MULTIPLE or layout.keep_order or layout.align_tokens > 1:
            what = "dropped tokens" if layout.keep_order else f"a grid multiple of {layout.grid_multiple}"
            if layout.align_tokens > 1:
                what = f"segments aligned to {layout.align_tokens}"
            raise ValueError(
                f"--model mvit: shards with {what}; it pools whole grids of multiples of {GRID_MULTIPLE}; build with --recipe mvit"
            )
        if min(dim, heads) < 1 or depth < NUM_STAGES or dim % heads:
            raise ValueError(
                f"--dim {dim} --depth {depth} --heads {heads}: no such model; MViT has at least {NUM_STAGES} blocks and heads divide dim; "
                "change one"
            )
        super().__init__(layout, limits, attention, 0.0)
        self.steps = list(steps_of(dim, depth, heads))
        self.embed = PixelEmbedding([layout], dim, bias=True)
        self.position = Positions("learned", "absolute", "sum", 3, dim, most_positions)
        self.blocks = nn.ModuleList(PooledBlock(step, pool) for step in self.steps)
        self.norm = nn.LayerNorm(self.steps[-1].dim_out)
        self.pool = MeanPooling()
        self.classify: nn.Module = linear(self.steps[-1].dim_out, num_classes, bias=True)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Output:
        """Returns features of the pooled grids, pooled segments and classes; see `model.Model`."""
        lattice = Lattice(Runs.of(batch, self.layout, self.limits), batch["grids"])
        x_BLD = self.embed(batch["tokens"]) + self.position(batch["positions"], token_sizes(batch))
        for block in self.blocks:
            x_BLD, lattice = block(x_BLD, lattice, self.backend)
        features_BLD = self.norm(x_BLD)
        pooled_BSD = self.pool(features_BLD, lattice.runs, self.backend)
        return Output(features_BLD, pooled_BSD, self.classify(pooled_BSD), None)

    def flops(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the useful FLOPs of a step on a batch; see `model.Model`."""
        tokens_BS = batch["lengths"].double()
        total = (2 * tokens_BS * self.layout.token_width * self.steps[0].dim).sum()
        for step in self.steps:
            queries_BS, keys_BS = tokens_BS / prod(step.query_stride), tokens_BS / prod(step.key_stride)
            total = total + (tokens_BS * 6 * step.dim**2 + 4 * step.dim * queries_BS * keys_BS).sum()
            total = total + (queries_BS * (2 * step.dim**2 + 8 * step.dim * (step.dim + step.dim_out))).sum()
            tokens_BS = queries_BS
        return 3 * total


class PooledBlock(nn.Module):
    """One block: pooled attention, then two layers, the last of which may double the channels."""

    def __init__(self, step: Step, pool: str) -> None:
        super().__init__()
        self.step = step
        width = step.dim // step.heads
        self.attention_norm = nn.LayerNorm(step.dim)
        self.qkv, self.out = linear(step.dim, 3 * step.dim, bias=True), linear(step.dim, step.dim, bias=True)
        strides = (step.query_stride, step.key_stride, step.key_stride)
        self.pools = nn.ModuleList(_pool(pool, width, stride) for stride in strides)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in strides)
        # of the way around, which is pooled where the queries are (section 3.2)
        self.around = _pool("max", step.dim, step.query_stride)
        self.mlp_norm = nn.LayerNorm(step.dim)
        self.mlp = Mlp(step.dim, bias=True, dim_out=step.dim_out)
        self.widen = linear(step.dim, step.dim_out, bias=True) if step.dim_out != step.dim else None

    def forward(self, x_BLD: torch.Tensor, lattice: Lattice, backend: str) -> tuple[torch.Tensor, Lattice]:
        """Returns (B, Q, D) and where its segments lie."""
        parts = self.qkv(self.attention_norm(x_BLD)).unflatten(-1, (3, self.step.heads, -1)).unbind(2)
        q_BQHK, k_BRHK, v_BRHK = (
            norm(pool(part, lattice)) for part, pool, norm in zip(parts, self.pools, self.norms, strict=True)
        )
        plan = lattice.plan(backend, self.step.query_stride, self.step.key_stride)
        attended_BQHK = attend(q_BQHK.to(parts[0].dtype), k_BRHK.to(parts[0].dtype), v_BRHK.to(parts[0].dtype), plan)
        x_BQD = self.around(x_BLD, lattice) + self.out(attended_BQHK.flatten(2))
        normed_BQD = self.mlp_norm(x_BQD)
        kept_BQD = x_BQD if self.widen is None else self.widen(normed_BQD)
        return kept_BQD + self.mlp(normed_BQD), lattice.pooled(self.step.query_stride)


class _Whole(nn.Module):
    """Leaves tokens as they are."""

    def forward(self, x_BLxC: torch.Tensor, lattice: Lattice) -> torch.Tensor:
        """Returns the same."""
        return x_BLxC


def _pool(kind: str, channels: int, stride: Steps) -> nn.Module:
    """Returns what pools by a stride; what is not pooled is not touched, but for a convolution."""
    if prod(stride) == 1 and kind != "conv":
        return _Whole()
    # the way around takes the largest of a stride's own tokens and one more, as the authors' code does
    _, down, across = stride
    kernel: Steps = KERNEL if kind != "max" else (1, down + (down > 1), across + (across > 1))
    return Pool(kind, channels, kernel, stride)
