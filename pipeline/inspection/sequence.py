"""One sequence of a dataset: its record in words, and its segments put back together as images.

Reads the shard that holds it and nothing else.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple, TextIO, TypedDict

import numpy as np
import pyarrow as pa
from PIL import Image

from patchpack.pipeline.inspection.image import SegmentImage, compose
from patchpack.pipeline.inspection.segment import NamedSegment, captions, details, frames_of, named
from patchpack.pipeline.report.text import WIDTH, fitted, fraction
from patchpack.schemas import FormatError, Layout, Manifest, Shard, check_sequence, read_manifest, read_shard_table
from patchpack.schemas.manifest import SHARD_TABLE_NAME, ShardRow
from patchpack.schemas.sequence import Sequence, array_columns, raw_arrays, sequence_digest
from patchpack.schemas.storage import join


class _Sequence(NamedTuple):
    """One stored row, and where it lies."""

    shard: ShardRow
    row_index: int
    num_sequences: int
    layout: Layout
    manifest: Manifest
    row: Sequence


class Description(TypedDict):
    """Everything that is stored about a sequence but its tokens."""

    sequence: int
    num_sequences: int
    shard: str
    row: int
    group: int
    view: int
    layout: int
    sequence_length: int
    max_segments: int
    num_tokens: int
    num_segments: int
    max_segment_tokens: int
    attention_cost: int
    fill: float
    digest: str
    digest_ok: bool
    problem: str | None
    segments: list[NamedSegment]


def check_image_name(path: str) -> None:
    """Checks that Pillow knows how to write an image of this name.

    Raises:
        ValueError: it does not, or the path is that of a folder.
    """
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isdir(path):
        raise ValueError(f"--image {path}: a folder; the image is one file; name a file in it, such as sequence.png")
    if Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise ValueError(
            f"--image {path}: no image format of this suffix; the suffix says which to write; use .png, .jpg or .webp"
        )


def describe(folder: str, number: int) -> Description:
    """Returns everything that is stored about a sequence but its tokens, as JSON values.

    Args:
        folder: of the dataset.
        number: in the order of the shard table, from 0.

    Raises:
        ValueError: there is no such sequence.
        FormatError: the dataset or the shard is broken.
    """
    located = _read(folder, number)
    row, shard = located.row, located.shard
    digest = sequence_digest(*raw_arrays(row, located.layout))
    try:
        check_sequence(row, located.layout, f"{join(folder, shard['path'])} row {located.row_index}")
        problem = None
    except FormatError as error:
        problem = str(error)
    return {
        "sequence": number,
        "num_sequences": located.num_sequences,
        "shard": shard["path"],
        "row": located.row_index,
        "group": shard["group"],
        "view": shard["view"],
        "layout": shard["layout"],
        "sequence_length": located.layout.sequence_length,
        "max_segments": located.layout.max_segments,
        "num_tokens": row["num_tokens"],
        "num_segments": row["num_segments"],
        "max_segment_tokens": row["max_segment_tokens"],
        "attention_cost": row["attention_cost"],
        "fill": row["num_tokens"] / located.layout.sequence_length,
        "digest": f"{row['digest']:016x}",
        "digest_ok": digest == row["digest"],
        "problem": problem,
        "segments": [named(segment, located.manifest.classes) for segment in row["segments"]],
    }


def print_description(description: Description, out: TextIO) -> None:
    """Prints what `describe` returned: two lines a segment, in at most 80 columns."""
    d = description
    out.write(f"sequence {d['sequence']} of {d['num_sequences']:,}: {d['shard']} row {d['row']}\n")
    out.write(f"  group {d['group']}, view {d['view']}, layout {d['layout']}\n")
    out.write(f"  {d['num_tokens']:,} of {d['sequence_length']:,} tokens ({fraction(d['fill'])}), ")
    out.write(f"{d['num_segments']} of at most {d['max_segments']} segments\n")
    out.write(f"  longest segment {d['max_segment_tokens']:,} tokens, attention cost {d['attention_cost']:,}\n")
    out.write(f"  digest {d['digest']} {'is right' if d['digest_ok'] else 'DOES NOT MATCH what is stored'}\n")
    if d["problem"]:
        out.write(f"problem: {d['problem']}\n")
    for number, segment in enumerate(d["segments"], start=1):
        encoding = out.encoding or "utf-8"
        text = f"{number:>3}  {fitted(segment['source'], WIDTH - 5)}"
        out.write("\n" + text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        for line in details(segment):
            out.write(f"     {fitted(line, WIDTH - 5)}".encode(encoding, "backslashreplace").decode(encoding) + "\n")


def draw(folder: str, number: int) -> Image.Image:
    """Returns an image of a sequence: how it is filled, and every segment put back together, clips as filmstrips.

    Raises:
        ValueError: there is no such sequence.
        FormatError: the dataset or the shard is broken.
    """
    located = _read(folder, number)
    where = f"{join(folder, located.shard['path'])} row {located.row_index}"
    check_sequence(located.row, located.layout, where)
    segments = located.row["segments"]
    images = [
        SegmentImage(
            frames=frames_of(segment, located.row, located.layout),
            captions=(segment["source"], *captions(named(segment, located.manifest.classes))),
        )
        for segment in segments
    ]
    length = located.layout.sequence_length
    title = (
        f"sequence {number}: {located.shard['path']} row {located.row_index}, {len(segments)} segments, "
        f"{located.row['num_tokens']:,} of {length:,} tokens ({fraction(located.row['num_tokens'] / length)})"
    )
    return compose(title, images, [(segment["start"], segment["num_tokens"]) for segment in segments], length)


def _read(folder: str, number: int) -> _Sequence:
    manifest, table = read_manifest(folder), read_shard_table(folder).to_pylist()
    ends = np.cumsum([shard["num_sequences"] for shard in table], dtype=np.int64)
    total = int(ends[-1]) if table else 0
    if not 0 <= number < total:
        rule = (
            f"0 to {total - 1}; choose one of them" if total else "so there is nothing to show; build a dataset first"
        )
        raise ValueError(f"sequence {number}: out of range; {folder} has {total:,} sequences, {rule}")
    index = int(np.searchsorted(ends, number, side="right"))
    shard = table[index]
    row_index = number - int(ends[index]) + shard["num_sequences"]
    with open_listed(folder, shard) as opened:
        row = read_row(opened, opened.read_metadata(), row_index)
    return _Sequence(shard, row_index, total, opened.layout, manifest, row)


@contextlib.contextmanager
def open_listed(folder: str, shard: ShardRow) -> Iterator[Shard]:
    """Opens a shard of the table.

    Raises:
        FormatError: it is missing or broken, or has other sequences than the table says; also for what fails while it is open.
    """
    path = join(folder, shard["path"])
    try:
        with Shard(path) as opened:
            if opened.num_sequences != shard["num_sequences"]:
                raise FormatError(
                    f"{path}: {opened.num_sequences} sequences; {SHARD_TABLE_NAME} says {shard['num_sequences']}; rebuild this shard"
                )
            yield opened
    except FileNotFoundError as error:
        raise FormatError(
            f"{path}: no such file; {SHARD_TABLE_NAME} lists it; write it again with build --resume"
        ) from error
    except (pa.ArrowException, KeyError) as error:
        raise FormatError(f"{path}: cannot be read ({error}); the shard is broken; rebuild it") from error


def read_row(opened: Shard, metadata: pa.Table, row_index: int) -> Sequence:
    """Returns one row of an open shard, whose small columns were read."""
    row: Sequence = metadata.slice(row_index, 1).to_pylist()[0] | {
        name: opened.read_array(name, row_index) for name in array_columns(opened.layout)
    }
    return row
