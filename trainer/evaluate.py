"""Evaluation: one pass over every sequence of a dataset, each exactly once.

The last batch is filled up with empty sequences, which count nothing; so every batch has one shape and
the result does not depend on the batch size but for rounding. A dataset of several views is evaluated on its
first. Masks are drawn anew from the seed, so that two evaluations hide the same tokens.
"""

from typing import NamedTuple

import torch
from tqdm import tqdm

from patchpack.trainer.config import Config
from patchpack.trainer.data import Batch, PackedShards
from patchpack.trainer.losses import Loss, classification_loss, draw_mask, reconstruction_loss
from patchpack.trainer.opened import NO_LABEL
from patchpack.trainer.vit import NaViT, Output


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Returns the batch on the device; from pinned memory the copy runs beside other work."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def forward_loss(
    model: NaViT, batch: Batch, device: torch.device, mask_share: float, generator: torch.Generator
) -> tuple[Output, Loss, Batch]:
    """Returns what the model says of a batch, its loss, and the batch on the device.

    Args:
        model: on the device.
        batch: on the CPU, as `PackedShards` gives it.
        device: bf16 autocast is used on CUDA only: on most CPUs it is slower than float32.
        mask_share: for a model without classes.
        generator: of the masks, on the CPU.
    """
    mask_BL = None
    if model.reconstruct is not None:
        mask_BL = draw_mask(batch["segment_ids"], batch["lengths"], mask_share, generator).to(device)
    batch = to_device(batch, device)
    max_segments = batch["labels"].shape[1]
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        output = model(batch["tokens"], batch["segment_ids"], batch["positions"], max_segments, mask_BL)
    if output.logits_BSK is not None:
        return output, classification_loss(output.logits_BSK, batch["labels"]), batch
    if mask_BL is None:
        raise AssertionError("a model without classes reconstructs what a mask hides")
    target_BLP = model.embed.normalise(batch["tokens"])
    return output, reconstruction_loss(output.pixels_BLP, target_BLP, mask_BL), batch


class EvaluationData(NamedTuple):
    """The batches to evaluate on. `numbers_K` turns their labels into the model's, its last entry "none" into none."""

    shards: PackedShards
    numbers_K: torch.Tensor | None


def evaluation_dataset(trained: PackedShards, path: str, config: Config) -> EvaluationData:
    """Returns what to evaluate on; checks now what would be found out only after the training.

    Args:
        trained: the dataset the model is trained on.
        path: the set to evaluate on; its classes are some of the trained ones, by name and in any order.
        config: gives layout, batch size (cut to the size of the dataset) and device.

    Raises:
        ValueError: the model cannot read or judge this dataset: tubelet, channels or classes differ.
        FormatError: the dataset is unfinished or broken.
    """
    shards = _in_order(path, 1, config)
    for name, value, actual in (
        ("tubelet", trained.layout.tubelet, shards.layout.tubelet),
        ("stride", trained.layout.stride, shards.layout.stride),
        ("channels", trained.layout.channels, shards.layout.channels),
        ("token dtype", trained.layout.token_dtype, shards.layout.token_dtype),
    ):
        if value != actual:
            raise ValueError(
                f"{path}: {name} {actual}; the model was trained on {value}; evaluate on a dataset built alike"
            )
    numbers_K = _class_numbers(trained, shards)
    return EvaluationData(_in_order(path, min(config.batch_size, len(shards)), config), numbers_K)


def _in_order(path: str, batch_size: int, config: Config) -> PackedShards:
    return PackedShards(path, batch_size=batch_size, layout=config.layout, shuffle=False, verify=config.verify)


def _class_numbers(trained: PackedShards, shards: PackedShards) -> torch.Tensor | None:
    known, actual = trained.manifest.classes, shards.manifest.classes
    if known is None:
        # masked patches are all there is to judge
        return None
    if actual is None:
        raise ValueError(
            f"{shards.path}: no classes; the model has {len(known)}; build the dataset with --labels folder --classes {trained.path}"
        )
    if strange := sorted(set(actual) - set(known)):
        raise ValueError(
            f"{shards.path}: class {strange[0]}{f' and {len(strange) - 1} more' if len(strange) > 1 else ''}; the model does not know "
            f"it; evaluate on classes of {trained.path}: build the dataset with --labels folder --classes {trained.path}"
        )
    numbers = {name: number for number, name in enumerate(known)}
    return torch.tensor([*(numbers[name] for name in actual), NO_LABEL])


@torch.no_grad()
def evaluate(model: NaViT, evaluated: EvaluationData, config: Config, device: torch.device) -> dict[str, object]:
    """Returns loss, accuracy (with classes), and what was counted, over all of a dataset.

    Args:
        model: on the device; its mode is put back.
        evaluated: from `evaluation_dataset`.
        config: gives seed and share of the masks.
        device: where the model is.

    Raises:
        FormatError: a shard is missing or broken.
    """
    shards = evaluated.shards
    generator = torch.Generator().manual_seed(config.seed)
    total = correct = torch.zeros((), device=device, dtype=torch.float64)
    count = torch.zeros((), device=device, dtype=torch.int64)
    num_sequences = num_segments = num_tokens = 0
    was_training = model.training
    model.eval()
    # None: a bar on a terminal and nothing elsewhere
    for batch in tqdm(shards, total=len(shards), desc="evaluate", unit="batch", leave=False, disable=None):
        num_sequences += int((batch["index"] >= 0).sum())
        num_segments += int(batch["num_segments"].sum())
        num_tokens += int(batch["num_tokens"].sum())
        if evaluated.numbers_K is not None:
            # no label is -1, and so the last
            batch["labels"] = evaluated.numbers_K[batch["labels"]]
        output, loss, batch = forward_loss(model, batch, device, config.mask_share, generator)
        total, count = total + loss.total, count + loss.count
        if output.logits_BSK is not None:
            # label -1 equals no class number
            correct = correct + (output.logits_BSK.argmax(dim=2) == batch["labels"]).sum()
    model.train(was_training)
    result: dict[str, object] = {"eval": shards.path, "eval_loss": float(total / count) if count else None}
    if model.classify is not None:
        result["eval_accuracy"] = float(correct / count) if count else None
    return result | {
        "eval_counted": int(count),
        "eval_sequences": num_sequences,
        "eval_segments": num_segments,
        "eval_tokens": num_tokens,
    }
