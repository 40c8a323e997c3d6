"""Shards of a store by way of a local cache: each downloaded once, sound, within its bounds, whatever fails or is killed."""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xxhash
from support.object_store import ObjectStore, serving
from support.synthetic_set import write_set

from patchpack.schemas import FormatError, Shard, cache, read_shard_table
from patchpack.schemas.cache import Ahead, RemoteShard, ShardCache

SIZE = 10_000


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with serving() as served:
        yield served


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FIRST_PAUSE_S", 0.001)


def put(store: ObjectStore, count: int, size: int = SIZE) -> list[RemoteShard]:
    """Puts random shards into a store; the bytes of shard n are a function of n."""
    shards = []
    for number in range(count):
        data = xxhash.xxh3_128_digest(str(number).encode()) * (size // 16)
        store.objects[f"b/set/{number}.parquet"] = data
        shards.append(RemoteShard(store.uri(f"b/set/{number}.parquet"), xxhash.xxh3_128_hexdigest(data), len(data)))
    return shards


def downloads(store: ObjectStore) -> list[int]:
    """Returns how often the body of each object was asked for."""
    return [store.downloads(key) for key in store.objects]


def kept(folder: Path) -> dict[str, int]:
    """Returns size by name of every file below a folder."""
    return {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def until(condition: Callable[[], object]) -> None:
    """Waits for something that another thread or process does; fails where it never comes."""
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("never came")


def waits_for_a_lock() -> bool:
    """Returns whether some thread here waits for a lock of a file; Linux lists who waits behind an arrow."""
    own = str(os.getpid())
    return any("->" in line and own in line.split() for line in Path("/proc/locks").read_text().splitlines())


def digests(shards: list[RemoteShard]) -> set[str]:
    return {f"{shard.digest}.parquet" for shard in shards}


def test_a_shard_is_downloaded_once_and_is_the_one_in_the_store(store: ObjectStore, tmp_path: Path) -> None:
    shards = put(store, 3)
    local = ShardCache(str(tmp_path), 3 * SIZE)
    for _ in range(2):  # epochs
        for number, shard in enumerate(shards):
            assert Path(local.fetch(*shard)).read_bytes() == store.objects[f"b/set/{number}.parquet"]
    assert downloads(store) == [1, 1, 1]
    # another dataset with the same shard
    store.objects["b/other.parquet"] = store.objects["b/set/0.parquet"]
    local.fetch(store.uri("b/other.parquet"), *shards[0][1:])
    assert store.downloads("b/other.parquet") == 0
    assert set(kept(tmp_path)) == digests(shards)


def test_large_shards_come_in_several_reads(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchpack.schemas.storage.BLOCK_BYTES", 3000)
    (shard,) = put(store, 1)
    path = ShardCache(str(tmp_path), SIZE).fetch(*shard)
    assert Path(path).read_bytes() == store.objects["b/set/0.parquet"]
    assert downloads(store) == [4]


def test_the_least_recently_used_go_first_and_the_bound_always_holds(store: ObjectStore, tmp_path: Path) -> None:
    shards = put(store, 5)
    local = ShardCache(str(tmp_path), 3 * SIZE)
    for number in (0, 1, 2, 0, 3):
        local.fetch(*shards[number])
    assert set(kept(tmp_path)) == digests([shards[0], shards[2], shards[3]])
    # while one is downloaded its room is taken already
    with ThreadPoolExecutor() as pool, store.held():
        fetched = pool.submit(local.fetch, *shards[4])
        until(lambda: store.downloads("b/set/4.parquet"))
        assert kept(tmp_path) == dict.fromkeys([*digests([shards[0], shards[3]]), f"{shards[4].digest}.tmp"], SIZE)
    fetched.result()
    assert set(kept(tmp_path)) == digests([shards[0], shards[3], shards[4]])


def test_downloads_wait_for_room_that_other_downloads_have(store: ObjectStore, tmp_path: Path) -> None:
    shards = put(store, 8)
    local, totals = ShardCache(str(tmp_path), 2 * SIZE), []
    store.latency_s = 0.002
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            # whatever takes or gives room does so under this lock
            with local._folder_locked():
                totals.append(sum(kept(tmp_path).values()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda shard: local.fetch(*shard), shards))
    done.set()
    watcher.join()
    assert 0 < max(totals) <= 2 * SIZE
    assert downloads(store) == [1] * 8


def test_nothing_is_deleted_that_the_cache_did_not_write(store: ObjectStore, tmp_path: Path) -> None:
    shards = put(store, 4)
    (tmp_path / "outside").mkdir()
    foreign = [
        "notes.txt",
        "patchpack-cache/notes.txt",
        "patchpack-cache/ab/notes.parquet",
        f"patchpack-cache/ab/{'0' * 32}.parquet",
    ]
    foreign += [f"outside/{'ab' * 16}.parquet", f"patchpack-cache/{'ab' * 16}.parquet"]
    for name in foreign:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"mine" * 10_000)
    # links of the right name, to a file and to a folder with files of the right form
    (tmp_path / f"patchpack-cache/ab/{'ab' * 16}.parquet").symlink_to(tmp_path / "notes.txt")
    (tmp_path / f"outside/{'cd' * 16}.parquet").write_bytes(b"mine")
    (tmp_path / "patchpack-cache/cd").symlink_to(tmp_path / "outside")
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*") if not path.is_dir()}
    local = ShardCache(str(tmp_path), SIZE)
    for shard in shards:
        local.fetch(*shard)
    after = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*") if not path.is_dir()}
    assert {path: after.get(path) for path in before} == before
    assert len(after) == len(before) + 1


def test_a_file_of_somebody_else_under_the_name_of_a_copy_is_an_error(store: ObjectStore, tmp_path: Path) -> None:
    (shard,) = put(store, 1)
    local = ShardCache(str(tmp_path), SIZE)
    path = Path(local.fetch(*shard))
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="no regular file"):
        local.fetch(*shard)
    assert path.is_symlink()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/patchpack-cache").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="a symbolic link"):
        ShardCache(str(tmp_path / "linked"), SIZE)


@pytest.mark.parametrize("digest", ["../../../../etc/passwd", "AB" * 16, "ab" * 15, ""])
def test_a_digest_that_is_none_names_no_file(digest: str, store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a digest has 32 hex digits"):
        ShardCache(str(tmp_path), SIZE).fetch(store.uri("b/a"), digest, 1)
    assert not kept(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [lambda body: None, lambda body: body[:-3], lambda body: bytes([body[0] ^ 1]) + body[1:]],
    ids=["cut off", "short", "a flipped bit"],
)
def test_a_spoiled_transfer_is_repeated(
    spoil: Callable[[bytes], bytes | None], store: ObjectStore, tmp_path: Path
) -> None:
    (shard,) = put(store, 1)
    store.spoils["b/set/0.parquet"] = [spoil]
    path = ShardCache(str(tmp_path), SIZE).fetch(*shard)
    assert Path(path).read_bytes() == store.objects["b/set/0.parquet"]
    assert downloads(store) == [2]


@pytest.mark.parametrize("content", [b"other" * (SIZE // 5), b"short", b"long" * SIZE], ids=["other", "short", "long"])
def test_another_content_in_the_store_is_an_error_that_names_it(
    content: bytes, store: ObjectStore, tmp_path: Path
) -> None:
    (shard,) = put(store, 1)
    store.objects["b/set/0.parquet"] = content
    with pytest.raises(FormatError, match="read 2 times; the shard table says") as caught:
        ShardCache(str(tmp_path), SIZE).fetch(*shard)
    assert str(caught.value).startswith(shard.uri) and "\n" not in str(caught.value)
    assert not kept(tmp_path)
    assert downloads(store) == [2]


def test_who_waited_for_a_download_that_failed_does_it_anew(store: ObjectStore, tmp_path: Path) -> None:
    (shard,) = put(store, 1)
    store.spoils["b/set/0.parquet"] = [lambda body: body[::-1]] * 2
    local = ShardCache(str(tmp_path), SIZE)
    with ThreadPoolExecutor() as pool, store.held():
        first = pool.submit(local.fetch, *shard)
        until(lambda: store.downloads("b/set/0.parquet"))
        second = pool.submit(local.fetch, *shard)
        until(waits_for_a_lock)
    with pytest.raises(FormatError):
        first.result(20)
    assert Path(second.result(20)).read_bytes() == store.objects["b/set/0.parquet"]


def test_errors_of_the_store_are_tried_again_and_then_named(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = put(store, 2)
    local = ShardCache(str(tmp_path), 2 * SIZE)
    store.errors["b/set/0.parquet"] = 5
    local.fetch(*shards[0])
    # longer than the client of the store tries
    tries, pauses = [], []

    def failing(uri: str) -> Iterator[bytes]:
        tries.append(uri)
        yield b"begun"
        raise OSError(5, "503", uri)

    monkeypatch.setattr(cache, "read_blocks", failing)
    monkeypatch.setattr("time.sleep", pauses.append)
    with pytest.raises(OSError, match="503") as caught:
        local.fetch(*shards[1])
    assert caught.value.filename == shards[1].uri
    assert len(tries) == cache.ATTEMPTS
    assert pauses == [0.001, 0.002, 0.004]
    assert set(kept(tmp_path)) == digests(shards[:1])


@pytest.mark.parametrize("case", ["missing", "refused"])
def test_what_trying_again_cannot_mend_is_an_error_at_once(case: str, store: ObjectStore, tmp_path: Path) -> None:
    (shard,) = put(store, 1)
    if case == "missing":
        store.objects.clear()
    store.refused = case == "refused"
    due: type[OSError] = FileNotFoundError if case == "missing" else PermissionError
    with pytest.raises(due) as caught:
        ShardCache(str(tmp_path), SIZE).fetch(*shard)
    assert caught.value.filename == shard.uri
    assert store.requests["HEAD", "b/set/0.parquet"] == 1
    assert not kept(tmp_path)


def test_a_copy_of_another_size_is_fetched_anew(store: ObjectStore, tmp_path: Path) -> None:
    (shard,) = put(store, 1)
    local = ShardCache(str(tmp_path), SIZE)
    path = Path(local.fetch(*shard))
    path.write_bytes(b"cut")
    assert Path(local.fetch(*shard)).read_bytes() == store.objects["b/set/0.parquet"]
    assert downloads(store) == [2]


def test_too_small_is_one_line_with_what_would_fit(tmp_path: Path) -> None:
    local = ShardCache(str(tmp_path), 100)
    local.check_fits([10] * 50, 5)
    local.check_fits([50, 50], 64)
    with pytest.raises(ValueError) as caught:
        local.check_fits([40, 10, 30, 10, 10, 10], 3)
    assert str(caught.value) == (
        f"{tmp_path}: a cache of 100 bytes; windows of 3 shards need 110, for the one that is read and the next; give it that many, or "
        "take windows of 2 shards, the most that fit"
    )
    with pytest.raises(ValueError, match="; no window fits$"):
        local.check_fits([60, 60], 1)
    with pytest.raises(ValueError, match="a cache of 100 bytes; s3://b/a has 101"):
        local.fetch("s3://b/a", "0" * 32, 101)
    assert not kept(tmp_path)


def fetch_all(arguments: tuple[str, list[RemoteShard], int]) -> list[bytes]:
    """Returns what a process reads of shards by way of a cache."""
    folder, shards, max_bytes = arguments
    local = ShardCache(folder, max_bytes)
    return [Path(local.fetch(*shard)).read_bytes() for shard in shards]


def test_processes_share_a_folder_and_download_each_shard_once(store: ObjectStore, tmp_path: Path) -> None:
    shards = put(store, 12)
    store.latency_s = 0.01
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        read = pool.map(fetch_all, [(str(tmp_path), shards, 12 * SIZE)] * 2, chunksize=1)
    assert read == [list(store.objects.values())] * 2
    assert downloads(store) == [1] * 12


_KILLED = """
import sys
from patchpack.schemas.cache import ShardCache
ShardCache(sys.argv[1], int(sys.argv[2])).fetch(sys.argv[3], sys.argv[4], int(sys.argv[5]))
"""


@pytest.mark.parametrize("next_one", ["the same shard", "another shard"])
def test_a_killed_download_blocks_nobody_and_leaves_nothing(next_one: str, store: ObjectStore, tmp_path: Path) -> None:
    shards = put(store, 2)
    local = ShardCache(str(tmp_path), SIZE)
    shard = shards[0] if next_one == "the same shard" else shards[1]
    with ThreadPoolExecutor() as pool, store.held():
        killed = subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path), str(SIZE), *map(str, shards[0])])
        until(lambda: store.downloads("b/set/0.parquet"))
        # it waits for the lock, or for the room, of what is being downloaded
        waiting = pool.submit(local.fetch, *shard)
        assert kept(tmp_path)[f"{shards[0].digest}.tmp"] == SIZE
        killed.kill()
        killed.wait()
    waiting.result(20)
    assert kept(tmp_path) == {f"{shard.digest}.parquet": SIZE}


def threads() -> int:
    return sum(thread.name.startswith("ShardCache") for thread in threading.enumerate())


def test_the_next_window_is_fetched_ahead_and_no_more(store: ObjectStore, tmp_path: Path) -> None:
    shards = put(store, 8)
    local = ShardCache(str(tmp_path), 4 * SIZE)
    local.check_fits([SIZE] * 8, 2)
    with Ahead(local, shards, 2) as ahead:
        for number in range(8):
            assert Path(ahead.path(number)).read_bytes() == store.objects[f"b/set/{number}.parquet"]
            # what is in use stays: of this window all that was asked for
            first = number - number % 2
            assert digests(shards[first : number + 1]) <= set(kept(tmp_path))
            asked = sum(1 for count in downloads(store) if count)
            assert asked <= first + 4
        assert threads() == 1
    assert threads() == 0
    assert downloads(store) == [1] * 8


def test_ahead_of_the_first_question_two_windows_come(store: ObjectStore, tmp_path: Path) -> None:
    shards = put(store, 9)
    with Ahead(ShardCache(str(tmp_path), 9 * SIZE), shards, 2) as ahead:
        for future in ahead._fetched:
            future.result()
        assert downloads(store) == [1] * 4 + [0] * 5


def test_copies_of_the_next_window_are_not_removed_for_each_other(store: ObjectStore, tmp_path: Path) -> None:
    shards = put(store, 4)
    local = ShardCache(str(tmp_path), 4 * SIZE)
    for number in (3, 0, 1):
        local.fetch(*shards[number])
    # of an earlier epoch; shard 3 is the oldest, and to be used soon
    (other,) = [RemoteShard(store.uri("b/x"), xxhash.xxh3_128_hexdigest(b"x" * SIZE), SIZE)]
    store.objects["b/x"] = b"x" * SIZE
    local.fetch(*other)
    with Ahead(local, shards, 2) as ahead:
        for number in range(4):
            ahead.path(number)
    assert [store.downloads(f"b/set/{number}.parquet") for number in range(4)] == [1, 1, 1, 1]


def test_errors_come_at_the_shard_they_belong_to(store: ObjectStore, tmp_path: Path) -> None:
    shards = put(store, 4)
    del store.objects["b/set/1.parquet"]
    with Ahead(ShardCache(str(tmp_path), 4 * SIZE), shards, 2) as ahead:
        ahead.path(3)
        for _ in range(2):
            with pytest.raises(FileNotFoundError) as caught:
                ahead.path(1)
            assert caught.value.filename == shards[1].uri
        ahead.path(0)
    assert threads() == 0


def test_a_shard_that_is_needed_now_does_not_wait_for_its_turn(store: ObjectStore, tmp_path: Path) -> None:
    shards = put(store, 4)
    with (
        Ahead(ShardCache(str(tmp_path), 4 * SIZE), shards, 2) as ahead,
        ThreadPoolExecutor() as pool,
        store.held(),
    ):
        until(lambda: store.downloads("b/set/0.parquet"))
        needed = pool.submit(ahead.path, 3)
        until(lambda: store.downloads("b/set/3.parquet"))
        assert downloads(store) == [1, 0, 0, 1]
    needed.result()


@pytest.mark.parametrize("end", ["close", "dropped"])
def test_an_abandoned_epoch_downloads_nothing_more(end: str, store: ObjectStore, tmp_path: Path) -> None:
    shards = put(store, 6)
    with ThreadPoolExecutor() as pool, store.held():
        ahead = Ahead(ShardCache(str(tmp_path), 6 * SIZE), shards, 3)
        until(lambda: store.downloads("b/set/0.parquet"))
        if end == "close":
            closing = pool.submit(ahead.close)
            until(ahead._stop.is_set)
            store.gate.set()
            closing.result(20)
            assert threads() == 0
        del ahead
        gc.collect()
    until(lambda: threads() == 0)
    assert downloads(store) == [1, 0, 0, 0, 0, 0]
    assert kept(tmp_path) == {}


def test_shards_read_by_way_of_the_cache_are_those_of_the_store(store: ObjectStore, tmp_path: Path) -> None:
    write_set(str(tmp_path / "set"), rows_per_shard=(3, 2))
    table = read_shard_table(str(tmp_path / "set")).to_pylist()
    for row in table:
        store.objects[f"b/set/{row['path']}"] = (tmp_path / "set" / row["path"]).read_bytes()
    local = ShardCache(str(tmp_path), sum(row["bytes"] for row in table))
    shards = [RemoteShard(store.uri(f"b/set/{row['path']}"), row["digest"], row["bytes"]) for row in table]
    with Ahead(local, shards, 1) as ahead:
        for number, row in enumerate(table):
            with Shard(ahead.path(number)) as cached, Shard(str(tmp_path / "set" / row["path"])) as own:
                for at in range(own.num_sequences):
                    assert (cached.read_array("tokens", at) == own.read_array("tokens", at)).all()
