"""Promises of opening shards: they are those of the dataset, they agree with themselves, and nobody reads them twice unawares."""

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.utils.data
from hypothesis import given
from hypothesis import strategies as st
from support.manifests import unsigned, write_unsigned
from support.synthetic_set import Row, write_set

from patchpack.schemas import FormatError, Layout
from patchpack.schemas.manifest import SHARD_TABLE_SCHEMA, dataset_digest, table_bytes
from patchpack.schemas.opened import label_lists
from patchpack.trainer.data import PackedShards
from patchpack.trainer.slots import Batch


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Row]]:
    folder = str(tmp_path_factory.mktemp("sets") / "labelled")
    return folder, write_set(folder, classes=("cat", "dog", "emu"))


def test_a_set_that_is_not_whole_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no dataset; a dataset is a folder with manifest.json"):
        PackedShards(str(tmp_path / "nowhere"), batch_size=1)
    write_set(str(tmp_path))
    os.remove(tmp_path / "sequences/part-000-00000-00002.parquet")
    with pytest.raises(FormatError, match=r"part-000-00000-00002\.parquet: no such file"):
        list(PackedShards(str(tmp_path), batch_size=1))
    os.remove(tmp_path / "shards.parquet")
    with pytest.raises(FormatError, match=r"shards\.parquet: cannot be read"):
        PackedShards(str(tmp_path), batch_size=1)
    os.remove(tmp_path / "manifest.json")
    with pytest.raises(FormatError, match="no dataset"):
        PackedShards(str(tmp_path), batch_size=1)


def test_shards_that_contradict_the_tables_are_named(tmp_path: Path) -> None:
    write_set(str(tmp_path), classes=("a", "b"))
    table = pq.read_table(tmp_path / "shards.parquet")
    rows = table.to_pylist()
    rows[1]["num_sequences"] = 3
    (tmp_path / "shards.parquet").write_bytes(table_bytes(rows, SHARD_TABLE_SCHEMA))
    with pytest.raises(FormatError, match=r"00001\.parquet: num_sequences is 4; the shard table says 3"):
        list(PackedShards(str(tmp_path), batch_size=1))
    (tmp_path / "shards.parquet").write_bytes(table_bytes(table.to_pylist(), SHARD_TABLE_SCHEMA))

    data = unsigned(tmp_path)
    other = data["layouts"][0] | {"max_segments": 6}
    digest = dataset_digest([Layout.from_json(other, "")], table["digest"].to_pylist())
    write_unsigned(tmp_path, data | {"layouts": [other], "dataset_digest": digest})
    with pytest.raises(FormatError, match="its layout is not the manifest's"):
        list(PackedShards(str(tmp_path), batch_size=1))

    write_unsigned(tmp_path, data | {"classes": ["a"]})
    with pytest.raises(FormatError, match=r"row \d: label 1; the manifest has 1 classes"):
        list(PackedShards(str(tmp_path), batch_size=1))


def test_a_row_whose_counts_contradict_its_segments_is_named(tmp_path: Path) -> None:
    write_set(str(tmp_path))
    path = tmp_path / "sequences/part-000-00000-00001.parquet"
    table = pq.read_table(path)
    counts = table["num_tokens"].to_pylist()
    counts[2] += 1
    at = table.schema.get_field_index("num_tokens")
    pq.write_table(table.set_column(at, table.schema.field("num_tokens"), pa.array(counts, pa.int32())), path)
    with pytest.raises(FormatError, match=r"00001\.parquet row 2: .* segments with .* tokens, counted as"):
        list(PackedShards(str(tmp_path), batch_size=1))


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=8), st.integers(0, 3))
def test_first_label_of_each_list(lists: list[list[int]], skipped: int) -> None:
    labels = pa.array(lists, pa.list_(pa.int32()))[skipped:]  # a slice has offsets that do not begin at 0
    for width in (1, 2, 3):
        wanted = [(each + [-1] * width)[:width] for each in lists[skipped:]]
        assert label_lists(labels, width).tolist() == wanted


@pytest.mark.parametrize("case", ["swapped", "another seed", "another dataset", "foreign manifest"])
def test_shards_that_are_not_of_this_set_are_named(case: str, tmp_path: Path) -> None:
    """Files of equal layout and equal counts: nothing but who they are says them apart, and all their digests are right."""
    one, other = tmp_path / "one", tmp_path / "other"
    write_set(str(one), rows_per_shard=(3, 3))
    write_set(str(other), rows_per_shard=(3, 3), seed=1, fingerprint="another")
    first, second = "sequences/part-000-00000-00000.parquet", "sequences/part-000-00000-00001.parquet"
    told = r"\.parquet: fingerprint is \w+; the shard table says \w+; a dataset has its own shards, each under its own name"
    if case == "swapped":
        content = (one / first).read_bytes()
        (one / first).write_bytes((one / second).read_bytes())
        (one / second).write_bytes(content)
    elif case == "another seed":
        shutil.copy(other / second, one / second)
        told = "00001" + told
    elif case == "another dataset":
        shutil.copy(other / "shards.parquet", one)
        told = r"manifest\.json is of the dataset \w+, shards\.parquet of \w+; a dataset has its own tables"
    else:
        shutil.copy(other / "manifest.json", one)
        told = r"manifest\.json is of the dataset \w+, shards\.parquet of \w+; a dataset has its own tables"
    with pytest.raises(FormatError, match=told):
        list(PackedShards(str(one), batch_size=1))


class Wrapped(torch.utils.data.IterableDataset):
    """How people put a loader into torch's."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __iter__(self) -> Iterator[Batch]:
        return iter(PackedShards(self.folder, batch_size=1))


def test_workers_that_would_each_read_the_whole_epoch_are_refused(
    labelled: tuple[str, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = labelled
    alone = list(torch.utils.data.DataLoader(Wrapped(folder), batch_size=None, num_workers=1))
    assert len(alone) == len(rows)
    with pytest.raises(TypeError, match="cannot be sent to another process; each would read the whole epoch"):
        pickle.dumps(PackedShards(folder, batch_size=1))
    # as in a worker; a real one that fails keeps torch waiting for 5 s
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: SimpleNamespace(num_workers=2))
    with pytest.raises(RuntimeError, match="read by 2 workers of a DataLoader; each would read the whole epoch"):
        list(PackedShards(folder, batch_size=1))


@pytest.mark.slow
def test_a_loader_of_torch_s_with_two_workers_ends_with_the_refusal(labelled: tuple[str, list[Row]]) -> None:
    with pytest.raises(RuntimeError, match="read by 2 workers of a DataLoader; each would read the whole epoch"):
        list(torch.utils.data.DataLoader(Wrapped(labelled[0]), batch_size=None, num_workers=2))


def test_a_new_iteration_ends_the_one_before(labelled: tuple[str, list[Row]]) -> None:
    loader = PackedShards(labelled[0], batch_size=2)
    one = iter(loader)
    next(one), next(one)
    other = iter(loader)
    next(other)
    state = loader.state_dict()
    with pytest.raises(RuntimeError, match="another iteration has begun"):
        next(one)
    # and has not moved where the loader stands
    assert loader.state_dict() == state and state["sequence"] == 6
    loader.set_epoch(0)
    with pytest.raises(RuntimeError, match="another iteration has begun, or the place was set"):
        next(other)
    # one that was left in the middle stands in nobody's way
    assert len(list(loader)) == len(loader)
    loader.load_state_dict(state)
    assert len(list(loader)) == len(loader) - 3


@pytest.mark.slow
def test_a_flipped_byte_of_a_footer_is_told_of_its_file(tmp_path: Path) -> None:
    write_set(str(tmp_path), rows_per_shard=(2,))
    path = tmp_path / "sequences/part-000-00000-00000.parquet"
    content = path.read_bytes()
    size = int.from_bytes(content[-8:-4], "little")
    refused = 0
    for place in range(len(content) - 8 - size, len(content), 11):
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        try:
            list(PackedShards(str(tmp_path), batch_size=1))
        except (FormatError, OSError) as error:
            assert "sequences/part-000-00000-00000.parquet" in str(error), place
            refused += 1
    # the others are names and numbers that no reader looks at
    assert refused > size // 11 // 4
