"""Promises of the model: packed equals alone, padding has no effect, no gradient crosses segments."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from support.synthetic_set import SMALL_LAYOUT, Row, make_row, random_tokens

from patchpack.schemas import Layout
from patchpack.trainer.attention import packed_attention, segment_mask
from patchpack.trainer.embed import PositionEmbedding, TokenEmbedding
from patchpack.trainer.vit import NaViT, Output, pool_segments

NUM_CLASSES = 3
MASKED = 0.4


class Packed(NamedTuple):
    """A batch as the model takes it."""

    tokens: torch.Tensor
    segment_ids: torch.Tensor
    positions: torch.Tensor
    max_segments: int
    mask: torch.Tensor


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small products: threads only wait for each other
    yield
    torch.set_num_threads(before)


def make_model(classes: int | None = NUM_CLASSES, seed: int = 0) -> NaViT:
    torch.manual_seed(seed)
    model = NaViT(SMALL_LAYOUT, classes, dim=16, depth=3, heads=2)
    with torch.no_grad():  # no weight is at its initial 0 or 1, so nothing holds only at the start
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows with padding and at least two segments."""
    generator = np.random.default_rng(seed)
    rows: list[Row] = []
    while len(rows) < count:
        row = make_row(generator, SMALL_LAYOUT, 0, NUM_CLASSES, random_tokens)
        if row["num_segments"] >= 2 and row["num_tokens"] < SMALL_LAYOUT.sequence_length:
            rows.append(row)
    return rows


def pack(rows: list[Row], seed: int = 0) -> Packed:
    tokens = torch.from_numpy(np.stack([row["tokens"] for row in rows]))
    segment_ids = torch.from_numpy(np.stack([row["segment_ids"] for row in rows]).astype(np.int32))
    positions = torch.from_numpy(np.stack([row["positions"] for row in rows]).astype(np.int32))
    mask = torch.rand(segment_ids.shape, generator=torch.Generator().manual_seed(seed)) < MASKED
    return Packed(tokens, segment_ids, positions, SMALL_LAYOUT.max_segments, mask & (segment_ids != 0))


def alone(packed: Packed, number: int, start: int, length: int) -> Packed:
    """One segment as the only one of a sequence without padding."""
    part = slice(start, start + length)
    return Packed(
        packed.tokens[number : number + 1, part],
        torch.ones(1, length, dtype=torch.int32),
        packed.positions[number : number + 1, part],
        1,
        packed.mask[number : number + 1, part],
    )


def segments_of(rows: list[Row]) -> Iterator[tuple[int, int, int, int]]:
    for number, row in enumerate(rows):
        for slot, segment in enumerate(row["segments"]):
            yield number, slot, segment["start"], segment["num_tokens"]


def values(output: Output) -> torch.Tensor:
    """A curved function of all that is predicted of real things, summed over things."""
    return output.logits_BSK.sin().sum() if output.logits_BSK is not None else output.pixels_BLP.sin().sum()


def gradients(model: NaViT) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("classes", [NUM_CLASSES, None])
def test_packed_equals_alone(classes: int | None) -> None:
    model, rows = make_model(classes), make_rows(4)
    packed = pack(rows)
    output = model(*packed)
    total = torch.zeros(())
    wanted: dict[str, torch.Tensor] = {}
    for number, slot, start, length in segments_of(rows):
        single = model(*alone(packed, number, start, length))
        part = slice(start, start + length)
        torch.testing.assert_close(output.features_BLD[number, part], single.features_BLD[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.pooled_BSD[number, slot], single.pooled_BSD[0, 0], rtol=1e-5, atol=1e-5)
        if classes:
            ours, theirs = output.logits_BSK[number, slot], single.logits_BSK[0, 0]
        else:
            ours, theirs = output.pixels_BLP[number, part], single.pixels_BLP[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        total = total + ours.sin().sum()
        model.zero_grad()
        values(single).backward()
        for name, gradient in gradients(model).items():
            wanted[name] = wanted.get(name, 0) + gradient
    model.zero_grad()
    total.backward()
    found = gradients(model)
    assert found.keys() == wanted.keys() and len(found) > 20
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, wanted[name], rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_same_example_in_another_slot_gives_the_same_output() -> None:
    model, (row, other) = make_model(), make_rows(2, seed=4)
    example = row["segments"][-1]
    start, length = example["start"], example["num_tokens"]
    first = pack([row])
    # the same example as the second of a longer sequence, behind another one and before padding
    before = other["segments"][0]["num_tokens"]
    room = before + length + 9
    moved = Packed(
        torch.zeros(1, room, SMALL_LAYOUT.token_width, dtype=torch.uint8),
        torch.zeros(1, room, dtype=torch.int32),
        torch.zeros(1, room, 3, dtype=torch.int32),
        7,
        torch.zeros(1, room, dtype=torch.bool),
    )
    second = pack([other])
    for source, at, origin, count, number in ((second, 0, 0, before, 1), (first, before, start, length, 2)):
        for name in ("tokens", "positions", "mask"):
            getattr(moved, name)[:, at : at + count] = getattr(source, name)[:, origin : origin + count]
        moved.segment_ids[:, at : at + count] = number
    torch.testing.assert_close(
        model(*moved).pooled_BSD[0, 1], model(*first).pooled_BSD[0, row["num_segments"] - 1], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("classes", [NUM_CLASSES, None])
def test_padding_has_no_effect(classes: int | None) -> None:
    model, packed = make_model(classes), pack(make_rows(4))
    padding = packed.segment_ids == 0
    assert padding.any(dim=1).all()
    dirty_tokens, dirty_positions = packed.tokens.clone(), packed.positions.clone()
    dirty_tokens[padding], dirty_positions[padding] = 255, 77
    results = []
    for batch in (packed, packed._replace(tokens=dirty_tokens, positions=dirty_positions)):
        model.zero_grad()
        output = model(*batch)
        loss = values(output) + output.pooled_BSD.sin().sum()
        loss.backward()
        results.append((output, gradients(model)))
    (clean, clean_gradients), (dirty, dirty_gradients) = results
    for name, ours, theirs in zip(clean._fields, clean, dirty, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs), name
    assert all(torch.equal(clean_gradients[name], dirty_gradients[name]) for name in clean_gradients)


def test_no_gradient_crosses_segments() -> None:
    model, rows = make_model(), make_rows(2)
    packed = pack(rows)
    packed = packed._replace(tokens=packed.tokens.float().requires_grad_(), mask=torch.zeros_like(packed.mask))
    output = model(*packed)
    for number, slot, start, length in segments_of(rows):
        for value in (output.logits_BSK[number, slot].sin().sum(), output.features_BLD[number, start].sin().sum()):
            (jacobian,) = torch.autograd.grad(value, packed.tokens, retain_graph=True)
            inside = jacobian[number, start : start + length].clone()
            assert (inside.abs().sum(dim=1) > 0).all()  # every own token counts
            jacobian[number, start : start + length] = 0
            assert (jacobian == 0).all()  # exactly: no other segment, no padding, no other sequence


def test_an_empty_sequence_gives_zeros_and_no_nan() -> None:
    model, packed = make_model(), pack(make_rows(2))
    for tensor in (packed.tokens, packed.segment_ids, packed.positions, packed.mask):
        tensor[1] = 0
    output = model(*packed)
    assert (output.pooled_BSD[1] == 0).all() and all(x.isfinite().all() for x in output if x is not None)
    values(output).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_attention_is_softmax_inside_each_segment() -> None:
    segment_ids = torch.tensor([[1, 1, 1, 2, 3, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2]])
    q, k, v = torch.randn(3, 2, 2, 8, 4, generator=torch.Generator().manual_seed(0)).numpy().astype(np.float64)
    wanted = np.zeros_like(q)
    for b in range(2):
        for h in range(2):
            for i in range(8):
                mine = [j for j in range(8) if segment_ids[b, j] == segment_ids[b, i]]
                weights = [math.exp(float(q[b, h, i] @ k[b, h, j]) / math.sqrt(4)) for j in mine]
                wanted[b, h, i] = sum(w * v[b, h, j] for w, j in zip(weights, mine, strict=True)) / sum(weights)
    found = packed_attention(*(torch.from_numpy(x) for x in (q, k, v)), segment_mask(segment_ids))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_pooling_is_the_mean_of_each_segment() -> None:
    segment_ids = torch.tensor([[1, 1, 2, 0, 0], [1, 2, 3, 3, 3], [0, 0, 0, 0, 0]], dtype=torch.int32)
    features = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    pooled = pool_segments(features, segment_ids, 4)
    for b in range(3):
        for slot in range(4):
            mine = [features[b, i] for i in range(5) if segment_ids[b, i] == slot + 1]
            wanted = torch.stack(mine).mean(dim=0) if mine else torch.zeros(4)
            torch.testing.assert_close(pooled[b, slot], wanted)


def test_tokens_are_normalised_per_channel_with_the_channel_last() -> None:
    layout = Layout(4, 2, (2, 1, 3), mean=(0.1, 0.5, 0.7), std=(0.2, 0.4, 0.8))
    tokens = np.random.default_rng(0).integers(0, 256, (1, 4, layout.token_width), dtype=np.uint8)
    found = TokenEmbedding(layout, 8).normalise(torch.from_numpy(tokens)).numpy()
    for token in range(4):
        pixels, normalised = tokens[0, token].reshape(2, 1, 3, 3), found[0, token].reshape(2, 1, 3, 3)
        for t, x, c in np.ndindex(2, 3, 3):
            want = (pixels[t, 0, x, c] / 255 - layout.mean[c]) / layout.std[c]
            assert normalised[t, 0, x, c] == pytest.approx(want, abs=1e-6)


def test_positions_of_any_size_have_finite_embeddings_that_differ() -> None:
    torch.manual_seed(0)
    corners = [[t, y, x] for t in (0, 1, 32767) for y in (0, 5, 32767) for x in (0, 300, 32767)]
    embedded = PositionEmbedding(16)(torch.tensor([corners], dtype=torch.int32))[0]
    assert embedded.isfinite().all()
    distances = torch.cdist(embedded, embedded) + torch.eye(len(corners)) * 9
    assert distances.min() > 1e-3  # axes too: (0, 5, 0) is not (0, 0, 5)


def test_a_hidden_token_is_seen_by_its_position_alone() -> None:
    model, packed = make_model(None), pack(make_rows(3))
    assert packed.mask.any()
    changed = packed.tokens.clone()
    changed[packed.mask] = 255 - changed[packed.mask]
    assert torch.equal(model(*packed).pixels_BLP, model(*packed._replace(tokens=changed)).pixels_BLP)
    moved = packed.positions.clone()
    moved[packed.mask] += 1
    assert not torch.equal(model(*packed).pixels_BLP, model(*packed._replace(positions=moved)).pixels_BLP)


def test_sizes_that_make_no_model_are_named() -> None:
    for sizes in ({"dim": 16, "depth": 1, "heads": 3}, {"dim": 16, "depth": 0, "heads": 2}):
        with pytest.raises(ValueError, match="no such model; all are at least 1 and heads divide dim"):
            NaViT(SMALL_LAYOUT, 2, **sizes)
    with pytest.raises(ValueError, match="token dtype float16: not known"):
        NaViT(Layout(4, 2, (1, 2, 2), token_dtype="float16"), 2, dim=4, depth=1, heads=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    model, packed = make_model(), pack(make_rows(4))
    wanted = model(*packed).pooled_BSD
    on_device = [x.cuda() if isinstance(x, torch.Tensor) else x for x in packed]
    model = model.cuda()
    torch.testing.assert_close(model(*on_device).pooled_BSD.cpu(), wanted, rtol=1e-4, atol=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        output = model(*on_device)
    assert output.pooled_BSD.dtype == torch.float32
    torch.testing.assert_close(output.pooled_BSD.cpu(), wanted, rtol=0.1, atol=0.1)
    torch.testing.assert_close(output.pooled_BSD.isfinite().all().cpu(), torch.tensor(True))


def test_queries_and_keys_are_normalised_so_that_their_size_says_nothing() -> None:
    model, packed = make_model(), pack(make_rows(2))
    before = model(*packed)
    with torch.no_grad():
        for block in model.blocks:
            # thirds of the projection: queries, keys, values
            queries, keys, _ = block.qkv.weight.chunk(3)
            queries.mul_(50.0)
            keys.mul_(20.0)
    after = model(*packed)
    assert torch.allclose(before.logits_BSK, after.logits_BSK, atol=1e-3)
