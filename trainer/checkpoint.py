"""Checkpoints: whole or not at all, and enough in them to go on as if nothing had happened.

A file is written under a temporary name, flushed to the disk, and renamed; a reader never sees half of
one. It is read with `weights_only`: tensors, numbers and strings, no code.
"""

import errno
import os
import re
import uuid
from typing import Any, TypedDict, cast

import torch

from patchpack.schemas import FormatError
from patchpack.trainer.data import LoaderState

NAME = re.compile(r"step-(\d{8})\.pt")
CHECKPOINT_VERSION = 1


class Checkpoint(TypedDict):
    """What a checkpoint holds besides its version: all that a run is."""

    step: int
    # options by name
    config: dict[str, object]
    dataset_digest: str
    model: dict[str, torch.Tensor]
    # as torch's optimizer gives it
    optimizer: dict[str, Any]
    loader: LoaderState
    mask_generator: torch.Tensor


def checkpoints(folder: str) -> list[str]:
    """Returns the names of the checkpoints in a folder by step; empty where there is no such folder."""
    return sorted(name for name in os.listdir(folder) if NAME.fullmatch(name)) if os.path.isdir(folder) else []


def step_of(name: str) -> int:
    """Returns the step that a checkpoint's name says."""
    return int(name[5:13])


def save(folder: str, state: Checkpoint) -> str:
    """Writes a checkpoint and returns its path.

    Args:
        folder: made if it is not there.
        state: its step names the file.

    Raises:
        OSError: it cannot be written; an earlier file of that name is then untouched.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"step-{state['step']:08}.pt")
    temporary = os.path.join(folder, f".{os.path.basename(path)}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({**state, "checkpoint_version": CHECKPOINT_VERSION}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    # the rename itself is on the disk only when its folder is
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return path


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
            f"--checkpoint {folder}: no folder that can be written ({error.strerror}); checkpoints are files in one; name another"
        ) from error


def find(path: str) -> str:
    """Returns the file that a path means: a checkpoint, or of a folder its newest.

    Raises:
        FormatError: there is none in the folder.
    """
    if not os.path.isdir(path):
        return path
    names = checkpoints(path)
    if not names:
        raise FormatError(f"{path}: no checkpoint in this folder; they are called step-NNNNNNNN.pt; check the path")
    return os.path.join(path, names[-1])


def load(path: str) -> Checkpoint:
    """Returns the state that was saved, tensors on the CPU.

    Args:
        path: a checkpoint, or a folder: its newest.

    Raises:
        FormatError: there is none, or it is broken.
    """
    path = find(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state["checkpoint_version"]
    except FileNotFoundError as error:
        raise FormatError(f"{path}: no such checkpoint; it is a file or a folder of them; check the path") from error
    except Exception as error:  # torch raises whatever its unpickler, zip reader or C++ does
        reason = str(error).strip().split("\n")[0]
        raise FormatError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {reason}); the trainer writes them whole or "
            "not at all; use another one"
        ) from error
    if version != CHECKPOINT_VERSION:
        raise FormatError(
            f"{path}: checkpoint version {version}; this trainer knows {CHECKPOINT_VERSION}; upgrade patchpack"
        )
    return cast(Checkpoint, state)
