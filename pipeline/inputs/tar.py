"""Tars as WebDataset users write them: media members, and beside them members of the same stem that say what they are.

The archive is indexed once, header by header, and media are later read by their byte range, so it must not be
compressed. A sample is the members of one folder and one stem (up to the first dot of the name): 0001.jpg with
0001.txt, 0001.cls, 0001.json. Costs one seek a member, and the bytes of the sidecars that are asked for.
"""

import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from typing import IO, cast

from patchpack.pipeline.inputs.facts import BadRow, Columns, Facts, read_facts
from patchpack.pipeline.stages.records import Container, Ignored, Part, Reject, Source, reject
from patchpack.pipeline.storage import files

GZIP = "it is compressed, and members are read by their place; gunzip it first"
LINK = "(link in a tar)"
# a sidecar is a label, some captions or a JSON object
MAX_SIDECAR_BYTES = 2**20

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


def is_compressed(start: bytes) -> bool:
    """Returns whether a file that begins so is compressed."""
    return start.startswith(_COMPRESSED)


def list_tar(
    container: Container, path: str, columns: Columns, media_suffixes: frozenset[str]
) -> Iterator[Source | Ignored | Reject]:
    """Yields every member of a tar.

    Args:
        container: the tar, as listed.
        path: where it is.
        columns: members and keys of JSON members that say something.
        media_suffixes: of members that are tried.

    Raises:
        OSError: it cannot be read.
    """
    with files.open_read(path) as file:
        if is_compressed(file.read(8)):
            yield reject(container.key, "list", "unknown_format", GZIP)
            return
        size = file.seek(0, 2)
        file.seek(0)
        media, sidecars = [], defaultdict[str, dict[str, tarfile.TarInfo]](dict)
        damage = ""
        try:
            with tarfile.open(fileobj=cast(IO[bytes], _Bounded(file)), mode="r:") as archive:
                for member in archive:
                    outcome = _outcome(container, member, size, media_suffixes)
                    if isinstance(outcome, str):
                        media.append((outcome, member))
                    elif outcome is not None:
                        yield outcome
                    if member.isreg() and columns.facts:
                        stem, _, suffix = _stem(member.name)
                        sidecars[stem][suffix] = member
                # tarfile takes anything that is no header for the end; that is a block of zeros, or of nothing
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    damage = f"no header at byte {archive.offset}"
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            damage = str(error) or type(error).__name__
        for key, member in media:
            yield _source(container, key, member, file, sidecars.get(_stem(member.name)[0], {}), columns)
        if damage:
            counted = f"; the {len(media)} media before that are taken" if media else ""
            yield reject(container.key, "list", "broken", f"the tar is cut short or damaged: {damage}{counted}")


def _outcome(
    container: Container, member: tarfile.TarInfo, size: int, media_suffixes: frozenset[str]
) -> str | Ignored | Reject | None:
    """Returns the key of a member that is tried, or what becomes of it otherwise; None for folders."""
    key = container.member_key(member.name)
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        return Ignored(key, LINK)
    parts = member.name.split("/")
    suffix = "." + parts[-1].lower().rpartition(".")[2] if "." in parts[-1] else "(no suffix)"
    if member.name.startswith("/") or ".." in parts:
        return reject(key, "list", "outside", "a name that leads out of the tar; members lie in it")
    if any(part.startswith(".") and part not in (".", "") for part in parts):
        return Ignored(key, "(hidden)")
    if suffix not in media_suffixes:
        return Ignored(key, suffix)
    if member.offset_data + member.size > size:
        return reject(key, "list", "broken", f"{member.size} bytes at {member.offset_data}; the tar ends at {size}")
    return key


def _source(
    container: Container,
    key: str,
    member: tarfile.TarInfo,
    file: IO[bytes],
    sidecars: dict[str, tarfile.TarInfo],
    columns: Columns,
) -> Source | Reject:
    facts = Facts()
    if columns.facts:
        try:
            facts = read_facts(_row(file, sidecars, columns), columns)
        except BadRow as error:
            return reject(key, "list", "bad_row", error)
    return Source(key, container.root, container.path, member.size, part=Part(offset=member.offset_data), facts=facts)


def _row(file: IO[bytes], sidecars: dict[str, tarfile.TarInfo], columns: Columns) -> dict[str, object]:
    """Returns what the members beside one say: the keys of its JSON, and the texts of the others, by suffix."""
    row: dict[str, object] = {}
    for suffix in ("json", *columns.facts):
        member = sidecars.get(suffix)
        if member is None:
            continue
        if member.size > MAX_SIDECAR_BYTES:
            raise BadRow(f"member {member.name}: {member.size} bytes; at most {MAX_SIDECAR_BYTES}")
        file.seek(member.offset_data)
        try:
            text = file.read(member.size).decode()
            if suffix != "json":
                row[suffix] = text.strip()
                continue
            value = json.loads(text)
        except ValueError as error:
            raise BadRow(f"member {member.name}: {error}") from error
        if not isinstance(value, dict):
            raise BadRow(f"member {member.name}: {type(value).__name__}, no JSON object")
        row |= value
    return row


def _stem(name: str) -> tuple[str, str, str]:
    """Returns a member's folder and name up to the first dot, the dot, and what follows it."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", dot, suffix.lower()


class _Bounded:
    """A file of which nobody reads much at once: a header that asks for gigabytes is damaged."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_SIDECAR_BYTES:
            raise ValueError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
