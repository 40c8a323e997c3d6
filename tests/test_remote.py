"""Builds from and into an object store, through Beam's filesystems: a dictionary stands in for the store."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import Result
from test_files import MemoryFileSystem

import schemas.manifest
import schemas.shard

Run = Callable[..., Result]

OPTIONS = ("--workers", 1, "--labels", "folder", "--sequence-length", 512)


@pytest.fixture
def store(media: Path) -> Iterator[dict[str, bytes]]:
    """The sample media as objects mem://bucket/raw/media/..."""
    MemoryFileSystem.objects.clear()
    for path in media.rglob("*"):
        if path.is_file():
            MemoryFileSystem.objects[f"mem://bucket/raw/media/{path.relative_to(media)}"] = path.read_bytes()
    yield MemoryFileSystem.objects
    MemoryFileSystem.objects.clear()


@pytest.fixture
def local(media: Path, tmp_path: Path, run: Run) -> dict[str, bytes]:
    """The files of a set built from local media."""
    built = run("build", media, "--output", tmp_path / "local", *OPTIONS)
    assert built.code == 0, built.err
    return {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir() if path.is_file()}


@pytest.mark.parametrize("named", ["mem://bucket/raw/media", "mem://bucket/raw/media/", "mem://bucket/raw/media/**"])
def test_media_in_a_store_give_the_bytes_of_local_media(
    named: str, store: dict[str, bytes], local: dict[str, bytes], tmp_path: Path, run: Run
) -> None:
    built = run("build", named, "--output", tmp_path / "remote", *OPTIONS)
    assert built.code == 0, built.err
    for name in (name for name in local if name.endswith(".parquet")):
        assert (tmp_path / "remote" / name).read_bytes() == local[name], name


def test_a_set_written_to_a_store_is_whole_and_equal(
    store: dict[str, bytes], local: dict[str, bytes], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # sets are read through pyarrow's filesystems, which know no mem://
    for module in (schemas.manifest, schemas.shard):
        monkeypatch.setattr(module, "open_file", lambda path: pa.BufferReader(store[path]))
    monkeypatch.setattr(schemas.manifest, "read_bytes", lambda path: store[path])
    built = run("build", "mem://bucket/raw/media", "--output", "mem://bucket/sets/one", *OPTIONS)
    assert built.code == 0, built.err
    written = {path.removeprefix("mem://bucket/sets/one/"): data for path, data in store.items() if "/sets/" in path}
    assert not [name for name in written if name.endswith(".tmp")]
    for name in (name for name in local if name.endswith((".parquet", "manifest.json"))):
        assert written[name] == local[name], name
    again = run("build", "mem://bucket/raw/media", "--output", "mem://bucket/sets/one", *OPTIONS)
    assert again.code == 2
    assert again.err.startswith("mem://bucket/sets/one: not empty")
    resumed = run("build", "mem://bucket/raw/media", "--output", "mem://bucket/sets/one", *OPTIONS, "--resume")
    assert resumed.code == 0, resumed.err


def test_a_store_that_nobody_installed_is_one_line(tmp_path: Path, run: Run) -> None:
    ended = run("build", "nope://bucket/raw", "--output", tmp_path / "shards", "--workers", 1)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "nope://bucket/raw" in ended.err
