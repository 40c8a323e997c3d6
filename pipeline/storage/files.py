"""The only door to storage: read, write whole or not at all; `listing` says what is there.

Local paths go through `os`; URIs (gs://, s3://, hdfs://) through `remote`, which imports the client of a store when its
first URI is met, so that local tools start without Beam. Names of local files may hold bytes that are not
UTF-8: they travel as Python's surrogate escapes.
"""

import contextlib
import errno
import fcntl
import functools
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from patchpack.pipeline.storage import remote
from patchpack.schemas.errors import without_secrets

Result = TypeVar("Result")

# nothing more can be written, here or anywhere below the folder
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
# and the machine is short of something, which is no fault of the file
NEVER_RETRIED = _FULL | {errno.EMFILE, errno.ENFILE, errno.ENOMEM}

# the first read of a header; a JPEG's size and orientation lie within it unless a large profile comes first
READ_BYTES = 64 * 1024
# the same of an object, where a request costs more than some bytes: EXIF and a profile of printing lie within it
HEADER_BYTES = 2**18
# an object that is no larger is read whole by one request; larger ones in blocks
WHOLE_BYTES = 2**24


class NotRegularError(OSError):
    """A pipe, socket or device where a file was to be read."""


def is_uri(path: str) -> bool:
    """Returns whether a path lies in a store."""
    return "://" in path


def join(folder: str, name: str) -> str:
    """Returns the path of a name below a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_uri(folder) else os.path.join(folder, name)


def size(path: str) -> int | None:
    """Returns the bytes of a file, or None where there is none."""
    if is_uri(path):
        return remote.size(path)
    return os.path.getsize(path) if os.path.isfile(path) else None


def is_there(root: str) -> bool:
    """Returns whether there is anything below a root; what an unmounted disk leaves is an empty folder."""
    try:
        if is_uri(root):
            return next(remote.objects(root, most=1), None) is not None
        with os.scandir(root) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def open_read(path: str, first_bytes: int = HEADER_BYTES) -> IO[bytes]:
    """Returns a seekable binary file.

    Args:
        path: of the file.
        first_bytes: of an object, what is read at once; the rest is, in large blocks, where it is needed.

    Raises:
        FileNotFoundError: there is no such file.
        NotRegularError: it is a pipe, socket or device.
        OSError: it cannot be read; reading from it raises OSErrors with a number too, whatever the storage.
    """
    if not is_uri(path):
        return open(path, "rb", buffering=READ_BYTES, opener=_open_regular)
    return remote.opened(path, first_bytes)


def read(path: str) -> bytes:
    """Returns a file's content; raises as `open_read` does."""
    with open_read(path, WHOLE_BYTES) as file:
        return file.read()


def read_part(path: str, start: int, size: int) -> bytes:
    """Returns so many bytes of an object, fewer where it ends before; raises as `open_read` does."""
    return remote.read(path, start, start + size)[0] if size else b""


def version(path: str) -> tuple[int, int]:
    """Returns what changes with a local file's content, so that what was read of it may be kept; of a URI always the same."""
    if is_uri(path):
        return 0, 0
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


def lasting(error: OSError) -> str | None:
    """Returns the reason of the reject that an error makes of a file, or None for errors of storage that may pass."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "not_found"
    # a socket cannot even be opened
    if isinstance(error, NotRegularError | IsADirectoryError) or error.errno == errno.ENXIO:
        return "not_a_file"
    # links that lead to themselves
    return "unreadable" if isinstance(error, PermissionError) or error.errno == errno.ELOOP else None


def retried(call: Callable[..., Result], *args: object) -> Result:
    """Returns call(*args), tried up to five times while it fails with errors that may pass (time-outs, server errors).

    Only errors of the storage are tried again, and not those that say something lasting: not found, not allowed,
    not a file. What `remote` does is tried again there, request by request.
    """
    result: Result = _retrying()(call, *args)
    return result


@functools.cache
def _retrying() -> Callable[..., Any]:
    """Returns what calls a function with arguments and tries again; made once, which takes as long as listing an input."""
    from apache_beam.utils.retry import with_exponential_backoff

    def may_pass(error: BaseException) -> bool:
        if not isinstance(error, OSError) or remote.EXHAUSTED in getattr(error, "__notes__", ()):
            return False
        return lasting(error) is None and error.errno not in NEVER_RETRIED

    def called(call: Callable[..., Any], *args: object) -> Any:
        return call(*args)

    decorated: Callable[..., Any] = with_exponential_backoff(
        num_retries=4, initial_delay_secs=0.5, retry_filter=may_pass
    )(called)
    return decorated


def is_full(error: OSError) -> bool:
    """Returns whether an error says that nothing more can be written."""
    return error.errno in _FULL


def described(error: OSError) -> str:
    """Returns what an error of storage says in one line, with the file that it is about, without passwords of URIs."""
    reason = error.strerror or str(error) or type(error).__name__
    return without_secrets(f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason)


def exists(path: str) -> bool:
    """Returns whether there is a file (or local folder) of this name."""
    return remote.size(path) is not None if is_uri(path) else os.path.exists(path)


def make_folder(folder: str) -> None:
    """Creates a local folder and its parents; object stores have none."""
    if not is_uri(folder):
        os.makedirs(folder, exist_ok=True)


def remove(path: str) -> None:
    """Deletes a file if it is there."""
    if is_uri(path):
        remote.remove(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def remove_empty(folder: str) -> None:
    """Deletes a local folder that is there and has nothing in it."""
    if not is_uri(folder) and os.path.isdir(folder) and not os.listdir(folder):
        os.rmdir(folder)


@contextlib.contextmanager
def writing(path: str) -> Iterator[IO[bytes]]:
    """A file that appears under its name whole, or not at all: temporary name, flushed, renamed; a store does so by itself.

    Raises:
        OSError: it cannot be written; nothing is left under the name, nor under the temporary one.
    """
    if is_uri(path):
        with remote.created(path) as file:
            yield file
        return
    folder, slash, name = path.rpartition("/")
    temporary = f"{folder}{slash}.{name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(folder + slash or ".")
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, temporary):
            # a full disk is an error without a file, and nobody knows the temporary one
            error.filename = path
        # what is left there when even that fails is swept by the next run, and the first error is the one to report
        with contextlib.suppress(OSError):
            remove(temporary)
        raise


def write(path: str, data: bytes) -> None:
    """Writes a whole file at once; see `writing`."""
    with writing(path) as file:
        file.write(data)


def sweep(folder: str) -> None:
    """Deletes what writes that were killed have left in a folder."""
    if is_uri(folder):
        remote.sweep(folder)
        return
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if name.startswith(".") and name.endswith(".tmp"):
            remove(join(folder, name))


@contextlib.contextmanager
def locked(folder: str) -> Iterator[bool]:
    """Holds a local folder for one process; yields False where another one holds it.

    The lock is the kernel's (flock on the folder itself): it leaves no file behind and ends with its process.
    Object stores have none; there only the rule against non-empty outputs keeps two builds apart.
    """
    if is_uri(folder):
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _open_regular(path: str, flags: int) -> int:
    # without O_NONBLOCK a pipe would hold us until someone writes into it; files do not mind
    handle = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return handle
    os.close(handle)
    raise NotRegularError(errno.EINVAL, "a pipe, socket or device; only regular files are read", path)


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
