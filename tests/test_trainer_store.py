"""A dataset in a store, read through the cache: the batches of a local one, each shard asked for once, and nothing left behind."""

import json
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.object_store import ObjectStore, serving
from support.synthetic_set import label_tokens, write_set
from test_cache import until
from test_trainer_train import SMALL, one_thread

from patchpack.schemas import Dataset, FormatError
from patchpack.schemas.cache import ShardCache
from patchpack.trainer.cli import main
from patchpack.trainer.data import PackedShards
from patchpack.trainer.mixture import Mixture
from patchpack.trainer.slots import Batch

ROWS_PER_SHARD = (3, 4, 2, 5, 3, 4, 2, 5)
ENOUGH = 10**9

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "local"
    write_set(str(folder), rows_per_shard=ROWS_PER_SHARD, num_views=2, classes=("a", "b"), make_tokens=label_tokens)
    return folder


@pytest.fixture
def store(local: Path) -> Iterator[ObjectStore]:
    with serving() as served:
        for path in local.rglob("*"):
            if path.is_file():
                served.objects[f"b/set/{path.relative_to(local)}"] = path.read_bytes()
        yield served


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def shard_downloads(store: ObjectStore) -> list[int]:
    return sorted(store.downloads(key) for key in store.objects if "/sequences/" in key)


def test_batches_are_those_of_a_local_dataset_and_shards_are_asked_for_once(
    store: ObjectStore, local: Path, tmp_path: Path
) -> None:
    loader = PackedShards(store.uri("b/set"), batch_size=3, window=2, cache=str(tmp_path), cache_bytes=ENOUGH)
    for epoch in range(4):
        assert same(list(loader), list(PackedShards(str(local), batch_size=3, window=2, epoch=epoch)))
        # two views, an epoch each
        assert shard_downloads(store) == ([0] * 8 + [1] * 8 if epoch == 0 else [1] * 16)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ShardCache")]
    # another run shares the folder
    again = PackedShards(store.uri("b/set"), batch_size=1, cache=str(tmp_path), cache_bytes=ENOUGH)
    assert len(list(again)) == 28 and shard_downloads(store) == [1] * 16


def test_a_small_cache_holds_two_windows_and_never_more(store: ObjectStore, local: Path, tmp_path: Path) -> None:
    sizes = sorted(os.path.getsize(path) for path in local.glob("sequences/*"))
    most = sum(sizes[-4:])
    cache = ShardCache(str(tmp_path), most)
    loader = PackedShards(store.uri("b/set"), batch_size=3, window=2, cache=str(tmp_path), cache_bytes=most)
    found: list[Batch] = []
    for _ in range(3):
        for batch in loader:
            found.append({name: values.clone() for name, values in batch.items()})
            with cache._folder_locked():  # neither comes nor goes while it is counted
                assert sum(path.stat().st_size for path in tmp_path.rglob("*.*")) <= most
    due = PackedShards(str(local), batch_size=3, window=2)
    assert same(found, [batch for _ in range(3) for batch in list(due)])
    with pytest.raises(
        ValueError, match=r"windows of 64 shards need \d+, .* or take windows of 2 shards, the most that fit"
    ):
        PackedShards(store.uri("b/set"), batch_size=3, cache=str(tmp_path), cache_bytes=most)


def test_the_next_window_is_fetched_meanwhile_and_no_more(store: ObjectStore, tmp_path: Path) -> None:
    loader = PackedShards(
        store.uri("b/set"), batch_size=1, window=2, prefetch=1, cache=str(tmp_path), cache_bytes=ENOUGH
    )
    batches = iter(loader)
    next(batches)
    until(lambda: sum(shard_downloads(store)) == 4)
    time.sleep(0.2)  # long enough for a third window, if it were let
    assert sum(shard_downloads(store)) == 4
    batches.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ShardCache")]


def test_a_run_goes_on_in_the_middle_and_fetches_what_is_left(store: ObjectStore, local: Path, tmp_path: Path) -> None:
    options = {"window": 2, "seed": 1}
    first = PackedShards(str(local), batch_size=2, **options)  # type: ignore[arg-type]
    batches = iter(first)
    for _ in range(11):
        next(batches)
    state = json.loads(json.dumps(first.state_dict()))
    rest = list(batches)
    second = PackedShards(store.uri("b/set"), batch_size=2, cache=str(tmp_path), cache_bytes=ENOUGH, **options)  # type: ignore[arg-type]
    second.load_state_dict(state)
    assert same(list(second), rest)
    # 22 of 28 sequences are read: the last window or the two last are left, of two shards each
    assert sum(shard_downloads(store)) in (2, 4)
    with pytest.raises(ValueError, match="window is 3, the saved state has 2"):
        PackedShards(str(local), batch_size=2, seed=1, window=3).load_state_dict(state)


def test_what_a_store_breaks_is_named_or_empty(store: ObjectStore, tmp_path: Path) -> None:
    key = min(key for key in store.objects if "/sequences/" in key)
    name, content = key.rpartition("/")[2], store.objects[key]
    store.objects[key] = content[:100] + bytes([content[100] ^ 1]) + content[101:]
    loader = PackedShards(store.uri("b/set"), batch_size=1, shuffle=False, cache=str(tmp_path), cache_bytes=ENOUGH)
    with pytest.raises(
        FormatError,
        match=rf"^s3://[*]+@b/set/sequences/{name}.*: \d+ bytes of digest \w+, read 2 times; the shard table says",
    ):
        list(loader)
    skipping = PackedShards(
        store.uri("b/set"), batch_size=1, shuffle=False, cache=str(tmp_path), cache_bytes=ENOUGH, on_corrupt="skip"
    )
    with pytest.warns(UserWarning, match=name):
        found = [int(batch["index"][0]) for batch in skipping]
    assert found.count(-1) == len(skipping.skipped) == 3 and len(found) == 28
    del store.objects[key]
    with pytest.raises(FormatError, match=rf"^s3://[*]+@b/set/sequences/{name}.*no such file"):
        list(PackedShards(store.uri("b/set"), batch_size=1, shuffle=False, cache=str(tmp_path / "new")))
    store.refused = True
    with pytest.raises(OSError) as refused:
        PackedShards(store.uri("b/set"), batch_size=1, cache=str(tmp_path / "new"))
    assert "secret" not in str(refused.value) and "b/set" in str(refused.value)


@pytest.mark.parametrize("kind", ["a flipped byte", "cut", "of another shard"])
def test_a_copy_that_is_no_longer_sound_is_fetched_again(
    kind: str, store: ObjectStore, local: Path, tmp_path: Path
) -> None:
    def loaded() -> list[Batch]:
        loader = PackedShards(store.uri("b/set"), batch_size=3, window=2, cache=str(tmp_path), cache_bytes=ENOUGH)
        return list(loader)

    due = list(PackedShards(str(local), batch_size=3, window=2))
    assert same(loaded(), due)
    one, other, *_ = sorted(tmp_path.rglob("*.parquet"))
    if kind == "a flipped byte":
        content = one.read_bytes()
        one.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])  # of its tokens
    elif kind == "cut":
        os.truncate(one, one.stat().st_size - 100)
    else:
        one.write_bytes(other.read_bytes())
    assert same(loaded(), due)
    assert shard_downloads(store) == [0] * 8 + [1] * 7 + [2]
    assert same(loaded(), due) and max(shard_downloads(store)) == 2


def test_without_a_cache_it_is_read_where_it_is_and_says_so(store: ObjectStore, local: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"^s3://[*]+@b/set.*: read in its store, three requests a sequence in every epoch"
    ):
        loader = PackedShards(store.uri("b/set"), batch_size=7)
    assert same(list(loader), list(PackedShards(str(local), batch_size=7)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(list(PackedShards(local.as_uri(), batch_size=7)), list(PackedShards(str(local), batch_size=7)))


def test_single_sequences_and_mixtures_come_through_it_too(store: ObjectStore, local: Path, tmp_path: Path) -> None:
    cache = ShardCache(str(tmp_path), ENOUGH)
    dataset = Dataset(store.uri("b/set"), cache=cache)
    assert (dataset[5]["tokens"] == Dataset(str(local))[5]["tokens"]).all()
    assert sum(shard_downloads(store)) == 1
    found, due = (
        [next(iter(Mixture([path, path], batch_size=4, **more))) for _ in range(2)]  # type: ignore[arg-type]
        for path, more in (
            (store.uri("b/set"), {"cache": str(tmp_path), "cache_bytes": ENOUGH}),
            (str(local), {}),
        )
    )
    assert same(found, due) and max(shard_downloads(store)) == 1
    with pytest.raises(ValueError, match="a cache of 1000 bytes"):
        Mixture([store.uri("b/set")], batch_size=4, cache=str(tmp_path), cache_bytes=1000)


def test_a_model_is_trained_from_a_store(
    store: ObjectStore, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "4", "--json", "--eval", store.uri("b/set"), *SMALL]
    assert main([store.uri("b/set"), "--cache", str(tmp_path), "--cache-bytes", "1GB", *options]) == 0
    far = json.loads(capsys.readouterr().out.splitlines()[-1])
    options[options.index(store.uri("b/set"))] = str(local)
    assert main([str(local), *options]) == 0
    near = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (far["loss"], far["eval_loss"]) == (near["loss"], near["eval_loss"])
    assert max(shard_downloads(store)) == 1
