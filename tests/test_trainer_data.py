"""Promises of patchpack.trainer.data: what was stored comes out, once an epoch, in an order that a run can take up again."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.synthetic_set import SMALL_LAYOUT, Row, write_set

from patchpack.schemas import FormatError, Layout
from patchpack.trainer.data import PackedShards
from patchpack.trainer.slots import Batch

NUM_ROWS = 13


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Row]]:
    folder = str(tmp_path_factory.mktemp("sets") / "labelled")
    return folder, write_set(folder, classes=("cat", "dog", "emu"))


def indices(batches: list[Batch]) -> list[int]:
    return [int(index) for batch in batches for index in batch["index"]]


def same(one: Batch, other: Batch) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def expected_row(row: Row, index: int, layout: Layout) -> dict[str, Any]:
    """What a batch holds of one row, by plain loops over its segments."""
    slots = layout.max_segments
    want: dict[str, Any] = {
        "tokens": row["tokens"],
        "segment_ids": row["segment_ids"],
        "positions": row["positions"],
        "starts": [0] * slots,
        "lengths": [0] * slots,
        "grids": [[0, 0, 0] for _ in range(slots)],
        "labels": [-1] * slots,
        "num_segments": len(row["segments"]),
        "num_tokens": sum(segment["num_tokens"] for segment in row["segments"]),
        "index": index,
    }
    for slot, segment in enumerate(row["segments"]):
        want["starts"][slot] = segment["start"]
        want["lengths"][slot] = segment["num_tokens"]
        want["grids"][slot] = [segment["grid_t"], segment["grid_h"], segment["grid_w"]]
        want["labels"][slot] = segment["labels"][0] if segment["labels"] else -1
    return want


def check_rows(batches: list[Batch], rows: list[Row], layout: Layout) -> None:
    for batch in batches:
        for slot, index in enumerate(batch["index"].tolist()):
            for name, want in expected_row(rows[index], index, layout).items():
                assert np.array_equal(batch[name][slot].numpy(), np.asarray(want)), f"{name} of sequence {index}"


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_value_is_what_was_stored(labelled: tuple[str, list[Row]], shuffle: bool) -> None:
    folder, rows = labelled
    batches = list(PackedShards(folder, batch_size=1, shuffle=shuffle))
    assert sorted(indices(batches)) == list(range(NUM_ROWS))
    check_rows(batches, rows, SMALL_LAYOUT)


def test_shapes_and_dtypes_are_those_promised(labelled: tuple[str, list[Row]]) -> None:
    size, length, slots, width = 4, 24, 5, 12
    promised = {
        "tokens": ((size, length, width), torch.uint8),
        "segment_ids": ((size, length), torch.int32),
        "positions": ((size, length, 3), torch.int32),
        "starts": ((size, slots), torch.int32),
        "lengths": ((size, slots), torch.int32),
        "grids": ((size, slots, 3), torch.int32),
        "labels": ((size, slots), torch.int64),
        "weights": ((size, slots), torch.float32),
        "num_segments": ((size,), torch.int32),
        "num_tokens": ((size,), torch.int32),
        "index": ((size,), torch.int64),
    }
    for batch in PackedShards(labelled[0], batch_size=size):
        assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items()} == promised


@given(batch_size=st.integers(1, NUM_ROWS), epoch=st.integers(0, 3), seed=st.integers(0, 2), threads=st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_every_sequence_exactly_once_per_epoch(
    labelled: tuple[str, list[Row]], batch_size: int, epoch: int, seed: int, threads: int
) -> None:
    loader = PackedShards(labelled[0], batch_size=batch_size, epoch=epoch, seed=seed, num_threads=threads)
    num_batches = len(loader)
    batches = list(loader)
    assert len(batches) == num_batches
    found = indices(batches)
    assert sorted(index for index in found if index >= 0) == list(range(NUM_ROWS))
    assert all(len(batch["index"]) == batch_size for batch in batches)


def test_the_last_batch_is_filled_with_empty_sequences(labelled: tuple[str, list[Row]]) -> None:
    last = list(PackedShards(labelled[0], batch_size=5, shuffle=False))[-1]
    assert last["index"].tolist() == [10, 11, 12, -1, -1]
    for name, tensor in last.items():
        assert (tensor[3:] == (-1 if name in ("labels", "index") else 0)).all(), name


def test_last_drop_leaves_out_other_sequences_every_epoch(labelled: tuple[str, list[Row]]) -> None:
    loader = PackedShards(labelled[0], batch_size=5, last="drop")
    epochs = [indices(list(loader)) for _ in range(6)]
    assert all(len(set(found)) == 10 and -1 not in found for found in epochs)
    assert len({frozenset(found) for found in epochs}) > 1


def test_the_order_is_a_function_of_digest_seed_and_epoch(labelled: tuple[str, list[Row]], tmp_path: Path) -> None:
    def order(folder: str, **options: int) -> tuple[int, ...]:
        return tuple(indices(list(PackedShards(folder, batch_size=1, **options))))

    folder = labelled[0]
    loader = PackedShards(folder, batch_size=1)
    in_a_row = [tuple(indices(list(loader))) for _ in range(3)]
    assert in_a_row == [order(folder, epoch=epoch) for epoch in range(3)]
    assert in_a_row == [order(folder, epoch=epoch, num_threads=3, prefetch=1) for epoch in range(3)]
    loader.set_epoch(1)
    assert tuple(indices(list(loader))) == in_a_row[1]
    write_set(str(tmp_path), classes=("cat", "dog", "emu"), seed=1)  # as many sequences, another digest
    others = [*in_a_row, order(folder, seed=1), order(str(tmp_path))]
    assert len(set(others)) == len(others)


def test_without_shuffle_the_order_is_that_of_the_shard_table(labelled: tuple[str, list[Row]]) -> None:
    loader = PackedShards(labelled[0], batch_size=1, shuffle=False)
    assert indices(list(loader)) == indices(list(loader)) == list(range(NUM_ROWS))


def test_shuffling_mixes_shards_and_stays_inside_its_window(labelled: tuple[str, list[Row]]) -> None:
    shard_of = [0] * 3 + [1] * 4 + [2] * 1 + [3] * 5
    mixed, firsts = 0, set()
    for epoch in range(8):
        found = [
            shard_of[index] for index in indices(list(PackedShards(labelled[0], batch_size=1, epoch=epoch, window=2)))
        ]
        assert sorted(found) == shard_of
        # the shards fall into two pairs: the first comes to its end before the second begins
        first = next(pair for end in range(14) if len(pair := set(found[:end])) == 2)
        size = sum(shard_of.count(number) for number in first)
        assert set(found[:size]) == first and not first & set(found[size:])
        firsts.add(frozenset(first))
        mixed += found != sorted(found, key=found.index)
    assert len(firsts) > 2  # windows are of other shards every epoch
    assert mixed >= 6  # inside a window one shard does not follow the other


def test_epochs_take_turns_through_the_views(tmp_path: Path) -> None:
    rows = write_set(str(tmp_path), num_views=3)
    loader = PackedShards(str(tmp_path), batch_size=2)
    for epoch in range(5):
        batches = list(loader)
        found = [index for index in indices(batches) if index >= 0]
        assert sorted(found) == [number for number, row in enumerate(rows) if row["view"] == epoch % 3]


def test_only_sequences_of_the_chosen_layout_are_read(tmp_path: Path) -> None:
    other = Layout(sequence_length=30, max_segments=3, tubelet=(2, 1, 2))
    rows = write_set(str(tmp_path), layouts=(SMALL_LAYOUT, other))
    for number, layout in enumerate((SMALL_LAYOUT, other)):
        batches = list(PackedShards(str(tmp_path), batch_size=1, layout=number))
        assert sorted(indices(batches)) == [index for index, row in enumerate(rows) if row["layout"] == number]
        check_rows(batches, rows, layout)


@given(done=st.integers(0, 11), last=st.sampled_from(["pad", "drop"]))
@settings(deadline=None, max_examples=12)
def test_a_saved_state_goes_on_at_the_very_next_batch(labelled: tuple[str, list[Row]], done: int, last: str) -> None:
    def stream(loader: PackedShards, count: int) -> list[Batch]:
        batches: list[Batch] = []
        while len(batches) < count:
            for batch in loader:
                batches.append(batch)
                if len(batches) == count:
                    break
        return batches

    options = {"batch_size": 4, "seed": 3, "last": last}
    whole = stream(PackedShards(labelled[0], **options), done + 5)
    first = PackedShards(labelled[0], **options)
    stream(first, done)
    state = json.loads(json.dumps(first.state_dict()))
    second = PackedShards(labelled[0], **options)
    second.load_state_dict(state)
    rest = stream(second, 5)
    assert all(same(one, other) for one, other in zip(whole[done:], rest, strict=True))


def test_a_state_of_another_order_or_another_set_is_refused(labelled: tuple[str, list[Row]], tmp_path: Path) -> None:
    first = PackedShards(labelled[0], batch_size=4)
    next(iter(first))
    state = first.state_dict()
    with pytest.raises(ValueError, match="seed is 1, the saved state has 0"):
        PackedShards(labelled[0], batch_size=4, seed=1).load_state_dict(state)
    write_set(str(tmp_path), seed=5)
    with pytest.raises(ValueError, match="dataset_digest is .*, the saved state has"):
        PackedShards(str(tmp_path), batch_size=4).load_state_dict(state)


def flip_byte(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_an_error_of_a_reading_thread_reaches_the_caller_and_names_file_and_row(tmp_path: Path) -> None:
    rows = write_set(str(tmp_path), rows_per_shard=(3, 4))
    path = str(tmp_path / "sequences/part-000-00000-00001.parquet")
    with open(path, "rb") as file:
        offset = file.read().index(rows[3 + 2]["tokens"].tobytes())
    flip_byte(path, offset + 7)
    loader = PackedShards(str(tmp_path), batch_size=1, shuffle=False)
    taken: list[Batch] = []
    with pytest.raises(FormatError, match=r"part-000-00000-00001\.parquet row 2: digest is [0-9a-f]{16}, stored"):
        for batch in loader:
            taken.append(batch)
    assert indices(taken) == [0, 1, 2, 3, 4]  # what lies before the broken row is delivered
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("PackedShards")]
    unchecked = list(PackedShards(str(tmp_path), batch_size=1, shuffle=False, verify=False))
    assert len(unchecked) == 7


def test_a_loader_left_in_the_middle_ends_its_threads_and_reads_no_more_than_prefetch(
    labelled: tuple[str, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = PackedShards._read

    def counting(self: PackedShards, due: list[int], arrays: dict[str, np.ndarray]) -> None:
        read.append(1)
        original(self, due, arrays)

    monkeypatch.setattr(PackedShards, "_read", counting)
    batches = iter(PackedShards(labelled[0], batch_size=1, prefetch=3, num_threads=2))
    next(batches)
    time.sleep(0.2)  # long enough for idle threads to read all 13, if they were let
    assert 1 <= len(read) <= 3
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("PackedShards")]


def test_memory_is_used_again_when_nobody_holds_what_was_made_of_it(labelled: tuple[str, list[Row]]) -> None:
    folder, rows = labelled
    loader = PackedShards(folder, batch_size=1, prefetch=2, num_threads=2)
    places = [batch["tokens"].data_ptr() for batch in loader] + [batch["tokens"].data_ptr() for batch in loader]
    # those that are read ahead, the one in use, and the one that is just asked for
    assert len(places) == 2 * NUM_ROWS and len(set(places)) <= 4
    # an iteration that is left gives back what it had read ahead
    for _ in range(5):
        iterator = iter(loader)
        next(iterator)
        iterator.close()
    assert {batch["tokens"].data_ptr() for batch in loader} <= set(places)
    # a row, a view by numpy and a whole batch are held, and stay as they were
    held: list[tuple[int, np.ndarray]] = []
    kept: list[Batch] = []
    for number, batch in enumerate(loader):
        index = int(batch["index"][0])
        if number % 3 == 0:
            kept.append(batch)
        else:
            held.append((index, batch["tokens"][0].numpy()[1:] if number % 3 == 1 else batch["tokens"][0, 1:]))
    list(loader)
    check_rows(kept, rows, SMALL_LAYOUT)
    assert len(held) > 5 and all(np.array_equal(tokens, rows[index]["tokens"][1:]) for index, tokens in held)


def test_a_file_that_is_cut_while_it_is_read_is_named(tmp_path: Path) -> None:
    write_set(str(tmp_path), rows_per_shard=(9,))
    (path,) = tmp_path.glob("sequences/part-*.parquet")
    batches = iter(PackedShards(str(tmp_path), batch_size=1, shuffle=False, prefetch=1, verify=False))
    next(batches)
    os.truncate(path, path.stat().st_size // 3)
    with pytest.raises(
        FormatError, match=r"part-000-00000-00000.parquet row \d: tokens has \d+ bytes of 288; the file is cut short"
    ):
        list(batches)


def test_a_shard_rewritten_by_another_tool_reads_the_same(tmp_path: Path) -> None:
    rows = write_set(str(tmp_path))
    for path in tmp_path.glob("sequences/part-*.parquet"):
        pq.write_table(pq.read_table(path), path, compression="zstd")
    check_rows(list(PackedShards(str(tmp_path), batch_size=1)), rows, SMALL_LAYOUT)


def test_wrong_arguments_are_named(labelled: tuple[str, list[Row]]) -> None:
    folder = labelled[0]
    for options, words in [
        ({"batch_size": 14}, "batch size 14: .* has 13 sequences of layout 0"),
        ({"batch_size": 0}, "batch_size 0: too small; the least is 1"),
        ({"batch_size": 1, "layout": 1}, "no layout 1; it has 1, counted from 0"),
        ({"batch_size": 1, "layout": -1}, "no layout -1"),
        ({"batch_size": 1, "num_threads": 0}, "num_threads 0"),
        ({"batch_size": 1, "prefetch": 0}, "prefetch 0"),
        (
            {"batch_size": 1, "window": 0},
            "window 0: shards that are shuffled together, all of them open; it is 1 to 64",
        ),
        ({"batch_size": 1, "window": 65}, "window 65"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            PackedShards(folder, **options)
        assert not isinstance(caught.value, FormatError)
        assert str(caught.value).count(";") == 2  # what is wrong; the rule; what to do
