"""Promises of attention: inside each segment alone, and the same by every backend."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import make_batch

from patchpack.schemas import Layout
from patchpack.trainer import block_attention
from patchpack.trainer.attention import Plan, Runs, attend, choose_backend, make_plan

LIMITS = {"max_segments": 5, "max_segment_tokens": 48, "max_grid": [3, 4, 4], "max_labels": 1}
LAYOUT = Layout(60, 5, (1, 2, 2))
ALIGNED = Layout(64, 5, (1, 2, 2), align_tokens=8)


def slow_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, query_ids: np.ndarray, key_ids: np.ndarray
) -> np.ndarray:
    """Returns softmax(q k / sqrt(K)) v over keys of the same id, one query after the other; of padding nothing."""
    found = np.zeros_like(q)
    size, queries, heads, width = q.shape
    for b in range(size):
        for i in range(queries):
            mine = [j for j in range(k.shape[1]) if key_ids[b, j] == query_ids[b, i] != 0]
            for h in range(heads):
                weights = [math.exp(float(q[b, i, h] @ k[b, j, h]) / math.sqrt(width)) for j in mine]
                for weight, j in zip(weights, mine, strict=True):
                    found[b, i, h] += weight / sum(weights) * v[b, j, h]
    return found


@pytest.mark.parametrize("backend", ["dense", "blocks", "loop"])
@pytest.mark.parametrize("layout", [LAYOUT, ALIGNED])
def test_every_backend_is_softmax_inside_each_segment(
    backend: str, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_attention, "HAS_KERNEL", backend != "loop")
    batch = make_batch(layout)
    shape = (*batch["segment_ids"].shape, 2, 8)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(3))
    plan = make_plan("dense" if backend == "dense" else "blocks", Runs.of(batch, layout, LIMITS))
    found = attend(q, k, v, plan)
    ids = batch["segment_ids"].numpy()
    expected = slow_attention(*(part.detach().numpy() for part in (q, k, v)), ids, ids)
    real = torch.from_numpy(ids != 0)
    np.testing.assert_allclose(found[real].detach().numpy(), expected[ids != 0], rtol=1e-10, atol=1e-12)
    assert found.isfinite().all()
    # and its gradients are those of the dense one
    dense = attend(q, k, v, make_plan("dense", Runs.of(batch, layout, LIMITS)))
    weights = torch.randn(found.shape, dtype=torch.float64, generator=generator) * real[..., None, None]
    ours, theirs = (
        torch.autograd.grad((each * weights).sum(), (q, k, v), retain_graph=True) for each in (found, dense)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", [LAYOUT, ALIGNED])
def test_queries_of_other_places_find_the_keys_of_their_segment(layout: Layout) -> None:
    batch = make_batch(layout, seed=3)
    runs = Runs.of(batch, layout, LIMITS)
    there = runs.lengths_BS > 0
    queries = runs._replace(starts_BS=torch.arange(5) * there, lengths_BS=there.int(), length=5, most_tokens=5)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(4, 5, 2, 8, dtype=torch.float64, generator=generator)
    k, v = torch.randn(2, *batch["segment_ids"].shape, 2, 8, dtype=torch.float64, generator=generator)
    ids = torch.arange(1, 6) * there
    expected = slow_attention(q.numpy(), k.numpy(), v.numpy(), ids.numpy(), batch["segment_ids"].numpy())
    for backend in ("dense", "blocks"):
        found = attend(q, k, v, make_plan(backend, queries, runs))
        np.testing.assert_allclose(found[there].numpy(), expected[there.numpy()], rtol=1e-10, atol=1e-12)
        assert found.isfinite().all()


@given(st.integers(0, 10_000), st.sampled_from([1, 4]), st.integers(1, 20))
@settings(deadline=None)
def test_offsets_are_the_ends_of_all_runs(seed: int, align: int, most: int) -> None:
    layout = Layout(40, 6, (1, 1, 1), align_tokens=align)
    batch = make_batch(layout, seed=seed, most=(1, 4, 4))
    runs = Runs.of(
        batch, layout, {"max_segments": 6, "max_segment_tokens": max(16, most), "max_grid": [1, 4, 4], "max_labels": 1}
    )
    offsets = runs.offsets(runs.num_pieces).tolist()
    assert offsets[0] == 0 and offsets[-1] == batch["segment_ids"].numel() and offsets == sorted(offsets)
    assert max(end - start for start, end in itertools.pairwise(offsets)) <= runs.most_tokens
    # no run holds tokens of two segments, and no segment lies in two
    ids = batch["segment_ids"].flatten().tolist()
    cut = [ids[start:end] for start, end in itertools.pairwise(offsets) if end > start]
    assert all(len(set(part)) == 1 for part in cut)
    assert sum(part[0] != 0 for part in cut) == int(batch["num_segments"].sum())
    assert torch.equal(runs.segment_ids(), batch["segment_ids"].long())
    # one shape for all batches of a dataset
    assert len(offsets) == 1 + 4 * (6 * (2 if align > 1 else 1) + runs.num_pieces)


def test_the_operator_keeps_the_rules_of_torch() -> None:
    q, k, v = (torch.randn(20, 2, 8, requires_grad=True) for _ in range(3))
    offsets = torch.tensor([0, 3, 3, 11, 20], dtype=torch.int32)
    torch.library.opcheck(torch.ops.patchpack.block_attention, (q, k, v, offsets, offsets))


def test_a_run_without_keys_or_queries_gives_zeros() -> None:
    q, k = torch.randn(4, 1, 8), torch.randn(3, 1, 8)
    ends = (torch.tensor([0, 2, 4, 4], dtype=torch.int32), torch.tensor([0, 0, 2, 3], dtype=torch.int32))
    plan = Plan("blocks", query_offsets=ends[0], key_offsets=ends[1])
    found = attend(q[None], k[None], k[None], plan)[0]
    assert (found[:2] == 0).all() and (found[2:] != 0).all()


def test_a_backend_that_cannot_be_is_one_line() -> None:
    cpu = torch.device("cpu")
    assert choose_backend("auto", cpu, 64) == "blocks" and choose_backend("dense", cpu, 7) == "dense"
    with pytest.raises(ValueError, match="^--attention varlen: not on cpu: it is for CUDA; leave it out for auto$"):
        choose_backend("varlen", cpu, 64)
    with pytest.raises(ValueError, match="^--attention flash: unknown"):
        choose_backend("flash", cpu, 64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_varlen_agrees_with_dense() -> None:
    batch = {name: tensor.cuda() for name, tensor in make_batch(LAYOUT).items()}
    q, k, v = (torch.randn(4, 60, 2, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    real = (batch["segment_ids"] != 0)[..., None, None]
    results = []
    for backend in ("dense", "varlen"):
        found = torch.where(real, attend(q, k, v, make_plan(backend, Runs.of(batch, LAYOUT, LIMITS))), 0)
        results.append([found, *torch.autograd.grad(found.float().square().sum(), (q, k, v))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0.05, atol=0.05)
