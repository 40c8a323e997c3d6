"""Builds from and into an object store, through Beam's filesystems: a dictionary stands in for the store."""

import io
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.utils import retry
from conftest import Result
from test_files import MemoryFileSystem

import patchpack.schemas.manifest
import patchpack.schemas.shard
from patchpack.pipeline.storage import files, gcs, remote, s3

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
    """The files of a dataset built from local media."""
    built = run("build", media, "--output", tmp_path / "local", *OPTIONS)
    assert built.code == 0, built.err
    folder = tmp_path / "local"
    places = [*folder.iterdir(), *(folder / "sequences").iterdir()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in places if path.is_file()}


@pytest.mark.parametrize("named", ["mem://bucket/raw/media", "mem://bucket/raw/media/", "mem://bucket/raw/media/**"])
@pytest.mark.slow_beyond(1)
def test_media_in_a_store_give_the_bytes_of_local_media(
    named: str, store: dict[str, bytes], local: dict[str, bytes], tmp_path: Path, run: Run
) -> None:
    built = run("build", named, "--output", tmp_path / "remote", *OPTIONS)
    assert built.code == 0, built.err
    for name in (name for name in local if name.endswith(".parquet")):
        assert (tmp_path / "remote" / name).read_bytes() == local[name], name


@pytest.mark.slow
def test_a_set_written_to_a_store_is_whole_and_equal(
    store: dict[str, bytes], local: dict[str, bytes], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # sets are read through pyarrow's filesystems, which know no mem://
    monkeypatch.setattr(patchpack.schemas.shard, "open_file", lambda path: pa.BufferReader(store[path]))
    monkeypatch.setattr(patchpack.schemas.manifest, "read_bytes", lambda path: store[path])
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


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("nope://b/raw", "nothing that is installed here reads nope://; stores are gs://, s3:// and hdfs://; check the URI"),
        (
            "gs://b/raw",
            "nothing that is installed here reads gs://; it needs the extra gcp; ./run_pipeline.sh setup gcp, or pip install "
            "'patchpack[gcp]'",
        ),
        (
            "s3://b/raw",
            "nothing that is installed here reads s3://; it needs the extra aws; ./run_pipeline.sh setup aws, or pip install "
            "'patchpack[aws]'",
        ),
        ("https://b/a.jpg", "https addresses are not read; inputs lie in folders or stores (gs://, s3://, hdfs://); download them first"),
    ],
)  # fmt: skip
def test_a_store_that_nobody_installed_is_one_line(
    uri: str, told: str, media: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(path: str) -> None:
        raise ValueError("Unable to get filesystem from specified path")

    # whatever extras this machine has
    monkeypatch.setattr(FileSystems, "get_filesystem", none)
    for client in (s3, gcs):
        client._client.cache_clear()
    for module in ("boto3", "google.auth.transport.requests"):
        monkeypatch.setitem(sys.modules, module, None)
    for arguments in ((uri, "--output", tmp_path / "shards"), (media, "--output", uri)):
        ended = run("build", *arguments, "--workers", 1)
        assert ended.code == 2 and ended.err.count("\n") == 1
        assert ended.err.startswith(uri) and ended.err.endswith(f": {told}\n")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry.Clock, "sleep", lambda self, seconds: None)


@pytest.mark.slow
def test_a_stream_that_ends_early_is_read_again(
    store: dict[str, bytes],
    local: dict[str, bytes],
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    no_waiting: None,
) -> None:
    """Every object's first stream breaks off in the middle, when it is probed and when its shard is written."""
    opened, broken = MemoryFileSystem.open, Counter[str]()

    def breaking(self: MemoryFileSystem, path: str, *args: object, **options: object) -> io.BytesIO:
        file = opened(self, path, *args, **options)
        broken[path] += 1
        if path.startswith("mem://bucket/raw/") and broken[path] % 2:
            size, whole = len(store[path]), file.read
            file.read = lambda count=-1: whole(max(0, min(count, size // 2 - file.tell())))
        return file

    monkeypatch.setattr(MemoryFileSystem, "open", lambda self, path, *a, **o: breaking(self, path, *a, **o))
    built = run("build", "mem://bucket/raw/media", "--output", tmp_path / "remote", *OPTIONS)
    assert (built.code, built.err) == (0, "")
    assert max(broken.values()) >= 4
    for name in (name for name in local if name.endswith(".parquet")):
        assert (tmp_path / "remote" / name).read_bytes() == local[name], name


@pytest.mark.slow
def test_one_object_with_endless_errors_is_a_reject(
    store: dict[str, bytes], tmp_path: Path, run: Run, no_waiting: None
) -> None:
    victim = sorted(path for path in store if path.endswith(".png"))[0]
    MemoryFileSystem.failures[victim] = RuntimeError("503 backend error")
    try:
        built = run("build", "mem://bucket/raw/media", "--output", tmp_path / "remote", *OPTIONS)
    finally:
        MemoryFileSystem.failures.clear()
    assert (built.code, built.err) == (0, "")
    (row,) = pq.read_table(tmp_path / "remote/rejects.parquet").to_pylist()
    assert (row["key"], row["stage"], row["reason"], row["detail"]) == (
        victim.removeprefix("mem://bucket/raw/"), "probe", "unreadable", "503 backend error"
    )  # fmt: skip


@pytest.mark.parametrize("operation", ["create", "rename", "match", "exists"])
@pytest.mark.slow_beyond(1)
def test_operations_that_fail_now_and_then_change_nothing(
    operation: str, store: dict[str, bytes], run: Run, monkeypatch: pytest.MonkeyPatch, no_waiting: None
) -> None:
    monkeypatch.setattr(patchpack.schemas.shard, "open_file", lambda path: pa.BufferReader(store[path]))
    monkeypatch.setattr(patchpack.schemas.manifest, "read_bytes", lambda path: store[path])
    works, calls = getattr(MemoryFileSystem, operation), Counter[str]()

    def every_other_time(self: MemoryFileSystem, *args: object, **options: object) -> object:
        calls[operation] += 1
        if calls[operation] % 2:
            raise RuntimeError("429 too many requests")
        return works(self, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, operation, every_other_time)
    built = run("build", "mem://bucket/raw/media", "--output", f"mem://bucket/sets/{operation}", *OPTIONS)
    assert (built.code, built.err) == (0, "")
    assert calls[operation] >= 2
    assert f"mem://bucket/sets/{operation}/manifest.json" in store


def test_a_rename_whose_answer_was_lost_is_fine(
    store: dict[str, bytes], no_waiting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = MemoryFileSystem.rename

    def lost(self: MemoryFileSystem, *args: list[str]) -> None:
        works(self, *args)
        raise RuntimeError("connection reset")

    monkeypatch.setattr(MemoryFileSystem, "rename", lost)
    files.write("mem://bucket/x", b"data")
    assert store["mem://bucket/x"] == b"data"


def test_a_store_without_credentials_is_told_how_to_get_them(
    store: dict[str, bytes], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, no_waiting: None
) -> None:
    class DefaultCredentialsError(Exception):
        pass

    def fail(self: MemoryFileSystem, *args: object) -> None:
        raise DefaultCredentialsError("Your default credentials were not found.")

    monkeypatch.setattr(MemoryFileSystem, "exists", fail)
    ended = run("build", "mem://bucket/raw/media", "--output", tmp_path / "out", *OPTIONS)
    assert (ended.code, ended.err) == (
        1,
        "mem://bucket/raw/media: no credentials for mem:// (Your default credentials were not found.); a store must know who asks; "
        "log in to the store\n",
    )


def test_what_the_client_of_a_store_has_tried_for_long_is_not_tried_again(
    store: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, no_waiting: None
) -> None:
    calls = []

    def fail(self: MemoryFileSystem, path: str) -> None:
        calls.append(path)
        raise RuntimeError("timeout of 120 s exceeded")

    monkeypatch.setattr(MemoryFileSystem, "exists", fail)
    for patience_s, tries in ((20.0, 5), (-1.0, 1)):
        calls.clear()
        monkeypatch.setattr(remote, "_PATIENCE_S", patience_s)
        with pytest.raises(OSError, match="timeout of 120 s exceeded"):
            files.exists("mem://bucket/x")
        assert len(calls) == tries


def test_a_store_that_never_answers_is_told_in_one_line(
    store: dict[str, bytes], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    forever = threading.Event()
    monkeypatch.setattr(MemoryFileSystem, "exists", lambda self, path: forever.wait())
    monkeypatch.setattr(remote, "FIRST_ANSWER_S", 0.1)
    line = "mem://bucket: no answer within 0 s; a build needs its stores; check the network and the name\n"
    try:
        for arguments in (
            ("build", "mem://bucket/raw/**", "--output", tmp_path / "out"),
            ("build", tmp_path, "--output", "mem://bucket/sets/one"),
            ("plan", "mem://bucket/raw/*.jpg"),
        ):
            ended = run(*arguments)
            assert (ended.code, ended.err) == (1, line), arguments
    finally:
        forever.set()
    assert not (tmp_path / "out").exists()


def test_the_first_look_at_a_store_takes_any_answer(store: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(self: MemoryFileSystem, path: str) -> bool:
        asked.append(path)
        raise PermissionError("403")

    monkeypatch.setattr(MemoryFileSystem, "exists", refuse)
    remote.check_answers(["mem://bucket/raw/**", "mem://bucket/raw/a.jpg", "mem://other/a/?[b]"])
    assert asked == ["mem://bucket/raw", "mem://other/a"]
