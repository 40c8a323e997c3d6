"""Promises of the models: packed equals alone, padding and order have no effect, no gradient crosses segments."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.batches import Batch, alone, batch_of, make_batch, segments_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from patchpack.schemas import Layout
from patchpack.trainer.attention import Runs
from patchpack.trainer.dropping import draw_ranks, num_kept
from patchpack.trainer.embed import PixelEmbedding, resize_matrix, weight_resize
from patchpack.trainer.model import Output
from patchpack.trainer.pooling import AttentionPooling, MeanPooling
from patchpack.trainer.positions import Positions, rope_angles, rotated
from patchpack.trainer.vit import Shape, ViT

LAYOUT = Layout(60, 5, (1, 2, 2), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
CLIPS = Layout(60, 5, (2, 2, 2))
ALIGNED = Layout(64, 5, (1, 2, 2), align_tokens=8)
LIMITS: Any = {"max_segments": 5, "max_segment_tokens": 48, "max_grid": [3, 4, 4], "max_labels": 1}
NUM_CLASSES = 3
SIZES: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "most_positions": 6}
VIT = {"positions": "grid", "pool": "mean", "qk_norm": False, "bias": True}
MODELS: dict[str, tuple[Layout, dict[str, Any]]] = {
    "navit": (LAYOUT, {}),
    "vit": (LAYOUT, VIT),
    "vivit": (CLIPS, VIT | {"positions": "learned"}),
    "rope": (CLIPS, {"positions": "rope"}),
    "aligned": (ALIGNED, {}),
    **{
        f"{kind} {coordinates} {combine}": (
            CLIPS if combine == "stack" else LAYOUT,
            {"positions": kind, "coordinates": coordinates, "combine": combine},
        )
        for kind in ("learned", "sinusoidal", "fourier")
        for coordinates in ("absolute", "fractional")
        for combine in ("sum", "stack", "product")
    },
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small products: threads only wait for each other
    yield
    torch.set_num_threads(before)


def make_model(name: str, classes: int | None = NUM_CLASSES, backend: str = "blocks", **options: Any) -> ViT:
    torch.manual_seed(0)
    layout, shape = MODELS[name]
    model = ViT(Shape(**SIZES | shape), [layout], LIMITS, classes, attention=backend, **options)
    with torch.no_grad():  # no weight is at its initial 0 or 1, so nothing holds only at the start
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ranked(batch: Batch, model: ViT) -> Batch:
    return batch | {"ranks": draw_ranks(batch, 0, 1)} if model.drop_share else batch


def gradients(model: ViT) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", ["dense", "blocks"])
@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_batches_of_another_dataset_may_have_fewer_slots_than_a_sequence_has_segments(backend: str, pool: str) -> None:
    shape, batch = Shape(**SIZES, pool=pool), make_batch(LAYOUT)
    found = []
    for most in (5, 9):
        torch.manual_seed(0)
        model = ViT(shape, [LAYOUT], LIMITS | {"max_segments": most}, NUM_CLASSES, attention=backend, drop_share=0.3)
        found.append(model(ranked(batch, model)).logits_BSK)
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize("backend", ["dense", "blocks"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("task", ["classes", "dropped", "pixels"])
def test_packed_equals_alone(name: str, backend: str, task: str) -> None:
    layout = MODELS[name][0]
    share = {"classes": 0.0, "dropped": 0.5, "pixels": 0.6}[task]
    model = make_model(name, None if task == "pixels" else NUM_CLASSES, backend, drop_share=share)
    batch = ranked(make_batch(layout), model)
    output = model(batch)
    loss = model.loss(output, batch)
    total, count = 0.0, 0
    expected: dict[str, torch.Tensor] = {}
    for row, slot, _, _ in segments_of(batch):
        single = alone(batch, row, slot)
        model.limits = LIMITS | {"max_segments": 1}
        of_it = model(single)
        torch.testing.assert_close(output.pooled_BSD[row, slot], of_it.pooled_BSD[0, 0], rtol=1e-5, atol=1e-5)
        part = model.loss(of_it, single)
        total, count = total + float(part.total), count + int(part.count)
        model.zero_grad()
        part.total.backward()
        for parameter, gradient in gradients(model).items():
            expected[parameter] = expected.get(parameter, 0) + gradient
    assert int(loss.count) == count == int(model.count(batch)) > 5
    assert float(loss.total) == pytest.approx(total, rel=1e-5)
    model.zero_grad()
    loss.total.backward()
    found = gradients(model)
    # every parameter is used: plain data parallelism waits for all of them
    assert found.keys() == expected.keys() == {parameter for parameter, _ in model.named_parameters()}
    for parameter, gradient in found.items():
        scale = expected[parameter].abs().max().clamp(min=1)
        torch.testing.assert_close(gradient / scale, expected[parameter] / scale, rtol=1e-5, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", ["navit", "vit", "rope", "aligned"])
@pytest.mark.parametrize("classes", [NUM_CLASSES, None])
def test_padding_has_no_effect(name: str, classes: int | None) -> None:
    model = make_model(name, classes, drop_share=0.0 if classes else 0.5)
    batch = ranked(make_batch(MODELS[name][0]), model)
    padding = batch["segment_ids"] == 0
    assert padding.any(dim=1).all()
    dirty = batch | {part: batch[part].clone() for part in ("tokens", "positions")}
    dirty["tokens"][padding], dirty["positions"][padding] = 255, 3
    results = []
    for each in (batch, dirty):
        model.zero_grad()
        output = model(each)
        loss = model.loss(output, each)
        loss.total.backward()
        results.append((loss.total, output.pooled_BSD, gradients(model)))
    (clean, clean_pooled, clean_gradients), (other, other_pooled, other_gradients) = results
    assert torch.equal(clean, other) and torch.equal(clean_pooled, other_pooled)
    assert all(torch.equal(clean_gradients[part], other_gradients[part]) for part in clean_gradients)


@pytest.mark.parametrize("name", ["navit", "vit", "vivit", "aligned"])
@pytest.mark.parametrize("backend", ["dense", "blocks"])
def test_no_gradient_crosses_segments(name: str, backend: str) -> None:
    model = make_model(name, backend=backend)
    batch = make_batch(MODELS[name][0], size=2)
    batch["tokens"] = batch["tokens"].float().requires_grad_()
    output = model(batch)
    for row, slot, start, length in segments_of(batch):
        for value in (output.logits_BSK[row, slot].sin().sum(), output.features_BLD[row, start].sin().sum()):
            (jacobian,) = torch.autograd.grad(value, batch["tokens"], retain_graph=True)
            assert (jacobian[row, start : start + length].abs().sum(dim=1) > 0).all()  # every own token counts
            jacobian[row, start : start + length] = 0
            assert (jacobian == 0).all()  # exactly: no other segment, no padding, no other sequence


def test_no_hidden_pixel_depends_on_another_segment_or_on_itself() -> None:
    model = make_model("navit", None, drop_share=0.5)
    batch = ranked(make_batch(LAYOUT, size=2), model)
    batch["tokens"] = batch["tokens"].float().requires_grad_()
    hidden = model(batch).hidden
    predicted = hidden.predicted_BQP
    (jacobian,) = torch.autograd.grad(predicted[hidden.is_there_BQ].sin().sum(), batch["tokens"], retain_graph=True)
    lengths = batch["lengths"].long()
    seen = (jacobian.abs().sum(dim=2) > 0).sum()
    assert seen == num_kept(lengths, 0.5).sum() < lengths.sum()
    (jacobian,) = torch.autograd.grad(predicted[0, 0].sin().sum(), batch["tokens"])
    first = int(batch["lengths"][0, 0])
    assert (jacobian[0, first:] == 0).all() and (jacobian[1] == 0).all() and (jacobian[0, :first] != 0).any()


def test_no_hidden_token_is_lost_where_a_share_of_a_sequence_rounds_below_those_of_its_segments() -> None:
    # 0.7 x 90 is 62.99999999999999, and 0.7 x 10 is 7.0
    layout = Layout(90, 9, (1, 2, 2))
    limits: Any = {"max_segments": 9, "max_segment_tokens": 10, "max_grid": [1, 2, 5], "max_labels": 1}
    model = ViT(Shape(**SIZES), [layout], limits, None, attention="blocks", drop_share=0.7)
    batch = ranked(batch_of(layout, [[(1, 2, 5)] * 9]), model)
    assert int(model(batch).hidden.is_there_BQ.sum()) == int(model.count(batch)) == 63


def test_the_order_of_segments_and_their_sequence_change_nothing() -> None:
    model = make_model("navit")
    batch = make_batch(LAYOUT)
    pooled = model(batch).pooled_BSD
    # the second segment of the first row goes in front of it
    _, (_, _, start, length), *_ = segments_of(batch)
    turned = {name: tensor.clone() for name, tensor in batch.items()}
    for name in ("tokens", "positions"):
        turned[name][0, : start + length] = torch.cat([batch[name][0, start : start + length], batch[name][0, :start]])
    turned["segment_ids"][0, : start + length] = torch.tensor([1] * length + [2] * start)
    turned["starts"][0, :2], turned["lengths"][0, :2] = torch.tensor([0, length]), torch.tensor([length, start])
    turned["grids"][0, :2] = batch["grids"][0, [1, 0]]
    found = model(turned).pooled_BSD
    torch.testing.assert_close(found[0, :2], pooled[0, [1, 0]], rtol=1e-5, atol=1e-5)
    upside_down = model({name: tensor.flip(0) for name, tensor in batch.items()}).pooled_BSD.flip(0)
    torch.testing.assert_close(upside_down, pooled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["dense", "blocks"])
@pytest.mark.parametrize("classes", [NUM_CLASSES, None])
def test_an_empty_sequence_gives_zeros_and_no_nan(backend: str, classes: int | None) -> None:
    model = make_model("navit", classes, backend, drop_share=0.0 if classes else 0.5)
    batch = make_batch(LAYOUT, size=2)
    for name, tensor in batch.items():
        tensor[1] = -1 if name in ("labels", "index") else 0
    batch = ranked(batch, model)
    output: Output = model(batch)
    assert (output.pooled_BSD[1] == 0).all() and output.features_BLD.isfinite().all()
    model.loss(output, batch).total.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_pooling_is_the_mean_of_each_segment() -> None:
    batch = make_batch(LAYOUT)
    features = torch.randn(4, 60, 8, generator=torch.Generator().manual_seed(0))
    pooled = MeanPooling()(features, Runs.of(batch, LAYOUT, LIMITS | {"max_segments": 4}), "blocks")
    assert pooled.shape == (4, 5, 8)
    for row, slot, start, length in segments_of(batch):
        if slot < 4:
            torch.testing.assert_close(pooled[row, slot], features[row, start : start + length].mean(dim=0))
    assert (pooled[batch["lengths"] == 0] == 0).all()


def test_attention_pooling_is_that_of_one_query_over_each_segment() -> None:
    torch.manual_seed(0)
    batch, pool = make_batch(ALIGNED), AttentionPooling(8, 2).double()
    features = torch.randn(4, 64, 8, dtype=torch.float64)
    found = pool(features, Runs.of(batch, ALIGNED, LIMITS), "blocks")
    for row, slot, start, length in segments_of(batch):
        keys, values = pool.project_key_value(features[row, start : start + length]).chunk(2, dim=-1)
        query, parts = pool.project_query(pool.query_D), []
        for head in (slice(0, 4), slice(4, 8)):
            weights = (keys[:, head] @ query[head] / 2).softmax(dim=0)
            parts.append(weights @ values[:, head])
        x = pool.out(torch.cat(parts))
        torch.testing.assert_close(found[row, slot], x + pool.mlp(pool.norm(x)), rtol=1e-10, atol=1e-12)


def test_tokens_are_normalised_per_channel_with_the_channel_last() -> None:
    layout = Layout(4, 2, (2, 1, 3), mean=(0.1, 0.5, 0.7), std=(0.2, 0.4, 0.8))
    tokens = np.random.default_rng(0).integers(0, 256, (1, 4, layout.token_width), dtype=np.uint8)
    found = PixelEmbedding([layout], 8).normalise(torch.from_numpy(tokens)).numpy()
    for token in range(4):
        pixels, normalised = tokens[0, token].reshape(2, 1, 3, 3), found[0, token].reshape(2, 1, 3, 3)
        for t, x, c in np.ndindex(2, 3, 3):
            want = (pixels[t, 0, x, c] / 255 - layout.mean[c]) / layout.std[c]
            assert normalised[t, 0, x, c] == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(("source", "target"), [((4, 4), (6, 6)), ((4, 6), (8, 9)), ((3, 3), (3, 3))])
def test_enlarged_patches_give_what_the_patches_gave(source: tuple[int, int], target: tuple[int, int]) -> None:
    small, large = (Layout(8, 2, (2, *sides)) for sides in (source, target))
    generator = np.random.default_rng(0)
    weights, patch = generator.normal(size=(5, small.token_width)), generator.normal(size=(2, *source, 3))
    # B x: each frame and channel resized by torch's own bilinear interpolation
    planes = torch.from_numpy(patch).permute(0, 3, 1, 2)
    enlarged = torch.nn.functional.interpolate(planes, target, mode="bilinear", align_corners=False)
    resized = weights @ weight_resize(small, large).T
    np.testing.assert_allclose(
        resized @ enlarged.permute(0, 2, 3, 1).numpy().ravel(), weights @ patch.ravel(), rtol=1e-9, atol=1e-9
    )
    matrix = resize_matrix(source[0], target[0])
    column = torch.nn.functional.interpolate(
        torch.eye(source[0], dtype=torch.float64)[None], target[0], mode="linear", align_corners=False
    )
    np.testing.assert_allclose(matrix, column[0].T.numpy(), atol=1e-12)


def test_one_model_reads_patches_of_several_sizes_and_no_others() -> None:
    layouts = [Layout(60, 5, (1, side, side)) for side in (4, 2, 6)]
    torch.manual_seed(0)
    model = ViT(Shape(**SIZES | VIT), layouts, LIMITS, 3, attention="blocks")
    for layout in layouts:
        batch = make_batch(layout, most=(1, 4, 4))
        assert model(batch).logits_BSK.shape == (4, 5, 3)
        hider = ViT(Shape(**SIZES | VIT), layouts, LIMITS, None, drop_share=0.5)
        hidden = hider(ranked(batch, hider)).hidden
        assert hidden.predicted_BQP.shape == hidden.target_BQP.shape == (4, 31, layout.token_width)
    with pytest.raises(ValueError, match="no resize makes one of the other"):
        ViT(Shape(**SIZES), [layouts[0], Layout(60, 5, (2, 4, 4))], LIMITS, 3)


def test_a_table_is_resized_to_each_grid_as_torch_resizes_it() -> None:
    torch.manual_seed(0)
    position = Positions("grid", "absolute", "sum", 2, 8, 5)
    for h, w in ((5, 5), (3, 7), (1, 2), (9, 4)):
        places = torch.from_numpy(np.indices((1, h, w)).reshape(3, -1).T)[None]
        found = position(places, torch.tensor([[1, h, w]]).expand_as(places))
        table = position.table_HWD.permute(2, 0, 1)[None]
        due = torch.nn.functional.interpolate(table, (h, w), mode="bilinear", align_corners=False)
        torch.testing.assert_close(found[0], due[0].flatten(1).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "fourier"])
@pytest.mark.parametrize("combine", ["sum", "stack", "product"])
def test_factorised_positions_are_put_together_of_those_of_each_axis(kind: str, combine: str) -> None:
    torch.manual_seed(0)
    position = Positions(kind, "absolute", combine, 3, 18, 9)
    places = torch.tensor([[[1, 2, 3], [8, 0, 5]]])
    whole = position(places, torch.full_like(places, 9))
    for token, (t, y, x) in enumerate(places[0].tolist()):
        parts = [position._axis(axis, torch.tensor([[float(at)]]))[0, 0] for axis, at in enumerate((t, y, x))]
        due = {"sum": sum(parts), "stack": torch.cat(parts), "product": math.prod(parts)}[combine]
        torch.testing.assert_close(whole[0, token], due)
    assert whole.shape == (1, 2, 18)


def test_sines_are_those_of_the_paper_and_fractions_know_the_edges() -> None:
    position = Positions("sinusoidal", "absolute", "sum", 2, 8, 9)
    found = position(torch.tensor([[[0, 3, 0]]]), torch.ones(1, 1, 3))[0, 0]
    due = [sum(math.sin(at / 10_000 ** (i / 4)) for at in (3, 0)) for i in range(4)]
    due += [sum(math.cos(at / 10_000 ** (i / 4)) for at in (3, 0)) for i in range(4)]
    assert found.tolist() == pytest.approx(due, abs=1e-6)
    for kind in ("learned", "sinusoidal", "fourier"):
        torch.manual_seed(0)
        position = Positions(kind, "fractional", "sum", 2, 8, 9)
        # the middle of three rows is the middle of one
        one, three = (
            position(torch.tensor([[[0, at, 0]]]), torch.tensor([[[1, rows, 1]]])) for at, rows in ((0, 1), (1, 3))
        )
        torch.testing.assert_close(one, three)
        torch.testing.assert_close(
            position(torch.tensor([[[0, 0, 0]]]), torch.tensor([[[1, 2, 1]]])),
            position(torch.tensor([[[0, 1, 0]]]), torch.tensor([[[1, 6, 1]]])),
        )


def test_rope_knows_differences_of_places_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))

    def score(one: list[int], other: list[int]) -> float:
        turned = [rotated(x, rope_angles(torch.tensor([[at]]), 3, 16)) for x, at in ((q, one), (k, other))]
        return float((turned[0] * turned[1]).sum())

    assert score([1, 2, 3], [0, 4, 5]) == pytest.approx(score([3, 7, 4], [2, 9, 6]), abs=1e-5)
    assert score([1, 2, 3], [0, 4, 5]) != pytest.approx(score([1, 2, 3], [0, 5, 4]), abs=1e-3)
    torch.testing.assert_close(rotated(q, rope_angles(torch.tensor([[[9, 9, 9]]]), 2, 16)).norm(), q.norm())


def test_queries_and_keys_are_normalised_so_that_their_size_says_nothing() -> None:
    model, batch = make_model("navit"), make_batch(LAYOUT)
    before = model(batch)
    with torch.no_grad():
        for block in model.blocks:
            # thirds of the projection: queries, keys, values
            queries, keys, _ = block.attention.qkv.weight.chunk(3)
            queries.mul_(50.0)
            keys.mul_(20.0)
    assert torch.allclose(before.logits_BSK, model(batch).logits_BSK, atol=1e-3)
    assert not any("bias" in name for name, _ in model.named_parameters() if not name.startswith("classify"))


def test_what_makes_no_model_is_named() -> None:
    for sizes in ({"dim": 16, "depth": 1, "heads": 3}, {"dim": 16, "depth": 0, "heads": 2}):
        with pytest.raises(ValueError, match="no such model; all are at least 1 and heads divide dim"):
            Shape(**sizes)
    with pytest.raises(ValueError, match="heads of 5 numbers; RoPE turns pairs of them"):
        Shape(dim=10, depth=1, heads=2, positions="rope")
    with pytest.raises(ValueError, match="token dtype float16: not known"):
        PixelEmbedding([Layout(4, 2, (1, 2, 2), token_dtype="float16")], 4)


def test_a_batch_that_the_model_was_not_made_for_is_named() -> None:
    batch = make_batch(LAYOUT)
    model = make_model("navit")
    model.check(batch)
    model.limits = LIMITS | {"max_segments": 1}
    with pytest.raises(ValueError, match="segments in a batch: the model was made for 1"):
        model.check(batch)
    model = make_model("learned absolute sum")
    model.check(batch)
    batch["grids"][0, 0, 1] = 7
    with pytest.raises(ValueError, match="a grid of 7 tokens along a side: the table of positions has 6 rows"):
        model.check(batch)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_useful_flops_are_those_of_each_segment_alone(share: float) -> None:
    model, batch = make_model("vit", backend="dense", drop_share=share), make_batch(LAYOUT)
    for seen in (batch, ranked(batch, model)):
        total = 0
        for row, slot, _, _ in segments_of(batch):
            length = int(batch["lengths"][row, slot])
            count = int(num_kept(torch.tensor([length]), share if "ranks" in seen else 0.0))
            single = alone(batch, row, slot)
            for name in ("tokens", "segment_ids", "positions"):
                single[name] = single[name][:, :count]
            single["lengths"] = torch.full_like(single["lengths"], count)
            # torch counts the products of plain attention, and not those of its fused kernel for CPUs
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                model(single)
            # pooling and the head are left out
            total += counter.get_total_flops() - 2 * count * 16 - 2 * 16 * NUM_CLASSES
        assert float(model.flops(seen)) == 3 * total


@pytest.mark.slow
@pytest.mark.parametrize("classes", [NUM_CLASSES, None])
def test_a_compiled_model_is_one_graph_and_is_compiled_once(classes: int | None) -> None:
    model = make_model("navit", classes, drop_share=0.5)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True)
    counters = torch._dynamo.utils.counters
    for seed in range(4):
        batch = ranked(make_batch(LAYOUT, seed=seed), model)
        found, due = model.loss(compiled(batch), batch), model.loss(model(batch), batch)
        torch.testing.assert_close(found.total, due.total, rtol=1e-4, atol=1e-4)
        if seed == 0:
            graphs = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == graphs and not counters["graph_break"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    model, batch = make_model("navit", backend="dense"), make_batch(LAYOUT)
    expected = model(batch).pooled_BSD
    on_device = {name: tensor.cuda() for name, tensor in batch.items()}
    model = model.cuda()
    torch.testing.assert_close(model(on_device).pooled_BSD.cpu(), expected, rtol=1e-4, atol=1e-4)
    model.backend = "varlen"
    with torch.autocast("cuda", torch.bfloat16):
        output = model(on_device)
    assert output.pooled_BSD.dtype == torch.float32
    torch.testing.assert_close(output.pooled_BSD.cpu(), expected, rtol=0.1, atol=0.1)
