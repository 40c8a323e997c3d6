"""Promises of labels and weights: all of an example's labels and its weight reach the batch and the loss."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.manifests import change_manifest
from support.processes import TINY_RUN
from support.small_set import stored_rows

from patchpack import PackedShards, verify
from patchpack.schemas import FormatError, read_manifest
from patchpack.trainer.config import Config
from patchpack.trainer.models import make_model
from patchpack.trainer.train import train

NAMES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty images in colours that are their labels, of which they have none to three, and weights."""
    from patchpack.command import main as patchpack

    folder = tmp_path_factory.mktemp("labels")
    lines = []
    for number in range(40):
        has = [bool(number >> at & 1) for at in range(3)]
        Image.new("RGB", (40 + number, 60), tuple(220 if each else 20 for each in has)).save(folder / f"{number}.png")
        labels = [name for name, each in zip(NAMES, has, strict=True) if each]
        lines.append(json.dumps({"path": f"{number}.png", "labels": labels, "importance": (number % 4) / 2}))
    (folder / "table.jsonl").write_text("\n".join(lines) + "\n")
    out, options = str(folder / "shards"), ["--label-column", "labels", "--weight-column", "importance"]
    options += ["--tubelet", "1,8,8", "--resolution", "side:16-24", "--sequence-length", "64"]
    assert not patchpack(["build", str(folder / "table.jsonl"), "--output", out, *options])
    return out


def test_a_batch_has_all_labels_and_the_weights(built: str) -> None:
    rows, seen = stored_rows(Path(built)), set()
    assert read_manifest(built).limits[0]["max_labels"] == 3
    for batch in PackedShards(built, batch_size=3):
        for row, index in enumerate(batch["index"].tolist()):
            for slot in range(batch["labels"].shape[1]):
                labels = [label for label in batch["all_labels"][row, slot].tolist() if label >= 0]
                weight, first = float(batch["weights"][row, slot]), int(batch["labels"][row, slot])
                segments = rows[index]["segments"] if index >= 0 else []
                segment = segments[slot] if slot < len(segments) else {"labels": [], "weight": 0.0}
                assert (labels, weight) == (segment["labels"], segment["weight"])
                assert first == (labels[0] if labels else -1)
                seen.add(len(labels))
    assert seen == {0, 1, 2, 3}


def test_every_label_counts_in_the_loss(built: str) -> None:
    config, manifest = Config(built, loss="sigmoid", dim=16, depth=1, heads=2), read_manifest(built)
    model = make_model(config, manifest, [0], torch.device("cpu"))
    batch = next(iter(PackedShards(built, batch_size=3)))
    output = model(batch)
    total = 0.0
    for row, slot in (batch["labels"] >= 0).nonzero().tolist():
        yes = set(batch["all_labels"][row, slot].tolist())
        for number, x in enumerate(output.logits_BSK[row, slot].tolist()):
            total += float(batch["weights"][row, slot]) * math.log1p(math.exp(-x if number in yes else x))
    assert float(model.loss(output, batch).total.detach()) == pytest.approx(total, rel=1e-4)


@pytest.mark.slow
def test_a_model_learns_every_label(built: str) -> None:
    lines: list[Any] = []
    run = TINY_RUN | {"shards": built, "loss": "sigmoid", "eval": built, "steps": 150, "log_every": 1}
    summary = train(run, lines.append)
    weights = [float(s["weight"]) for row in stored_rows(Path(built)) for s in row["segments"] if s["labels"]]
    assert summary["eval_counted"] == round(sum(weights)) and summary["eval_accuracy"] > 0.9
    assert np.mean([line["loss"] for line in lines[-5:]]) < 0.5 * np.mean([line["loss"] for line in lines[:5]])


def test_datasets_of_before_do_not_say_how_many_labels_and_limits_are_held(built: str, tmp_path: Path) -> None:
    import shutil

    own = tmp_path / "own"
    shutil.copytree(built, own)
    limits = dict(read_manifest(built).limits[0])
    change_manifest(own, limits=[limits | {"max_labels": 2}])
    with pytest.raises(FormatError, match="3 labels of a segment; the manifest's limit is 2; rebuild the dataset"):
        list(PackedShards(str(own), batch_size=1))
    found = list(verify(str(own)))
    assert found and all(
        "labels of a segment 3; the limit in manifest.json is 2; rebuild the dataset" in line for line in found
    )
    del limits["max_labels"]
    change_manifest(own, limits=[limits])
    batch = next(iter(PackedShards(str(own), batch_size=1)))
    assert "all_labels" not in batch and "labels" in batch
    assert list(verify(str(own))) == []
    with pytest.raises(ValueError, match="does not say how many labels an example has"):
        train(TINY_RUN | {"shards": str(own), "loss": "sigmoid", "steps": 1}, print)
    assert train(TINY_RUN | {"shards": str(own), "steps": 1}, print)["steps"] == 1
