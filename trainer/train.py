"""The training loop, from top to bottom.

    for each step: batch (from threads) -> device -> forward -> loss / count -> backward -> clip -> AdamW

The learning rate is a pure function of the step (linear warm-up, then half a cosine to 0), so there is no
scheduler whose state could be lost. All that a run is stands in its checkpoint: weights, AdamW's moments,
the generator of the masks, where the loader stands, and the options. On the CPU a run that stopped and
resumed is bit for bit the run that did not. Loss and gradient are judged before each update, which costs one wait
for the device a step, so no weights that are not numbers are ever saved.

Throughput counts real tokens: padding is work, but no progress.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from patchpack.trainer import checkpoint
from patchpack.trainer.config import Config, resumed, taken_over
from patchpack.trainer.data import Batch, PackedShards
from patchpack.trainer.evaluate import evaluate, evaluation_dataset, forward_loss
from patchpack.trainer.stop import Interrupted, noted_signals
from patchpack.trainer.vit import NaViT

Log = Callable[[Mapping[str, object]], None]

# MAE, arXiv:2111.06377, table 8
BETAS = (0.9, 0.95)


def choose_device(name: str) -> torch.device:
    """Returns the device of that name; "auto" is CUDA where there is one.

    Raises:
        ValueError: it is unknown, or there is no CUDA.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: unknown; it is auto, cpu, cuda or cuda:N; leave it out for auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices; leave it out for auto"
        )
    return device


def learning_rate(step: int, config: Config) -> float:
    """Returns the learning rate of a step, counted from 0: warm-up over the first, then half a cosine to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    end = config.steps if config.schedule_steps is None else config.schedule_steps
    progress = (step - config.warmup_steps) / max(1, end - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(model: NaViT, config: Config) -> torch.optim.AdamW:
    """Returns AdamW that decays matrices and leaves norms, biases and the mask token alone."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=BETAS)


def train(typed: dict[str, Any], log: Log) -> dict[str, object]:
    """Trains and evaluates as the options say, and returns the summary.

    Args:
        typed: options of `Config` by name; those left out have their defaults, or the resumed run's values.
        log: called with each log line's values.

    Raises:
        ValueError: the options do not fit each other, the dataset or the checkpoint; or a step has nothing to learn from.
        FormatError: the dataset or the checkpoint is missing, unfinished or broken.
        FloatingPointError: loss, gradient or weights are no longer numbers.
        Interrupted: a signal came; the last whole step is saved.
    """
    check_alone()
    saved = checkpoint.load(typed["resume"]) if typed.get("resume") else None
    config = Config(**typed) if saved is None else resumed(typed, saved["config"], checkpoint.find(typed["resume"]))
    if config.checkpoint and config.steps:
        check_later_steps(config, saved)
    device = choose_device(config.device)
    loader = PackedShards(
        config.shards,
        batch_size=config.batch_size,
        layout=config.layout,
        seed=config.seed,
        drop_last=True,  # every step weighs the same number of sequences; another order leaves out others
        verify=config.verify,
        pin_memory=device.type == "cuda",
    )
    evaluated = evaluation_dataset(loader, config.eval, config) if config.eval else None
    classes = loader.manifest.classes
    torch.manual_seed(config.seed)
    model = NaViT(
        loader.layout, None if classes is None else len(classes), dim=config.dim, depth=config.depth, heads=config.heads
    ).to(device)
    optimizer = make_optimizer(model, config)
    mask_generator = torch.Generator().manual_seed(config.seed)
    step = 0
    if saved is not None:
        check_same_dataset(saved, loader, config)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        mask_generator.set_state(saved["mask_generator"])
        step = saved["step"]
        if step < config.steps:
            loader.load_state_dict(saved["loader"])
            kept = taken_over(typed, saved["config"], config)
            log({"step": step, "resumed": checkpoint.find(typed["resume"]), "taken_over": kept or None})
        elif evaluated is None:
            raise ValueError(
                f"--resume {typed['resume']}: done with step {step} of {config.steps}; nothing is left to do; give more --steps, "
                "or --eval"
            )
    if config.checkpoint and step < config.steps:
        checkpoint.check_folder(config.checkpoint)

    def save() -> str | None:
        if not config.checkpoint:
            return None
        check_finite(model, step)
        state: checkpoint.Checkpoint = {
            "step": step,
            "config": dataclasses.asdict(config) | {"eval": absolute(config.eval)},
            "dataset_digest": loader.manifest.dataset_digest,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "loader": loader.state_dict(),
            "mask_generator": mask_generator.get_state(),
        }
        return checkpoint.save(config.checkpoint, state)

    slots_in_batch = config.batch_size * loader.layout.sequence_length
    begun = window_begun = time.perf_counter()
    run_tokens = window_tokens = run_steps = window_steps = 0
    window_loss, loss_value = 0.0, None
    model.train()
    with noted_signals() as stop:
        while step < config.steps:
            for batch in loader:
                num_tokens = int(batch["num_tokens"].sum())
                rate = learning_rate(step, config)
                loss, norm = update(model, optimizer, batch, rate, step + 1, config, mask_generator)
                step += 1

                window_loss += loss
                run_steps, window_steps = run_steps + 1, window_steps + 1
                run_tokens, window_tokens = run_tokens + num_tokens, window_tokens + num_tokens
                if step % config.log_every == 0 or step == config.steps:
                    now = time.perf_counter()
                    loss_value = window_loss / window_steps
                    log(
                        {
                            "step": step,
                            "loss": loss_value,
                            "tokens_per_s": window_tokens / (now - window_begun),
                            "efficiency": window_tokens / (window_steps * slots_in_batch),
                            "lr": rate,
                            "grad_norm": norm,
                        }
                    )
                    window_loss, window_tokens, window_steps = 0.0, 0, 0
                    window_begun = time.perf_counter()
                if stop.number is not None:
                    raise Interrupted(interruption(step, save()), stop.number)
                if step == config.steps:
                    break
                if step % config.checkpoint_every == 0:
                    save()
        if run_steps:
            save()
    summary: dict[str, object] = {"steps": step, "loss": loss_value, "device": str(device)}
    if run_steps:
        seconds = time.perf_counter() - begun
        summary |= {
            "real_tokens": run_tokens,
            "tokens_per_s": run_tokens / seconds,
            "efficiency": run_tokens / (run_steps * slots_in_batch),
            "seconds": seconds,
        }
    if evaluated is not None:
        summary |= evaluate(model, evaluated, config, device)
    return summary


def update(
    model: NaViT,
    optimizer: torch.optim.AdamW,
    batch: Batch,
    rate: float,
    step: int,
    config: Config,
    mask_generator: torch.Generator,
) -> tuple[float, float]:
    """Makes one step and returns its loss and the norm of its gradient; waits for the device once.

    Args:
        model: on its device, in training mode.
        optimizer: of its parameters.
        batch: on the CPU.
        rate: learning rate.
        step: its number, from 1, for errors.
        config: gives share of the masks and clipping.
        mask_generator: on the CPU.

    Raises:
        ValueError: nothing in the batch counts; the weights are unchanged.
        FloatingPointError: loss or gradient is not finite; the weights are unchanged.
    """
    device = next(model.parameters()).device
    _, loss, _ = forward_loss(model, batch, device, config.mask_share, mask_generator)
    optimizer.zero_grad(set_to_none=True)
    loss.mean.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    loss_value, norm_value, count = torch.stack([loss.mean.detach(), norm, loss.count]).tolist()
    if not count:
        what = "no segment has a label" if model.reconstruct is None else "no token is hidden"
        raise ValueError(
            f"{config.shards}: {what} in the {config.batch_size} sequences of step {step}, so there is nothing to learn; a "
            "step needs one; use a larger --batch-size, or build the dataset with labels for all inputs"
        )
    if not math.isfinite(loss_value) or not math.isfinite(norm_value):
        raise FloatingPointError(
            f"step {step}: loss is {loss_value}, its gradient {norm_value}; training needs finite ones, so the step was not made; "
            "lower --lr and resume an earlier checkpoint"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return loss_value, norm_value


def absolute(path: str | None) -> str | None:
    """Returns a path or URI that means the same in another folder, where the run may go on."""
    return path if path is None or "://" in path else os.path.abspath(path)


def interruption(step: int, path: str | None) -> str:
    """Returns what is said of a run that a signal ended."""
    saved = f"saved as {path}; --resume it to go on" if path else "not saved, since no --checkpoint was given"
    return f"interrupted: step {step} is done and {saved}"


def check_alone() -> None:
    """Checks that this process trains by itself.

    Raises:
        ValueError: torchrun or a scheduler started several.
    """
    count = os.environ.get("WORLD_SIZE", "")
    if count.isdecimal() and int(count) > 1:
        raise ValueError(
            f"WORLD_SIZE {count}: each process would train on the same batches and write the same files; this trainer is one "
            "process; start it without torchrun"
        )


def check_finite(model: NaViT, step: int) -> None:
    """Checks weights before they are saved.

    Raises:
        FloatingPointError: one is not finite.
    """
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(
                f"step {step}: weights {name} are not finite, and were not saved; checkpoints hold numbers; lower --lr and resume "
                "an earlier one"
            )


def check_later_steps(config: Config, saved: checkpoint.Checkpoint | None) -> None:
    """Checks that a run does not mix its checkpoints with those of another.

    Raises:
        ValueError: the folder holds some of another run, or of later steps than the resumed one.
    """
    names = checkpoint.checkpoints(config.checkpoint or "")
    if names and saved is None:
        raise ValueError(
            f"--checkpoint {config.checkpoint}: holds {names[-1]} of another run; a new run has a folder of its own; "
            "--resume it, or name another folder"
        )
    if names and saved is not None and checkpoint.step_of(names[-1]) > saved["step"]:
        raise ValueError(
            f"--resume of step {saved['step']}: {config.checkpoint} holds {names[-1]}, which is later; a run that goes back has a "
            "folder of its own; name it with --checkpoint"
        )


def check_same_dataset(saved: checkpoint.Checkpoint, loader: PackedShards, config: Config) -> None:
    """Checks that a checkpoint is of this very set.

    Raises:
        ValueError: it was trained on another.
    """
    digest = loader.manifest.dataset_digest
    if saved["dataset_digest"] != digest:
        raise ValueError(
            f"--resume {config.resume}: trained on a dataset with digest {saved['dataset_digest']}, {config.shards} has {digest}; "
            "a run resumes on the same dataset; name that one (and --eval for another)"
        )
