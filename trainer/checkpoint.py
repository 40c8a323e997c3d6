"""Checkpoints: whole or not at all, and enough in them to go on as if nothing had happened.

A checkpoint is a folder, written under a temporary name, flushed and renamed; a reader never sees half of one.

    step-00000500/
      run.json             step, options, dataset digest, where the loader stands
      *.distcp, .metadata  weights, their moving average and AdamW's moments, as torch.distributed.checkpoint writes them: any number of
                           processes reads what any other number wrote
      model.safetensors    the weights alone, for other programs and other versions of torch
    latest, best           links to the newest and to the one of least evaluation loss

Reading runs no code: what is not a tensor is JSON, and torch's own index, a pickle, is looked through before torch reads it.
"""

import errno
import json
import os
import pickle
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, TypedDict, cast

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from patchpack.schemas import FormatError
from patchpack.schemas.errors import without_secrets
from patchpack.trainer.parallel import World

NAME = re.compile(r"step-(\d{8})")
CHECKPOINT_VERSION = 4
LATEST, BEST = "latest", "best"
RUN_NAME, WEIGHTS_NAME = "run.json", "model.safetensors"

# torch's index, and what that of a checkpoint of tensors is made of
_INDEX_NAME = ".metadata"
_INDEX_CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"PosixPath", "WindowsPath"},
}


class RunRecord(TypedDict):
    """What a checkpoint says besides its tensors."""

    step: int
    # options by name
    config: dict[str, Any]
    dataset_digest: str
    # of PackedShards or MixedShards
    loader: Any
    # least evaluation loss so far
    best_loss: float | None


class Weights(TypedDict):
    """What a checkpoint's tensors are of."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, torch.Tensor]


def checkpoints(folder: str) -> list[str]:
    """Returns the names of the checkpoints in a folder by step; empty where there is no such folder."""
    return sorted(name for name in os.listdir(folder) if NAME.fullmatch(name)) if os.path.isdir(folder) else []


def step_of(name: str) -> int:
    """Returns the step that a checkpoint's name says."""
    return int(name[5:13])


def save(folder: str, record: RunRecord, weights: Weights, world: World, *, keep: int = 0, best: bool = False) -> str:
    """Writes a checkpoint, all processes together, and returns its path.

    Args:
        folder: made if it is not there; all processes see the same.
        record: its step names the checkpoint.
        weights: of which the tensors are.
        world: of this process.
        keep: how many of the newest stay, and the best; 0: all.
        best: whether it is the best so far.

    Raises:
        OSError: it cannot be written; an earlier one of that name is then untouched.
    """
    path = os.path.join(folder, f"step-{record['step']:08}")
    temporary = os.path.join(folder, f".{os.path.basename(path)}.{_common_name(world)}.tmp")
    try:
        os.makedirs(temporary, exist_ok=True)
        with _quiet():
            state_dict_saver.save(_tensors(weights), checkpoint_id=temporary, no_dist=world.size == 1)
        whole = get_model_state_dict(weights["model"], options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if world.rank == 0:
            tensors = {name: value.contiguous() for name, value in whole.items() if isinstance(value, torch.Tensor)}
            save_file(tensors, os.path.join(temporary, WEIGHTS_NAME))
            with open(os.path.join(temporary, RUN_NAME), "w") as file:
                data = {**record, "checkpoint_version": CHECKPOINT_VERSION}
                file.write(without_secrets(json.dumps(data, indent=2)))
            for name in (*os.listdir(temporary), "."):
                _flush(os.path.join(temporary, name))
            _put(temporary, path)
            _link(path, LATEST)
            if best:
                _link(path, BEST)
            _flush(folder)
            _prune(folder, keep)
    finally:
        if world.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
    world.wait()
    return path


def restore(path: str, weights: Weights, world: World) -> None:
    """Puts the tensors of a checkpoint into a model, an average and an optimizer.

    Raises:
        FormatError: it is broken, or of another model.
    """
    model, optimizer = weights["model"], weights["optimizer"]
    tensors = _tensors(weights)
    try:
        _check_index(os.path.join(path, _INDEX_NAME))
        with _quiet():
            state_dict_loader.load(tensors, checkpoint_id=path, no_dist=world.size == 1)
    except CheckpointException as error:
        first, *_ = error.failures.values()
        raise _unreadable(path, first[0]) from error
    except Exception as error:  # torch raises whatever its readers do
        raise _unreadable(path, error) from error
    set_model_state_dict(model, tensors["model"])
    # its other options are those of the run
    groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
    set_optimizer_state_dict(model, optimizer, {"state": tensors["moments"], "param_groups": groups})


def read(path: str) -> RunRecord:
    """Returns what a checkpoint says of its run.

    Raises:
        FormatError: there is none, or it is broken.
    """
    try:
        with open(os.path.join(path, RUN_NAME)) as file:
            record = json.load(file)
        version = record["checkpoint_version"]
        if version == CHECKPOINT_VERSION:
            record = {name: record[name] for name in RunRecord.__annotations__}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FormatError(
            f"{path}: no such checkpoint; it is a folder step-NNNNNNNN or one of them; check the path"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    if version != CHECKPOINT_VERSION:
        is_older = isinstance(version, int) and version < CHECKPOINT_VERSION
        way = "go on with the version that wrote it, or start anew" if is_older else "upgrade patchpack"
        raise FormatError(f"{path}: checkpoint version {version}; this trainer knows {CHECKPOINT_VERSION}; {way}")
    return cast(RunRecord, record)


def find(path: str) -> str:
    """Returns the checkpoint that a path means: one, or of a folder of them its newest.

    Raises:
        FormatError: there is none in the folder.
    """
    if not os.path.isdir(path) or os.path.exists(os.path.join(path, RUN_NAME)):
        return path.rstrip("/")
    names = checkpoints(path)
    if not names:
        raise FormatError(f"{path}: no checkpoint in this folder; they are called step-NNNNNNNN; check the path")
    return os.path.join(path, names[-1])


def check_folder(folder: str) -> None:
    """Makes a folder for checkpoints, before hours go into one that cannot be written.

    Raises:
        ValueError: it cannot be made, or nothing can be written there.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ValueError(
            f"--checkpoint {folder}: no folder that can be written ({error.strerror}); checkpoints are folders in one; name another"
        ) from error
    for name in os.listdir(folder):
        # what a run that was killed left half written
        if name.startswith(".step-") and name.endswith(".tmp"):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        elif name.startswith((f".{LATEST}.", f".{BEST}.")) and name.endswith(".tmp"):
            os.remove(os.path.join(folder, name))


def _tensors(weights: Weights) -> dict[str, Any]:
    """Returns the tensors that a run is, by names that any number of processes has."""
    model, optimizer = weights["model"], weights["optimizer"]
    moments = get_optimizer_state_dict(model, optimizer)["state"]
    return {"model": get_model_state_dict(model), "moments": moments, "average": weights["average"]}


class _Index(pickle.Unpickler):
    """Reads torch's index of a checkpoint of tensors, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what the index is made of."""
        if (module, name) == ("builtins", "getattr"):
            return _member
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in _INDEX_CLASSES.get(module, set()):
            raise pickle.UnpicklingError(f"{_INDEX_NAME} holds {module}.{name}")
        return super().find_class(module, name)


def _member(kind: type, name: str) -> object:
    """Returns a member of an enumeration, which Python before 3.11.4 writes as an attribute of it; of nothing else any attribute."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise pickle.UnpicklingError(f"{_INDEX_NAME} holds an attribute of {kind}")
    return kind[name]


def _check_index(path: str) -> None:
    """Checks that torch's index holds nothing that runs when it is read.

    Raises:
        UnpicklingError: it does.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        _Index(file).load()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch from warning that a run of one process is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _common_name(world: World) -> str:
    """Returns a random name that all processes have."""
    names = [uuid.uuid4().hex]
    if world.size > 1:
        dist.broadcast_object_list(names)
    return names[0]


def _put(temporary: str, path: str) -> None:
    """Gives a finished folder its name; one of that name is moved aside first, as folders are not replaced in one step."""
    if os.path.isdir(path):
        aside = f"{temporary}.old.tmp"
        os.rename(path, aside)
        os.rename(temporary, path)
        shutil.rmtree(aside)
    else:
        os.rename(temporary, path)


def _link(path: str, name: str) -> None:
    """Makes a link beside a checkpoint mean it, in one step."""
    folder, base = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    os.symlink(base, temporary)
    os.replace(temporary, os.path.join(folder, name))


def _prune(folder: str, keep: int) -> None:
    """Deletes all but the newest checkpoints and the best one."""
    best = os.path.join(folder, BEST)
    kept = {os.readlink(best)} if os.path.islink(best) else set()
    for name in checkpoints(folder)[:-keep] if keep else ():
        if name not in kept:
            shutil.rmtree(os.path.join(folder, name))


def _flush(path: str) -> None:
    """Makes sure that a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unreadable(path: str, error: BaseException) -> FormatError:
    reason = str(error).strip().split("\n")[0]
    return FormatError(
        f"{path}: not a readable checkpoint ({type(error).__name__}: {reason}); the trainer writes them whole or not at all; use "
        "another one"
    )
