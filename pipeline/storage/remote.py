"""The store side of `files`: Beam's filesystems, whose errors all become OSErrors and are tried again.

Each store has exceptions of its own, and a caller that separates storage from bugs cannot know them: whatever a call
raises is an OSError here, EIO unless the store says better. Calls that list, look, rename or delete are tried again
by themselves; reading is tried again by whoever reads the whole file.
"""

import contextlib
import errno
import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, TypeVar, cast

from patchpack.extras import install

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from apache_beam.io.filesystems import FileSystems

Result = TypeVar("Result")

# which extra brings what reads a scheme
_EXTRAS = {"gs": "gcp", "s3": "aws"}
# a call that fails only after so long has been tried again and again by the store's own client
_PATIENCE_S = 20.0
EXHAUSTED = "tried by the client of the store for long"

# how long the first look at a store may take: clients of stores try for minutes where nothing answers at all
FIRST_ANSWER_S = 45.0

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
        beam, answered = _filesystems(uri), threading.Event()
        # clients take the name of an object, and no pattern
        name = re.split(r"[*?\[]", uri)[0].rstrip("/")

        def ask(beam: "type[FileSystems]" = beam, name: str = name, answered: threading.Event = answered) -> None:
            with contextlib.suppress(Exception):
                beam.exists(name)
            answered.set()

        threading.Thread(target=ask, name=f"first look at {store}", daemon=True).start()
        if not answered.wait(FIRST_ANSWER_S):
            raise OSError(
                errno.ETIMEDOUT,
                f"no answer within {FIRST_ANSWER_S:.0f} s; a build needs its stores; check the network and the name",
                store,
            )


def listed(pattern: str, limit: int | None = None) -> list[tuple[str, int]]:
    """Returns path and size of the objects that one of Beam's patterns matches, at most `limit`.

    Raises:
        ValueError: nothing here reads such URIs.
        OSError: the store failed.
    """

    def call() -> list[tuple[str, int]]:
        results = _filesystems(pattern).match([pattern], None if limit is None else [limit])
        return [(metadata.path, metadata.size_in_bytes) for result in results for metadata in result.metadata_list]

    objects: list[tuple[str, int]] = _tried(pattern, call)
    return objects


def exists(path: str) -> bool:
    """Returns whether there is an object of this name; raises as `listed`."""
    return bool(_tried(path, lambda: _filesystems(path).exists(path)))


def remove(path: str) -> None:
    """Deletes an object if it is there; raises as `listed`."""

    def call() -> None:
        if _filesystems(path).exists(path):
            _filesystems(path).delete([path])

    _tried(path, call)


def rename(before: str, after: str) -> None:
    """Gives an object its name; raises as `listed`. One that has it already, since an answer got lost, is fine."""

    def call() -> None:
        beam = _filesystems(after)
        try:
            beam.rename([before], [after])
        except Exception:  # each store has its own; `_once` makes an OSError of what goes on from here
            if beam.exists(before) or not beam.exists(after):
                raise

    _tried(after, call)


@contextlib.contextmanager
def created(path: str) -> Iterator[IO[bytes]]:
    """A new object to write; raises as `listed`, also while it is written."""
    file = _tried(path, lambda: _filesystems(path).create(path))
    upload = _Upload(path, file)
    try:
        yield cast(IO[bytes], upload)
    except BaseException:
        # half an object, which is deleted: what closing it says does not matter
        with contextlib.suppress(Exception):
            file.close()
        raise
    _once(path, file.close)


class Remote(io.RawIOBase):
    """An object that fails as a local file does: a store's own errors would look like bad content.

    A stream that ends before the size that the store states is an error of the store, too.
    """

    def __init__(self, path: str) -> None:
        """Opens it.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: the store failed.
        """
        from apache_beam.io.filesystem import CompressionTypes

        self._path = path
        try:
            self._file = _filesystems(path).open(path, compression_type=CompressionTypes.UNCOMPRESSED)
            self._size = self._file.seek(0, io.SEEK_END) or self._file.tell()
            self._file.seek(0)
        except Exception as error:  # each store has its own; only "not there" means something to us
            if not isinstance(error, ValueError) and not exists(path):
                raise FileNotFoundError(errno.ENOENT, "no such object", path) from error
            raise _as_os_error(error, path) from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        data = _once(self._path, self._file.read, len(view))
        if not data and len(view) and (offset := self.tell()) < self._size:
            raise OSError(errno.EIO, f"the stream ended at byte {offset} of {self._size}", self._path)
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        _once(self._path, self._file.seek, offset, whence)
        return self.tell()

    def tell(self) -> int:
        return _once(self._path, self._file.tell)

    def close(self) -> None:
        if not self.closed:
            # nothing was written, so nothing can be lost
            with contextlib.suppress(Exception):
                self._file.close()
        super().close()


class _Upload:
    """A file that is written and fails as a local one does."""

    closed = False

    def __init__(self, path: str, file: IO[bytes]) -> None:
        self._path, self._file = path, file

    def write(self, data: bytes) -> int:
        return _once(self._path, self._file.write, data)

    def flush(self) -> None:
        _once(self._path, self._file.flush)


def _tried(path: str, call: Callable[[], Result]) -> Result:
    from patchpack.pipeline.storage.files import retried

    return retried(lambda: _once(path, call))


def _once(path: str, call: Callable[..., Result], *args: object) -> Result:
    begun = time.monotonic()
    try:
        return call(*args)
    except Exception as error:
        raised = _as_os_error(error, path)
        if time.monotonic() - begun > _PATIENCE_S and isinstance(raised, OSError):
            raised.add_note(EXHAUSTED)
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
    if "credential" in f"{type(inner).__name__} {text}".lower():
        scheme = path.partition("://")[0]
        login = {"gs": "gcloud auth application-default login", "s3": "aws configure"}.get(
            scheme, "log in to the store"
        )
        return PermissionError(
            errno.EACCES, f"no credentials for {scheme}:// ({text}); a store must know who asks; {login}", path
        )
    return OSError(errno.EIO, text, path)


class UnreadableScheme(ValueError):
    """Nothing that is installed here reads URIs of this scheme: wrong use, and no failure of storage."""


def _filesystems(path: str) -> "type[FileSystems]":
    """Returns Beam's filesystems, once it is known that one of them takes the path.

    Raises:
        UnreadableScheme: none does.
    """
    from apache_beam.io.filesystem import BeamIOError
    from apache_beam.io.filesystems import FileSystems

    scheme = path.partition("://")[0]
    if scheme in _WEB:
        raise UnreadableScheme(
            f"{path}: {scheme} addresses are not read; inputs lie in folders or stores (gs://, s3://, hdfs://); download them first"
        )
    try:
        FileSystems.get_filesystem(path)
    except (ValueError, BeamIOError) as error:
        if scheme in _EXTRAS:
            way = f"it needs the extra {_EXTRAS[scheme]}; {install(_EXTRAS[scheme])}"
        elif scheme == "hdfs":
            way = "it needs the package hdfs, and --hdfs_host, --hdfs_port and --hdfs_user behind --"
        else:
            way = "stores are gs://, s3:// and hdfs://; check the URI"
        raise UnreadableScheme(f"{path}: nothing that is installed here reads {scheme}://; {way}") from error
    return FileSystems
