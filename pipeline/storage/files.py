"""The only door to storage: list, read, write whole or not at all.

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
from typing import IO, Any, NamedTuple, TypeVar

from patchpack.pipeline.storage import patterns, remote
from patchpack.pipeline.storage.spans import NAMELESS, Span, in_spans
from patchpack.pipeline.storage.stores import Page
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


class ListedFile(NamedTuple):
    """One file: its path below the listed folder, its size, whether it is a regular file, and its etag where a store says it."""

    relative: str
    size_bytes: int
    regular: bool = True
    etag: str = ""


class Folder(NamedTuple):
    """A folder directly below the listed one."""

    relative: str


class Unlistable(NamedTuple):
    """A folder below the listed one that may not be read."""

    relative: str
    detail: str


class NotRegularError(OSError):
    """A pipe, socket or device where a file was to be read."""


def is_uri(path: str) -> bool:
    """Returns whether a path lies in a store."""
    return "://" in path


def join(folder: str, name: str) -> str:
    """Returns the path of a name below a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_uri(folder) else os.path.join(folder, name)


def walk(folder: str, below: str = "") -> Iterator[ListedFile | Unlistable]:
    """Yields every file below a folder, hidden ones included; symbolic links to folders are followed, loops are not.

    Raises:
        OSError: the folder itself cannot be read.
    """
    if is_uri(folder):
        yield from match(folder, "**", below)
    else:
        yield from _walk_local(folder, below, _above(folder, below), ("**", "*"), frozenset({0, 1}))


def match(root: str, pattern: str, below: str | Span = "") -> Iterator[ListedFile | Unlistable]:
    """Yields every file below a root that a glob matches, hidden ones included, as `walk` does.

    A component `**` stands for any number of folders, none included, and at the end for all that is below; other
    components are as in `fnmatch`. Beam's own patterns and Python's `glob` differ in that, and `glob` follows loops.
    Nothing is matched below a root that is not there. Of a store one page of the listing is held at a time.

    Args:
        root: what the names are relative to.
        pattern: the glob.
        below: only what lies below this folder of it, or has a name of this span, as `split` gives them.

    Raises:
        OSError: the root itself cannot be read.
    """
    yield from (found for found in match_in_spans(root, pattern, below, may_split=False) if not isinstance(found, Span))


def match_in_spans(
    root: str, pattern: str, below: str | Span, *, may_split: bool = True
) -> Iterator[ListedFile | Unlistable | Span]:
    """Yields what `match` does, or of very many files in a store some, and spans in which it finds the others."""
    parts = _parts(pattern)
    start = patterns.start(parts)
    if not is_uri(root) and isinstance(below, str):
        if os.path.isdir(root):
            start = patterns.after_path(parts, start, below)
            yield from _walk_local(root, below, _above(root, below), parts, start)
        return
    span = Span("", None, below) if isinstance(below, str) else below
    # a pattern of one component is of files directly in the root
    is_flat = isinstance(below, str) or bool(below.folder) or len(parts) > 1
    folder = join(root, span.folder)
    pages = remote.pages_in(span, folder, is_flat)
    for listed in in_spans(pages, folder, span) if may_split else pages:
        if isinstance(listed, Span):
            yield listed
            continue
        for found in listed.objects:
            relative = found.path[len(root.rstrip("/")) + 1 :]
            # names that end in a slash are the folder marks of some tools
            if len(parts) in patterns.after_path(parts, start, relative) and not relative.endswith("/"):
                yield ListedFile(relative, found.size_bytes, etag=found.etag)


def split(root: str, pattern: str = "**") -> Iterator[ListedFile | Folder | Span]:
    """Yields the files directly below a root that a glob matches, and the folders and spans in which `match` finds the others.

    There are spans in a store, if the root itself holds very many files.

    Raises:
        OSError: the root cannot be read.
    """
    if not is_uri(root) and not os.path.isdir(root):
        return
    parts = _parts(pattern)
    for child in _stored_children(root) if is_uri(root) else _local_children(root):
        if isinstance(child, Span):
            yield child
            continue
        after = patterns.after_path(parts, patterns.start(parts), child.relative)
        if (isinstance(child, Folder) and after) or len(parts) in after:
            yield child


def _local_children(root: str) -> Iterator[ListedFile | Folder]:
    # in no order, which nothing needs, as ten million names are a gigabyte
    with os.scandir(root) as entries:
        for entry in entries:
            if not os.path.isdir(entry.path):
                yield _stat_file(root, entry.name)
            elif os.path.realpath(entry.path) != os.path.realpath(root):
                yield Folder(entry.name)


def _stored_children(root: str) -> Iterator[ListedFile | Folder | Span]:
    for listed in in_spans(remote.pages(root, flat=False), root, Span("", None)):
        if isinstance(listed, Span):
            yield listed
        else:
            yield from _children_on(listed, root)


def _children_on(page: Page, root: str) -> Iterator[ListedFile | Folder | Span]:
    length = len(root.rstrip("/")) + 1
    for found in page.objects:
        if not found.path.endswith("/"):
            yield ListedFile(found.path[length:], found.size_bytes, etag=found.etag)
    for folder in page.folders:
        name = folder[length:].rstrip("/")
        yield Folder(name) if name else NAMELESS


def find(root: str, name: str) -> ListedFile:
    """Returns one file by its name below a root, whether it is there or not."""
    if not is_uri(root):
        return _stat_file(root, name)
    return ListedFile(name, remote.size(join(root, name)) or 0)


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


def names(folder: str) -> list[str]:
    """Returns the names directly in a folder, sorted."""
    if is_uri(folder):
        found = (child for page in remote.pages(folder, flat=False) for child in _children_on(page, folder))
        return sorted(child.relative for child in found if not isinstance(child, Span))
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


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
    for name in names(folder):
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


def _walk_local(
    root: str, relative: str, above: tuple[str, ...], parts: tuple[str, ...], matched: frozenset[int]
) -> Iterator[ListedFile | Unlistable]:
    """Yields what a pattern matches below a folder.

    Args:
        root: the folder that names are relative to.
        relative: the folder looked into.
        above: real paths of that folder and those it lies in; links back to them are loops.
        parts: the pattern.
        matched: how far the pattern may have been matched by `relative`.
    """
    try:
        entries = sorted(os.listdir(os.path.join(root, relative)))
    except OSError as error:
        if not relative:
            raise
        yield Unlistable(relative, error.strerror or str(error))
        return
    for name in entries:
        after = patterns.after(parts, matched, name)
        if not after:
            continue
        inner = os.path.join(relative, name)
        path = os.path.join(root, inner)
        if not os.path.isdir(path):
            if len(parts) in after:
                yield _stat_file(root, inner)
            continue
        real = os.path.realpath(path)
        if real not in above and min(after) < len(parts):
            yield from _walk_local(root, inner, (*above, real), parts, after)


def _parts(pattern: str) -> tuple[str, ...]:
    """Returns the components of a glob; what ends in `**` stands for all files below."""
    parts = tuple(pattern.split("/"))
    return (*parts, "*") if parts[-1] == "**" else parts


def _above(root: str, below: str) -> tuple[str, ...]:
    """Returns the real paths of a root and of the folders on the way to one below it."""
    parts = below.split("/") if below else []
    return tuple(os.path.realpath(os.path.join(root, *parts[:count])) for count in range(len(parts) + 1))


def _stat_file(root: str, relative: str) -> ListedFile:
    try:
        status = os.stat(os.path.join(root, relative))
    except OSError:
        # a dangling link, or gone meanwhile: probing says so
        return ListedFile(relative, 0)
    return ListedFile(relative, status.st_size, stat.S_ISREG(status.st_mode))


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
