"""Reading the files of a dataset, local or in a store.

Both sides read their sets through here, so neither the trainer nor the report needs Beam. pyarrow's own filesystems
read gs://, s3:// and hdfs://, and try again with growing pauses as their clients do; every other scheme (az://, hf://, http://, ...)
is fsspec's, imported when the first one is met.

Clients of stores try for minutes where nothing answers or nobody is logged in (Google's and Amazon's: over 99 s). So the first
call to each store may take `FIRST_ANSWER_S`; from then on their patience is welcome.
"""

import contextlib
import errno
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs

from patchpack.schemas.errors import FormatError, without_secrets

Result = TypeVar("Result")

# how long the first call to a store may take; a start that fails should say so within ten seconds, of which Python and torch take three
FIRST_ANSWER_S = 6.5
# a request each: 256 MB are eight, and a stream that breaks off loses no more
BLOCK_BYTES = 2**25

_NATIVE = frozenset({"file", "gs", "gcs", "s3", "hdfs", "viewfs"})
_LOGINS = {
    "gs": "gcloud auth application-default login",
    "s3": "aws configure",
    "hf": "hf auth login",
    "az": "az login",
}
# what clients say of missing or wrong credentials; the rest of their text is long
_UNKNOWN = ("credential", "access token", "access_denied", "forbidden", "unauthorized")
_MOST_TEXT = 200

_answered: set[str] = set()


def is_uri(path: str) -> bool:
    """Returns whether a path lies in a store."""
    return "://" in path


def join(folder: str, name: str) -> str:
    """Returns the path of a file inside a dataset's folder, which is a local path or a URI; a URI's ?options stay at its end."""
    if not is_uri(folder):
        return os.path.join(folder, name)
    base, mark, options = folder.partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def open_file(path: str) -> pa.NativeFile:
    """Returns a random-access file: `read_at` may be called from several threads.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: nothing here reads such URIs.
        OSError: it cannot be read, or the store does not answer.
    """
    if not is_uri(path):
        return pa.OSFile(path)

    return _called(path, lambda: _opened(path))


def read_bytes(path: str) -> bytes:
    """Returns the whole content of a file; raises as `open_file` does."""
    with open_file(path) as file:
        data: bytes = _called(path, file.read) if is_uri(path) else file.read()
        return data


def read_blocks(path: str) -> Iterator[bytes]:
    """Yields the content of a file from its begin to its end, `BLOCK_BYTES` at a time; raises as `open_file` does."""
    with _called(path, lambda: _opened(path, as_stream=True)) if is_uri(path) else pa.OSFile(path) as file:
        while block := _called(path, lambda: file.read(BLOCK_BYTES)):
            yield block


def list_names(folder: str) -> list[str]:
    """Returns the names directly in a folder, sorted; none where there is no folder, or where a web server lists nothing.

    Raises:
        FormatError: nothing here reads such URIs.
        OSError: the store failed.
    """
    if not is_uri(folder):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    def listed() -> list[str]:
        if _scheme(folder) in _NATIVE:
            filesystem, inner = _native(folder)
            found = filesystem.get_file_info(pyarrow.fs.FileSelector(inner, allow_not_found=True))
            return sorted(info.base_name for info in found)
        remote, inner = _from_fsspec(folder)
        return sorted(name.rstrip("/").rpartition("/")[2] for name in remote.ls(inner, detail=False))

    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return _called(folder, listed)
    return []


def _scheme(path: str) -> str:
    return path.partition("://")[0]


def _opened(path: str, as_stream: bool = False) -> pa.NativeFile:
    if _scheme(path) not in _NATIVE:
        remote, inner = _from_fsspec(path)
        # not by pyarrow.fs.FSSpecHandler: it takes whatever fails for a missing file
        return pa.PythonFile(remote.open(inner, "rb"), mode="r")
    base, mark, options = path.partition("?")
    folder, _, name = base.rpartition("/")
    filesystem, inner = _native(folder + mark + options)
    place = f"{inner.rstrip('/')}/{name}"
    return filesystem.open_input_stream(place) if as_stream else filesystem.open_input_file(place)


def _from_fsspec(path: str) -> tuple[Any, str]:
    """Returns fsspec's filesystem of a URI, and the path in it."""
    scheme = _scheme(path)
    try:
        import fsspec
    except ImportError as error:
        raise FormatError(
            f"{path}: {scheme}:// needs fsspec; it is not installed; pip install fsspec, and its driver of {scheme}://"
        ) from error
    try:
        remote, inner = fsspec.url_to_fs(path)
    except ImportError as error:  # fsspec says which package: "Install adlfs to access Azure ..."
        raise FormatError(
            f"{path}: {scheme}:// needs a driver of fsspec; it is not installed; {_line(error)}"
        ) from error
    except ValueError as error:
        raise _unreadable(path, error) from error
    return remote, inner


# a client of its own for every file would log in for each
@functools.lru_cache(maxsize=64)
def _native(folder: str) -> tuple[pyarrow.fs.FileSystem, str]:
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator and _scheme(folder) in ("gs", "gcs"):
        # known to Google's clients of Python, and not to pyarrow's
        scheme, _, host = (emulator if is_uri(emulator) else f"http://{emulator}").rstrip("/").partition("://")
        filesystem = pyarrow.fs.GcsFileSystem(anonymous=True, scheme=scheme, endpoint_override=host)
        return filesystem, folder.partition("://")[2]
    try:
        filesystem, inner = pyarrow.fs.FileSystem.from_uri(folder)
    except pa.ArrowInvalid as error:
        raise _unreadable(folder, error) from error
    return filesystem, inner


def _unreadable(path: str, error: Exception) -> FormatError:
    return FormatError(
        f"{path}: cannot be opened ({_line(error)}); sets lie in folders, gs://, s3://, hdfs:// or what fsspec reads; check the URI"
    )


def _called(path: str, call: Callable[[], Result]) -> Result:
    """Returns call(), whatever it raises as an OSError about the path in one line; the first call to a store in limited time."""
    store = "/".join(path.split("/")[:3])
    try:
        if not is_uri(path) or store in _answered:
            return call()
        result = _soon(store, call)
    except (FormatError, MemoryError):
        raise
    except Exception as error:  # each store has its own; only a few of them mean something to us
        raised = _as_os_error(error, path)
        if raised is error:
            raise
        raise raised from error
    _answered.add(store)
    return result


def _soon(store: str, call: Callable[[], Result]) -> Result:
    """Returns call(), or raises TimeoutError after `FIRST_ANSWER_S`; the call then ends by itself, or with the process."""
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 (raised where it is waited for)
            outcome.set_exception(error)

    threading.Thread(target=run, name=f"first call to {store}", daemon=True).start()
    try:
        return outcome.result(FIRST_ANSWER_S)
    except TimeoutError as error:
        if outcome.done():
            raise
        raise TimeoutError(
            errno.ETIMEDOUT,
            f"no answer within {FIRST_ANSWER_S:g} s; a store must be in reach and know who asks; check the network and the name, "
            f"and log in ({_login(store)})",
            without_secrets(store),
        ) from error


def _as_os_error(error: Exception, path: str) -> OSError:
    """Returns an error as an OSError with a number, one line and a path, whose secrets are left out."""
    path = without_secrets(path)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return error
    cause = error.__cause__
    # fsspec's http calls every failure a missing file, and has the failure as its cause
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and not _is_missing(cause):
        error = cause
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return type(error)(errno.ENOENT, "no such file", path)
    text = _line(error)
    if any(sign in f"{type(error).__name__} {text}".lower() for sign in _UNKNOWN):
        return PermissionError(
            errno.EACCES, f"not allowed ({text}); a store must know who asks; log in ({_login(path)})", path
        )
    return OSError(getattr(error, "errno", None) or errno.EIO, text, path)


def _is_missing(cause: Exception) -> bool:
    if isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT):
        return False
    return getattr(cause, "status", 404) == 404


def _login(path: str) -> str:
    return _LOGINS.get(_scheme(path), "as its driver says")


def _line(error: Exception) -> str:
    text = without_secrets(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."
