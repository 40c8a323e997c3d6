"""A small text tower over packed captions: one vector a segment, beside the images'.

Captions lie in rows of their own (`text_ids`, `text_segment_ids`), in the order of the segments, and attend inside themselves
alone, like images: the same blocks, the same plans.
"""

from collections.abc import Mapping

import torch
from torch import nn

from patchpack.trainer.attention import Runs, make_plan
from patchpack.trainer.embed import INIT_STD
from patchpack.trainer.pooling import MeanPooling
from patchpack.trainer.transformer import Block


class TextTower(nn.Module):
    """Token ids to vectors, blocks, and the mean of each caption."""

    def __init__(
        self, vocabulary: int, length: int, dim: int, depth: int, heads: int, *, bias: bool, qk_norm: bool, backend: str
    ) -> None:
        """Draws the weights from torch's global generator.

        Args:
            vocabulary: token ids lie below it.
            length: text tokens of a row (T).
            dim: width (D).
            depth: blocks.
            heads: of each.
            bias: whether layers have biases.
            qk_norm: whether queries and keys are normed.
            backend: of attention.
        """
        super().__init__()
        self.backend, self.vocabulary = backend, vocabulary
        self.words_VD, self.places_TD = (nn.Parameter(torch.empty(rows, dim)) for rows in (vocabulary, length))
        for table in (self.words_VD, self.places_TD):
            nn.init.trunc_normal_(table, std=INIT_STD)
        self.blocks = nn.ModuleList(Block(dim, heads, bias=bias, qk_norm=qk_norm) for _ in range(depth))
        self.norm, self.pool = nn.LayerNorm(dim, bias=bias), MeanPooling()

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns (B, S, D); zeros where a segment has no caption."""
        runs = text_runs(batch["text_segment_ids"], batch["starts"].shape[1])
        places_BT = torch.arange(runs.length, device=runs.starts_BS.device) - _starts(runs, batch["text_segment_ids"])
        x_BTD = self.words_VD[batch["text_ids"].long()] + self.places_TD[places_BT]
        plan = make_plan(self.backend, runs)
        for block in self.blocks:
            x_BTD = block(x_BTD, plan)
        pooled_BSD: torch.Tensor = self.pool(self.norm(x_BTD), runs, self.backend)
        return pooled_BSD


def text_runs(ids_BT: torch.Tensor, slots: int) -> Runs:
    """Returns where the captions lie; a segment without one has length 0."""
    size, length = ids_BT.shape
    # column 0 is padding
    counts_BN = torch.zeros(size, slots + 1, dtype=torch.long, device=ids_BT.device)
    counts_BN = counts_BN.scatter_add(1, ids_BT.long(), torch.ones_like(ids_BT, dtype=torch.long))
    lengths_BS = counts_BN[:, 1:]
    starts_BS = torch.where(lengths_BS > 0, lengths_BS.cumsum(dim=1) - lengths_BS, 0)
    return Runs(starts_BS, lengths_BS, length, slots, length, gaps=False)


def _starts(runs: Runs, ids_BT: torch.Tensor) -> torch.Tensor:
    """Returns where each token's caption starts; in padding the token's own place."""
    own_BT = torch.arange(runs.length, device=ids_BT.device).expand(ids_BT.shape)
    starts_BT = runs.starts_BS.gather(1, (ids_BT.long() - 1).clamp(min=0))
    return torch.where(ids_BT == 0, own_BT, starts_BT)
