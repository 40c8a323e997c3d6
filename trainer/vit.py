"""A vision transformer over packed sequences: ViT, NaViT, FlexiViT, ViViT and Pix2Struct's encoder, by what they differ in.

    tokens -> embed + positions -> depth x block -> norm -> features (B, L, D) -> pooled (B, S, D) -> classes
                                                                               -> decoder -> pixels of hidden tokens

An example is seen as if it were alone, wherever it was packed: only attention and pooling look at more than one token, and
both stay inside a segment (`attention`, `pooling`).

Dropped tokens (NaViT, arXiv 2307.06304, section 3.3) are never embedded. Without classes the model is a masked autoencoder
(MAE, arXiv 2111.06377): it encodes what is visible, and a decoder of a block or two predicts the pixels of what is hidden,
and of nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from patchpack.schemas import Layout
from patchpack.schemas.manifest import Limits
from patchpack.trainer.attention import Plan, Runs, make_plan
from patchpack.trainer.dropping import Kept, keep, num_kept
from patchpack.trainer.embed import INIT_STD, PixelEmbedding, pixel_resize
from patchpack.trainer.model import Hidden, Model, Output, token_sizes
from patchpack.trainer.pooling import AttentionPooling, MeanPooling
from patchpack.trainer.positions import Positions, rope_angles
from patchpack.trainer.transformer import Block, linear


@dataclass(frozen=True)
class Shape:
    """What a model of this file is.

    Attributes:
        dim: width (D).
        depth: blocks.
        heads: attention heads; they divide dim.
        positions: one of `positions.KINDS`.
        coordinates: one of `positions.COORDINATES`.
        combine: one of `positions.COMBINE`.
        most_positions: rows of a table of positions.
        pool: one of `pooling.KINDS`.
        qk_norm: whether queries and keys are normed.
        bias: whether layers have biases.
        decoder_depth: blocks of the decoder of a model without classes.
    """

    dim: int
    depth: int
    heads: int
    positions: str = "fourier"
    coordinates: str = "absolute"
    combine: str = "sum"
    most_positions: int = 256
    pool: str = "attention"
    qk_norm: bool = True
    bias: bool = False
    decoder_depth: int = 1

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
            ValueError: they are below 1, or heads do not divide dim evenly.
        """
        if min(self.dim, self.depth, self.heads) < 1 or self.dim % self.heads:
            raise ValueError(
                f"--dim {self.dim} --depth {self.depth} --heads {self.heads}: no such model; "
                "all are at least 1 and heads divide dim; change one"
            )
        if self.positions == "rope" and self.dim // self.heads % 2:
            raise ValueError(
                f"--dim {self.dim} --heads {self.heads}: heads of {self.dim // self.heads} numbers; RoPE turns pairs of them; change one"
            )


class ViT(Model):
    """The model; what it predicts follows from whether the dataset has classes."""

    def __init__(
        self,
        shape: Shape,
        layouts: Sequence[Layout],
        limits: Limits,
        num_classes: int | None,
        *,
        attention: str = "dense",
        drop_share: float = 0.0,
        reconstructs: bool = True,
    ) -> None:
        """Draws the weights from torch's global generator.

        Args:
            shape: what it is.
            layouts: that it reads; of several it has one projection that is resized.
            limits: the most that their sequences have.
            num_classes: classes of the head, or None for a model without one.
            attention: backend, see `attention`.
            drop_share: of each segment's tokens that are not looked at in training; those that it reconstructs, if it does.
            reconstructs: whether a model without classes predicts what it does not see.

        Raises:
            ValueError: the tokens are not pixels, or of several layouts that one projection does not fit.
        """
        super().__init__(layouts[0], limits, attention, drop_share)
        self.shape = shape
        dim, heads, bias = shape.dim, shape.heads, shape.bias
        # clips have a third axis, and so have images beside them
        self.num_axes = 3 if self.layout.tubelet[0] > 1 else 2
        self.embed = PixelEmbedding(layouts, dim, bias=bias)
        self.position = self._positions()
        self.blocks = nn.ModuleList(Block(dim, heads, bias=bias, qk_norm=shape.qk_norm) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(dim, bias=bias)
        self.classify = None if num_classes is None else linear(dim, num_classes, bias=True)
        self.needs_ranks = num_classes is None and reconstructs
        self.decoder: Decoder | None = None
        if self.needs_ranks:
            self.nothing, self.decoder = "no token is hidden", Decoder(shape, layouts)
        # nothing learns from what a decoder's model pools
        is_learned = shape.pool == "attention" and not self.needs_ranks
        self.pool: nn.Module = AttentionPooling(dim, heads, bias=bias) if is_learned else MeanPooling()

    def _positions(self) -> Positions | None:
        shape = self.shape
        if shape.positions == "rope":
            return None
        how = (shape.positions, shape.coordinates, shape.combine)
        return Positions(*how, self.num_axes, shape.dim, shape.most_positions)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Output:
        """Returns features, pooled segments and predictions.

        Args:
            batch: of `PackedShards`, on the model's device; with `ranks` of `dropping.draw_ranks` for a model that drops
                tokens or hides them. Tokens may be float pixels of 0..255, for gradients by the input.
        """
        runs = Runs.of(batch, self.layout, self.limits)
        kept = keep(batch, runs, batch["ranks"], self.drop_share) if self.drop_share and "ranks" in batch else None
        seen = runs if kept is None else kept.runs
        tokens_BLP, positions_BL3, sizes_BL3 = batch["tokens"], batch["positions"], token_sizes(batch)
        if kept is not None:
            tokens_BLP, positions_BL3, sizes_BL3 = map(kept.of, (tokens_BLP, positions_BL3, sizes_BL3))
        x_BLD, angles_BLF = self._placed(self.embed(tokens_BLP), positions_BL3, sizes_BL3)
        plan = make_plan(self.backend, seen)
        for block in self.blocks:
            x_BLD = block(x_BLD, plan, angles_BLF)
        features_BLD = self.norm(x_BLD)
        pooled_BSD = self.pool(features_BLD, seen, self.backend)
        logits_BSK = None if self.classify is None else self.classify(pooled_BSD)
        hidden = None if self.decoder is None or kept is None else self._reconstructed(features_BLD, batch, runs, kept)
        return Output(features_BLD, pooled_BSD, logits_BSK, hidden)

    def _placed(
        self, x_BLD: torch.Tensor, positions_BL3: torch.Tensor, sizes_BL3: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns tokens that know where they lie: by what is added, or by the angles of RoPE."""
        if self.position is not None:
            return x_BLD + self.position(positions_BL3, sizes_BL3), None
        return x_BLD, rope_angles(positions_BL3, self.num_axes, self.shape.dim // self.shape.heads)

    def check(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Checks a batch as any model does, and its grids.

        Raises:
            ValueError: they are larger than the table of positions, or the batch than what the model was made for.
        """
        super().check(batch)
        shape, largest = self.shape, int(batch["grids"].max())
        if shape.positions == "learned" and shape.coordinates == "absolute" and largest > shape.most_positions:
            raise ValueError(
                f"a grid of {largest} tokens along a side: the table of positions has {shape.most_positions} rows; a model with a table reads "
                "what is no larger than what it was trained on; use --positions fourier, or smaller images"
            )

    def count(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns how many things the loss of a batch is the sum over: labelled segments, or hidden tokens."""
        if not self.needs_ranks:
            return super().count(batch)
        lengths_BS = batch["lengths"].long()
        return (lengths_BS - num_kept(lengths_BS, self.drop_share)).sum()

    def flops(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the useful FLOPs of a step on a batch, forward and backward: of real tokens, and of pairs inside segments."""
        lengths_BS, dim = batch["lengths"].double(), self.shape.dim
        # all are seen where none was drawn to be left out: in evaluation
        share = self.drop_share if "ranks" in batch else 0.0
        seen_BS = num_kept(batch["lengths"].long(), share).double()
        block = 24.0 * dim**2  # 12 D^2 multiplications, and as many additions
        total = (
            seen_BS * 2 * self.layout.token_width * dim + self.shape.depth * (seen_BS * block + 4 * dim * seen_BS**2)
        ).sum()
        if self.decoder is not None:
            total = total + self.shape.decoder_depth * (lengths_BS * block + 4 * dim * lengths_BS**2).sum()
            total = total + ((lengths_BS - seen_BS) * 2 * self.layout.token_width * dim).sum()
        return 3 * total

    def _reconstructed(
        self, features_BQD: torch.Tensor, batch: Mapping[str, torch.Tensor], runs: Runs, kept: Kept
    ) -> Hidden:
        """Returns the pixels of the tokens that were not kept, and what they were."""
        if self.decoder is None:
            raise AssertionError("only a model with a decoder reconstructs")
        is_hidden_BL = (batch["segment_ids"] != 0) & ~kept.is_kept_BL
        # one more: of floating numbers the share of the whole may round below those of its parts
        hidden = Kept.moved(is_hidden_BL, int(runs.length * self.drop_share) + 1, runs)
        x_BLD = self.decoder.scattered(features_BQD, kept)
        x_BLD, angles_BLF = self._placed(x_BLD, batch["positions"], token_sizes(batch))
        predicted_BQP = self.decoder(
            x_BLD, hidden, make_plan(self.backend, runs), angles_BLF, batch["tokens"].shape[-1]
        )
        return Hidden(predicted_BQP, self.embed.normalise(hidden.of(batch["tokens"])), hidden.is_there_BQ)


class Decoder(nn.Module):
    """From features of visible tokens to pixels of hidden ones: a few blocks over both; of several layouts, resized ones."""

    def __init__(self, shape: Shape, layouts: Sequence[Layout]) -> None:
        super().__init__()
        self.enter = linear(shape.dim, shape.dim, bias=shape.bias)
        self.hidden_D = nn.Parameter(torch.empty(shape.dim))
        nn.init.trunc_normal_(self.hidden_D, std=INIT_STD)
        self.blocks = nn.ModuleList(
            Block(shape.dim, shape.heads, bias=shape.bias, qk_norm=shape.qk_norm) for _ in range(shape.decoder_depth)
        )
        self.norm = nn.LayerNorm(shape.dim, bias=shape.bias)
        self.pixels = linear(shape.dim, layouts[0].token_width, bias=True)
        for layout in layouts[1:]:
            matrix = torch.from_numpy(pixel_resize(layouts[0], layout)).float()
            self.register_buffer(f"resize_{layout.token_width}", matrix, persistent=False)

    def scattered(self, features_BQD: torch.Tensor, kept: Kept) -> torch.Tensor:
        """Returns features where they came from, and a learned vector in all other places, (B, L, D)."""
        entered_BQD = self.enter(features_BQD)
        # each kept token's place among the kept
        at_BL = (kept.is_kept_BL.long().cumsum(dim=1) - 1).clamp(min=0)
        x_BLD = torch.take_along_dim(entered_BQD, at_BL[..., None], 1)
        return torch.where(kept.is_kept_BL[..., None], x_BLD, self.hidden_D.to(x_BLD.dtype))

    def forward(
        self, x_BLD: torch.Tensor, hidden: Kept, plan: Plan, angles_BLF: torch.Tensor | None, token_width: int
    ) -> torch.Tensor:
        """Returns normalised pixels of the hidden tokens, (B, hidden, P)."""
        for block in self.blocks:
            x_BLD = block(x_BLD, plan, angles_BLF)
        pixels_BQP: torch.Tensor = self.pixels(self.norm(hidden.of(x_BLD)))
        if token_width != pixels_BQP.shape[-1]:
            pixels_BQP = pixels_BQP @ getattr(self, f"resize_{token_width}").T.to(pixels_BQP.dtype)
        return pixels_BQP
