"""Promises of the order of an epoch: groups stay together, ranks share a step, and nothing is lost or doubled."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.manifests import change_manifest
from support.synthetic_set import write_set

from patchpack.schemas import FormatError, read_manifest
from patchpack.trainer.data import PackedShards
from patchpack.trainer.order import SHUFFLE_WINDOW, epoch_order

# shards of whole steps of 2, one of which ends with less
ROWS_PER_SHARD = (4, 2, 5, 6)
GROUPS = {(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (11, 12), (13, 14), (15, 16)}
IN_NO_GROUP = 10


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset whose manifest names groups of 2."""
    folder = tmp_path_factory.mktemp("sets") / "balanced"
    write_set(str(folder), rows_per_shard=ROWS_PER_SHARD)
    set_group(folder, 2)
    return str(folder)


def set_group(folder: Path, size: Any) -> None:
    change_manifest(folder, balance_step=size)


def indices(loader: PackedShards) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader]


def test_groups_are_shuffled_whole_and_what_is_in_none_comes_last(balanced: str) -> None:
    loader = PackedShards(balanced, batch_size=2)
    epochs = [indices(loader) for _ in range(12)]
    for batches in epochs:
        assert {tuple(sorted(batch)) for batch in batches[:-1]} == GROUPS
        assert batches[-1] == [IN_NO_GROUP, -1]
    assert len({tuple(map(tuple, map(sorted, batches))) for batches in epochs}) > 6, "the order of groups changes"
    assert len({tuple(batch) for batches in epochs for batch in batches[:-1]}) == 2 * len(GROUPS), "and the one inside"


def test_without_shuffle_groups_change_nothing(balanced: str) -> None:
    assert [n for batch in indices(PackedShards(balanced, batch_size=1, shuffle=False)) for n in batch] == list(
        range(sum(ROWS_PER_SHARD))
    )


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    size=st.integers(1, 4),
    window=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_every_order_has_each_sequence_once_and_keeps_groups(
    counts: list[int], size: int, window: int, seed: int
) -> None:
    first_index = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    order = epoch_order(first_index, np.arange(len(counts)), size, ("digest", seed), window).tolist()
    assert sorted(order) == list(range(sum(counts)))
    whole = [
        list(range(first + size * number, first + size * (number + 1)))
        for first, count in zip(first_index.tolist(), counts, strict=False)
        for number in range(count // size)
    ]
    found = [sorted(order[start : start + size]) for start in range(0, len(whole) * size, size)]
    assert sorted(found) == whole


@pytest.mark.parametrize("last", ["pad", "drop"])
@pytest.mark.parametrize(("size", "world_size"), [(2, 2), (5, 2), (2, 3), (2, 4)])
def test_ranks_share_each_step_of_one_process(balanced: str, size: int, world_size: int, last: str) -> None:
    options = {"seed": 1, "last": last}
    alone = indices(PackedShards(balanced, batch_size=size * world_size, **options))
    loaders = [
        PackedShards(balanced, batch_size=size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    assert {len(loader) for loader in loaders} == {len(alone)}
    for step, *parts in zip(alone, *(indices(loader) for loader in loaders), strict=True):
        taken = [index for part in parts for index in part]
        assert sorted(taken) == sorted(step), "disjoint and complete"
        sizes = [sum(index >= 0 for index in part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_two_ranks_with_a_sequence_each_read_one_group(balanced: str) -> None:
    pair = [indices(PackedShards(balanced, batch_size=1, rank=rank, world_size=2)) for rank in (0, 1)]
    assert {tuple(sorted(one + other)) for one, other in zip(*pair, strict=True)} == {*GROUPS, (-1, IN_NO_GROUP)}


@pytest.mark.parametrize(
    ("size", "sequence", "is_cut"),
    [
        (1, 0, False),
        (2, 0, False),
        (4, 0, False),
        (3, 0, True),
        (1, 3, False),
        (2, 4, False),
        (4, 4, False),
        (2, 3, True),
    ],
)
def test_steps_that_cut_groups_are_warned_of(size: int, sequence: int, is_cut: bool, tmp_path: Path) -> None:
    write_set(str(tmp_path), rows_per_shard=ROWS_PER_SHARD)
    set_group(tmp_path, 2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loader = PackedShards(str(tmp_path), batch_size=size)
        loader.load_state_dict({**loader.state_dict(), "sequence": sequence})
        order = [index for batch in loader for index in batch["index"].tolist() if index >= 0]
        PackedShards(str(tmp_path), batch_size=size, shuffle=False)
    whole = [index for batch in PackedShards(str(tmp_path), batch_size=1) for index in batch["index"].tolist()]
    assert order == whole[sequence:]
    messages = [str(each.message) for each in said]
    assert bool(messages) == is_cut
    assert all("cut its groups of 2 of near-equal cost" in message for message in messages)


def test_a_state_of_one_rank_resumes_every_rank(balanced: str) -> None:
    def make(rank: int) -> PackedShards:
        return PackedShards(balanced, batch_size=2, rank=rank, world_size=3)

    whole = [list(make(rank)) for rank in range(3)]
    first = make(0)
    batches = iter(first)
    next(batches)
    batches.close()
    state = json.loads(json.dumps(first.state_dict()))
    for rank in range(3):
        loader = make(rank)
        loader.load_state_dict(state)
        for one, other in zip(whole[rank][1:], loader, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
    # and those of another number of ranks, at the same sequence
    due = [index for rank in whole for batch in rank[1:] for index in batch["index"].tolist() if index >= 0]
    for size, world_size in ((6, 1), (3, 2), (2, 1), (1, 3)):
        found = []
        for rank in range(world_size):
            loader = PackedShards(balanced, batch_size=size, rank=rank, world_size=world_size)
            loader.load_state_dict(state)
            found += [index for batch in loader for index in batch["index"].tolist() if index >= 0]
        assert sorted(found) == sorted(due) and len(due) == 17 - 6


# processes, and sequences of each in a step
CUTS = [(world_size, size) for world_size in (1, 2, 3, 4, 6) for size in (1, 2)]


def rest(folder: str, cut: tuple[int, int], state: Any, **options: Any) -> list[int]:
    """Returns the sequences that all processes read from a state to the end of its epoch, and checks that their steps are as many."""
    found, steps = [], set()
    for rank in range(cut[0]):
        loader = PackedShards(folder, batch_size=cut[1], rank=rank, world_size=cut[0], verify=False, **options)
        loader.load_state_dict(state)
        due = len(loader)
        batches = [batch["index"].tolist() for batch in loader]
        assert len(batches) == due
        steps.add(due)
        found += [index for batch in batches for index in batch if index >= 0]
    assert len(steps) == 1
    return found


@pytest.mark.slow
@pytest.mark.parametrize("before", CUTS)
@pytest.mark.parametrize("is_balanced", [False, True])
def test_every_stop_goes_on_with_every_number_of_processes(
    before: tuple[int, int], is_balanced: bool, balanced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def number_only(self: PackedShards, due: list[int], arrays: dict[str, np.ndarray]) -> None:
        arrays["index"][:] = -1
        arrays["index"][: len(due)] = due

    # 8,000 loaders: what they would read is not looked at here
    monkeypatch.setattr(PackedShards, "_read", number_only)
    folder = balanced
    if not is_balanced:
        folder = str(tmp_path / "plain")
        write_set(folder, rows_per_shard=(4, 7, 6), num_views=2)
    first = PackedShards(folder, batch_size=before[1], world_size=before[0])
    whole = [index for batch in PackedShards(folder, batch_size=1) for index in batch["index"].tolist()]
    for number, _ in enumerate(first, start=1):
        done = number * before[0] * before[1]
        state = json.loads(json.dumps(first.state_dict()))
        due = whole[done:]
        for after in CUTS:
            if due:
                assert sorted(rest(folder, after, state)) == sorted(due), (number, after)
            else:
                # the next epoch, whole
                assert state["epoch"] == 1 and len(rest(folder, after, state)) == len(whole)
            step = after[0] * after[1]
            left_out = rest(folder, after, state | {"last": "drop"}, last="drop")
            if len(due) >= step:
                assert len(left_out) == len(due) // step * step and set(left_out) <= set(due)
            else:
                assert len(left_out) == len(whole) // step * step


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 2, "world_size": 2}, "rank 2: no such process; world_size is 2"),
        ({"rank": -1}, "rank -1: no such process"),
        ({"world_size": 0}, "rank 0: no such process; world_size is 0"),
        ({"world_size": 9}, "batch size 2 for each of 9 processes: .* has 17 sequences .* use 1 or less"),
    ],
)
def test_ranks_that_cannot_be_are_named(balanced: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PackedShards(balanced, batch_size=2, **options)


@pytest.mark.parametrize("size", [0, -2, 1.5, "2", True])
def test_a_group_that_is_no_count_is_a_broken_manifest(tmp_path: Path, size: Any) -> None:
    write_set(str(tmp_path))
    assert read_manifest(str(tmp_path)).balance_step is None
    set_group(tmp_path, size)
    with pytest.raises(FormatError, match="broken manifest .*balance_step"):
        read_manifest(str(tmp_path))


def test_sequences_are_shuffled_within_windows_of_so_many_shards() -> None:
    num_shards, per_shard = 2 * SHUFFLE_WINDOW + 5, 4
    first_index = np.arange(num_shards + 1) * per_shard
    order = epoch_order(first_index, np.arange(num_shards), 1, ("seed",)) // per_shard
    assert sorted(order.tolist()) == sorted(list(range(num_shards)) * per_shard)
    window = SHUFFLE_WINDOW * per_shard
    for start in range(0, len(order), window):
        shards, counts = np.unique(order[start : start + window], return_counts=True)
        # whole shards, so that no more of them need be open, and their sequences mixed
        assert len(shards) <= SHUFFLE_WINDOW and set(counts.tolist()) == {per_shard}
    assert np.count_nonzero(order[1:] == order[:-1]) < len(order) // 10
