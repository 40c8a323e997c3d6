"""How weights move: the learning rate of each step, what AdamW decays, and a moving average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from patchpack.trainer.config import Config
from patchpack.trainer.parallel import gathered_no_more
from patchpack.trainer.positions import Positions

# MAE, arXiv:2111.06377, table 8
BETAS = (0.9, 0.95)


def learning_rate(step: int, config: Config) -> float:
    """Returns the learning rate of a step, counted from 0: warm-up over the first, then half a cosine to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    end = config.steps if config.schedule_steps is None else config.schedule_steps
    progress = (step - config.warmup_steps) / max(1, end - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """Returns AdamW that decays the matrices of linear layers, and neither norms, biases, positions nor learned vectors."""
    matrices = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not any(isinstance(model.get_submodule(above), Positions) for above in _above(name))
    }
    decayed = [p for name, p in model.named_parameters() if name in matrices]
    others = [p for name, p in model.named_parameters() if name not in matrices]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, fused=True)


def _above(name: str) -> Iterator[str]:
    """Yields the names of the modules that a module is in."""
    while name:
        name = name.rpartition(".")[0]
        yield name


@torch.no_grad()
def follow(average: dict[str, torch.Tensor], model: nn.Module, factor: float) -> None:
    """Moves an average a little towards the weights: factor x average + (1 - factor) x weights."""
    if average:
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in model.parameters()], 1 - factor)


@contextmanager
def averaged(model: nn.Module, average: dict[str, torch.Tensor]) -> Iterator[None]:
    """Puts the average in the place of the weights meanwhile."""
    gathered_no_more(model)
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if name in average}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in average:
                p.copy_(average[name])
    try:
        yield
    finally:
        gathered_no_more(model)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in kept:
                    p.copy_(kept[name])
