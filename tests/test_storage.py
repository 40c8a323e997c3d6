"""Reading the files of a dataset from any store: which URIs, what they cost, and errors in one line within seconds."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from support.object_store import ObjectStore, serving
from support.synthetic_set import write_set

from patchpack.schemas import FormatError, Shard, read_manifest, storage
from patchpack.schemas.errors import without_secrets

Run = Callable[..., Result]


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    storage._answered.clear()
    with serving() as served:
        yield served


@pytest.fixture
def memory() -> Iterator[Any]:
    fsspec = pytest.importorskip("fsspec")
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("folder", "path"),
    [
        ("shards", "shards/a"),
        ("s3://b/set", "s3://b/set/a"),
        ("s3://b/set/", "s3://b/set/a"),
        ("s3://b/set/?region=r&x=y", "s3://b/set/a?region=r&x=y"),
        ("what?/set", "what?/set/a"),
    ],
)
def test_options_of_a_uri_stay_at_its_end(folder: str, path: str) -> None:
    assert storage.join(folder, "a") == path


@pytest.mark.parametrize("kind", ["memory", "file", "s3"])
def test_a_dataset_reads_the_same_from_any_store(kind: str, memory: Any, store: ObjectStore, tmp_path: Path) -> None:
    write_set(str(tmp_path / "set"), rows_per_shard=(3,))
    written = files_of(tmp_path / "set")
    for name, data in written.items():
        memory.pipe(f"/b/set/{name}", data)
        store.objects[f"b/set/{name}"] = data
    folder = {"memory": "memory://b/set", "file": f"file://{tmp_path}/set", "s3": store.uri("b/set")}[kind]
    assert read_manifest(folder) == read_manifest(str(tmp_path / "set"))
    name = next(name for name in written if name.startswith("sequences/"))
    assert b"".join(storage.read_blocks(storage.join(folder, name))) == written[name]
    with Shard(storage.join(folder, name)) as remote, Shard(str(tmp_path / "set" / name)) as own:
        assert (remote.read_array("tokens", 2) == own.read_array("tokens", 2)).all()
    assert storage.list_names(folder) == storage.list_names(str(tmp_path / "set"))
    assert storage.list_names(storage.join(folder, "sequences")) == [name.partition("/")[2]]
    assert storage.list_names(storage.join(folder, "nothing")) == []
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(folder, "nothing"))


@pytest.mark.parametrize("kind", ["memory", "s3"])
@pytest.mark.slow
def test_verify_report_and_inspect_read_stores(
    kind: str, reference: Path, memory: Any, store: ObjectStore, run: Run
) -> None:
    for name, data in files_of(reference).items():
        memory.pipe(f"/b/set/{name}", data)
        store.objects[f"b/set/{name}"] = data
    folder = "memory://b/set" if kind == "memory" else store.uri("b/set")
    ended = run("verify", folder)
    assert (ended.code, ended.err) == (0, "")
    assert "no problem found" in ended.out
    assert run("report", folder, "--json").out == run("report", reference, "--json").out
    assert run("inspect", folder, 0).code == 0
    stray = "sequences/part-000-00000-00099.parquet"
    memory.pipe(f"/b/set/{stray}", b"x")
    store.objects[f"b/set/{stray}"] = b"x"
    ended = run("verify", folder)
    assert ended.code == 1
    assert f"{without_secrets(storage.join(folder, stray))}: not in shards.parquet" in ended.err


def test_a_table_is_one_request_and_a_client_serves_all_files(store: ObjectStore) -> None:
    store.objects |= {"b/set/a": b"a" * 1000, "b/set/c": b"c" * 1000}
    storage._native.cache_clear()
    for name in "ac":
        assert storage.read_bytes(store.uri(f"b/set/{name}")) == store.objects[f"b/set/{name}"]
    assert storage._native.cache_info().misses == 1
    assert store.requests == {
        ("HEAD", "b/set/a"): 1,
        ("GET", "b/set/a"): 1,
        ("HEAD", "b/set/c"): 1,
        ("GET", "b/set/c"): 1,
    }


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("nope://b/a", "cannot be opened (Protocol not known: nope); sets lie in folders, gs://, s3://, hdfs:// or what fsspec reads; "),
        ("az://b/a", "az:// needs a driver of fsspec; it is not installed; Install adlfs to access "),
        ("s3://b/a?nonsense=1", "cannot be opened (Unexpected query parameter in S3 URI: 'nonsense'); "),
    ],
)  # fmt: skip
def test_a_scheme_that_nothing_reads_is_one_line(uri: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    # whatever this machine has
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(FormatError) as caught:
        storage.read_bytes(uri)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    if not uri.startswith("s3"):
        with pytest.raises(FormatError, match="needs fsspec; it is not installed; pip install fsspec"):
            storage.read_bytes(uri)


def test_no_permission_says_how_to_log_in(store: ObjectStore, run: Run) -> None:
    store.refused = True
    ended = run("verify", store.uri("b/set"))
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "a store must know who asks; log in (aws configure)" in ended.err


UNANSWERED = """
from patchpack.entry import run
from patchpack.schemas import storage
storage.FIRST_ANSWER_S = 0.2
run()
"""


def test_a_store_that_never_answers_is_one_line() -> None:
    """In a process of its own: the client goes on trying until that ends, and holds up other clients of its process."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        folder = f"s3://key:secret@silent/set?scheme=http&endpoint_override=127.0.0.1%3A{silent.getsockname()[1]}"
        ended = subprocess.run(
            [sys.executable, "-c", UNANSWERED, "verify", folder], capture_output=True, text=True, timeout=60
        )
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert "no answer within 0.2 s; a store must be in reach and know who asks; check the network" in ended.stderr
    assert "secret" not in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("uri", ["gs://patchpack-nowhere/set", "s3://patchpack-nowhere/set"])
def test_a_command_without_network_or_credentials_ends_soon(uri: str) -> None:
    """A clock, since time is the promise: ten seconds from the first call on, and some for a busy machine to start Python."""
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "patchpack", "verify", uri], capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - started < 20
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith(uri[:22])


def test_errors_that_may_pass_are_tried_again_by_the_client_of_the_store(store: ObjectStore) -> None:
    store.objects["b/set/a"] = b"content"
    store.errors["b/set/a"] = 3
    assert storage.read_bytes(store.uri("b/set/a")) == b"content"
    assert store.requests["HEAD", "b/set/a"] == 4


class Refused(Exception):
    """What a driver of fsspec raises for an answer of a server."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} of the server")
        self.status = status


def missing(cause: Exception | None) -> FileNotFoundError:
    error = FileNotFoundError("memory://b/a")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("raised", "is_missing"),
    [
        (missing(None), True),
        (missing(Refused(404)), True),
        # fsspec's http raises FileNotFoundError whatever happens
        (missing(Refused(503)), False),
        (missing(ConnectionRefusedError(111, "refused")), False),
        (Refused(503), False),
        (ConnectionRefusedError(111, "refused"), False),
    ],
    ids=["missing", "404", "called missing: 503", "called missing: no connection", "503", "no connection"],
)
def test_a_store_that_fails_is_not_taken_for_a_missing_file(
    raised: Exception, is_missing: bool, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(type(memory), "_open", failing)
    for read in (storage.read_bytes, lambda path: next(storage.read_blocks(path))):
        with pytest.raises(OSError) as caught:
            read("memory://b/a")
        assert isinstance(caught.value, FileNotFoundError) == is_missing
        assert caught.value.filename == "memory://b/a" and caught.value.errno
