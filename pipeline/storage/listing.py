"""What lies below a folder, here or in a store: all of it, what a glob matches, or in parts that are listed apart."""

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from patchpack.pipeline.storage import patterns, remote
from patchpack.pipeline.storage.files import is_uri, join
from patchpack.pipeline.storage.spans import NAMELESS, Span, in_spans
from patchpack.pipeline.storage.stores import Page


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


def names(folder: str) -> list[str]:
    """Returns the names directly in a folder, sorted."""
    if is_uri(folder):
        found = (child for page in remote.pages(folder, flat=False) for child in _children_on(page, folder))
        return sorted(child.relative for child in found if not isinstance(child, Span))
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


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
