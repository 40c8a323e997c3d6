"""Attention inside segments: what makes packed equal alone, by one plan a batch and several backends that agree.

A token attends to the tokens of its own segment and to nothing else. A plan says where the runs of tokens lie that
attend to each other; it is made once a batch, and all layers share it. Padding is cut into runs of its own: nothing
real sees it, and what it holds stays finite.

    dense   torch's fused kernel with a boolean (B, 1, L, L) mask: O(L^2) whatever the segments; the oracle, and the only
            one for a device without either of the others
    blocks  on CPUs, the sum of n^2 of the runs: one fused call a run (`block_attention`)
    varlen  on CUDA, the same in one kernel: torch.nn.attention.varlen, for fp16 and bf16 and heads of a multiple of 8 up to 256

The offsets of the runs have one shape for a dataset, so that a compiled step is compiled once: there are as many as the
fullest sequence has segments (`Limits`), which the manifest says. FlexAttention has no backward on CPUs and is a
prototype on CUDA: left out.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from patchpack.schemas import Layout
from patchpack.schemas.geometry import ceil_div
from patchpack.schemas.manifest import Limits
from patchpack.trainer.block_attention import block_attention

BACKENDS = ("dense", "blocks", "varlen")
# of torch.nn.attention.varlen: compute capability, and width of a head
_VARLEN_CAPABILITY = (8, 0)
_VARLEN_HEAD, _VARLEN_MOST_HEAD = 8, 256


class Runs(NamedTuple):
    """Where the segments of a batch lie in rows of `length` tokens, and how many and how long they are at most.

    Attributes:
        starts_BS: first token of each segment, 0 where there is none.
        lengths_BS: tokens of each, 0 where there is none.
        length: tokens of a row.
        most_segments: that a row has.
        most_tokens: that a segment has.
        gaps: whether there is padding between segments.
    """

    starts_BS: torch.Tensor
    lengths_BS: torch.Tensor
    length: int
    most_segments: int
    most_tokens: int
    gaps: bool

    @classmethod
    def of(cls, batch: Mapping[str, torch.Tensor], layout: Layout, limits: Limits) -> "Runs":
        """Returns the runs of a batch of `PackedShards`."""
        # a gap is a run, too
        most_tokens = max(limits["max_segment_tokens"], layout.align_tokens)
        gaps, length = layout.align_tokens > 1, batch["segment_ids"].shape[1]
        # of several datasets, one may have fewer slots than another has segments
        most_segments = min(limits["max_segments"], batch["starts"].shape[1])
        return cls(batch["starts"], batch["lengths"], length, most_segments, most_tokens, gaps)

    def segment_ids(self) -> torch.Tensor:
        """Returns (B, L) int64: 1..S, 0 in padding."""
        places_L = torch.arange(self.length, device=self.starts_BS.device)
        after_BSL = places_L - self.starts_BS[..., None]
        inside_BSL = (after_BSL >= 0) & (after_BSL < self.lengths_BS[..., None])
        numbers_S = torch.arange(1, self.starts_BS.shape[1] + 1, device=places_L.device)
        return (inside_BSL * numbers_S[:, None]).sum(dim=1)

    @property
    def num_pieces(self) -> int:
        """Into how many runs the padding at the end of a row is cut."""
        return ceil_div(self.length, self.most_tokens)

    def offsets(self, num_pieces: int) -> torch.Tensor:
        """Returns the ends of all runs in B x L tokens, padding in runs of at most `most_tokens`, (N + 1,) int32 from 0 on."""
        starts_BS, lengths_BS = (part[:, : self.most_segments].long() for part in (self.starts_BS, self.lengths_BS))
        ends_BE = starts_BS + lengths_BS
        if self.gaps:
            ends_BE = torch.stack([starts_BS, ends_BE], dim=2).flatten(1)
        # what is empty ends where the last segment does
        ends_BE = ends_BE.cummax(dim=1).values
        pieces_N = self.most_tokens * torch.arange(1, num_pieces + 1, device=ends_BE.device)
        ends_BE = torch.cat([ends_BE, (ends_BE[:, -1:] + pieces_N).clamp(max=self.length)], dim=1)
        rows_B1 = self.length * torch.arange(len(ends_BE), device=ends_BE.device)[:, None]
        return F.pad((ends_BE + rows_B1).flatten(), (1, 0)).to(torch.int32)


class Plan(NamedTuple):
    """Which tokens of a batch attend to which, as a backend takes it.

    Attributes:
        backend: one of BACKENDS.
        mask_B1QK: of dense; whether the query of a row may see the key of a column.
        query_offsets: of the others, see `Runs.offsets`; those of the keys have as many.
        key_offsets: likewise.
        most_queries: tokens of the longest run.
        most_keys: likewise.
    """

    backend: str
    mask_B1QK: torch.Tensor | None = None
    query_offsets: torch.Tensor | None = None
    key_offsets: torch.Tensor | None = None
    most_queries: int = 0
    most_keys: int = 0


def make_plan(backend: str, queries: Runs, keys: Runs | None = None) -> Plan:
    """Returns the plan by which the tokens of each segment attend to each other.

    Args:
        backend: one of BACKENDS.
        queries: where they lie.
        keys: where they lie, if elsewhere: the same segments, pooled to fewer tokens.
    """
    keys = queries if keys is None else keys
    if backend == "dense":
        same_BQK = queries.segment_ids()[:, :, None] == keys.segment_ids()[:, None, :]
        # a softmax without any key would be NaN
        return Plan(backend, (same_BQK | ~same_BQK.any(dim=2, keepdim=True))[:, None])
    num_pieces = max(queries.num_pieces, keys.num_pieces)
    offsets = queries.offsets(num_pieces)
    return Plan(
        backend,
        query_offsets=offsets,
        key_offsets=offsets if keys is queries else keys.offsets(num_pieces),
        most_queries=queries.most_tokens,
        most_keys=keys.most_tokens,
    )


def attend(q_BQHK: torch.Tensor, k_BLHK: torch.Tensor, v_BLHK: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Returns softmax(q k^T / sqrt(K)) v inside each segment, (B, Q, H, K).

    Args:
        q_BQHK: queries of H heads of width K.
        k_BLHK: keys.
        v_BLHK: values; finite in padding too, since 0 * NaN is NaN.
        plan: from `make_plan`.
    """
    if plan.query_offsets is None or plan.key_offsets is None:
        q_BHQK, k_BHLK, v_BHLK = (part.transpose(1, 2) for part in (q_BQHK, k_BLHK, v_BLHK))
        return F.scaled_dot_product_attention(q_BHQK, k_BHLK, v_BHLK, attn_mask=plan.mask_B1QK).transpose(1, 2)
    q_NHK, k_MHK, v_MHK = (part.flatten(0, 1) for part in (q_BQHK, k_BLHK, v_BLHK))
    offsets = plan.query_offsets, plan.key_offsets
    if plan.backend == "blocks":
        return block_attention(q_NHK, k_MHK, v_MHK, *offsets).view(q_BQHK.shape)
    # imported here: it asks CUDA what it can
    from torch.nn.attention.varlen import varlen_attn

    attended_NHK = varlen_attn(q_NHK, k_MHK, v_MHK, *offsets, plan.most_queries, plan.most_keys)
    if isinstance(attended_NHK, tuple):
        raise AssertionError("no sums were asked for")
    return attended_NHK.view(q_BQHK.shape)


def choose_backend(name: str, device: torch.device, head_width: int) -> str:
    """Returns the backend of that name; "auto" is the fastest that the device has.

    Raises:
        ValueError: it is unknown, or the device or the model cannot have it.
    """
    if name == "auto":
        if device.type == "cpu":
            return "blocks"
        return "varlen" if _why_no_varlen(device, head_width) is None else "dense"
    if name not in BACKENDS:
        raise ValueError(f"--attention {name}: unknown; it is auto, {', '.join(BACKENDS)}; leave it out for auto")
    why = "it is for CPUs" if name == "blocks" and device.type != "cpu" else None
    if name == "varlen":
        why = _why_no_varlen(device, head_width)
    if why is not None:
        raise ValueError(f"--attention {name}: not on {device.type}: {why}; leave it out for auto")
    return name


def _why_no_varlen(device: torch.device, head_width: int) -> str | None:
    if device.type != "cuda":
        return "it is for CUDA"
    if torch.cuda.get_device_capability(device) < _VARLEN_CAPABILITY:
        return "it needs compute capability 8.0"
    if head_width % _VARLEN_HEAD or head_width > _VARLEN_MOST_HEAD:
        return f"heads are {head_width} wide; a multiple of 8 up to 256 is needed"
    return None
