"""The store side of `files`: one client a process for each kind of store, whose errors all become OSErrors and are tried again.

Each store has exceptions of its own, and a caller that separates storage from bugs cannot know them: whatever a call
raises is an OSError here, EIO unless the store says better. A call is one request, and is tried again with growing pauses
up to five times; what fails then is not tried again by anyone above.

Objects are read in blocks: one request where the first block holds all. An object that is written appears under its name
when it is complete, so nothing is renamed.
"""

import contextlib
import errno
import functools
import io
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, TypeVar, cast

from patchpack.extras import install
from patchpack.pipeline.storage import gcs, s3
from patchpack.pipeline.storage.others import Others
from patchpack.pipeline.storage.spans import Span
from patchpack.pipeline.storage.stores import PART_BYTES, Client, Page, StoredObject, Upload

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Result = TypeVar("Result")

_CLIENTS: dict[str, tuple[Callable[[], Client], str]] = {"gs": (gcs.client, "gcp"), "s3": (s3.client, "aws")}
# a call that fails only after so long has been tried again and again by the store's own client
_PATIENCE_S = 20.0
EXHAUSTED = "tried often enough"

# how long the first look at a store may take: clients of stores try for minutes where nothing answers at all
FIRST_ANSWER_S = 45.0

# of a large object, a request each; as many are kept as FFmpeg goes to and fro between: the index at the end, sound, frames
BLOCK_BYTES = 2**23
_KEPT_BLOCKS = 4

# fetched by name from servers that list nothing
_WEB = ("http", "https", "ftp")


def check_answers(uris: list[str]) -> None:
    """Asks every store once, and waits for an answer, whatever it is: what it says is judged where it matters.

    Raises:
        UnreadableScheme: nothing that is installed reads a URI.
        OSError: a store did not answer for `FIRST_ANSWER_S`.
    """
    # one a bucket: "s3://bucket" of "s3://bucket/raw/**"
    for store in sorted({"/".join(uri.split("/")[:3]) for uri in uris}):
        uri = next(uri for uri in uris if uri.startswith(store))
        client, answered = _client(uri), threading.Event()
        # clients take the name of an object, and no pattern
        name = re.split(r"[*?\[]", uri)[0].rstrip("/")

        def ask(client: Client = client, name: str = name, answered: threading.Event = answered) -> None:
            with contextlib.suppress(Exception):
                client.size(name)
            answered.set()

        threading.Thread(target=ask, name=f"first look at {store}", daemon=True).start()
        if not answered.wait(FIRST_ANSWER_S):
            raise OSError(
                errno.ETIMEDOUT,
                f"no answer within {FIRST_ANSWER_S:.0f} s; a build needs its stores; check the network and the name",
                store,
            )


def pages(folder: str, flat: bool, most: int | None = None, after: str = "") -> Iterator[Page]:
    """Yields what lies below a folder, in pages of a thousand or as the store has them.

    Args:
        folder: a URI.
        flat: whether all objects below it, or those directly in it and the folders in it.
        most: no more objects than these are needed.
        after: only names in the folder that are greater than this one are needed.

    Raises:
        ValueError: nothing here reads such URIs.
        OSError: the store failed.
    """
    client, token = _client(folder), None
    call = functools.partial(client.page, f"{folder.rstrip('/')}/", flat, most=most, after=after)
    while True:
        page: Page = _tried(folder, functools.partial(call, token))
        yield page
        token = page.following
        if token is None or most is not None:
            return


def objects(folder: str, most: int | None = None) -> Iterator[StoredObject]:
    """Yields the objects below a folder; raises as `pages`."""
    for page in pages(folder, flat=True, most=most):
        yield from page.objects


def pages_in(span: Span, folder: str, flat: bool) -> Iterator[Page]:
    """Yields the pages of a span of the names below a folder, as `pages` has them; raises as it does.

    Both ends are looked at here as well: a server may know of none.
    """
    length = len(folder.rstrip("/")) + 1
    for page in pages(folder, flat, after=span.after):
        last = [found.path for found in page.objects[-1:]] + page.folders[-1:]
        is_last = any(span.is_behind(path[length:]) for path in last)
        objects = [found for found in page.objects if found.path[length:] in span]
        yield page._replace(objects=objects, following=None if is_last else page.following)
        if is_last:
            return


def size(path: str) -> int | None:
    """Returns the size of an object, None where there is none; raises as `pages`."""
    with contextlib.suppress(FileNotFoundError):
        return _tried(path, lambda: _client(path).size(path))
    return None


def remove(path: str) -> None:
    """Deletes an object if it is there; raises as `pages`."""
    with contextlib.suppress(FileNotFoundError):
        _tried(path, lambda: _client(path).delete(path))


def sweep(folder: str) -> None:
    """Forgets what uploads that were killed have left in a folder; raises as `pages`."""
    _tried(folder, lambda: _client(folder).sweep(f"{folder.rstrip('/')}/"))


def read(path: str, start: int, stop: int) -> tuple[bytes, int]:
    """Returns bytes start to stop of an object, as far as it goes, and the object's size, by one request.

    Raises:
        FileNotFoundError: there is no such object.
        ValueError: nothing here reads such URIs.
        OSError: the store failed.
    """

    def call() -> tuple[bytes, int]:
        data, size = _client(path).get(path, start, stop)
        if len(data) < min(stop, size) - start:
            raise OSError(errno.EIO, f"the stream ended at byte {start + len(data)} of {size}", path)
        return data, size

    return _tried(path, call)


def opened(path: str, first_bytes: int) -> IO[bytes]:
    """Returns a seekable file of an object; raises as `read`, also when it is read.

    Args:
        path: a URI.
        first_bytes: what the first request asks for; an object that is no larger takes no other.
    """
    data, size = read(path, 0, first_bytes)
    return io.BytesIO(data) if len(data) == size else io.BufferedReader(_Blocks(path, data, size))


@contextlib.contextmanager
def created(path: str) -> Iterator[IO[bytes]]:
    """A new object to write, which is there once the context ends well; raises as `pages`, also while it is written."""
    writer = _Writer(path)
    try:
        yield cast(IO[bytes], writer)
        writer.finish()
    except BaseException:
        writer.abort()
        raise


class _Blocks(io.RawIOBase):
    """A large object, read in blocks; the last ones and the first are kept."""

    def __init__(self, path: str, first: bytes, size: int) -> None:
        self._path, self._first, self._size, self._at = path, first, size, 0
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        data, start = self._first, 0
        if self._at >= len(data):
            number = self._at // BLOCK_BYTES
            data, start = self._block(number), number * BLOCK_BYTES
        piece = memoryview(data)[self._at - start :][: len(view)]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def _block(self, number: int) -> bytes:
        start = number * BLOCK_BYTES
        if self._at >= self._size:
            return b""
        if number not in self._kept:
            data, size = read(self._path, start, start + BLOCK_BYTES)
            if size != self._size:
                raise OSError(errno.EIO, f"{size} bytes now, {self._size} when it was opened", self._path)
            self._kept[number] = data
            if len(self._kept) > _KEPT_BLOCKS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]


class _Writer:
    """An object that is written: by one request if it fits into a part, else in parts."""

    closed = False

    def __init__(self, path: str) -> None:
        self._path, self._client = path, _client(path)
        self._waiting = bytearray()
        self._upload: Upload | None = None

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        while len(view):
            if len(self._waiting) == PART_BYTES:
                self._send(last=False)
            taken = PART_BYTES - len(self._waiting)
            self._waiting += view[:taken]
            view = view[taken:]
        return len(memoryview(data).cast("B"))

    def flush(self) -> None:
        """Does nothing: parts have a size of their own."""

    def finish(self) -> None:
        """Makes the object appear."""
        if self._upload is None:
            _tried(self._path, lambda: self._client.put(self._path, bytes(self._waiting)))
        else:
            self._send(last=True)

    def abort(self) -> None:
        """Leaves nothing; what the store says to that does not matter."""
        with contextlib.suppress(Exception):
            if self._upload is not None:
                self._upload.abort()

    def _send(self, last: bool) -> None:
        if self._upload is None:
            self._upload = _tried(self._path, lambda: self._client.begin(self._path))
        upload, part = self._upload, bytes(self._waiting)
        call = _tried if upload.repeatable else _once
        call(self._path, lambda: upload.send(part, last))
        self._waiting.clear()


def _tried(path: str, call: Callable[[], Result]) -> Result:
    from patchpack.pipeline.storage.files import retried

    try:
        return retried(lambda: _once(path, call))
    except OSError as error:
        error.add_note(EXHAUSTED)
        raise


def _once(path: str, call: Callable[[], Result]) -> Result:
    begun = time.monotonic()
    try:
        return call()
    except Exception as error:
        raised = _as_os_error(error, path)
        if isinstance(raised, OSError) and time.monotonic() - begun > _PATIENCE_S and _client(path).patient:
            raised.add_note(EXHAUSTED)
        if raised is error:
            raise
        raise raised from error


def _as_os_error(error: Exception, path: str) -> Exception:
    """Returns an error of a store as an OSError about a path; errors that are that already, and wrong URIs, as they are."""
    if isinstance(error, OSError) and error.errno is not None:
        error.filename = error.filename or path
        return error
    if isinstance(error, UnreadableScheme):
        return error
    # Beam's own wraps what the store raised, by path
    details = getattr(error, "exception_details", None) or {}
    inner = next((each for each in details.values() if isinstance(each, Exception)), error)
    text = " ".join(str(inner).split()) or type(inner).__name__
    status = _status(inner)
    if status == 404:
        return FileNotFoundError(errno.ENOENT, "no such object", path)
    if status == 403 and "ratelimitexceeded" in text.lower():
        # how Google says that it was asked too often: that passes
        return OSError(errno.EIO, text, path)
    if status in (401, 403) or "credential" in f"{type(inner).__name__} {text}".lower():
        scheme = path.partition("://")[0]
        login = {"gs": "gcloud auth application-default login", "s3": "aws configure"}.get(
            scheme, "log in to the store"
        )
        lacking = "not allowed" if status else f"no credentials for {scheme}://"
        return PermissionError(errno.EACCES, f"{lacking} ({text}); a store must know who asks; {login}", path)
    return OSError(errno.EIO, text, path)


def _status(error: Exception) -> int | None:
    """Returns the HTTP status of an error of boto3 or requests."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return cast("int | None", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return getattr(response, "status_code", None)


class UnreadableScheme(ValueError):
    """Nothing that is installed here reads URIs of this scheme: wrong use, and no failure of storage."""


def _client(path: str) -> Client:
    """Returns the client of a URI's store, the same for all that this process asks of it.

    Raises:
        UnreadableScheme: there is none.
    """
    scheme = path.partition("://")[0]
    if scheme in _WEB:
        raise UnreadableScheme(
            f"{path}: {scheme} addresses are not read; inputs lie in folders or stores (gs://, s3://, hdfs://); download them first"
        )
    if scheme not in _CLIENTS:
        return _other(path, scheme)
    make, extra = _CLIENTS[scheme]
    try:
        return make()
    except ImportError as error:
        raise UnreadableScheme(
            f"{path}: nothing that is installed here reads {scheme}://; it needs the extra {extra}; {install(extra)}"
        ) from error


def _other(path: str, scheme: str) -> Client:
    from apache_beam.io.filesystem import BeamIOError
    from apache_beam.io.filesystems import FileSystems

    try:
        FileSystems.get_filesystem(path)
    except (ValueError, BeamIOError) as error:
        if scheme == "hdfs":
            way = "it needs the package hdfs, and --hdfs_host, --hdfs_port and --hdfs_user behind --"
        else:
            way = "stores are gs://, s3:// and hdfs://; check the URI"
        raise UnreadableScheme(f"{path}: nothing that is installed here reads {scheme}://; {way}") from error
    return Others(FileSystems)
