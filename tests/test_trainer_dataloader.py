"""Promises of the view for torch's DataLoader: an epoch once, in the order of PackedShards, whatever workers and processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.synthetic_set import write_set
from torch.utils.data import DataLoader

from patchpack.trainer.data import PackedShards
from patchpack.trainer.dataloader import StreamedShards
from patchpack.trainer.slots import Batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two views, of 17 sequences each."""
    place = str(tmp_path_factory.mktemp("sets") / "viewed")
    write_set(place, rows_per_shard=(4, 7, 6), num_views=2)
    return place


def same(found: list[Batch], due: list[Batch]) -> bool:
    pairs = zip(found, due, strict=True)
    return all(one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one) for one, other in pairs)  # fmt: skip


def loaded(batches: StreamedShards, **options: Any) -> "DataLoader[Batch]":
    return DataLoader(batches, batch_size=None, **options)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("last", ["pad", "drop"])
def test_workers_share_an_epoch(folder: str, workers: int, last: Any) -> None:
    for epoch in (0, 1):
        due = list(PackedShards(folder, batch_size=3, seed=2, last=last, epoch=epoch))
        batches = StreamedShards(folder, batch_size=3, seed=2, last=last)
        batches.set_epoch(epoch)
        assert len(batches) == len(due) == (6 if last == "pad" else 5)
        assert same(list(loaded(batches, num_workers=workers)), due)


def test_processes_and_workers_share_it(folder: str) -> None:
    for rank in range(3):
        due = list(PackedShards(folder, batch_size=2, rank=rank, world_size=3))
        found = list(loaded(StreamedShards(folder, batch_size=2, rank=rank, world_size=3), num_workers=2))
        assert same(found, due)


def test_workers_that_stay_follow_the_epoch(folder: str) -> None:
    batches = StreamedShards(folder, batch_size=4)
    loader = loaded(batches, num_workers=2, persistent_workers=True)
    for epoch in (0, 1, 5, 5):
        batches.set_epoch(epoch)
        assert same(list(loader), list(PackedShards(folder, batch_size=4, epoch=epoch)))


@pytest.mark.slow
def test_workers_that_share_no_memory_read_the_same(folder: str) -> None:
    batches = StreamedShards(folder, batch_size=4)
    batches.set_epoch(1)
    found = list(loaded(batches, num_workers=2, multiprocessing_context="spawn"))
    assert same(found, list(PackedShards(folder, batch_size=4, epoch=1)))


def test_what_cannot_be_is_said_at_once(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ValueError, match="no dataset"):
        StreamedShards(str(tmp_path), batch_size=1)
    with pytest.raises(ValueError, match="batch size 18"):
        StreamedShards(folder, batch_size=18)
