"""What a run is refused for besides its options, and how it is said."""

import os

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from patchpack.schemas.storage import is_uri
from patchpack.trainer import checkpoint
from patchpack.trainer.config import Config
from patchpack.trainer.data import PackedShards
from patchpack.trainer.mixed import MixedShards

# examples that an error names
SHOWN = 8


def absolute(path: str | None) -> str | None:
    """Returns a path or URI that means the same in another folder, where the run may go on."""
    return path if path is None or is_uri(path) else os.path.abspath(path)


def interruption(step: int, path: str | None) -> str:
    """Returns what is said of a run that a signal ended."""
    saved = f"saved as {path}; --resume it to go on" if path else "not saved, since no --checkpoint was given"
    return f"interrupted: step {step} is done and {saved}"


def check_finite(model: nn.Module, step: int) -> None:
    """Checks weights before they are saved.

    Raises:
        FloatingPointError: one is not finite.
    """
    for name, parameter in model.named_parameters():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if not torch.isfinite(own).all():
            raise FloatingPointError(
                f"step {step}: weights {name} are not finite, and were not saved; checkpoints hold numbers; lower --lr and resume "
                "an earlier one"
            )


def check_later_steps(config: Config, resumed_step: int | None) -> None:
    """Checks that a run does not mix its checkpoints with those of another.

    Raises:
        ValueError: the folder holds some of another run, or of later steps than the resumed one.
    """
    names = checkpoint.checkpoints(config.checkpoint or "")
    if names and resumed_step is None:
        raise ValueError(
            f"--checkpoint {config.checkpoint}: holds {names[-1]} of another run; a new run has a folder of its own; "
            "--resume it, or name another folder"
        )
    if names and resumed_step is not None and checkpoint.step_of(names[-1]) > resumed_step:
        raise ValueError(
            f"--resume of step {resumed_step}: {config.checkpoint} holds {names[-1]}, which is later; a run that goes back has a "
            "folder of its own; name it with --checkpoint"
        )


def check_same_dataset(saved: checkpoint.RunRecord, loader: PackedShards | MixedShards, config: Config) -> None:
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


def named(keys: list[str]) -> str:
    """Returns some names, and how many more there are."""
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
