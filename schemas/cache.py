"""A local cache of whole shards, for datasets in a store: each is downloaded once, and read from then on as a local file.

    FOLDER/patchpack-cache/ab/abcd...parquet    a copy, named by the digest of its content: runs and datasets share it
    FOLDER/patchpack-cache/ab/abcd...tmp        a download under way; who writes it holds the kernel's lock (flock) on it

A copy appears under its name whole and with the right digest, or not at all. The lock ends with its process, so a killed download
blocks nobody, and its file is taken over or removed by the next. Room is reserved before a byte is written (the file has its full
size from the start), under one lock of the folder: all copies and downloads together never have more than `max_bytes`. Copies used
least recently go first. Only names of the above form, which are regular files, are ever deleted.

Cost: a hit is a `stat` and a change of its time; a download looks at every copy in the folder once. Given up: sharing between
machines (locks of network filesystems are not relied on), and parts of shards: a shuffled window reads all of each shard anyway.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import xxhash

from patchpack.schemas.errors import FormatError
from patchpack.schemas.storage import read_blocks

FOLDER_NAME = "patchpack-cache"
_DIGEST = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"([0-9a-f]{32})\.(parquet|tmp)")

# of one download, beyond what the client of the store tries by itself; pauses of 0.5, 1 and 2 s between them
ATTEMPTS = 4
FIRST_PAUSE_S = 0.5
# a wrong digest may be a bad transfer once; twice it is the file
_MOST_WRONG = 2
# how often a download looks for room while other downloads take all of it
_ROOM_EVERY_S = 0.1
# errors of this machine, which waiting does not mend
_LASTING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class RemoteShard(NamedTuple):
    """A shard in a store, as the shard table knows it: where, xxh3_128 of its content in hex, and its size."""

    uri: str
    digest: str
    num_bytes: int


class _Stopped(Exception):
    """Nobody waits for this download any more."""


class ShardCache:
    """Local copies of shards, of at most `max_bytes` together; processes and threads may share the folder.

    Attributes:
        folder: as given.
        max_bytes: of all copies.
    """

    def __init__(self, folder: str, max_bytes: int) -> None:
        """Makes the folder.

        Raises:
            ValueError: what has the name of the cache's own folder is none.
            OSError: it cannot be made.
        """
        self.folder, self.max_bytes = folder, max_bytes
        self._root = os.path.join(folder, FOLDER_NAME)
        _check_no_link(self._root)
        os.makedirs(self._root, exist_ok=True)

    def check_fits(self, sizes: Sequence[int], window: int) -> None:
        """Checks that the shards of any two windows fit: the one that is read, and the next, fetched meanwhile.

        Args:
            sizes: bytes of every shard of an epoch, whose order is drawn anew each time.
            window: shards whose sequences are shuffled together.

        Raises:
            ValueError: they do not fit.
        """
        largest = sorted(sizes, reverse=True)
        need = sum(largest[: 2 * window])
        if need <= self.max_bytes:
            return
        fitting = max(
            (each for each in range(1, window) if sum(largest[: 2 * each]) <= self.max_bytes),
            default=0,
        )
        way = f", or take windows of {fitting} shards, the most that fit" if fitting else "; no window fits"
        raise ValueError(
            f"{self.folder}: a cache of {self.max_bytes} bytes; windows of {window} shards need {need}, for the one that is read "
            f"and the next; give it that many{way}"
        )

    def fetch(self, uri: str, digest: str, num_bytes: int, stopped: Callable[[], bool] = lambda: False) -> str:
        """Returns the path of a local copy, the most recently used of all; downloads it where there is none.

        Who opens it later than others may have filled the whole cache anew calls this again.

        Args:
            uri: of the shard.
            digest: of its content, xxh3_128 in hex.
            num_bytes: of its content; a copy of another size is replaced.
            stopped: asked now and then while it is downloaded.

        Raises:
            FileNotFoundError: there is no such shard in the store.
            FormatError: the store has another content under its name.
            ValueError: the cache is smaller than the shard.
            OSError: the store fails again and again, or the disk does.
        """
        if not _DIGEST.fullmatch(digest):
            raise FormatError(
                f"{uri}: digest {digest!r}; a digest has 32 hex digits; write the shard table again with build --resume"
            )
        if num_bytes > self.max_bytes:
            raise ValueError(
                f"{self.folder}: a cache of {self.max_bytes} bytes; {uri} has {num_bytes}; the cache holds at least the shards in use; "
                "give it more"
            )
        path = os.path.join(self._root, digest[:2], f"{digest}.parquet")
        while not self._use(path, num_bytes):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _check_no_link(os.path.dirname(path))
            temporary = f"{path.removesuffix('.parquet')}.tmp"
            with _locked(temporary) as handle:
                # None: who held the lock before has just finished, or given up
                if handle is not None and not self._use(path, num_bytes):
                    self._download(RemoteShard(uri, digest, num_bytes), handle, stopped)
                    with self._folder_locked():
                        os.replace(temporary, path)
        return path

    def drop(self, digest: str) -> None:
        """Removes the copy of a shard, whose bytes are no longer those that were downloaded."""
        path = os.path.join(self._root, digest[:2], f"{digest}.parquet")
        with self._folder_locked(), contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(os.lstat(path).st_mode):
                os.unlink(path)

    def keep(self, shards: Sequence[RemoteShard]) -> None:
        """Makes the copies that there are of some shards the most recently used, so that fetching the others removes none of them."""
        for _, digest, num_bytes in shards:
            self._use(os.path.join(self._root, digest[:2], f"{digest}.parquet"), num_bytes)

    def _use(self, path: str, num_bytes: int) -> bool:
        """Returns whether there is a sound copy, which is now the most recently used one."""
        with self._folder_locked():
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                return False
            if not stat.S_ISREG(status.st_mode):
                raise FileExistsError(
                    errno.EEXIST, "no regular file; only the cache has files of such names; move it away", path
                )
            if status.st_size != num_bytes:
                return False
            # the kernel's own "now" is a few milliseconds coarse
            os.utime(path, ns=(time.time_ns(),) * 2)
            return True

    def _download(self, shard: RemoteShard, handle: int, stopped: Callable[[], bool]) -> None:
        """Writes the content of a shard to an open file, tried again with growing pauses."""
        wrong = 0
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
            try:
                self._make_room(handle, shard.num_bytes, stopped)
                digest, size = _copied(shard, handle, stopped)
            except OSError as error:
                lasting = isinstance(error, FileNotFoundError | PermissionError) or error.errno in _LASTING
                if lasting or attempt == ATTEMPTS - 1:
                    raise
                continue
            if (digest, size) == (shard.digest, shard.num_bytes):
                return
            wrong += 1
            if wrong == _MOST_WRONG or attempt == ATTEMPTS - 1:
                raise FormatError(
                    f"{shard.uri}: {size} bytes of digest {digest}, read {wrong} times; the shard table says {shard.num_bytes} of "
                    f"{shard.digest}; copy the dataset to its store again"
                )

    def _make_room(self, handle: int, num_bytes: int, stopped: Callable[[], bool]) -> None:
        """Reserves space for a download, and removes the copies that were used least recently until it fits."""
        while True:
            with self._folder_locked():
                os.ftruncate(handle, 0)
                copies, total = self._copies()
                for _, size, path in sorted(copies):
                    if total + num_bytes <= self.max_bytes:
                        break
                    os.unlink(path)
                    total -= size
                if total + num_bytes <= self.max_bytes:
                    os.ftruncate(handle, num_bytes)
                    return
            # what is left are downloads of others, which end as copies
            if stopped():
                raise _Stopped
            time.sleep(_ROOM_EVERY_S)

    def _copies(self) -> tuple[list[tuple[int, int, str]], int]:
        """Returns (time of use, bytes, path) of every copy, and the bytes of copies and downloads; torn downloads are removed."""
        copies, total = [], 0
        for folder in os.scandir(self._root):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(folder.path):
                name = _NAME.fullmatch(entry.name)
                if not name or name[1][:2] != folder.name or not entry.is_file(follow_symlinks=False):
                    continue
                if name[2] == "tmp" and _removed_if_torn(entry.path):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # a download given up since
                    continue
                total += status.st_size
                if name[2] == "parquet":
                    copies.append((status.st_mtime_ns, status.st_size, entry.path))
        return copies, total

    @contextlib.contextmanager
    def _folder_locked(self) -> Iterator[None]:
        handle = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


class Ahead:
    """The shards of an epoch in their order, fetched ahead by one thread; a context, whose end waits for the thread.

    Shards lie in windows, all of one in use at a time. Asking for a shard lets the thread go on to the end of the next window and
    no further, so that what it fetches never takes the place of what is in use (`ShardCache.check_fits`). A shard that is asked
    for before its turn is fetched by who asks. Errors are raised where the shard they belong to is asked for.
    """

    def __init__(self, cache: ShardCache, shards: Sequence[RemoteShard], window: int) -> None:
        """Starts with the first two windows; shards are in the order of the epoch, from the window where it begins."""
        self._cache, self._shards, self._window = cache, shards, window
        self._lock = threading.Lock()
        self._fetched: list[Future[str]] = []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ShardCache")
        # one that is dropped without close() does not go on downloading for nobody
        weakref.finalize(self, _stop, self._stop, self._pool)
        self._let_reach(0)

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def path(self, number: int) -> str:
        """Returns the local copy of the shard of a place in the order; may be called from several threads.

        Raises:
            Error: as `ShardCache.fetch`.
        """
        self._let_reach(number)
        fetched = self._fetched[number]
        if not fetched.cancel():
            fetched.result()
        return self._cache.fetch(*self._shards[number], self._stop.is_set)

    def close(self) -> None:
        """Ends the thread, at the next block of what it downloads."""
        _stop(self._stop, self._pool)
        self._pool.shutdown(wait=True)

    def _let_reach(self, number: int) -> None:
        """Lets the thread go on to the end of the window after that of a shard."""
        with self._lock:
            upcoming = self._shards[len(self._fetched) : (number // self._window + 2) * self._window]
            if not upcoming:
                return
            self._cache.keep(upcoming)
            fetch, stopped = self._cache.fetch, self._stop.is_set
            self._fetched += [self._pool.submit(fetch, *shard, stopped) for shard in upcoming]


def _check_no_link(folder: str) -> None:
    if os.path.islink(folder):
        raise ValueError(
            f"{folder}: a symbolic link; the cache writes and deletes in a folder of its own only; remove the link"
        )


def _stop(event: threading.Event, pool: ThreadPoolExecutor) -> None:
    event.set()
    pool.shutdown(wait=False, cancel_futures=True)


def _copied(shard: RemoteShard, handle: int, stopped: Callable[[], bool]) -> tuple[str, int]:
    """Returns digest and size of what the store gave, written to a file; reading ends soon after what it should have."""
    digest, size = xxhash.xxh3_128(), 0
    with open(handle, "r+b", closefd=False) as file:
        # a descriptor stays where the attempt before has left it
        file.seek(0)
        for block in read_blocks(shard.uri):
            digest.update(block)
            # more than it should have has no place
            file.write(block[: shard.num_bytes - size])
            size += len(block)
            if size > shard.num_bytes:
                break
            if stopped():
                raise _Stopped
    return digest.hexdigest(), size


@contextlib.contextmanager
def _locked(path: str) -> Iterator[int | None]:
    """A file to write that is nobody else's, or None where its name became another file's while waiting; what is left is removed."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle if _is_named(handle, path) else None
    finally:
        # who holds the lock of the file of a name is the only one to rename or remove it
        if _is_named(handle, path):
            os.unlink(path)
        os.close(handle)


def _is_named(handle: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _removed_if_torn(path: str) -> bool:
    """Returns whether a download's file is gone; one that nobody holds any more is removed."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_named(handle, path):
            os.unlink(path)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
