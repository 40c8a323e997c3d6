"""Stage 1: which files are there, and what each is called.

A key is an input's path below what the user named, prefixed by that name, so that equal folders have
equal keys wherever they stand; of a tar it is the member's name, of a table the id or path that a row gives. Folders
contribute files with a media suffix, or all with --any-suffix; globs what they match; a file named by itself is
always tried. Everything else is counted, by suffix. Where content decides, what turns out to be no media is ignored
too (`is_guess`), unless its suffix says that it is.
"""

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from patchpack.pipeline.inputs import table, tar
from patchpack.pipeline.inputs.facts import Columns
from patchpack.pipeline.stages.records import Container, Ignored, Reject, Source, printable, reject
from patchpack.pipeline.storage import files, listing
from patchpack.pipeline.storage.spans import Span

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
OF_OTHER_SPLIT = "(of another split)"

if TYPE_CHECKING:
    from patchpack.pipeline.config import PlanConfig

# what holds or lists media and is none itself, and cannot be read: what it is, and the way out
_REFUSED = {
    ".csv.gz": ("a compressed table", "it is read as it stands; gunzip it, or write Parquet"),
    ".tsv.gz": ("a compressed table", "it is read as it stands; gunzip it, or write Parquet"),
    ".jsonl.gz": ("a compressed table", "it is read as it stands; gunzip it, or write Parquet"),
    ".tar.gz": ("a compressed tar", "members are read by their place; gunzip it"),
    ".tgz": ("a compressed tar", "members are read by their place; gunzip it"),
    ".zip": ("a zip archive", "tars, tables and loose files are read; unpack it"),
    ".json": ("a JSON file", "a table has an object a line; write it as .jsonl"),
    ".tfrecord": ("TFRecord", "no kept reader of it comes without TensorFlow; write it as tars or Parquet"),
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
        kind: "files", or what each of the files is: "table" or "tar".
    """

    number: int
    root: str
    prefix: str
    pattern: str
    single: bool
    kind: str = "files"

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
    kind, text = _kind_of(text)
    refused = next((what for suffix, what in _REFUSED.items() if text.lower().endswith(suffix)), None)
    if refused and (files.is_uri(text) or _GLOB.search(text) or os.path.isfile(text)):
        raise ValueError(f"{text}: {refused[0]}; {refused[1]}")
    return _parse_path(number, text)._replace(kind=kind)


def _kind_of(text: str) -> tuple[str, str]:
    """Returns what an argument's files are, and the argument without what says so."""
    for kind, suffixes in (("table", table.SUFFIXES), ("tar", (".tar",))):
        if text.startswith(f"{kind}:") and not os.path.lexists(text):
            return kind, text.removeprefix(f"{kind}:")
        if text.lower().endswith(suffixes) and not os.path.isdir(text):
            return kind, text
    return "files", text


def _parse_path(number: int, text: str) -> Input:
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


def list_input(
    given: Input, exclude: tuple[str, ...], any_suffix: bool = False, prefix_keys: bool = False
) -> Iterator[Source | Container | Ignored | Reject]:
    """Yields everything one input contributes; tables and tars as Containers.

    Args:
        given: as parsed.
        exclude: globs over keys (`*` crosses folders); what they match is counted, not read.
        any_suffix: whether files of folders are tried whatever their suffix.
        prefix_keys: whether the name of a table or tar stands before the keys of what it holds.

    Raises:
        OSError: the input itself cannot be listed.
    """
    yield from _listed(given, _files_of(given), exclude, any_suffix, prefix_keys)


def _listed(
    given: Input,
    found: Iterable[listing.ListedFile | listing.Unlistable],
    exclude: tuple[str, ...],
    any_suffix: bool = False,
    prefix_keys: bool = False,
) -> Iterator[Source | Container | Ignored | Reject]:
    for file in found:
        key = _key(given, file.relative)
        if isinstance(file, listing.Unlistable):
            yield reject(key, "list", "unreadable", file.detail)
            continue
        why = None if given.single else _why_ignored(file.relative, given, any_suffix)
        if given.kind == "files":
            why = excluded(key, exclude) or why
        if why:
            yield Ignored(key, why)
        elif not file.regular:
            yield reject(key, "list", "not_a_file", "a pipe, socket or device; only regular files are read")
        elif given.kind != "files":
            prefix = os.path.splitext(key.rpartition("/")[2])[0] if prefix_keys else ""
            yield Container(given.kind, key, given.number, file.relative, file.size_bytes, prefix)
        else:
            yield Source(key, given.number, file.relative, file.size_bytes)


class Branch(NamedTuple):
    """Some of the folders directly in an input, or a span of the names there, which are listed apart from the others."""

    given: Input
    parts: tuple[str | Span, ...]


def list_top(given: Input, *options: Any) -> Iterator[Source | Container | Ignored | Reject | Branch]:
    """Yields what lies directly in an input, as `list_input` does, and the folders there, some at a time, or spans of names.

    The first 64 stand alone, then each branch has a sixty-fourth of those before: so many workers have work, however few folders
    there are, and a million are some hundred branches.
    """
    if given.single:
        yield from list_input(given, *options)
        return
    branch: list[str] = []
    num_folders = 0
    for child in listing.split(given.root, given.pattern or "**"):
        if isinstance(child, listing.ListedFile):
            yield from _listed(given, [child], *options)
            continue
        if isinstance(child, Span):
            yield Branch(given, (child,))
            continue
        branch.append(child.relative)
        if len(branch) > num_folders // 64:
            yield Branch(given, tuple(branch))
            num_folders, branch = num_folders + len(branch), []
    if branch:
        yield Branch(given, tuple(branch))


def list_branch(
    branch: Branch, *options: Any, may_split: bool = False
) -> Iterator[Source | Container | Ignored | Reject | Branch]:
    """Yields what lies below the folders of a branch, or in its span, as `list_input` does; `may_split`: or of very many some, and branches."""
    given = branch.given
    spans: list[Span] = []

    def found(part: str | Span) -> Iterator[listing.ListedFile | listing.Unlistable]:
        for one in listing.match_in_spans(given.root, given.pattern or "**", part, may_split=may_split):
            if isinstance(one, Span):
                spans.append(one)
            else:
                yield one

    for part in branch.parts:
        yield from _listed(given, found(part), *options)
    yield from (Branch(given, (span,)) for span in spans)


def excluded(key: str, exclude: tuple[str, ...]) -> str | None:
    """Returns why a key is left out by --exclude, or None."""
    matching = next((pattern for pattern in exclude if fnmatch.fnmatchcase(key, pattern)), None)
    return None if matching is None else EXCLUDED.format(matching)


def list_container(
    container: Container, roots: list[str], columns: Columns, media_root: int | None
) -> Iterator[Source | Ignored | Reject]:
    """Yields everything that a table, or one row group of it, or a tar holds.

    Args:
        container: as listed.
        roots: of the inputs, by number.
        columns: of tables, and members of tars, that say something.
        media_root: number of the root that files which rows name lie below; None: the table's own folder.

    Raises:
        OSError: it cannot be read.
    """
    path = files.join(roots[container.root], container.path)
    if container.kind == "tar":
        yield from tar.list_tar(container, path, columns, MEDIA_SUFFIXES)
        return
    if media_root is None:
        where = table.MediaRoot(path.rpartition("/")[0], container.root, container.path.rpartition("/")[0])
    else:
        where = table.MediaRoot(roots[media_root], media_root)
    yield from table.list_table(container, path, columns, where)


def list_all(inputs: list[Input], config: "PlanConfig") -> Iterator[Source | Ignored | Reject]:
    """Yields everything that all inputs contribute, what tables and tars hold as well, one at a time.

    Raises:
        OSError: an input cannot be listed.
    """
    roots = source_roots(inputs, config)
    media_root = len(inputs) if config.media_root is not None else None
    waiting: list[Container] = []
    for given in inputs:
        for listed in list_input(given, config.exclude, config.any_suffix, config.prefix_keys):
            if isinstance(listed, Container):
                waiting.append(listed)
            else:
                yield listed
    for container in waiting:
        for piece in split_container(container, roots):
            if isinstance(piece, Container):
                yield from list_container(piece, roots, config.columns, media_root)
            else:
                yield piece


def split_container(container: Container, roots: list[str]) -> Iterator[Container | Reject]:
    """Yields a container in the pieces that are listed apart."""
    if container.kind == "tar":
        yield container
    else:
        yield from table.row_groups(container, files.join(roots[container.root], container.path))


def source_roots(inputs: list[Input], config: "PlanConfig") -> list[str]:
    """Returns the folders and URIs that sources' paths are below, by root number: of the inputs, and last --media-root."""
    roots = [given.root for given in inputs]
    if config.media_root is not None:
        roots.append(config.media_root if files.is_uri(config.media_root) else os.path.abspath(config.media_root))
    return roots


def check_containers(inputs: list[Input], config: "PlanConfig") -> None:
    """Checks the first table of each input, and whether the first tar can be read by its places.

    Raises:
        ValueError: columns are missing, it is compressed or cannot be read; or columns are named and no input has any.
        OSError: it cannot be read.
    """
    kinds = {given.kind for given in inputs}
    if config.columns.named and kinds == {"files"}:
        what = next(iter(config.columns.named))
        raise ValueError(
            f"{what}: of no table or tar; the inputs are loose files; name a table or tar, or leave it out"
        )
    for given in inputs:
        if given.kind == "files":
            continue
        first = next((file for file in _files_of(given) if isinstance(file, listing.ListedFile) and file.regular), None)
        if first is None:
            continue
        path = files.join(given.root, first.relative)
        if given.kind == "table":
            table.check_table(path, path, config.columns)
        else:
            with files.open_read(path) as file:
                if tar.is_compressed(file.read(8)):
                    raise ValueError(f"{path}: {tar.GZIP}")


def is_guess(source: Source) -> bool:
    """Returns whether a file was taken though neither its suffix nor its user says that it is media."""
    # only files named by themselves have keys without a folder, and what a table names has no size yet
    return "/" in source.key and source.size_bytes >= 0 and _suffix(source.key) not in MEDIA_SUFFIXES


def source_path(source: Source, roots: list[str]) -> str:
    """Returns where a source is, to be opened by `files`."""
    return files.join(roots[source.root], source.path)


def source_place(source: Source, roots: list[str]) -> str:
    """Returns where a source is, for people: its file, and the place in it or the row that names it."""
    path, part = source_path(source, roots), source.part
    if part.offset >= 0:
        return f"{path} at byte {part.offset}"
    if part.row_group >= 0:
        return f"{path} row group {part.row_group}, row {part.row}"
    return f"{path} of row {part.row}" if part.row >= 0 else path


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


def _files_of(given: Input) -> Iterator[listing.ListedFile | listing.Unlistable]:
    if given.single:
        yield listing.find(given.root, given.pattern)
    elif given.pattern:
        yield from listing.match(given.root, given.pattern)
    else:
        yield from listing.walk(given.root)


def _key(given: Input, relative: str) -> str:
    return printable(f"{given.prefix}/{relative}" if given.prefix else relative)


def _why_ignored(relative: str, given: Input, any_suffix: bool) -> str | None:
    pattern = given.pattern
    parts = relative.split("/")
    # as in shells: a wildcard does not stand for a leading dot, one that is written does
    asked = [component for component in pattern.split("/") if component.startswith(".")]
    for part in parts:
        if part.startswith(".") and not any(fnmatch.fnmatchcase(part, component) for component in asked):
            return HIDDEN
    if pattern or any_suffix:
        return None
    suffix = _suffix(relative)
    due = {"files": MEDIA_SUFFIXES, "table": table.SUFFIXES, "tar": (".tar",)}[given.kind]
    return None if suffix in due else printable(suffix) or NO_SUFFIX


def _suffix(path: str) -> str:
    return os.path.splitext(path.rpartition("/")[2])[1].lower()
