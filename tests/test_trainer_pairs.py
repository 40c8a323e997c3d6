"""Promises of images against captions: packed equals alone, losses are those of all pairs however many processes share them."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from support.batches import Batch, make_batch, segments_of
from support.processes import TINY_RUN, losses, run

from patchpack import PackedShards
from patchpack.schemas import Layout
from patchpack.trainer.losses import Pairs, clip_loss, siglip_loss
from patchpack.trainer.pairs import TwoTowers
from patchpack.trainer.text import TextTower, text_runs
from patchpack.trainer.train import train
from patchpack.trainer.vit import Shape, ViT

LENGTH, VOCABULARY = 40, 11
LAYOUT = Layout(60, 5, (1, 2, 2), text_length=LENGTH)
LIMITS: Any = {"max_segments": 5, "max_segment_tokens": 48, "max_grid": [3, 4, 4], "max_labels": 1}
LOSSES = {"clip": clip_loss, "siglip": siglip_loss}


def captioned(seed: int = 0) -> Batch:
    """Returns sequences whose segments have captions of 1 to 7 tokens, but for every third."""
    batch, generator = make_batch(LAYOUT, seed=seed), np.random.default_rng(seed)
    size = len(batch["tokens"])
    ids, segments = np.zeros((size, LENGTH), np.int32), np.zeros((size, LENGTH), np.int32)
    for row in range(size):
        end = 0
        for slot in range(int(batch["num_segments"][row])):
            if (row + slot) % 3:
                count = int(generator.integers(1, 8))
                ids[row, end : end + count] = generator.integers(0, VOCABULARY, count)
                segments[row, end : end + count] = slot + 1
                end += count
    return batch | {"text_ids": torch.from_numpy(ids), "text_segment_ids": torch.from_numpy(segments)}


def make_model(loss: str, backend: str = "blocks") -> TwoTowers:
    torch.manual_seed(0)
    images = ViT(Shape(16, 1, 2), [LAYOUT], LIMITS, None, attention=backend, reconstructs=False)
    text = TextTower(VOCABULARY, LENGTH, 16, 2, 2, bias=False, qk_norm=True, backend=backend)
    model = TwoTowers(images, text, loss)
    with torch.no_grad():  # no weight is at its initial 0 or 1
        for name, parameter in model.named_parameters():
            if "_1" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("backend", ["dense", "blocks"])
@pytest.mark.parametrize("loss", LOSSES)
def test_captions_are_seen_as_if_each_were_alone(loss: str, backend: str) -> None:
    model, batch = make_model(loss, backend), captioned()
    pairs = model(batch).pairs
    # what a step is divided by is known before it is made
    assert model.count(batch) == model.loss(model(batch), batch).count == pairs.is_pair_N.sum()
    text = pairs.text_ND.view(len(batch["tokens"]), 5, 16)
    seen = 0
    for row, slot, _, _ in segments_of(batch):
        is_own = batch["text_segment_ids"][row] == slot + 1
        assert pairs.is_pair_N.view(-1, 5)[row, slot] == is_own.any()
        if is_own.any():
            ids = torch.zeros(1, LENGTH, dtype=torch.int32)
            ids[0, : int(is_own.sum())] = batch["text_ids"][row, is_own]
            segments = (torch.arange(LENGTH) < int(is_own.sum()))[None].int()
            single = {"text_ids": ids, "text_segment_ids": segments, "starts": torch.zeros(1, 1)}
            alone = torch.nn.functional.normalize(model.project_text(model.text(single))[0, 0], dim=0)
            assert torch.allclose(text[row, slot], alone, atol=1e-5)
            seen += 1
    assert seen == int(pairs.is_pair_N.sum()) > 4


def test_what_padding_holds_changes_nothing() -> None:
    batch = captioned()
    model = make_model("clip")
    padded = batch | {"text_ids": torch.where(batch["text_segment_ids"] == 0, VOCABULARY - 1, batch["text_ids"])}
    one, other = model(batch).pairs, model(padded).pairs
    assert torch.equal(one.text_ND[one.is_pair_N], other.text_ND[one.is_pair_N])
    runs = text_runs(batch["text_segment_ids"], 5)
    for row in range(len(batch["tokens"])):
        for slot in range(5):
            where = (batch["text_segment_ids"][row] == slot + 1).nonzero().flatten().tolist()
            assert int(runs.lengths_BS[row, slot]) == len(where)
            assert not where or int(runs.starts_BS[row, slot]) == where[0]


def slow_loss(loss: str, images: list[Any], texts: list[Any], scale: float, bias: float) -> float:
    """Returns the sum over pairs, one product at a time."""

    def product(i: int, j: int) -> float:
        return scale * math.fsum(a * b for a, b in zip(images[i], texts[j], strict=True)) + bias

    total, count = 0.0, len(images)
    for i in range(count):
        if loss == "siglip":
            total += math.fsum(math.log1p(math.exp(product(i, j) * (-1 if i == j else 1))) for j in range(count))
        else:
            across = math.log(math.fsum(math.exp(product(i, j)) for j in range(count)))
            down = math.log(math.fsum(math.exp(product(j, i)) for j in range(count)))
            total += (across + down) / 2 - product(i, i)
    return total


def some_pairs(count: int = 12, seed: int = 0) -> list[torch.Tensor]:
    """Returns vectors of images and captions that need gradients, and which of them are pairs."""
    torch.manual_seed(seed)
    vectors = [torch.nn.functional.normalize(torch.randn(count, 8), dim=1).requires_grad_() for _ in range(2)]
    return [*vectors, torch.arange(count) % 4 != 2]


def loss_and_gradients(loss: str, parts: list[torch.Tensor]) -> tuple[float, int, list[torch.Tensor]]:
    scale, bias = torch.tensor([5.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    found = LOSSES[loss](Pairs(*parts, scale, bias if loss == "siglip" else None))
    found.total.backward()
    gradients = [parts[0].grad, parts[1].grad, scale.grad, *([bias.grad] if loss == "siglip" else [])]
    return found.total.item(), int(found.count), [each for each in gradients if each is not None]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_all_pairs(loss: str) -> None:
    parts = some_pairs()
    total, count, gradients = loss_and_gradients(loss, parts)
    images, texts = (part.detach()[parts[2]].tolist() for part in parts[:2])
    assert count == 9 and total == pytest.approx(slow_loss(loss, images, texts, 5.0, -3.0 if loss == "siglip" else 0.0))
    # what is no pair does not reach the loss, even if it is not finite
    assert all((each == 0).all() for each in (gradients[0][~parts[2]], gradients[1][~parts[2]]))


def share(rank: int, size: int, loss: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    images, texts, is_pair = some_pairs()
    own = slice(rank * 12 // size, (rank + 1) * 12 // size)
    parts = [images.detach()[own].requires_grad_(), texts.detach()[own].requires_grad_(), is_pair[own]]
    torch.save(loss_and_gradients(loss, parts), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [2, 3])
def test_processes_together_have_the_loss_and_the_gradients_of_one(loss: str, size: int, tmp_path: Path) -> None:
    mp.spawn(share, (size, loss, str(tmp_path)), nprocs=size)
    total, count, gradients = loss_and_gradients(loss, some_pairs())
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    assert sum(part[0] for part in parts) == pytest.approx(total, rel=1e-6)
    assert sum(part[1] for part in parts) == count
    for at, want in enumerate(gradients):
        found = [part[2][at] for part in parts]
        # of vectors each process has its own, of scale and bias each has a part of the sum
        together = torch.cat(found) if at < 2 else torch.stack(found).sum(dim=0)
        assert torch.allclose(together, want, rtol=1e-5, atol=1e-6), at


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of red, green and blue images whose captions name the colour."""
    from patchpack.command import main as patchpack

    folder = tmp_path_factory.mktemp("pairs")
    lines = ["path,caption"]
    for number in range(48):
        name = ("red", "green", "blue")[number % 3]
        colour = tuple(200 if at == number % 3 else 30 for at in range(3))
        Image.new("RGB", (40 + number, 60), colour).save(folder / f"{number:02}.png")
        lines.append(f"{number:02}.png,{name}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    options = ["--caption-column", "caption", "--captions", "bytes", "--text-length", "64", "--sequence-length", "64"]
    out = str(folder / "shards")
    assert not patchpack(
        [
            "build",
            str(folder / "table.csv"),
            "--output",
            out,
            *options,
            "--tubelet",
            "1,8,8",
            "--resolution",
            "side:16-24",
        ]
    )
    return out


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_a_model_learns_which_caption_is_whose(built: str, loss: str, tmp_path: Path) -> None:
    lines: list[Any] = []
    how = TINY_RUN | {"shards": built, "loss": loss, "eval": built, "log_every": 1, "checkpoint": str(tmp_path / "run")}
    summary = train(how | {"steps": 60}, lines.append)
    assert np.mean([line["loss"] for line in lines[-9:]]) < 0.8 * np.mean([line["loss"] for line in lines[:3]])
    assert summary["eval_counted"] == 48 and "eval_accuracy" not in summary
    (shards,) = [PackedShards(built, batch_size=1)]
    assert int(max(batch["text_ids"].max() for batch in shards)) < 256
    again = train({"shards": built, "resume": str(tmp_path / "run"), "steps": 61}, lines.append)
    assert again["steps"] == 61 and os.listdir(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_any_number_of_processes_makes_the_same_steps(built: str, loss: str) -> None:
    options = [
        built,
        "--loss",
        loss,
        "--steps",
        "5",
        "--batch-size",
        "4",
        "--dim",
        "16",
        "--depth",
        "1",
        "--heads",
        "2",
        "--device",
        "cpu",
    ]
    options += ["--eval", built]
    alone = run(1, *options)
    for processes, how in ((2, "ddp"), (2, "fsdp")):
        together = run(processes, *options, "--parallel", how)
        assert losses(together) == pytest.approx(losses(alone), rel=1e-5) and len(losses(alone)) == 5
        assert together[-1]["eval_loss"] > 0


def test_what_a_loss_cannot_be_of_is_named(built: str) -> None:
    how = TINY_RUN | {"shards": built, "steps": 1}
    for options, message in (
        ({"loss": "softmax"}, "--loss softmax: .* has no classes; build it with --labels"),
        ({"loss": "sigmoid"}, "--loss sigmoid: .* has no classes; build it with --labels"),
        (
            {"loss": "clip", "accumulate": 2},
            "--accumulate 2 --loss clip: each part would be compared with itself alone",
        ),
        ({"loss": "clip", "vocabulary": 3}, "--vocabulary 3: a caption has token 1[01].; ids lie below it"),
        ({"loss": "siglip", "vocabulary": 0}, "--vocabulary 0: no tokens; the least is 1"),
        ({"loss": "clip", "model": "mvit"}, "--model mvit: a loss without classes"),
    ):
        with pytest.raises(ValueError, match=message):
            train(how | options, print)
