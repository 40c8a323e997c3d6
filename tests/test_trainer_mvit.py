"""Promises of pooling inside packed segments and of MViT: each clip as if it were alone."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import Batch, alone, batch_of, segments_of

from patchpack.schemas import Layout
from patchpack.trainer.attention import Runs
from patchpack.trainer.lattice import Lattice, Pool
from patchpack.trainer.mvit import MViT, steps_of

LAYOUT = Layout(640, 4, (3, 7, 7), stride=(2, 4, 4), grid_multiple=8)
LIMITS: Any = {"max_segments": 4, "max_segment_tokens": 384, "max_grid": [3, 16, 16], "max_labels": 1}
GRIDS = [[(2, 8, 8), (3, 8, 16)], [(1, 16, 16), (1, 8, 8), (2, 8, 16)]]


def clips(layout: Layout = LAYOUT, rows: list[list[tuple[int, int, int]]] = GRIDS) -> Batch:
    """Returns sequences of clips of these grids, and padding behind them."""
    return batch_of(layout, rows)


def lattice_of(batch: Batch) -> Lattice:
    return Lattice(Runs.of(batch, LAYOUT, LIMITS), batch["grids"])


@pytest.mark.parametrize("kind", ["conv", "max", "average"])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (1, 8, 8)])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3)])
def test_pooling_is_that_of_torch_on_each_clip(kind: str, stride: Any, kernel: Any) -> None:
    torch.manual_seed(0)
    batch, pool = clips(), Pool(kind, 6, kernel, stride)
    x = torch.randn(2, 640, 2, 6)
    found, target = pool(x, lattice_of(batch)), lattice_of(batch).pooled(stride)
    padding = [side // 2 for side in kernel]
    for row, slot, start, length in segments_of(batch):
        grid = batch["grids"][row, slot].tolist()
        # heads, which share weights, as a batch of volumes
        volume = x[row, start : start + length].permute(1, 2, 0).reshape(2, 6, *grid)
        if kind == "conv":
            weight = pool.weight_NC.T.reshape(6, 1, *kernel)
            due = F.conv3d(volume, weight, stride=stride, padding=padding, groups=6)
        elif kind == "max":
            due = F.max_pool3d(volume, kernel, stride, padding)
        else:
            # what lies beyond the grid counts as 0, as avg_pool3d has it by default; it refuses clips shorter than its kernel
            down, across, deep = padding[1], padding[2], padding[0]
            due = F.avg_pool3d(F.pad(volume, (across, across, down, down, deep, deep)), kernel, stride)
        first, count = int(target.runs.starts_BS[row, slot]), int(target.runs.lengths_BS[row, slot])
        assert target.grids_BS3[row, slot].tolist() == list(due.shape[2:])
        torch.testing.assert_close(
            found[row, first : first + count], due.flatten(2).permute(2, 0, 1), rtol=1e-5, atol=1e-5
        )
    assert found.isfinite().all()


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([8, 16]), st.sampled_from([8, 16])), max_size=3))
@settings(deadline=None, max_examples=30)
def test_places_are_those_of_the_positions(grids: list[tuple[int, int, int]]) -> None:
    layout = Layout(3 * 3 * 256, 4, (1, 1, 1), grid_multiple=8)
    batch = clips(layout, [grids])
    limits: Any = {"max_segments": 4, "max_segment_tokens": 768, "max_grid": [3, 16, 16], "max_labels": 1}
    lattice = Lattice(Runs.of(batch, layout, limits), batch["grids"])
    real = batch["segment_ids"] > 0
    assert torch.equal(lattice.places()[real], batch["positions"][real].long())


def test_the_blocks_are_those_of_the_paper() -> None:
    steps = list(steps_of(96, 16, 1))
    assert [step.dim for step in steps] == [96] + [192] * 2 + [384] * 11 + [768] * 2
    assert [step.heads for step in steps] == [1] + [2] * 2 + [4] * 11 + [8] * 2
    assert [number for number, step in enumerate(steps) if step.query_stride == (1, 2, 2)] == [1, 3, 14]
    assert [number for number, step in enumerate(steps) if step.dim_out == 2 * step.dim] == [0, 2, 13]
    side = 56
    for step in steps:
        # keys and values always lie on 7 x 7
        assert side // step.key_stride[1] == 7
        side //= step.query_stride[1]
    assert side == 7 and len(list(steps_of(8, 4, 1))) == 4


def make_model(backend: str = "blocks", pool: str = "conv") -> MViT:
    torch.manual_seed(0)
    sizes = {"dim": 8, "depth": 5, "heads": 2, "most_positions": 16}
    model = MViT(LAYOUT, LIMITS, 3, pool=pool, attention=backend, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("backend", ["dense", "blocks"])
@pytest.mark.parametrize("pool", ["conv", "max", "average"])
@pytest.mark.slow_beyond(3)
def test_packed_equals_alone(backend: str, pool: str) -> None:
    model, batch = make_model(backend, pool), clips()
    output = model(batch)
    loss = model.loss(output, batch)
    expected: dict[str, torch.Tensor] = {}
    total = 0.0
    for row, slot, _, _ in segments_of(batch):
        single = alone(batch, row, slot)
        model.limits = LIMITS | {"max_segments": 1}
        of_it = model(single)
        torch.testing.assert_close(output.pooled_BSD[row, slot], of_it.pooled_BSD[0, 0], rtol=1e-5, atol=1e-5)
        part = model.loss(of_it, single).total
        total += float(part.detach())
        model.zero_grad()
        part.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            expected[name] = expected.get(name, 0) + parameter.grad.clone()
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-5) and int(loss.count) == 5
    model.zero_grad()
    loss.total.backward()
    for name, parameter in model.named_parameters():
        scale = expected[name].abs().max().clamp(min=1)
        torch.testing.assert_close(parameter.grad / scale, expected[name] / scale, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("backend", ["dense", "blocks"])
def test_no_gradient_crosses_segments_and_padding_has_no_effect(backend: str) -> None:
    model, batch = make_model(backend), clips()
    batch["tokens"] = batch["tokens"].float().requires_grad_()
    output = model(batch)
    for row, slot, start, length in segments_of(batch):
        (jacobian,) = torch.autograd.grad(output.logits_BSK[row, slot].sin().sum(), batch["tokens"], retain_graph=True)
        assert (jacobian[row, start : start + length].abs().sum(dim=1) > 0).all()
        jacobian[row, start : start + length] = 0
        assert (jacobian == 0).all()
    dirty = batch | {"tokens": batch["tokens"].detach().clone(), "positions": batch["positions"].clone()}
    padding = batch["segment_ids"] == 0
    dirty["tokens"][padding], dirty["positions"][padding] = 255, 9
    assert padding.any() and torch.equal(model(dirty).logits_BSK, output.logits_BSK)


def test_an_empty_sequence_gives_zeros_and_no_nan() -> None:
    model, batch = make_model(), clips(rows=[GRIDS[0], []])
    output = model(batch)
    assert (output.pooled_BSD[1] == 0).all() and output.features_BLD.isfinite().all()
    model.loss(output, batch).total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (
            Layout(64, 4, (1, 2, 2), grid_multiple=4),
            "shards with a grid multiple of 4; it pools whole grids of multiples of 8",
        ),
        (Layout(64, 4, (1, 2, 2), grid_multiple=8, keep_order=True), "shards with dropped tokens"),
        (Layout(64, 4, (1, 2, 2), grid_multiple=8, align_tokens=8), "shards with segments aligned to 8"),
    ],
)
def test_shards_that_cannot_be_pooled_are_refused(layout: Layout, words: str) -> None:
    with pytest.raises(ValueError, match=f"^--model mvit: {words}"):
        MViT(layout, LIMITS, 3, dim=8, depth=4, heads=1, most_positions=16)


def test_sizes_that_make_no_model_are_named() -> None:
    with pytest.raises(ValueError, match="MViT has at least 4 blocks and heads divide dim"):
        MViT(LAYOUT, LIMITS, 3, dim=8, depth=3, heads=1, most_positions=16)


@pytest.mark.slow
def test_the_model_is_one_graph_whatever_the_batch() -> None:
    model = make_model()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # captured and not compiled: 27 offsets a pool take a compiler minutes
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for rows in (GRIDS, [GRIDS[1], [(1, 8, 16)]]):
        batch = clips(rows=rows)
        torch.testing.assert_close(compiled(batch).logits_BSK, model(batch).logits_BSK, rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
