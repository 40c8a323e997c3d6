"""Promises of patchpack.schemas.dataset: any sequence alone, without torch, by few descriptors; a broken one is named, or empty."""

import errno
import gc
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.synthetic_set import SMALL_LAYOUT, Row, write_set
from test_trainer_data import expected_row, flip_byte
from torch.utils.data import DataLoader

import patchpack.schemas.dataset
from patchpack.schemas import Dataset, FormatError, Layout
from patchpack.trainer.data import PackedShards

OTHER_LAYOUT = Layout(sequence_length=30, max_segments=3, tubelet=(2, 1, 2))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Row]]:
    """Two layouts of two views each."""
    folder = str(tmp_path_factory.mktemp("sets") / "several")
    return folder, write_set(folder, layouts=(SMALL_LAYOUT, OTHER_LAYOUT), num_views=2, classes=("cat", "dog"))


def check(sequence: dict[str, np.ndarray], row: Row, index: int, layout: Layout) -> None:
    for name, due in expected_row(row, index, layout).items():
        assert np.array_equal(sequence[name], np.asarray(due)), f"{name} of sequence {index}"


@pytest.mark.parametrize("number", [0, 1])
def test_any_sequence_is_read_by_its_number(several: tuple[str, list[Row]], number: int) -> None:
    folder, rows = several
    dataset = Dataset(folder, layout=number)
    own = [index for index, row in enumerate(rows) if row["layout"] == number]
    assert dataset.numbers.tolist() == own and len(dataset) == len(own)
    for at, index in enumerate(own):
        check(dataset.sequence(index), rows[index], index, dataset.layout)
        check(dataset[at], rows[index], index, dataset.layout)
    for index in (-1, len(rows), *set(range(len(rows))) - set(own)):
        with pytest.raises(IndexError, match=rf"no sequence {index} of layout {number}; the dataset has {len(rows)}"):
            dataset.sequence(index)
    with pytest.raises(IndexError):
        dataset[len(own)]


def test_one_view_is_a_dataset_of_its_own(several: tuple[str, list[Row]]) -> None:
    folder, rows = several
    for view in (0, 1):
        numbers = Dataset(folder, view=view).numbers.tolist()
        assert numbers == [index for index, row in enumerate(rows) if row["layout"] == 0 and row["view"] == view]
    with pytest.raises(ValueError, match=r"no view 2; layout 0 has 2, counted from 0; choose one of them"):
        Dataset(folder, view=2)


def test_sequences_are_of_their_own_memory(several: tuple[str, list[Row]]) -> None:
    folder, rows = several
    dataset = Dataset(folder)
    first = dataset.sequence(0)
    dataset.sequence(1)
    first["tokens"][:] = 0
    check(dataset.sequence(0), rows[0], 0, SMALL_LAYOUT)


def test_an_example_is_found_by_its_id_and_by_its_key(several: tuple[str, list[Row]]) -> None:
    folder, rows = several
    dataset = Dataset(folder)

    def where(field: str, name: str) -> list[tuple[int, int]]:
        return [
            (index, slot)
            for index, row in enumerate(rows)
            for slot, segment in enumerate(row["segments"])
            if row["layout"] == 0 and segment[field] == name
        ]

    wanted = rows[5]["segments"][-1]
    assert dataset.find(wanted["example_id"]) == where("example_id", wanted["example_id"]) != []
    assert dataset.find(wanted["source"]) == where("source", wanted["source"])
    assert len(dataset.find("synthetic/1.png")) == len(dataset)
    assert dataset.find("nowhere") == []
    inside = [place for place in dataset.find("synthetic/2.png") if place[0] in Dataset(folder, view=1).numbers]
    assert Dataset(folder, view=1).find("synthetic/2.png") == inside != []


def as_rows(batches: Any) -> dict[int, dict[str, np.ndarray]]:
    return {
        int(index): {name: values[at].numpy() for name, values in batch.items()}
        for batch in batches
        for at, index in enumerate(batch["index"])
    }


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)])  # fmt: skip
def test_it_is_what_a_dataloader_takes(several: tuple[str, list[Row]], workers: int, context: str | None) -> None:
    folder = several[0]
    dataset = Dataset(folder)
    dataset[3]  # open files do not stand in the way
    found = as_rows(DataLoader(dataset, batch_size=3, num_workers=workers, multiprocessing_context=context, shuffle=True))  # fmt: skip
    due = as_rows(batch for view in (0, 1) for batch in PackedShards(folder, batch_size=1, shuffle=False, epoch=view))
    assert found.keys() == due.keys() == set(dataset.numbers.tolist())
    for index, row in found.items():
        assert row.keys() == due[index].keys()
        for name, values in row.items():
            assert values.dtype == due[index][name].dtype and np.array_equal(values, due[index][name])


def test_a_copy_opens_its_own_files(several: tuple[str, list[Row]]) -> None:
    folder, rows = several
    dataset = Dataset(folder, layout=1, view=1)
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.numbers.tolist() == dataset.numbers.tolist() and copy.layout == OTHER_LAYOUT
    check(copy[0], rows[dataset.numbers[0]], int(dataset.numbers[0]), OTHER_LAYOUT)


def open_files(folder: Path) -> int:
    """How many descriptors of this process lie in a folder."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(os.path.realpath(link).startswith(str(folder)) for link in links if os.path.lexists(link))


def test_few_files_are_open_and_none_when_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_set(str(tmp_path), rows_per_shard=(1,) * 20)
    monkeypatch.setattr(patchpack.schemas.dataset, "MAX_OPEN", 8)
    dataset = Dataset(str(tmp_path))
    most = 0
    for index in [*range(20), *range(20)]:
        check(dataset.sequence(index), rows[index], index, SMALL_LAYOUT)
        most = max(most, open_files(tmp_path))
    assert most == 8
    loader = PackedShards(str(tmp_path), batch_size=2)
    batches = iter(loader)
    next(batches)
    assert open_files(tmp_path) > 8
    gc.collect()
    gc.disable()
    try:
        del dataset, batches, loader
        assert open_files(tmp_path) == 0
    finally:
        gc.enable()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
from patchpack import Dataset
dataset = Dataset(sys.argv[1])
found = [int(dataset[at]["index"]) for step in (1, -1) for at in range(len(dataset))[::step]]
print(len(found), len(set(found)), "torch" in sys.modules, "apache_beam" in sys.modules)
"""


def test_a_process_with_few_descriptors_reads_many_shards_and_needs_no_torch(tmp_path: Path) -> None:
    write_set(str(tmp_path), rows_per_shard=(1,) * 60)
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split() == ["120", "60", "False", "False"], done.stderr


def test_too_many_open_files_say_what_to_do(several: tuple[str, list[Row]], monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(patchpack.schemas.dataset, "open_shard", none_left)
    with pytest.raises(OSError, match=r"part-000-00000-00000\.parquet: too many open files; .* or raise ulimit -n") as caught:  # fmt: skip
        Dataset(several[0], on_corrupt="skip")[0]
    assert caught.value.errno == errno.EMFILE


def damaged(folder: Path) -> list[Row]:
    """A dataset of three shards: sequence 1 has a flipped byte, and the last shard (5, 6) is missing."""
    rows = write_set(str(folder), rows_per_shard=(3, 2, 2))
    path = folder / "sequences/part-000-00000-00000.parquet"
    flip_byte(str(path), path.read_bytes().index(rows[1]["tokens"].tobytes()) + 5)
    os.remove(folder / "sequences/part-000-00000-00002.parquet")
    return rows


def test_broken_sequences_come_as_empty_ones_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = damaged(tmp_path)
    loader = PackedShards(str(tmp_path), batch_size=3, shuffle=False, on_corrupt="skip")
    with pytest.warns(UserWarning, match="comes as an empty one") as warned:
        batches = list(loader)
    assert len(batches) == len(loader) == 3
    found = [index for batch in batches for index in batch["index"].tolist()]
    assert found == [0, -1, 2, 3, 4, -1, -1, -1, -1]
    assert loader.skipped.keys() == {1, 5, 6}
    assert "part-000-00000-00000.parquet row 1: digest is" in loader.skipped[1]
    assert "part-000-00000-00002.parquet: no such file" in loader.skipped[5]
    due = [
        f"sequence {index} comes as an empty one, and so do others of its shard that are broken: {loader.skipped[index]}"
        for index in (1, 5)
    ]
    assert [str(each.message) for each in warned] == due
    whole = {int(index): (batch, at) for batch in batches for at, index in enumerate(batch["index"])}
    for index in (0, 2, 3, 4):
        batch, at = whole[index]
        check({name: values[at].numpy() for name, values in batch.items()}, rows[index], index, SMALL_LAYOUT)
    batch, at = batches[0], 1
    for name, values in batch.items():
        assert (values[at] == (-1 if name in ("labels", "index") else 0)).all(), name
    # and without it the first one ends the run, at its batch
    with pytest.raises(FormatError, match="row 1: digest is"):
        list(PackedShards(str(tmp_path), batch_size=3, shuffle=False))
    with pytest.raises(ValueError, match="on_corrupt 'ignore': not known; it is 'raise' or 'skip'; choose one"):
        PackedShards(str(tmp_path), batch_size=3, on_corrupt="ignore")  # type: ignore[arg-type]


def test_a_bad_place_of_a_disk_is_a_broken_shard(several: tuple[str, list[Row]], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def bad(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    dataset = Dataset(several[0], on_corrupt="skip")
    dataset[0]
    monkeypatch.setattr(os, "preadv", bad)
    with pytest.raises(FormatError, match=r"part-000-00000-00000\.parquet: cannot be read .*Input/output error"):
        Dataset(several[0])[0]
    with pytest.warns(UserWarning, match="sequence 1 comes as an empty one"):
        assert dataset[1]["index"] == -1


def test_many_shards_are_a_table(tmp_path: Path) -> None:
    """Nothing but the tables is read before a sequence is asked for."""
    write_set(str(tmp_path), rows_per_shard=(2,) * 30)
    for path in tmp_path.glob("sequences/*"):
        path.unlink()
    assert len(Dataset(str(tmp_path))) == len(PackedShards(str(tmp_path), batch_size=1)) == 60
