"""Tables: each row names a file or, in Parquet, holds one, and says what is known of it.

CSV and TSV have a header; JSONL has an object a line; of Parquet only the columns that are asked for are read, a row
group at a time, and never the images, which are read where they are decoded. Rows that cannot be used become rejects, each
under the row's own number. Files that rows name lie below `root`, which is the table's folder unless --media-root says
another: nothing else is ever read.
"""

import contextlib
import csv
import io
import json
import posixpath
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from patchpack.pipeline.inputs.facts import BadRow, Columns, read_facts, text_of
from patchpack.pipeline.stages.records import Container, Part, Reject, Source, reject
from patchpack.pipeline.storage import files

# names that tables use; the first that is there is taken
PATH_NAMES = (
    *("path", "file_name", "filename", "file", "filepath", "file_path"),
    *("image_path", "video_path", "uri", "url", "image", "video"),
)
IMAGE_NAMES = ("image", "img", "jpg", "png", "webp", "bytes", "image_bytes", "video", "mp4")
ID_NAMES = ("key", "id", "__key__")

# of JSONL, the longest line; of CSV, the longest cell
MAX_LINE_BYTES = 2**24
_KINDS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
SUFFIXES = tuple(_KINDS)


class MediaRoot(NamedTuple):
    """Where the files that rows name lie: below `path`, which is the folder `below` of the root of that number."""

    path: str
    number: int
    below: str = ""


class Read(NamedTuple):
    """How the rows of a table are read: the column of the path and that of the file itself, either of them None."""

    path: str | None
    image: str | None
    id: str | None
    # where the image is a struct of bytes, and of bytes and path, as Hugging Face datasets write it
    is_struct: bool = False
    path_in_image: bool = False


def check_table(path: str, name: str, columns: Columns) -> None:
    """Checks that a table has the columns it needs.

    Raises:
        ValueError: it has not, or cannot be read; the message names what it has.
        OSError: as `files.open_read`.
    """
    with files.open_read(path) as file:
        try:
            with content():
                _choose(_header(file, path), columns)
        except (BadRow, csv.Error, pa.ArrowException) as error:
            raise ValueError(f"{name}: {' '.join(str(error).split())}") from error


def row_groups(container: Container, path: str) -> Iterator[Container | Reject]:
    """Yields a table in the pieces that are listed apart: its row groups, or all of it."""
    try:
        with files.open_read(path) as file, content():
            if _kind(file, path) != "parquet":
                yield container
                return
            count = pq.ParquetFile(file).num_row_groups
    except (pa.ArrowException, ValueError) as error:
        yield reject(container.key, "list", "broken", f"no Parquet file that can be read: {error}")
        return
    for number in range(count):
        yield container._replace(row_group=number)


def list_table(container: Container, path: str, columns: Columns, media_root: MediaRoot) -> Iterator[Source | Reject]:
    """Yields what each row of a table, or of one of its row groups, stands for.

    Args:
        container: the table, as listed.
        path: where it is.
        columns: that say something.
        media_root: of the files that rows name.

    Raises:
        OSError: it cannot be read.
    """
    number = 0
    try:
        with files.open_read(path) as file, content():
            read = _choose(_header(file, path), columns)
            file.seek(0)
            for number, place, row in _rows(file, path, container.row_group, read, columns):
                yield _source(container, number, place, row, read, columns, media_root)
    except BadRow as error:
        yield reject(f"{container.key}#{number}" if number else container.key, "list", "bad_row", error)
    except (pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        yield reject(container.key, "list", "broken", f"the table cannot be read behind row {number}: {error}")


@contextlib.contextmanager
def content() -> Iterator[None]:
    """Reading of a table whose content may be at fault: pyarrow's other errors over that become ArrowInvalid.

    They are OSErrors without a number, where those of storage have one (`files.open_read`), and names that are no text.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise pa.ArrowInvalid(str(error)) from error
    except UnicodeDecodeError as error:
        # a column's name
        raise pa.ArrowInvalid(f"not UTF-8 ({error.reason})") from error


def _header(file: IO[bytes], path: str) -> Mapping[str, pa.DataType | None]:
    """Returns the columns of a table by name, with their types where it is Parquet."""
    kind = _kind(file, path)
    if kind == "parquet":
        schema = pq.ParquetFile(file).schema_arrow
        return {field.name: field.type for field in schema}
    line = file.readline(MAX_LINE_BYTES)
    if not line.strip():
        raise BadRow("an empty table; the first line names the columns")
    if kind == "jsonl":
        return dict.fromkeys(_object(line))
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRow(f"the first line is no UTF-8 ({error.reason}); it names the columns") from error
    return dict.fromkeys(next(csv.reader([text], delimiter=_delimiter(path))))


def _kind(file: IO[bytes], path: str) -> str:
    """Returns what a table is by its name or, where that is silent (`table:NAME`), by how it begins: csv, jsonl or parquet."""
    suffix = posixpath.splitext(path.lower())[1]
    if suffix in _KINDS:
        return _KINDS[suffix]
    start = file.read(4)
    file.seek(0)
    return "parquet" if start == b"PAR1" else "jsonl" if start.removeprefix(BOM_UTF8).startswith(b"{") else "csv"


def _choose(header: Mapping[str, pa.DataType | None], columns: Columns) -> Read:
    has = ", ".join(header) or "none"
    for what, name in columns.named.items():
        if name not in header:
            raise BadRow(f"no column {name} ({what}); it has {has}; correct the name")
    image = columns.image
    if image is None and columns.path is None:
        image = next((name for name in IMAGE_NAMES if _holds_bytes(header.get(name))), None)
    elif image is not None and not _holds_bytes(header[image]):
        raise BadRow(
            f"column {image} (--image-column) holds {header[image] or 'text'}; images are bytes, or a struct of bytes and path; "
            "name one of those, or --path-column"
        )
    path = columns.path
    if path is None and image is None:
        path = next((name for name in PATH_NAMES if name in header), None)
    if path is None and image is None:
        raise BadRow(
            f"no column that names or holds a file; it has {has}; say which with --path-column or --image-column"
        )
    kind = header[image] if image else None
    is_struct = kind is not None and pa.types.is_struct(kind)
    in_image = kind is not None and is_struct and kind.get_field_index("path") >= 0
    id_column = columns.id or next((name for name in ID_NAMES if name in header), None)
    return Read(path, image, id_column, is_struct, in_image)


def _holds_bytes(kind: pa.DataType | None) -> bool:
    if kind is None:
        return False
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _rows(
    file: IO[bytes], path: str, row_group: int, read: Read, columns: Columns
) -> Iterator[tuple[int, int, Mapping[str, object] | BadRow]]:
    """Yields rows with their number in the table, from 1, and in their row group, from 0; or why one cannot be read."""
    kind = _kind(file, path)
    if kind == "parquet":
        yield from _parquet_rows(file, row_group, read, columns)
    elif kind == "jsonl":
        yield from _json_rows(file)
    else:
        yield from _csv_rows(file, _delimiter(path))


def _parquet_rows(
    file: IO[bytes], row_group: int, read: Read, columns: Columns
) -> Iterator[tuple[int, int, Mapping[str, object]]]:
    parquet = pq.ParquetFile(file)
    before = sum(parquet.metadata.row_group(number).num_rows for number in range(row_group))
    names = [name for name in (read.path, read.id, *columns.facts) if name is not None]
    if read.path_in_image:
        names.append(f"{read.image}.path")
    count = parquet.metadata.row_group(row_group).num_rows
    if not names:
        yield from ((before + place + 1, place, {}) for place in range(count))
        return
    place = 0
    for batch in parquet.iter_batches(row_groups=[row_group], columns=sorted(set(names))):
        for row in batch.to_pylist():
            yield before + place + 1, place, row
            place += 1


def _json_rows(file: IO[bytes]) -> Iterator[tuple[int, int, Mapping[str, object] | BadRow]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if not line.strip():
            continue
        try:
            yield number, -1, _object(line)
        except BadRow as error:
            yield number, -1, error


def _object(line: bytes) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"no JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadRow(f"{type(value).__name__}, no JSON object; a line is one")
    return value


def _csv_rows(file: IO[bytes], delimiter: str) -> Iterator[tuple[int, int, Mapping[str, object] | BadRow]]:
    # bytes that are not UTF-8 travel as surrogates, and are refused in the cell that they stand in
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    # the library's own limit, of 128 KiB, is of the process
    csv.field_size_limit(max(MAX_LINE_BYTES, csv.field_size_limit()))
    try:
        reader = csv.reader(text, delimiter=delimiter)
        header = next(reader, [])
        for number, values in enumerate(reader, start=1):
            if not values:
                continue
            if len(values) != len(header):
                yield number, -1, BadRow(f"{len(values)} cells; the header has {len(header)}")
            else:
                yield number, -1, dict(zip(header, values, strict=True))
    finally:
        text.detach()


def csv_rows(path: str) -> Iterator[tuple[int, Mapping[str, object] | BadRow]]:
    """Yields the rows of a CSV file by its header, with their numbers from 1.

    Raises:
        OSError: it cannot be read.
    """
    with files.open_read(path) as file:
        try:
            for number, _, row in _csv_rows(file, _delimiter(path)):
                yield number, row
        except csv.Error as error:
            yield 0, BadRow(f"no CSV file with a header ({error})")


def _delimiter(path: str) -> str:
    return "\t" if path.lower().endswith(".tsv") else ","


def _source(
    container: Container,
    number: int,
    place: int,
    row: Mapping[str, object] | BadRow,
    read: Read,
    columns: Columns,
    media_root: MediaRoot,
) -> Source | Reject:
    """Returns what one row stands for."""
    where = f"{container.key}#{number}"
    try:
        if isinstance(row, BadRow):
            raise row
        named = _named(row, read)
        if named and not read.image:
            below = below_root(named, media_root.path)
            if below is None:
                detail = f"{named}: not below {media_root.path}; what rows name lies there; see --media-root"
                return reject(where, "list", "outside", detail)
            named = below
        name = row.get(read.id) if read.id else None
        key = text_of(name, read.id) if name not in (None, "") else named or where
        facts = read_facts(row, columns)
        if read.image:
            column = f"{read.image}.bytes" if read.is_struct else read.image
            part = Part(row_group=container.row_group, row=place, column=column)
            return Source(container.member_key(key), container.root, container.path, -1, part=part, facts=facts)
        if not named:
            raise BadRow(f"column {read.path}: empty; it names a file")
    except BadRow as error:
        return reject(where, "list", "bad_row", error)
    file = files.join(media_root.below, named)
    return Source(container.member_key(key), media_root.number, file, -1, part=Part(row=number), facts=facts)


def below_root(named: str, root: str) -> str | None:
    """Returns a path or URI relative to a root, or None where it leads out of it."""
    if named.startswith(f"{root.rstrip('/')}/"):
        named = named[len(root.rstrip("/")) + 1 :]
    if named.startswith("/") or files.is_uri(named) or "\0" in named:
        return None
    plain = posixpath.normpath(named)
    return None if plain in (".", "..") or plain.startswith("../") else plain


def _named(row: Mapping[str, object], read: Read) -> str:
    """Returns the path that a row gives, or nothing."""
    value, column = (row.get(read.path), read.path) if read.path else (None, None)
    if read.path_in_image and not read.path:
        image = row.get(read.image or "")
        value, column = (image.get("path") if isinstance(image, dict) else None), f"{read.image}.path"
    return "" if value in (None, "") else text_of(value, column)
