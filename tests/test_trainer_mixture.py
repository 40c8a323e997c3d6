"""Promises of a mixture: each dataset's epochs whole and in order, as often as its weight says, and gone on with by any processes."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.manifests import change_manifest
from support.synthetic_set import Row, write_set

from patchpack.schemas import Layout
from patchpack.schemas.dataset import Dataset
from patchpack.trainer.data import PackedShards
from patchpack.trainer.mixture import Mixture

SIZES = ((3, 4, 2), (5,), (2, 2, 7))
CUTS = [(world_size, size) for world_size in (1, 2, 3, 4, 6) for size in (1, 2)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[list[Row]]]:
    """Three datasets; the second has two views."""
    folder = tmp_path_factory.mktemp("mixed")
    paths = [str(folder / str(number)) for number in range(3)]
    return paths, [
        write_set(path, rows_per_shard=sizes, seed=number, num_views=1 + number % 2)
        for number, (path, sizes) in enumerate(zip(paths, SIZES, strict=True))
    ]


def taken(mixture: Mixture, count: int) -> list[tuple[int, int]]:
    """The first sequences of a mixture: dataset and number."""
    found: list[tuple[int, int]] = []
    for batch in mixture:
        found += zip(batch["dataset"].tolist(), batch["index"].tolist(), strict=True)
        if len(found) >= count:
            return found
    raise AssertionError("it has no end")


def test_each_dataset_has_its_epochs_in_their_order(sets: tuple[list[str], list[list[Row]]]) -> None:
    paths, rows = sets
    mixture = Mixture(paths, weights=[1, 2, 1], batch_size=4, seed=3)
    found = taken(mixture, 160)
    for number, path in enumerate(paths):
        own = [index for dataset, index in found if dataset == number]
        loader = PackedShards(path, batch_size=1, seed=3)
        due: list[int] = []
        while len(due) < len(own):
            due += [int(batch["index"][0]) for batch in loader]
        assert own == due[: len(own)]
        # more than two epochs, the views of the second taking turns
        assert len(own) > 2 * sum(SIZES[number])
    assert mixture.epochs == [mixture.taken[0] // 9, mixture.taken[1] // 5, mixture.taken[2] // 11]
    assert sum(mixture.taken) == mixture.position == len(found) == 160
    for batch in Mixture(paths, batch_size=2):
        for at in range(2):
            row = rows[int(batch["dataset"][at])][int(batch["index"][at])]
            assert np.array_equal(batch["tokens"][at].numpy(), row["tokens"])
            assert batch["num_segments"][at] == len(row["segments"])
        break


def test_weights_are_shares_of_the_stream(
    sets: tuple[list[str], list[list[Row]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def number_only(self: Dataset, index: int, arrays: dict[str, np.ndarray], at: int) -> None:
        arrays["index"][at] = index

    monkeypatch.setattr(Dataset, "read_into", number_only)
    paths = sets[0]
    for weights, shares in (([1, 0.5, 2.5], (0.25, 0.125, 0.625)), (None, (9 / 25, 5 / 25, 11 / 25))):
        found = [dataset for dataset, _ in taken(Mixture(paths, weights=weights, batch_size=500), 20000)]
        for number, share in enumerate(shares):
            # four standard deviations
            assert abs(found.count(number) / 20000 - share) < 4 * (share * (1 - share) / 20000) ** 0.5
        # drawn, and not in turns: runs are as long as those of draws
        changes = sum(one != other for one, other in itertools.pairwise(found)) / 20000
        assert abs(changes - (1 - sum(share**2 for share in shares))) < 0.02
    other = [dataset for dataset, _ in taken(Mixture(paths, batch_size=500, seed=1), 20000)]
    assert other != found


@pytest.mark.slow
@pytest.mark.parametrize("before", CUTS)
def test_every_stop_goes_on_with_every_number_of_processes(
    before: tuple[int, int], sets: tuple[list[str], list[list[Row]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def number_only(self: Dataset, index: int, arrays: dict[str, np.ndarray], at: int) -> None:
        arrays["index"][at] = index

    monkeypatch.setattr(Dataset, "read_into", number_only)
    paths = sets[0]
    whole = taken(Mixture(paths, weights=[1, 1, 3], batch_size=1), 70)
    first = Mixture(paths, weights=[1, 1, 3], batch_size=before[1], world_size=before[0])
    for number, _ in enumerate(first, start=1):
        done = number * before[0] * before[1]
        if done > 40:
            return
        state = json.loads(json.dumps(first.state_dict()))
        for world_size, size in CUTS:
            steps = 24 // (world_size * size)
            found: list[list[tuple[int, int]]] = []
            for rank in range(world_size):
                mixture = Mixture(paths, weights=[1, 1, 3], batch_size=size, rank=rank, world_size=world_size)
                mixture.load_state_dict(state)
                found.append(taken(mixture, steps * size))
            # step by step the processes take turns
            in_order = [each for together in zip(*found, strict=True) for each in together]
            assert in_order == whole[done : done + 24], (done, world_size, size)


def test_a_state_is_of_one_stream(sets: tuple[list[str], list[list[Row]]]) -> None:
    paths = sets[0]
    state = Mixture(paths, batch_size=1).state_dict()
    for other, words in (
        (Mixture(paths, batch_size=1, seed=1), "seed is 1, the saved state has 0"),
        (Mixture(paths, batch_size=1, weights=[1, 1, 1]), "weights is"),
        (Mixture(paths[:2], batch_size=1), "dataset_digests is"),
    ):
        with pytest.raises(ValueError, match=f"a mixture: {words}"):
            other.load_state_dict(state)
    mixture = Mixture(paths, batch_size=1)
    one = iter(mixture)
    next(one)
    next(iter(mixture))
    with pytest.raises(RuntimeError, match="a mixture: another iteration has begun"):
        next(one)


@pytest.mark.parametrize(
    ("layout", "classes", "words"),
    [
        (Layout(24, 5, (1, 2, 3)), None, r"b: tubelet is \(1, 2, 3\), .*a has \(1, 2, 2\); a mixture has batches of one shape"),
        (Layout(24, 4, (1, 2, 2)), None, "b: max_segments is 4, .*a has 5"),
        (Layout(24, 5, (1, 2, 2)), None, "b: mean is"),
        (None, ("cat", "emu"), "b: its classes are not those of .*a; a label means one class in all of a mixture"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(layout: Any, classes: Any, words: str, tmp_path: Path) -> None:
    write_set(str(tmp_path / "a"), classes=classes and ("cat", "dog"))
    write_set(str(tmp_path / "b"), classes=classes, **({"layouts": (layout,)} if layout else {}))
    with pytest.raises(ValueError, match=words) as caught:
        Mixture([str(tmp_path / "a"), str(tmp_path / "b")], batch_size=2)
    assert str(caught.value).count(";") == 2


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 0], [1, -1, 1], [1, float("nan"), 1], [1, 1, float("inf")]])
def test_weights_that_are_none_are_named(weights: list[float], sets: tuple[list[str], list[list[Row]]]) -> None:
    with pytest.raises(ValueError, match=r"weights \[.*\]: of 3 datasets; each has one, over 0"):
        Mixture(sets[0], weights=weights, batch_size=1)
    with pytest.raises(ValueError, match="a mixture of no datasets"):
        Mixture([], batch_size=1)


def test_the_most_labels_are_those_of_all(tmp_path: Path) -> None:
    for name, most in (("a", 1), ("b", 2)):
        write_set(str(tmp_path / name), classes=("cat", "dog"), seed=most)
        limits = {"max_segments": 5, "max_segment_tokens": 24, "max_grid": [4, 4, 4], "max_labels": most}
        change_manifest(tmp_path / name, limits=[limits])
    batch = next(iter(Mixture([str(tmp_path / "a"), str(tmp_path / "b")], batch_size=8)))
    assert batch["all_labels"].shape == (8, 5, 2) and set(batch["dataset"].tolist()) == {0, 1}
    assert torch.equal(batch["all_labels"][..., 0], batch["labels"])
