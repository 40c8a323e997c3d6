"""Promises of several layouts in one run: each sequence once an epoch, batches of one layout, an order that is gone on with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.synthetic_set import write_set

from patchpack.schemas import Layout
from patchpack.trainer.cli import main
from patchpack.trainer.mixed import MixedShards

LAYOUTS = tuple(Layout(24, 5, (1, side, side)) for side in (2, 4, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("sets") / "mixed")
    write_set(place, layouts=LAYOUTS, rows_per_shard=(5, 4))
    return place


def opened(folder: str, **options: Any) -> MixedShards:
    return MixedShards(folder, [0, 1, 2], batch_size=2, last="drop", **options)


def seen(loader: MixedShards) -> list[tuple[int, list[int]]]:
    return [(batch["tokens"].shape[-1], batch["index"].tolist()) for batch in loader]


def test_an_epoch_is_that_of_every_layout_mixed(folder: str) -> None:
    loader = opened(folder)
    count, first, second = len(loader), seen(loader), seen(loader)
    assert count == len(first) and loader.epoch == 2
    for layout, own in zip(LAYOUTS, loader.loaders, strict=True):
        indices = [index for width, batch in first if width == layout.token_width for index in batch]
        assert len(indices) == len(set(indices)) == 2 * own.num_batches(0) > 0
    widths = [[width for width, _ in epoch] for epoch in (first, second)]
    assert sorted(widths[0]) == sorted(widths[1]) and widths[0] != widths[1]
    # not one layout after the other
    assert sum(one != other for one, other in zip(widths[0], widths[0][1:], strict=False)) > 2
    assert seen(opened(folder)) == first and seen(opened(folder, seed=1)) != first


@pytest.mark.parametrize("done", [0, 1, 5, 11])
def test_a_saved_state_goes_on_at_the_very_next_batch(done: int, folder: str) -> None:
    loader = opened(folder)
    whole = seen(loader) + seen(loader)
    first = opened(folder)
    batches = iter(first)
    for _ in range(done):
        next(batches)
    second = opened(folder)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert seen(second) + seen(second) == whole[done:]
    with pytest.raises(ValueError, match="the saved state is of 3 layouts, this run reads 2"):
        MixedShards(folder, [0, 1], batch_size=2).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="is of steps of 2 sequences, this run's have 1; the order of several layouts"):
        MixedShards(folder, [0, 1, 2], batch_size=1).load_state_dict(first.state_dict())


def test_sequences_have_names(folder: str) -> None:
    loader = opened(folder)
    batch = next(iter(loader))
    names = loader.sources([*batch["index"].tolist(), -1])
    assert len(names) == int(batch["num_segments"].sum()) and all(name.startswith("synthetic/") for name in names)


def test_one_model_is_trained_on_all_of_them(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    sizes = ["--dim", "16", "--depth", "1", "--heads", "2", "--batch-size", "2", "--steps", "14", "--log-every", "14"]
    assert main([folder, "--model", "flexivit", "--json", *sizes]) == 0
    flexible = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main([folder, "--model", "vit", "--layout", "1", "--json", *sizes]) == 0
    assert flexible["steps"] == 14 and flexible["loss"] > 0


def test_a_dataset_of_before_has_the_limits_of_its_layouts(folder: str, tmp_path: Path) -> None:
    loader = opened(folder)
    assert loader.manifest.limits[0] == {
        "max_segments": 5,
        "max_segment_tokens": 24,
        "max_grid": [24, 24, 24],
        "max_labels": 0,
    }
