"""Which tokens of each segment a model sees: a random part, with exact counts and fixed shapes.

Draws are a function of (seed, step, sequence, place): no generator has a state that could be lost, and a sequence has the
same draws wherever and beside whatever it is read. One sort a batch. Ranks that a dataset stores (`keep_order`) serve as well.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from patchpack.trainer.attention import Runs


class Kept(NamedTuple):
    """Some tokens of each segment, moved together.

    Attributes:
        is_kept_BL: which they are.
        index_BQ: place of each in its sequence; 0 where there is none.
        is_there_BQ: whether there is one.
        runs: where the segments now lie.
    """

    is_kept_BL: torch.Tensor
    index_BQ: torch.Tensor
    is_there_BQ: torch.Tensor
    runs: Runs

    @classmethod
    def moved(cls, is_kept_BL: torch.Tensor, room: int, runs: Runs) -> "Kept":
        """Returns the tokens that are kept, in the order they had, at the front of rows of `room` tokens."""
        size, length = is_kept_BL.shape
        at_BL = is_kept_BL.long().cumsum(dim=1) - 1
        places_BL = torch.arange(length, device=is_kept_BL.device).expand(size, length)
        # what is not kept goes to a place that is cut off
        index_BQ = at_BL.new_zeros(size, room + 1).scatter(1, torch.where(is_kept_BL, at_BL, room), places_BL)[:, :room]
        is_there_BQ = torch.arange(room, device=is_kept_BL.device) < is_kept_BL.sum(dim=1, keepdim=True)
        return cls(is_kept_BL, index_BQ, is_there_BQ, runs)

    def of(self, values_BLx: torch.Tensor) -> torch.Tensor:
        """Returns what was of all tokens, (B, L, ...), of those that are kept, (B, Q, ...)."""
        return torch.take_along_dim(
            values_BLx, self.index_BQ.view(*self.index_BQ.shape, *[1] * (values_BLx.dim() - 2)), 1
        )


def draw_ranks(batch: Mapping[str, torch.Tensor], seed: int, step: int) -> torch.Tensor:
    """Returns the rank of each token in a random order of its segment, (B, L) int64 from 0; of padding nothing useful.

    Args:
        batch: of `PackedShards`, on any device; the draws are the same.
        seed: of the run.
        step: its number.
    """
    ids_BL = batch["segment_ids"].long()
    length = ids_BL.shape[1]
    places_BL = batch["index"][:, None] * 2**24 + torch.arange(length, device=ids_BL.device)
    drawn_BL = _mixed(_mixed(places_BL) + _scalar_mixed(seed, step))
    # 40 random bits behind the segment's number; padding comes last
    keys_BL = torch.where(ids_BL == 0, 2**20, ids_BL) * 2**40 + (drawn_BL >> 8 & (2**40 - 1))
    order_BL = keys_BL.argsort(dim=1, stable=True)
    starts_BL = _starts_of(batch["lengths"], ids_BL.gather(1, order_BL))
    ranks_BL = torch.arange(length, device=ids_BL.device) - starts_BL
    return torch.empty_like(order_BL).scatter_(1, order_BL, ranks_BL)


def _starts_of(lengths_BS: torch.Tensor, ids_BL: torch.Tensor) -> torch.Tensor:
    """Returns where each token's segment would start if nothing lay between segments."""
    ends_BS = lengths_BS.long().cumsum(dim=1)
    return (ends_BS - lengths_BS).gather(1, (ids_BL - 1).clamp(min=0))


def num_kept(lengths_BS: torch.Tensor, share: float) -> torch.Tensor:
    """Returns how many tokens of each segment are left when a share goes: n - floor(share n), and at least one of each."""
    left_BS = lengths_BS - (lengths_BS.double() * share).long()
    return torch.where(lengths_BS > 0, left_BS.clamp(min=1), 0)


def keep(batch: Mapping[str, torch.Tensor], runs: Runs, ranks_BL: torch.Tensor, share: float) -> Kept:
    """Returns the tokens that are left of each segment when a share goes, those of the lowest ranks, in the order they had."""
    counts_BS = num_kept(batch["lengths"].long(), share)
    ids_BL = batch["segment_ids"].long()
    is_kept_BL = (ids_BL != 0) & (ranks_BL < counts_BS.gather(1, (ids_BL - 1).clamp(min=0)))
    # of n tokens at most n - share n + 1 are left
    room = min(runs.length, int(runs.length * (1 - share)) + runs.most_segments)
    starts_BS = torch.where(counts_BS > 0, counts_BS.cumsum(dim=1) - counts_BS, 0)
    return Kept.moved(
        is_kept_BL, room, runs._replace(starts_BS=starts_BS, lengths_BS=counts_BS, length=room, gaps=False)
    )


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """Returns well-mixed bits of each int64 (Steele et al., SplitMix64, OOPSLA 2014); products wrap."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return x ^ (x >> 31 & (1 << 33) - 1)


def _scalar_mixed(seed: int, step: int) -> int:
    """Returns one int64 of seed and step."""
    return int(_mixed(_mixed(torch.tensor(seed)) + step))
