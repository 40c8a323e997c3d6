"""One process or many: who this one is, sums over all, and models whose gradients are those of all.

`torchrun` says by its environment how many processes there are; each reads its part of every step's sequences, and counts are summed before
anything is divided, so that any number of them makes the same step.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """Attributes: rank, of this process; size, how many there are; device, of this one."""

    rank: int
    size: int
    device: torch.device

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the sum over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def started(device: str) -> Iterator[World]:
    """Yields what this process is among those that torchrun started, or the only one.

    Raises:
        ValueError: the device is unknown, or not there.
    """
    size, rank, local = (int(os.environ.get(name, default)) for name, default in _ENVIRONMENT.items())
    chosen = choose_device(device)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        with warnings.catch_warnings():
            # nothing here writes into what a module returns
            warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
            yield World(rank, size, chosen)
        dist.barrier()
    finally:
        dist.destroy_process_group()


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


def distributed(model: nn.Module, world: World, how: str) -> nn.Module:
    """Returns a model whose gradients, once backward is done, are the means over all processes.

    Args:
        model: on its device.
        world: of this process.
        how: "ddp" keeps all weights on every device, "fsdp" a part of them on each.
    """
    if world.size == 1:
        return model
    if how == "ddp":
        return DistributedDataParallel(model, device_ids=[world.device] if world.device.type == "cuda" else None)
    blocks = getattr(model, "blocks", ())
    for block in blocks:
        fully_shard(block)
    fully_shard(model)
    return model


def without_sync(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Returns a context in which gradients only add up, unless this is the last part of a step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def gathered(own: torch.Tensor) -> torch.Tensor:
    """Returns the tensors of all processes, (W, ...), all of one shape; the gradient of each is the sum of what all say of it."""
    if not dist.is_initialized():
        return own[None]
    whole: torch.Tensor = _Gathered.apply(own)  # type: ignore[no-untyped-call]
    return whole


def owned() -> list[bool]:
    """Returns of the processes' tensors, as `gathered` puts them together, which is this one's."""
    if not dist.is_initialized():
        return [True]
    return [rank == dist.get_rank() for rank in range(dist.get_world_size())]


class _Gathered(torch.autograd.Function):
    """Takes the tensors of all processes."""

    @staticmethod
    def forward(own: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """Keeps nothing."""

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def gathered_no_more(model: nn.Module) -> None:
    """Leaves each process its part of the weights, as between steps; a forward alone keeps them together."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def inner(model: nn.Module) -> nn.Module:
    """Returns the model itself."""
    if isinstance(model, DistributedDataParallel):
        module: nn.Module = model.module
        return module
    return model


_ENVIRONMENT = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
