"""Whole builds from and into object stores, in a process of their own: what they ask for, and what faults do to them."""

import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Result, said
from support.stores import Proxy, serving

from patchpack.pipeline.execution.sandbox import module_search
from patchpack.pipeline.storage import files, listing

Run = Callable[..., Result]

pytestmark = pytest.mark.slow

# requests that are no input's: of a build, and of each of its shards (most are pyarrow's for the report: one a column)
A_BUILD, A_SHARD = 110, 80

# three shards
OPTIONS = (
    *("--shard-bytes", 2_000_000, "--sequence-length", 512, "--labels", "folder"),
    *("--media-backend", "pillow"),
)

# no pauses, and clients wait no longer than a test may take
COMMAND = """
import logging
logging.disable(logging.WARNING)
from apache_beam.utils import retry
from patchpack.pipeline.storage import stores
retry.Clock.sleep = lambda self, seconds: None
stores.ANSWER_S = 2.0
logging.disable(logging.NOTSET)
from patchpack.entry import run
run()
"""


@pytest.fixture(scope="module", params=["s3", "gs"])
def served(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    with serving(request.param) as proxy:
        yield proxy


@pytest.fixture
def store(served: Proxy, media: Path) -> Proxy:
    """A store with the sample media below raw/media/."""
    served.clear()
    for path in media.rglob("*"):
        if path.is_file():
            files.write(served.uri(f"raw/media/{path.relative_to(media)}"), path.read_bytes())
    served.requests.clear()
    return served


@pytest.fixture(scope="module")
def local(media: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What equal builds have equal, of a build from folder to folder."""
    folder = tmp_path_factory.mktemp("local") / "out"
    ended = command("build", media, "--output", folder, *OPTIONS)
    assert ended.code == 0, ended.err
    kept = [path for path in folder.rglob("*") if path.suffix == ".parquet" and "_plan" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in [*kept, folder / "manifest.json"]}


def command(*arguments: object, first: str = "") -> Result:
    """Runs a command in a process of its own: pyarrow's client of Google's storage stops all threads of its process now and then."""
    ended = subprocess.run(
        [sys.executable, "-c", first + COMMAND, *map(str, arguments), "--workers", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | module_search(),
    )
    return Result(ended.returncode, ended.stdout, said(ended.stderr))


# a folder of five files is a large one, listed in pages of four
IN_SPANS = """
from patchpack.pipeline.storage import spans, stores
spans.SPLIT_FILES, stores.PAGE_OBJECTS = 5, 4
"""


def build(store: Proxy, *more: object) -> Result:
    return command("build", store.uri("raw/media"), "--output", store.uri("out"), *OPTIONS, *more)


def written(store: Proxy) -> dict[str, bytes]:
    """Returns the objects of the output that equal builds have equal."""
    store.fault = lambda kind, name: None
    names = [file.relative for file in listing.walk(store.uri("out"))]
    assert not [name for name in names if name.endswith(".tmp")]
    kept = [name for name in names if name.endswith((".parquet", "manifest.json")) and not name.startswith("_")]
    return {name: files.read(store.uri(f"out/{name}")) for name in kept}


def test_an_input_is_two_requests_and_the_rest_is_bounded(store: Proxy, local: dict[str, bytes]) -> None:
    ended = build(store)
    assert (ended.code, ended.err) == (0, "")
    asked = Counter(name for kind, name in store.requests if name.startswith("raw/media/") and kind != "list")
    assert written(store) == local
    # once to probe it and once to decode it
    assert len(asked) > 20 and set(asked.values()) == {2}
    others = [name for _, name in store.requests if name not in asked]
    shards = sum(name.startswith("sequences/") for name in local)
    assert shards >= 3 and len(others) <= A_BUILD + A_SHARD * shards


def test_a_large_folder_that_is_listed_in_spans_gives_the_same_shards(store: Proxy, media: Path) -> None:
    for path in media.rglob("*"):
        if path.is_file():
            files.write(store.uri(f"flat/{'-'.join(path.relative_to(media).parts)}"), path.read_bytes())
    given = ("build", store.uri("flat"), *OPTIONS, "--labels", "none", "--output")
    for out, first in (("out", ""), ("other", IN_SPANS)):
        store.requests.clear()
        ended = command(*given, store.uri(out), first=first)
        assert (ended.code, ended.err) == (0, "")
        # once to see whether it is there
        assert (store.count("list", below="flat") > 8) == (out == "other")
    at_once = written(store)
    assert {name: files.read(store.uri(f"other/{name}")) for name in at_once} == at_once
    assert sum(name.startswith("sequences/") for name in at_once) >= 3


def first_time(fault: Callable[[str, str, int], str | None]) -> Callable[[str, str], str | None]:
    """Returns a fault that befalls each object once for each kind of request, chosen by kind, name, and how many there were."""
    met: set[tuple[str, str]] = set()

    def due(kind: str, name: str) -> str | None:
        if (kind, name) in met:
            return None
        met.add((kind, name))
        return fault(kind, name, len(met))

    return due


def test_faults_that_pass_change_no_byte(store: Proxy, local: dict[str, bytes]) -> None:
    """Every first request for anything fails, each in another way."""
    befallen: Counter[str] = Counter()

    def fault(kind: str, name: str, number: int) -> str:
        fitting = ["503", "reset", "lost", "short" if kind in ("get", "list") else "503"]
        chosen = "silence" if number % 40 == 0 else fitting[number % 4]
        befallen[chosen] += 1
        return chosen

    store.fault = first_time(fault)
    ended = build(store)
    assert (ended.code, ended.err) == (0, "")
    assert written(store) == local
    assert set(befallen) == {"503", "reset", "lost", "short", "silence"} and befallen.total() > 80


@pytest.mark.parametrize("fault", ["503", "silence"])
def test_a_shard_that_cannot_be_written_fails_alone_and_resume_completes_it(
    fault: str, store: Proxy, local: dict[str, bytes]
) -> None:
    if fault == "silence" and store.scheme == "gs":
        pytest.skip("as long as with s3")
    shards = sorted(name for name in local if name.startswith("sequences/"))
    store.fault = lambda kind, name: fault if kind == "put" and name == f"out/{shards[1]}" else None
    ended = build(store)
    assert ended.code == 1 and ended.err.count("\n") == 1, ended.err
    assert shards[1] in ended.err and "--resume" in ended.err
    # a shard is tried twice, and each request five times
    assert store.count("put", below=f"out/{shards[1]}") == 10
    there = written(store)
    assert set(shards) - set(there) == {shards[1]} and "manifest.json" not in there
    assert all(there[name] == local[name] for name in shards if name != shards[1])
    resumed = command("build", "--output", store.uri("out"), "--resume")
    assert (resumed.code, resumed.err) == (0, "")
    assert written(store) == local


@pytest.mark.parametrize("fault", ["503", "404"])
def test_an_object_that_is_listed_and_cannot_be_read_is_a_reject(store: Proxy, fault: str) -> None:
    victim = "raw/media/" + sorted(file.relative for file in listing.walk(store.uri("raw/media")))[0]
    store.fault = lambda kind, name: fault if name == victim else None
    ended = build(store)
    assert (ended.code, ended.err) == (0, "")
    (row,) = pq.read_table(io.BytesIO(written(store)["rejects.parquet"])).to_pylist()
    assert row["key"] == victim.removeprefix("raw/")
    assert row["reason"] == {"503": "unreadable", "404": "not_found"}[fault]
    # the report looks once more, for two seconds, whether it is an image to show
    tried = {"503": 5, "404": 1}[fault]
    assert tried <= store.count("get", below=victim) <= 2 * tried


def test_a_listing_that_lags_loses_nothing(store: Proxy, local: dict[str, bytes]) -> None:
    """What the build itself has written is there by name at once, and listed only after it has ended."""
    files.write(store.uri("raw/media/circles/broken.jpg"), b"broken")
    lags = "out/"
    store.hidden = lambda name: name.startswith(lags)
    shards = {name for name in local if name.startswith("sequences/")}
    for again in (False, True):
        ended = command("build", "--output", store.uri("out"), "--resume") if again else build(store)
        assert (ended.code, ended.err) == (0, "")
        store.hidden = lambda name: False
        there = written(store)
        assert {name: there[name] for name in there if name.startswith("sequences/")} == {n: local[n] for n in shards}
        (row,) = pq.read_table(io.BytesIO(there["rejects.parquet"])).to_pylist()
        assert row["key"] == "media/circles/broken.jpg"
        # no shard is written a second time
        assert store.count("put", below="out/sequences/") == len(shards)
        files.remove(store.uri("out/manifest.json"))
        store.hidden = lambda name: name.startswith(lags)
