"""Three hosts that share nothing but an object store: networks, folders and temporary folders of their own; whole builds, and one that dies."""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, start
from support.cluster import HOSTS, OWN, Cluster, contents
from support.hosts import Hosts, hosts
from support.stores import Proxy, serving

from patchpack.pipeline.storage import files, listing

pytestmark = pytest.mark.slow

OPTIONS = ("--group-size", 12, "--shard-bytes", 4_000_000, "--sequence-length", 512, "--media-backend", "pillow")


@pytest.fixture(scope="module")
def apart() -> Iterator[Hosts]:
    with hosts(HOSTS) as made:
        yield made


@pytest.fixture(scope="module")
def served(apart: Hosts) -> Iterator[Proxy]:
    with serving("s3", "127.0.0.1" if not apart.apart else apart.launcher.address) as proxy:
        yield proxy


@pytest.fixture
def store(served: Proxy) -> Proxy:
    served.clear()
    return served


def filled(store: Proxy, folder: Path) -> str:
    """Returns the URI of a folder's copy in the store."""
    for path in folder.rglob("*"):
        if path.is_file():
            files.write(store.uri(f"raw/{folder.name}/{path.relative_to(folder)}"), path.read_bytes())
    store.requests.clear()
    store.clients.clear()
    return store.uri(f"raw/{folder.name}")


def here(folder: Path, output: Path) -> dict[str, bytes]:
    """Returns the dataset that one worker makes on this machine, from folder to folder."""
    ended = start("build", folder, "--output", output, "--workers", 1, *OPTIONS)
    _, err = ended.communicate(timeout=300)
    assert ended.returncode == 0, err
    return contents(output)


def there(store: Proxy) -> dict[str, bytes]:
    """Returns what is in the store's dataset and equal datasets share, by name."""
    names = [file.relative for file in listing.walk(store.uri("out"))]
    return {
        name: files.read(store.uri(f"out/{name}"))
        for name in names
        if name.partition("/")[0] not in OWN
    }  # fmt: skip


@pytest.mark.parametrize("which", ["demo", "shared"])
def test_hosts_that_share_only_a_store_make_the_same_bytes(
    which: str, apart: Hosts, store: Proxy, media: Path, tmp_path: Path
) -> None:
    folder = media if which == "demo" else ROOT.parent / "shared/media"
    if not folder.exists():
        pytest.skip(f"no {folder}")
    cluster = Cluster(tmp_path / "hosts", apart)
    try:
        ended = start("build", filled(store, folder), "--output", store.uri("out"), *OPTIONS, "--", *cluster.options)
        _, err = ended.communicate(timeout=500)
        assert ended.returncode == 0, err
    finally:
        cluster.close()
    # each of them had a part in it, and left nothing behind
    assert not apart.apart or {host.address for host in apart.others} < store.clients
    assert not [path for own in cluster.folders for path in own.rglob("*") if path.is_file()]
    assert there(store) == here(folder, tmp_path / "set")


def test_a_host_that_dies_loses_nothing(apart: Hosts, store: Proxy, media: Path, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "hosts", apart)
    try:
        process = start("build", filled(store, media), "--output", store.uri("out"), *OPTIONS, "--", *cluster.options)
        while not store.count("put", below="out/sequences/") and process.poll() is None:
            time.sleep(0.005)
        cluster.kill_host(0)
        _, err = process.communicate(timeout=300)
        if process.returncode:
            # Beam's job server gives up where a worker is gone, and says so; what is left of the cluster goes on
            assert process.returncode == 1, err
            again = start("build", "--output", store.uri("out"), "--resume", "--", *cluster.options)
            _, err = again.communicate(timeout=300)
            assert again.returncode == 0, err
    finally:
        cluster.close()
    made = there(store)
    assert made == here(media, tmp_path / "set")
    assert sum(name.startswith("sequences/") for name in made) >= HOSTS
    assert pq.read_table(io.BytesIO(made["rejects.parquet"])).num_rows == 0
