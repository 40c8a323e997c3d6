"""Stage 1: which files are there, and what each is called.

A key is an input's path below what the user named, prefixed by that name, so that equal folders have
equal keys wherever they stand. Folders contribute files with a media suffix, or all with --any-suffix; globs
what they match; a file named by itself is always tried. Everything else is counted, by suffix. Where content
decides, what turns out to be no media is ignored too (`is_guess`), unless its suffix says that it is.
"""

import fnmatch
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from patchpack.pipeline.stages.records import Ignored, Reject, Source, reject
from patchpack.pipeline.storage import files

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
        ".hif",
        ".mpo",
        ".apng",
    ]
)
VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".f4v",
        ".3gp",
        ".3g2",
        ".mkv",
        ".webm",
        ".avi",
        ".divx",
        ".mpg",
        ".mpeg",
        ".mpe",
        ".m1v",
        ".m2v",
        ".vob",
        ".ts",
        ".mts",
        ".m2ts",
        ".m2t",
        ".flv",
        ".wmv",
        ".asf",
        ".ogv",
        ".ogm",
    ]
)
MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES

HIDDEN = "(hidden)"
EXCLUDED = "(excluded by {})"
BEYOND_LIMIT = "(beyond --limit)"
NO_MEDIA = "(no media by content)"
NO_SUFFIX = "(no suffix)"

# what holds or lists media and is none itself
_CONTAINERS = {
    ".csv": "a table",
    ".tsv": "a table",
    ".parquet": "a table",
    ".json": "a JSON file",
    ".jsonl": "a JSON file",
    ".tar": "an archive",
    ".tar.gz": "an archive",
    ".tgz": "an archive",
    ".zip": "an archive",
}

_GLOB = re.compile(r"[*?\[]")


class Input(NamedTuple):
    """One thing the user named.

    Attributes:
        number: its place in the command, which is its root's number.
        root: folder that paths are relative to; absolute, or a URI.
        prefix: first component of its keys; empty for a single file.
        pattern: the glob below the root, the single file's name, or empty for a folder.
        single: whether it is one file.
    """

    number: int
    root: str
    prefix: str
    pattern: str
    single: bool

    @property
    def named(self) -> str:
        """What the user named, as an absolute path or a URI."""
        return files.join(self.root, self.pattern) if self.pattern else self.root

    @property
    def relative(self) -> str:
        """What names the input wherever it stands."""
        return "/".join(part for part in (self.prefix, self.pattern) if part)


def parse_input(number: int, text: str) -> Input:
    """Returns what a command-line argument stands for.

    Raises:
        ValueError: nothing of that name is there and it is no glob, or it is a file that only holds or lists media.
    """
    container = next((what for suffix, what in _CONTAINERS.items() if text.lower().endswith(suffix)), None)
    if container and not _GLOB.search(text) and (files.is_uri(text) or os.path.isfile(text)):
        raise ValueError(
            f"{text}: {container}; inputs are images and videos, or folders, globs and URIs of them; unpack it, or name the "
            "files themselves"
        )
    path = text if files.is_uri(text) else os.path.abspath(text)
    if not files.is_uri(path) and os.path.isdir(path):
        return Input(number, path, os.path.basename(path) or "root", "", False)
    if not files.is_uri(path) and os.path.lexists(path):
        return Input(number, os.path.dirname(path), "", os.path.basename(path), True)
    if _GLOB.search(path):
        root, pattern = _split_glob(path)
        return Input(number, root, root.rpartition("/")[2] or "root", pattern, False)
    if not files.is_uri(path):
        raise ValueError(f"{text}: no such file or folder; inputs are folders, files, globs or URIs; check the path")
    path = path.rstrip("/")
    if files.exists(path):
        folder, _, name = path.rpartition("/")
        return Input(number, folder, "", name, True)
    return Input(number, path, path.rpartition("/")[2], "", False)


def list_input(given: Input, exclude: tuple[str, ...], any_suffix: bool = False) -> Iterator[Source | Ignored | Reject]:
    """Yields everything one input contributes.

    Args:
        given: as parsed.
        exclude: globs over keys (`*` crosses folders); what they match is counted, not read.
        any_suffix: whether files of folders are tried whatever their suffix.

    Raises:
        OSError: the input itself cannot be listed.
    """
    for file in _files_of(given):
        key = _key(given, file.relative)
        if isinstance(file, files.Unlistable):
            yield reject(key, "list", "unreadable", file.detail)
            continue
        why = None if given.single else _why_ignored(file.relative, given.pattern, any_suffix)
        matching = next((pattern for pattern in exclude if fnmatch.fnmatchcase(key, pattern)), None)
        if matching is not None:
            why = EXCLUDED.format(matching)
        if why:
            yield Ignored(key, why)
        elif not file.regular:
            yield reject(key, "list", "not_a_file", "a pipe, socket or device; only regular files are read")
        else:
            yield Source(key, given.number, file.relative, file.size_bytes)


def is_guess(source: Source) -> bool:
    """Returns whether a file was taken though neither its suffix nor its user says that it is media."""
    # only files named by themselves have keys without a folder
    return "/" in source.key and _suffix(source.key) not in MEDIA_SUFFIXES


def source_path(source: Source, roots: list[str]) -> str:
    """Returns where a source is, to be opened by `files`."""
    return files.join(roots[source.root], source.path)


def printable(name: str) -> str:
    """Returns a file name as Unicode: bytes that are not UTF-8 are percent-encoded."""
    return re.sub("[\udc80-\udcff]", lambda escape: f"%{ord(escape[0]) - 0xDC00:02X}", name)


def _split_glob(path: str) -> tuple[str, str]:
    """Returns the folder a glob starts from and the pattern below it.

    A component with brackets that is there literally is a name, not a pattern.
    """
    parts = path.split("/")
    taken = 1
    while taken < len(parts) - 1:
        here = "/".join(parts[: taken + 1])
        if _GLOB.search(parts[taken]) and (files.is_uri(path) or not os.path.isdir(here)):
            break
        taken += 1
    return "/".join(parts[:taken]) or "/", "/".join(parts[taken:])


def _files_of(given: Input) -> Iterator[files.ListedFile | files.Unlistable]:
    if given.single:
        yield files.find(given.root, given.pattern)
    elif given.pattern:
        yield from files.match(given.root, given.pattern)
    else:
        yield from files.walk(given.root)


def _key(given: Input, relative: str) -> str:
    return printable(f"{given.prefix}/{relative}" if given.prefix else relative)


def _why_ignored(relative: str, pattern: str, any_suffix: bool) -> str | None:
    parts = relative.split("/")
    # as in shells: a wildcard does not stand for a leading dot, one that is written does
    asked = [component for component in pattern.split("/") if component.startswith(".")]
    for part in parts:
        if part.startswith(".") and not any(fnmatch.fnmatchcase(part, component) for component in asked):
            return HIDDEN
    if pattern or any_suffix:
        return None
    suffix = _suffix(relative)
    return None if suffix in MEDIA_SUFFIXES else printable(suffix) or NO_SUFFIX


def _suffix(path: str) -> str:
    return os.path.splitext(path.rpartition("/")[2])[1].lower()
