"""Evaluation: one pass over every sequence of a dataset, each exactly once.

The last batch is filled up with empty sequences, which count nothing; so every batch has one shape and
the result does not depend on the batch size but for rounding. A dataset of several views is evaluated on its
first. Masks are drawn anew from the seed, so that two evaluations hide the same tokens.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from patchpack.schemas import Layout, Manifest, read_manifest
from patchpack.schemas.manifest import Limits
from patchpack.schemas.opened import NO_LABEL
from patchpack.trainer.budgets import Judged
from patchpack.trainer.config import Config
from patchpack.trainer.data import PackedShards
from patchpack.trainer.dropping import draw_ranks
from patchpack.trainer.losses import label_weights
from patchpack.trainer.mixed import MixedShards
from patchpack.trainer.model import Model
from patchpack.trainer.models import OF_CLASSES, check_dataset, choose_loss
from patchpack.trainer.parallel import World
from patchpack.trainer.slots import Batch


def to_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> Batch:
    """Returns the batch on the device; from pinned memory the copy runs beside other work."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


class EvaluationData(NamedTuple):
    """The batches to evaluate on, and the most that they have. `numbers_K` turns their labels into the model's, the last into none."""

    shards: PackedShards
    limits: Limits
    numbers_K: torch.Tensor | None


def evaluation_dataset(trained: PackedShards | MixedShards, path: str, config: Config, world: World) -> EvaluationData:
    """Returns what to evaluate on; checks now what would be found out only after the training.

    Args:
        trained: the dataset the model is trained on.
        path: the set to evaluate on; its classes are some of the trained ones, by name and in any order.
        config: gives layout and batch size (cut to the size of the dataset).
        world: of this process, which evaluates a part.

    Raises:
        ValueError: the model cannot read or judge this dataset: tubelet, channels or classes differ.
        FormatError: the dataset is unfinished or broken.
    """
    number, loss = config.layout or 0, choose_loss(config, trained.manifest)
    own, theirs = trained.manifest.layouts[number], layout_of(path, number)
    for name, value, actual in (
        ("tubelet", own.tubelet, theirs.tubelet),
        ("stride", own.stride, theirs.stride),
        ("channels", own.channels, theirs.channels),
        ("token dtype", own.token_dtype, theirs.token_dtype),
    ):
        if value != actual:
            raise ValueError(
                f"{path}: {name} {actual}; the model was trained on {value}; evaluate on a dataset built alike"
            )
    kept: dict[str, Any] = {"cache": config.cache, "cache_bytes": config.cache_bytes, "window": config.window}
    in_order = functools.partial(PackedShards, path, layout=number, shuffle=False, verify=config.verify, **kept)
    all_of_it = in_order(batch_size=1)
    numbers_K = _class_numbers(trained.manifest, config.shards, all_of_it) if loss in OF_CLASSES else None
    check_dataset(loss, all_of_it.manifest, number, path)
    size = max(1, min(config.batch_size, len(all_of_it)) // world.size)
    shards = in_order(batch_size=size, rank=world.rank, world_size=world.size)
    return EvaluationData(shards, shards.manifest.limits[number], numbers_K)


def _class_numbers(trained: Manifest, path: str, shards: PackedShards) -> torch.Tensor:
    known, actual = trained.classes, shards.manifest.classes
    if known is None:
        raise AssertionError("a model of classes was trained on some")
    if actual is None:
        raise ValueError(
            f"{shards.path}: no classes; the model has {len(known)}; build the dataset with --labels folder --classes {path}"
        )
    if strange := sorted(set(actual) - set(known)):
        raise ValueError(
            f"{shards.path}: class {strange[0]}{f' and {len(strange) - 1} more' if len(strange) > 1 else ''}; the model does not know "
            f"it; evaluate on classes of {path}: build the dataset with --labels folder --classes {path}"
        )
    numbers = {name: number for number, name in enumerate(known)}
    return torch.tensor([*(numbers[name] for name in actual), NO_LABEL])


@torch.no_grad()
def evaluate(net: Model, evaluated: EvaluationData, config: Config, world: World) -> dict[str, object]:
    """Returns loss, accuracy (with classes), and what was counted, over all of a dataset and all processes.

    Args:
        net: the model itself, inside what makes it distributed, which would wait for others; its mode is put back.
        evaluated: from `evaluation_dataset`.
        config: gives seed and precision.
        world: of this process.

    Raises:
        FormatError: a shard is missing or broken.
    """
    shards, device = evaluated.shards, world.device
    sums = torch.zeros(7, dtype=torch.float64, device=device)
    was_training = net.training
    net.eval()
    # None: a bar on a terminal and nothing elsewhere
    quiet = True if world.rank else None
    for batch in tqdm(shards, total=len(shards), desc="evaluate", unit="batch", leave=False, disable=quiet):
        if evaluated.numbers_K is not None:
            # no label is -1, and so the last
            for name in {"labels", "all_labels"} & set(batch):
                batch[name] = evaluated.numbers_K[batch[name]]
        net.check(batch)
        batch = to_device(batch, device)
        if net.needs_ranks:
            batch["ranks"] = draw_ranks(batch, config.seed, 0)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.is_bf16(device)):
            output = net(batch)
        loss = net.loss(output, batch)
        correct = torch.zeros((), device=device)
        if output.logits_BSK is not None:
            labels_BSM = (
                batch["all_labels"] if net.is_multilabel and "all_labels" in batch else batch["labels"][..., None]
            )
            # label -1 equals no class number
            is_right_BS = (output.logits_BSK.argmax(dim=2, keepdim=True) == labels_BSM).any(dim=2)
            correct = (is_right_BS * label_weights(batch["labels"], batch["weights"])).sum()
        counted = ((batch["index"] >= 0).sum(), batch["num_segments"].sum(), batch["num_tokens"].sum())
        # of the forward pass, a third of a step
        parts = (loss.total, loss.count, correct, *counted, net.flops(batch) / 3)
        sums += torch.stack([part.double() for part in parts])
    net.train(was_training)
    total, count, correct_sum, sequences, segments, tokens, flops = world.summed(sums).tolist()
    result: dict[str, object] = {"eval": shards.path, "eval_loss": total / count if count else None}
    if net.classify is not None:
        result["eval_accuracy"] = correct_sum / count if count else None
    return result | {
        "eval_counted": round(count),
        "eval_sequences": int(sequences),
        "eval_segments": int(segments),
        "eval_tokens": int(tokens),
        "eval_gflops": flops / 1e9,
    }


def judged(net: Model, evaluated: EvaluationData, config: Config, world: World) -> Judged:
    """Returns what `evaluate` says, by example; arguments and errors are its own."""
    found = evaluate(net, evaluated, config, world)
    numbers = {name: value if isinstance(value, int | float) else None for name, value in found.items()}
    examples = max(1, numbers["eval_segments"] or 0)
    return {
        "eval": str(found["eval"]),
        "tokens_per_example": (numbers["eval_tokens"] or 0) / examples,
        "gflops_per_example": (numbers["eval_gflops"] or 0) / examples,
        "loss": numbers["eval_loss"],
        "accuracy": numbers.get("eval_accuracy"),
    }


def layout_of(path: str, number: int) -> Layout:
    """Returns the layout of a number of a dataset.

    Raises:
        ValueError: there is none.
    """
    layouts = read_manifest(path).layouts
    if number >= len(layouts):
        raise ValueError(
            f"{path}: no layout {number}; it has {len(layouts)}, counted from 0; evaluate on a dataset built alike"
        )
    return layouts[number]
