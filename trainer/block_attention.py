"""Block-diagonal attention on CPUs: torch's fused kernel, called for each run of tokens that attend to each other.

One operator with the arguments of torch.nn.attention.varlen, so that a compiled step holds it as one node. It costs the sum
of n^2 of the runs, and some 20 microseconds a run. Where torch lacks the kernel's own operator (it is no public one) the
same is done by a loop over `scaled_dot_product_attention`, which does not compile whole.
"""

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor

_NAME = "_scaled_dot_product_flash_attention_for_cpu"
HAS_KERNEL = hasattr(torch.ops.aten, _NAME) and hasattr(torch.ops.aten, f"{_NAME}_backward")


def block_attention(q_NHK: Tensor, k_MHK: Tensor, v_MHK: Tensor, query_offsets: Tensor, key_offsets: Tensor) -> Tensor:
    """Returns attention of the queries of each run to its keys, (N, H, K); 0 where there is no key.

    Args:
        q_NHK: queries of all runs, one behind the other.
        k_MHK: keys.
        v_MHK: values.
        query_offsets: ends of the runs among the queries, int32 from 0 on.
        key_offsets: of as many runs among the keys.
    """
    if not HAS_KERNEL:
        return _by_loop(q_NHK, k_MHK, v_MHK, query_offsets, key_offsets)
    attended_NHK: Tensor = _forward(q_NHK, k_MHK, v_MHK, query_offsets, key_offsets)[0]
    return attended_NHK


def _runs(query_offsets: Tensor, key_offsets: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields the queries and keys of each run that has both."""
    ends = list(zip(query_offsets.tolist(), key_offsets.tolist(), strict=True))
    for (query, key), (query_end, key_end) in itertools.pairwise(ends):
        if query < query_end and key < key_end:
            yield slice(query, query_end), slice(key, key_end)


def _by_loop(q_NHK: Tensor, k_MHK: Tensor, v_MHK: Tensor, query_offsets: Tensor, key_offsets: Tensor) -> Tensor:
    attended_NHK = torch.zeros_like(q_NHK)
    for queries, keys in _runs(query_offsets, key_offsets):
        q_HnK, k_HnK, v_HnK = (part.transpose(0, 1) for part in (q_NHK[queries], k_MHK[keys], v_MHK[keys]))
        attended_NHK[queries] = F.scaled_dot_product_attention(q_HnK, k_HnK, v_HnK).transpose(0, 1)
    return attended_NHK


def _batched(part_nHK: Tensor) -> Tensor:
    """Returns tokens as the kernel takes them, (1, H, n, K)."""
    return part_nHK.transpose(0, 1)[None]


@torch.library.custom_op("patchpack::block_attention", mutates_args=())
def _forward(
    q_NHK: Tensor, k_MHK: Tensor, v_MHK: Tensor, query_offsets: Tensor, key_offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns what `block_attention` does, and the logarithm of each softmax's sum, (N, H)."""
    attended_NHK = torch.zeros_like(q_NHK, memory_format=torch.contiguous_format)
    sums_NH = q_NHK.new_zeros(q_NHK.shape[:2], dtype=_sums_dtype(q_NHK))
    kernel = getattr(torch.ops.aten, _NAME)
    for queries, keys in _runs(query_offsets, key_offsets):
        attended, sums = kernel(_batched(q_NHK[queries]), _batched(k_MHK[keys]), _batched(v_MHK[keys]))
        attended_NHK[queries], sums_NH[queries] = attended[0].transpose(0, 1), sums[0].transpose(0, 1)
    return attended_NHK, sums_NH


@_forward.register_fake
def _(q_NHK: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return q_NHK.new_empty(q_NHK.shape), q_NHK.new_empty(q_NHK.shape[:2], dtype=_sums_dtype(q_NHK))


@torch.library.custom_op("patchpack::block_attention_backward", mutates_args=())
def _backward(
    gradient_NHK: Tensor,
    q_NHK: Tensor,
    k_MHK: Tensor,
    v_MHK: Tensor,
    attended_NHK: Tensor,
    sums_NH: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of queries, keys and values."""
    gradients = [torch.zeros_like(part, memory_format=torch.contiguous_format) for part in (q_NHK, k_MHK, v_MHK)]
    kernel = getattr(torch.ops.aten, f"{_NAME}_backward")
    for queries, keys in _runs(query_offsets, key_offsets):
        of_run = kernel(
            _batched(gradient_NHK[queries]),
            *(_batched(part) for part in (q_NHK[queries], k_MHK[keys], v_MHK[keys], attended_NHK[queries])),
            sums_NH[queries].transpose(0, 1)[None],
            0.0,
            False,
        )
        for whole, part, run in zip(gradients, of_run, (queries, keys, keys), strict=True):
            whole[run] = part[0].transpose(0, 1)
    return gradients[0], gradients[1], gradients[2]


@_backward.register_fake
def _(gradient_NHK: Tensor, q_NHK: Tensor, k_MHK: Tensor, v_MHK: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q_NHK.new_empty(q_NHK.shape), k_MHK.new_empty(k_MHK.shape), v_MHK.new_empty(v_MHK.shape)


def _sums_dtype(q_NHK: Tensor) -> torch.dtype:
    """Returns the kernel's type of sums: at least float32."""
    return torch.float64 if q_NHK.dtype == torch.float64 else torch.float32


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output, *inputs[3:])


def _differentiate(
    context: torch.autograd.function.FunctionCtx, gradient_NHK: Tensor, _: Tensor
) -> tuple[Tensor | None, ...]:
    return *_backward(gradient_NHK.contiguous(), *context.saved_tensors), None, None  # type: ignore[attr-defined]


_forward.register_autograd(_differentiate, setup_context=_keep)
