"""What adapters share: examples are embedded and pooled as their library does it, and the blocks see them packed.

    tokens -> examples of one grid together -> the library's embedding -> packed rows -> its blocks, attention by runs
           -> examples of one grid together -> the library's pooling -> (B, S, D) -> classes

A library's own tokens of an example (classes, registers) stand in front of its patches, inside its run.
Which grids a batch has is asked of the device once a batch.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from patchpack.schemas import Layout
from patchpack.schemas.manifest import Limits
from patchpack.trainer.attention import Plan, Runs, attend, make_plan
from patchpack.trainer.embed import Pixels
from patchpack.trainer.model import Model, Output


class Alike(NamedTuple):
    """The N examples of a batch that have one grid of T tokens.

    Attributes:
        grid: (t, h, w).
        slots_N: of each, in the B x S slots.
        from_NT: places of its patches in the B x L tokens of the batch.
        to_NM: places of its tokens, the library's own first, in the B x L' tokens that the blocks see.
    """

    grid: tuple[int, int, int]
    slots_N: torch.Tensor
    from_NT: torch.Tensor
    to_NM: torch.Tensor


class ByExample(Model):
    """A model of another library that classifies; a subclass says how it embeds, what its blocks are, and how it pools.

    Attributes:
        num_own: tokens of an example that are no patches.
        blocks_at: name of the module that holds the blocks.
        width: numbers of a token in the blocks (D).
    """

    num_own = 0
    blocks_at = "backbone.blocks"

    def __init__(self, layout: Layout, limits: Limits, backend: str, width: int) -> None:
        """Checks the layout.

        Raises:
            ValueError: tokens were dropped, which the library's positions do not know.
        """
        if layout.keep_order:
            raise ValueError(
                "shards with dropped tokens: the library's positions are of whole grids; build without --drop-tokens"
            )
        super().__init__(layout, limits, backend, 0.0)
        self.pixels, self.width = Pixels(layout), width

    def embed_examples(self, pixels_NTP: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """Returns the library's embedding of examples of one grid, (N, M, D), its own tokens first."""
        raise NotImplementedError

    def encode(self, x_BLD: torch.Tensor, plan: Plan) -> torch.Tensor:
        """Returns what the library's blocks make of packed rows."""
        raise NotImplementedError

    def pool_examples(self, x_NMD: torch.Tensor) -> torch.Tensor:
        """Returns the library's pooling of examples of one grid, (N, D)."""
        raise NotImplementedError

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Output:
        """Returns features of all tokens, pooled segments and classes; see `model.Model`."""
        size, slots = batch["lengths"].shape
        runs = self._runs(batch)
        groups = list(alike(batch, runs, self.num_own))
        if not groups:
            return self._of_nothing(batch)
        tokens_NP = batch["tokens"].flatten(0, 1)
        x_ND: torch.Tensor | None = None
        for group in groups:
            embedded_NMD = self.embed_examples(self.pixels.normalise(tokens_NP[group.from_NT]), group.grid)
            if x_ND is None:
                x_ND = embedded_NMD.new_zeros(size * runs.length, embedded_NMD.shape[-1])
            x_ND = x_ND.index_copy(0, group.to_NM.flatten(), embedded_NMD.flatten(0, 1))
        if x_ND is None:
            raise AssertionError("there are groups")
        features_BLD = self.encode(x_ND.view(size, runs.length, -1), make_plan(self.backend, runs))
        pooled_ND: torch.Tensor | None = None
        for group in groups:
            pooled = self.pool_examples(features_BLD.flatten(0, 1)[group.to_NM])
            if pooled_ND is None:
                pooled_ND = pooled.new_zeros(size * slots, pooled.shape[-1])
            pooled_ND = pooled_ND.index_copy(0, group.slots_N, pooled)
        if pooled_ND is None or self.classify is None:
            raise AssertionError("there are groups, and classes")
        pooled_BSD = pooled_ND.view(size, slots, -1)
        return Output(features_BLD, pooled_BSD, self.classify(pooled_BSD))

    def _of_nothing(self, batch: Mapping[str, torch.Tensor]) -> Output:
        """Returns what is said of a batch of empty sequences, as a process may have at the end of an evaluation."""
        if not isinstance(self.classify, nn.Linear):
            raise AssertionError("the head is a linear layer")
        weight = self.classify.weight
        pooled_BSD = weight.new_zeros(*batch["lengths"].shape, weight.shape[1])
        return Output(weight.new_zeros(*batch["segment_ids"].shape, self.width), pooled_BSD, self.classify(pooled_BSD))

    def _runs(self, batch: Mapping[str, torch.Tensor]) -> Runs:
        """Returns where segments and the library's own tokens lie, without gaps."""
        most = min(self.limits["max_segments"], batch["lengths"].shape[1])
        lengths_BS = batch["lengths"].long()
        lengths_BS = torch.where(lengths_BS > 0, lengths_BS + self.num_own, 0)
        starts_BS = torch.where(lengths_BS > 0, lengths_BS.cumsum(dim=1) - lengths_BS, 0)
        length = batch["segment_ids"].shape[1] + most * self.num_own
        return Runs(starts_BS, lengths_BS, length, most, self.limits["max_segment_tokens"] + self.num_own, gaps=False)

    def flops(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the useful FLOPs of a step on a batch: two a weight of the blocks and a token, and of pairs inside segments."""
        weights = sum(p.numel() for block in self.blocks for p in block.parameters() if p.dim() == 2)
        lengths_BS = self._runs(batch).lengths_BS.double()
        return 3 * (2 * weights * lengths_BS + len(self.blocks) * 4 * self.width * lengths_BS**2).sum()

    @property
    def blocks(self) -> nn.ModuleList | nn.Sequential:
        """The library's blocks."""
        blocks = self.get_submodule(self.blocks_at)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential):
            raise AssertionError(f"{self.blocks_at} is a {type(blocks).__name__}")
        return blocks


def alike(batch: Mapping[str, torch.Tensor], runs: Runs, num_own: int) -> Iterator[Alike]:
    """Yields the examples of a batch, those of one grid together.

    Args:
        batch: of `PackedShards`.
        runs: where they lie in the rows that the blocks see.
        num_own: tokens of each that stand in front of its patches there.
    """
    length, device = batch["segment_ids"].shape[1], batch["lengths"].device
    grids_N3 = batch["grids"].flatten(0, 1).tolist()
    slots_of: dict[tuple[int, int, int], list[int]] = {}
    for slot, (t, h, w) in enumerate(grids_N3):
        if t:
            slots_of.setdefault((t, h, w), []).append(slot)
    for grid, slots in slots_of.items():
        slots_N = torch.tensor(slots, device=device)
        rows_N = slots_N // batch["grids"].shape[1]
        count = math.prod(grid)
        from_NT = _places(rows_N * length + batch["starts"].flatten()[slots_N], count)
        to_NM = _places(rows_N * runs.length + runs.starts_BS.flatten()[slots_N], num_own + count)
        yield Alike(grid, slots_N, from_NT, to_NM)


def _places(starts_N: torch.Tensor, count: int) -> torch.Tensor:
    return starts_N.long()[:, None] + torch.arange(count, device=starts_N.device)


class PlanMask(torch.Tensor):
    """A plan in the place of a mask: torch's fused attention, given it, attends by runs; nothing else may be done with it.

    So blocks that hand their mask to `scaled_dot_product_attention` need no change.
    """

    plan: Plan

    @staticmethod
    def of(plan: Plan) -> "PlanMask":
        """Returns the mask."""
        made = torch.empty(1, 1, 1, 1).as_subclass(PlanMask)
        made.plan = plan
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Attends by runs.

        Raises:
            TypeError: something else is done with the mask.
        """
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attended(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__":
            # shape, dtype and the like
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        raise TypeError(
            f"{getattr(func, '__name__', func)} of a plan: attention here is torch's fused one; switch it on in the library"
        )


def _attended(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: PlanMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Returns what `scaled_dot_product_attention` would with the mask of the plan; raises TypeError where that is another."""
    if dropout_p or is_causal or enable_gqa or (scale is not None and not math.isclose(scale, query.shape[-1] ** -0.5)):
        raise TypeError(
            "attention by runs: no dropout, no order, 1 / sqrt(K), and as many keys as queries; change the model's options"
        )
    q_BLHK, k_BLHK, v_BLHK = (part.transpose(1, 2) for part in (query, key, value))
    return attend(q_BLHK.to(v_BLHK.dtype), k_BLHK.to(v_BLHK.dtype), v_BLHK, attn_mask.plan).transpose(1, 2)
