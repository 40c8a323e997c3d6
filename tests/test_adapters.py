"""Promises of adapters: packed equals the library's own model on each image alone, outputs and gradients."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.batches import Batch, batch_of, make_batch, segments_of
from support.other_libraries import need_other_libraries

from patchpack.schemas import Layout

need_other_libraries()

import timm
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Siglip2Config, Siglip2Model, Siglip2VisionConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionModel

from patchpack.trainer.adapters.by_example import ByExample, PlanMask
from patchpack.trainer.adapters.hub import QwenTower, SigLIP2, of_hub
from patchpack.trainer.adapters.naflexvit import NaFlexViT
from patchpack.trainer.attention import Plan
from patchpack.trainer.train import train

IMAGES = Layout(80, 5, (1, 4, 4))
CLIPS = Layout(160, 4, (2, 4, 4), grid_multiple=2)
LIMITS: Any = {"max_segments": 5, "max_segment_tokens": 64, "max_grid": [2, 8, 8], "max_labels": 1}
NUM_CLASSES = 3
TOWER: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_patch_size": 4,
    "window_size": 16,
    "out_hidden_size": 20,
    "fullatt_block_indexes": [1],
    "temporal_patch_size": 2,
}
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4, "num_classes": NUM_CLASSES}
TIMM = {
    "mean": ("naflexvit_base_patch16_gap", {}),
    "registers": ("naflexvit_base_patch16_gap", {"reg_tokens": 3}),
    "attention pooling": ("naflexvit_base_patch16_map", {}),
    "aspects kept": ("naflexvit_base_patch16_par_gap", {}),
    "factorised": ("naflexvit_base_patch16_parfac_gap", {}),
    "class token": ("naflexvit_base_patch16_gap", {"class_token": True, "global_pool": "token"}),
}


def pixels(batch: Batch, layout: Layout, row: int, start: int, length: int) -> torch.Tensor:
    """Returns one example's normalised tokens, (1, N, P)."""
    values = batch["tokens"][row : row + 1, start : start + length].unflatten(-1, (-1, 3)).float() / 255
    return ((values - torch.tensor(layout.mean)) / torch.tensor(layout.std)).flatten(-2)


class Case:
    """A model, its adapter, and what the library says of one example alone."""

    def __init__(self, name: str, backend: str) -> None:
        torch.manual_seed(0)
        self.layout, self.batch = IMAGES, make_batch(IMAGES, most=(1, 6, 6))
        if name in TIMM:
            kind, options = TIMM[name]
            self.library: Any = timm.create_model(kind, **SMALL | options)
            self.library.train()
            head = self.library.head
            self.adapter: ByExample = NaFlexViT(self.library, self.layout, LIMITS, backend)
            assert self.adapter.classify is head
        elif name == "siglip2":
            config = Siglip2VisionConfig(
                hidden_size=24,
                intermediate_size=40,
                num_hidden_layers=2,
                num_attention_heads=2,
                patch_size=4,
                num_patches=36,
            )
            self.library = Siglip2VisionModel(config)
            self.adapter = SigLIP2(self.library, self.layout, LIMITS, NUM_CLASSES, backend)
        else:
            self.layout = CLIPS
            grids = [[(1, 2, 4), (2, 4, 6), (1, 6, 2)], [(1, 4, 4)], [(1, 2, 2), (1, 2, 4), (3, 2, 4)]]
            self.batch = batch_of(CLIPS, grids, unlabelled=True)
            config = Qwen2_5_VLVisionConfig(**TOWER)
            self.library = Qwen2_5_VisionTransformerPretrainedModel(config)
            self.adapter = QwenTower(self.library, CLIPS, LIMITS, NUM_CLASSES, backend)
        self.name = name
        with torch.no_grad():  # no weight is at its initial 0 or 1
            for parameter in self.adapter.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))

    def alone(self, row: int, slot: int, start: int, length: int) -> torch.Tensor:
        """Returns the classes' logits of one example by the library's own forward, (K,)."""
        t, h, w = self.batch["grids"][row, slot].tolist()
        values = pixels(self.batch, self.layout, row, start, length)
        if self.name in TIMM:
            coordinates = torch.tensor([[(y, x) for y in range(h) for x in range(w)]])
            is_patch = torch.ones(1, length, dtype=torch.bool)
            # the head was taken over by the adapter
            pooled = self.library({"patches": values, "patch_coord": coordinates, "patch_valid": is_patch})
        elif self.name == "siglip2":
            seen = self.library(values, torch.ones(1, length, dtype=torch.long), torch.tensor([[h, w]]))
            pooled = seen.pooler_output
        else:
            # as the library's processor orders patches: those that are merged are neighbours, channels first
            cut = values[0].view(t, h // 2, 2, w // 2, 2, 2, 4, 4, 3).permute(0, 1, 3, 2, 4, 8, 5, 6, 7)
            pooled = self.library(cut.reshape(length, -1), grid_thw=torch.tensor([[t, h, w]])).pooler_output.mean(0)[
                None
            ]
        assert self.adapter.classify is not None
        logits: torch.Tensor = self.adapter.classify(pooled)[0]
        return logits


@pytest.mark.parametrize("backend", ["dense", "blocks"])
@pytest.mark.parametrize("name", [*TIMM, "siglip2", "qwen"])
@pytest.mark.slow_beyond(6)
def test_packed_equals_the_library_s_own_model_on_each_image_alone(name: str, backend: str) -> None:
    case = Case(name, backend)
    batch = case.batch
    batch["tokens"][batch["segment_ids"] == 0] = 255
    output = case.adapter(batch)
    case.adapter.loss(output, batch).total.backward()
    gradients = {each: p.grad.clone() for each, p in case.adapter.named_parameters() if p.grad is not None}
    assert len(gradients) > 20
    case.adapter.zero_grad()
    count = 0
    for row, slot, start, length in segments_of(batch):
        logits = case.alone(row, slot, start, length)
        assert torch.allclose(output.logits_BSK[row, slot], logits, atol=1e-5), (row, slot)
        label = batch["labels"][row, slot]
        if label >= 0:
            torch.nn.functional.cross_entropy(logits[None], label[None], reduction="sum").backward()
        count += 1
    assert count == int(batch["num_segments"].sum()) > 6
    for each, parameter in case.adapter.named_parameters():
        if each in gradients:
            assert torch.allclose(
                gradients[each], parameter.grad, atol=1e-5 * max(1, float(parameter.grad.abs().max()))
            ), each
    assert float(case.adapter.flops(batch)) > 0


@pytest.mark.parametrize("name", ["mean", "siglip2", "qwen"])
def test_a_batch_of_empty_sequences_counts_nothing(name: str) -> None:
    case = Case(name, "blocks")
    empty = {each: torch.zeros_like(tensor) for each, tensor in case.batch.items()} | {
        "labels": torch.full_like(case.batch["labels"], -1)
    }
    loss = case.adapter.loss(case.adapter(empty), empty)
    assert float(loss.count) == 0 and float(loss.mean.detach()) == 0


def test_rows_handed_straight_to_a_model_of_one_image_a_row_are_wrong() -> None:
    case = Case("registers", "dense")
    batch = case.batch
    row = max(range(len(batch["tokens"])), key=lambda row: int(batch["num_segments"][row]))
    length = int(batch["num_tokens"][row])
    values = pixels(batch, IMAGES, row, 0, length)
    ids = torch.cat([torch.zeros(3), batch["segment_ids"][row, :length]])
    mask = torch.where((ids[:, None] == ids) | (ids == 0) | (ids[:, None] == 0), 0.0, -math.inf)[None, None]
    coordinates = batch["positions"][row : row + 1, :length, 1:]
    features = case.library.forward_features(
        values, patch_coord=coordinates, patch_valid=torch.ones(1, length), attn_mask=mask
    )
    mixed = features["patches"][0, 3:]
    right = case.adapter(batch).features_BLD[row]
    # behind the first example's own tokens
    assert float((mixed[: batch["lengths"][row, 0]] - right[3 : 3 + batch["lengths"][row, 0]]).abs().max()) > 0.01


def test_what_does_not_fit_is_named() -> None:
    small = timm.create_model("naflexvit_base_patch16_gap", **SMALL)
    for layout, message in (
        (Layout(16, 4, (1, 8, 8)), r"the model's patches are 4 x 4 px of images; build with --tubelet 1,4,4"),
        (
            Layout(16, 4, (1, 4, 4), keep_order=True),
            "shards with dropped tokens: the library's positions are of whole grids",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            NaFlexViT(small, layout, LIMITS, "dense")
    tower = Case("qwen", "dense").library
    with pytest.raises(ValueError, match="the model merges 2 x 2 patches; build with --grid-multiple 2"):
        QwenTower(tower, Layout(16, 4, (2, 4, 4)), LIMITS, NUM_CLASSES, "dense")
    with pytest.raises(
        ValueError,
        match="tubelet 1,4,4: the model's patches are 2,4,4 .frames, height, width.; build with --tubelet 2,4,4",
    ):
        QwenTower(tower, IMAGES, LIMITS, NUM_CLASSES, "dense")
    mask = PlanMask.of(Plan("dense"))
    with pytest.raises(TypeError, match="attention here is torch's fused one"):
        torch.add(mask, 1)
    with pytest.raises(TypeError, match="no dropout, no order"):
        torch.nn.functional.scaled_dot_product_attention(*torch.zeros(3, 1, 1, 2, 4), attn_mask=mask, dropout_p=0.5)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve images of two classes, in tokens of 16 px."""
    from PIL import Image

    from patchpack.command import main as patchpack

    folder = tmp_path_factory.mktemp("adapters")
    for number in range(12):
        (folder / "media" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        colour = (220, 30, 30) if number % 2 else (30, 30, 220)
        Image.new("RGB", (60 + 8 * number, 90), colour).save(folder / "media" / "ab"[number % 2] / f"{number}.png")
    out = str(folder / "shards")
    options = ["--labels", "folder", "--resolution", "side:32-64", "--sequence-length", "32"]
    assert not patchpack(["build", str(folder / "media"), "--output", out, *options])
    return out


SIGLIP2 = {
    "model_type": "siglip2_vision_model",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_patches": 36,
}


@pytest.mark.slow
def test_a_run_trains_a_model_of_another_library_and_goes_on(built: str, tmp_path: Path) -> None:
    place = str(tmp_path / "run")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/config.json").write_text(json.dumps(SIGLIP2))
    options: dict[str, Any] = {"shards": built, "eval": built, "device": "cpu", "batch_size": 1, "log_every": 1}
    options |= {"model": f"hf:{tmp_path}/own", "lr": 3e-3, "checkpoint": place, "warmup_steps": 0}
    lines: list[Any] = []
    assert train(options | {"steps": 30}, lines.append)["eval_accuracy"] == 1
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert train({"shards": built, "resume": place, "steps": 31}, lines.append)["steps"] == 31
    # its own weights, saved as the library saves them
    Siglip2VisionModel(Siglip2VisionConfig(**SIGLIP2)).save_pretrained(tmp_path / "weights")
    made = of_hub(str(tmp_path / "weights"), True, Layout(32, 64, (1, 16, 16)), LIMITS, 2, "blocks")
    saved = Siglip2VisionModel.from_pretrained(tmp_path / "weights").state_dict()
    assert all(torch.equal(tensor, made.state_dict()[f"backbone.{name}"]) for name, tensor in saved.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip2", "qwen"])
def test_of_a_model_of_images_and_text_the_part_that_sees_has_its_weights(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    if name == "siglip2":
        whole: Any = Siglip2Model(Siglip2Config(text_config=text, vision_config=SIGLIP2 | {"vision_use_head": True}))
        part, layout = whole.vision_model, Layout(32, 64, (1, 16, 16))
    else:
        text |= {
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e4},
        }
        whole = Qwen2_5_VLModel(Qwen2_5_VLConfig(text_config=text, vision_config=TOWER | {"out_hidden_size": 24}))
        part, layout = whole.visual, CLIPS
    whole.save_pretrained(tmp_path)
    made = of_hub(str(tmp_path), True, layout, LIMITS, 2, "blocks").state_dict()
    weights = part.state_dict()
    assert len(weights) > 20 and all(torch.equal(tensor, made[f"backbone.{key}"]) for key, tensor in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm", "siglip2"])
def test_the_page_s_code_runs(built: str, name: str) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs/adapters.md").read_text()
    found = re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", text, re.S)
    assert found
    scope: dict[str, Any] = {}
    exec(found[1].replace("demo/shards", built).replace("batch_size=2", "batch_size=1"), scope)
    assert scope["output"].logits_BSK.shape[-1] == 2 and scope["model"].classify.weight.grad is not None


def test_a_model_that_is_none_is_named(built: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    options = {"shards": built, "steps": 1, "device": "cpu", "batch_size": 1}
    for own, message in (
        ({"model": "navitt"}, "--model navitt: unknown; .*; the nearest is navit"),
        ({"model": "timm:resnet10t"}, "--model timm:resnet10t: a ResNet; it reads images of one size"),
        ({"model": "timm:nonesuch"}, "--model timm:nonesuch: Unknown model .nonesuch.; timm.list_models"),
        ({"model": f"hf:{tmp_path}"}, "bert; what is known is siglip2_vision_model, qwen2_5_vl"),
        ({"model": f"hf:{tmp_path}/none"}, "none: .*; it is a folder with config.json"),
        ({"model": "timm:x", "dim": 64}, "--dim 64 --model timm:x: its shape is the other library's"),
        ({"pretrained": True}, "--pretrained --model navit: has no weights anywhere"),
        ({"model": "timm:x", "loss": "reconstruction"}, "--model timm:x: a loss without classes"),
    ):
        with pytest.raises(ValueError, match=message):
            train(options | own, print)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import not_there_either", "not_there_either: not installed; --model timm:x needs the extra adapters; "),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "--model timm:x: its library cannot be imported .operator torchvision::nms does not exist.; often torchvision is made for",
        ),
    ],
)
def test_a_library_that_is_not_there_or_is_broken_is_named(
    built: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    (tmp_path / "timm.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [
        name for name in sys.modules if name.partition(".")[0] == "timm" or name.endswith("adapters.naflexvit")
    ]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RuntimeError, match=message):
        train({"shards": built, "steps": 1, "device": "cpu", "batch_size": 1, "model": "timm:x"}, print)
