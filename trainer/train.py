"""The training loop, from top to bottom.

    for each step: batch (from threads) -> device -> forward -> loss / count -> backward -> clip -> AdamW

The learning rate is a pure function of the step (linear warm-up, then half a cosine to 0), so there is no
scheduler whose state could be lost. All that a run is stands in its checkpoint: weights, AdamW's moments,
the generator of the masks, where the loader stands, and the options. On the CPU a run that stopped and
resumed is bit for bit the run that did not.

Throughput counts real tokens: padding is work, but no progress.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from trainer import checkpoint
from trainer.config import Config, resumed
from trainer.data import PackedShards
from trainer.evaluate import evaluate, evaluation_shards, forward_loss
from trainer.vit import NaViT

Log = Callable[[dict[str, Any]], None]

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


def train(typed: dict[str, Any], log: Log) -> dict[str, Any]:
    """Trains and evaluates as the options say, and returns the summary.

    Args:
        typed: options of `Config` by name; those left out have their defaults, or the resumed run's values.
        log: called with each log line's values.

    Raises:
        ValueError: the options do not fit each other, the set or the checkpoint.
        FormatError: the set or the checkpoint is missing, unfinished or broken.
        FloatingPointError: the loss is no longer a number.
    """
    config = Config(**typed)
    saved = checkpoint.load(config.resume) if config.resume else None
    if saved is not None:
        config = resumed(typed, saved["config"])
    elif config.checkpoint and (names := checkpoint.checkpoints(config.checkpoint)):
        raise ValueError(
            f"--checkpoint {config.checkpoint}: holds {names[-1]} of another run; a new run has a folder of its own; "
            "--resume it, or name another folder"
        )
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
    eval_shards = evaluation_shards(loader, config.eval, config) if config.eval else None
    classes = loader.manifest.classes
    torch.manual_seed(config.seed)
    model = NaViT(
        loader.layout, None if classes is None else len(classes), dim=config.dim, depth=config.depth, heads=config.heads
    ).to(device)
    optimizer = make_optimizer(model, config)
    mask_generator = torch.Generator().manual_seed(config.seed)
    step = 0
    if saved is not None:
        check_same_set(saved, loader, config)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        mask_generator.set_state(saved["mask_generator"])
        step = saved["step"]
        if step < config.steps:
            loader.load_state_dict(saved["loader"])

    def save() -> None:
        if config.checkpoint:
            state = {
                "config": dataclasses.asdict(config),
                "dataset_digest": loader.manifest.dataset_digest,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "loader": loader.state_dict(),
                "mask_generator": mask_generator.get_state(),
            }
            checkpoint.save(config.checkpoint, step, state)

    slots_in_batch = config.batch_size * loader.layout.sequence_length
    begun = window_begun = time.perf_counter()
    run_tokens = window_tokens = run_steps = window_steps = 0
    window_loss = torch.zeros((), device=device)
    loss_value: float | None = None
    model.train()
    while step < config.steps:
        for batch in loader:
            num_tokens = int(batch["num_tokens"].sum())
            _, loss, _ = forward_loss(model, batch, device, config.mask_share, mask_generator)
            optimizer.zero_grad(set_to_none=True)
            loss.mean.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            rate = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            step += 1

            window_loss += loss.mean.detach()
            run_steps, window_steps = run_steps + 1, window_steps + 1
            run_tokens, window_tokens = run_tokens + num_tokens, window_tokens + num_tokens
            if step % config.log_every == 0 or step == config.steps:
                loss_value = window_loss.item() / window_steps  # waits for the device, so the clock below is honest
                if not math.isfinite(loss_value):
                    raise FloatingPointError(
                        f"step {step}: loss is {loss_value}; training needs a finite one; lower --lr and resume an earlier checkpoint"
                    )
                now = time.perf_counter()
                log(
                    {
                        "step": step,
                        "loss": loss_value,
                        "tokens_per_s": window_tokens / (now - window_begun),
                        "efficiency": window_tokens / (window_steps * slots_in_batch),
                        "lr": rate,
                        "grad_norm": norm.item(),
                    }
                )
                window_loss.zero_()
                window_tokens = window_steps = 0
                window_begun = time.perf_counter()
            if step % config.checkpoint_every == 0 and step < config.steps:
                save()
            if step == config.steps:
                break
    summary: dict[str, Any] = {"steps": step, "loss": loss_value, "device": str(device)}
    if run_steps:
        save()
        seconds = time.perf_counter() - begun
        summary |= {
            "real_tokens": run_tokens,
            "tokens_per_s": run_tokens / seconds,
            "efficiency": run_tokens / (run_steps * slots_in_batch),
            "seconds": seconds,
        }
    if eval_shards is not None:
        summary |= evaluate(model, eval_shards, config, device)
    return summary


def check_same_set(saved: dict[str, Any], loader: PackedShards, config: Config) -> None:
    """Checks that a checkpoint is of this very set.

    Raises:
        ValueError: it was trained on another.
    """
    digest = loader.manifest.dataset_digest
    if saved["dataset_digest"] != digest:
        raise ValueError(
            f"--resume {config.resume}: trained on a set with digest {saved['dataset_digest']}, {config.shards} has {digest}; "
            "a run resumes on the same set; name that one (and --eval for another)"
        )
