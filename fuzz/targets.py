"""What is fuzzed: readers of what others hand over, each a function of bytes that ends, or raises the one error that it promises.

A target is called with anything at all. What a reader may raise is caught here; whatever else comes out of it is a find, and so is memory
or time without bound, which libFuzzer watches (`run.sh`). Files go to a folder of memory. Nothing here needs atheris: `tests/test_fuzz.py`
replays the corpus and every find of before.
"""

import atexit
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

import patchpack
from patchpack.pipeline.inputs import table, tar
from patchpack.pipeline.inputs.facts import Columns
from patchpack.pipeline.inputs.opened import open_source
from patchpack.pipeline.media import SNIFF_BYTES, DecodeError, kind_of
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.video.clips import clip_times
from patchpack.pipeline.media.video.decode import decode_clip
from patchpack.pipeline.media.video.timeline import probe
from patchpack.pipeline.recipes import recipe_of
from patchpack.pipeline.stages import saved
from patchpack.pipeline.stages.list import MEDIA_SUFFIXES
from patchpack.pipeline.stages.records import REASONS, Container, Reject, Source
from patchpack.schemas import Dataset, FormatError, Layout, Shard, read_manifest, read_shard_table
from patchpack.schemas.codec import decode, encode
from patchpack.schemas.manifest import MANIFEST_NAME, SHARD_TABLE_NAME, dataset_digest, table_bytes

# a shard of this layout is what is mutated, and its dataset is what the tables are put beside
LAYOUT = Layout(16, 4, (1, 2, 2), channels=3)
ENCODED = Layout(16, 4, (1, 2, 2), channels=3, codec="gradient-zstd")
MAX_PIXELS = 2_000_000
# at most so much of a file is decoded, so that a run makes many tries a second
_SIDE = 16

# manifest and table of the datasets of which the corpus has the shards
SOUND = Path(__file__).parent / "sound"

_FOLDER = Path(tempfile.mkdtemp(prefix="patchpack-fuzz-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
_COLUMNS = Columns(label="label", captions=("caption",), weight="weight", boxes="boxes", keep=("keep",), split="split")
_SUFFIXES = ("csv", "tsv", "jsonl", "parquet", "table")


def image_header(data: bytes) -> None:
    """Size, orientation and timing of an image."""
    try:
        image.probe(io.BytesIO(data), MAX_PIXELS)
        image.turn(io.BytesIO(data))
        image.probe_animation(io.BytesIO(data), MAX_PIXELS)
    except DecodeError as error:
        REASONS[error.reason]


def video_header(data: bytes) -> None:
    """Frames and times of a video."""
    try:
        header = probe(io.BytesIO(data), MAX_PIXELS)
        clip_times(header, 0, 1, 4, 4.0)
    except DecodeError as error:
        REASONS[error.reason]


def pixels(data: bytes) -> None:
    """Pixels of whatever the first bytes say that it is."""
    try:
        if kind_of(data[:SNIFF_BYTES]) == "image":
            image.probe(io.BytesIO(data), MAX_PIXELS)
            image.decode(data, _SIDE, _SIDE, max_pixels=MAX_PIXELS)
        elif kind_of(data[:SNIFF_BYTES]) == "video":
            header = probe(io.BytesIO(data), MAX_PIXELS)
            times = clip_times(header, 0, 1, 4, 4.0)
            points = header.random_access_points_for(times)
            decode_clip(io.BytesIO(data), times, _SIDE, _SIDE, points, MAX_PIXELS)
    except DecodeError as error:
        REASONS[error.reason]


def manifest(data: bytes) -> None:
    """A manifest, and the recipe made of it; half of them without a digest of their own, so that content is looked at."""
    put(MANIFEST_NAME, data)
    try:
        recipe_of(read_manifest(str(_FOLDER)))
    except FormatError as error:
        _is_line(error)


def shard_table(data: bytes) -> None:
    """A shard table, as a Parquet file or as rows of JSON, and the dataset that it makes of a sound manifest."""
    try:
        put(SHARD_TABLE_NAME, data if data.startswith(b"PAR1") else _as_table(json.loads(data)))
    except (ArithmeticError, AttributeError, RecursionError, TypeError, ValueError, pa.ArrowException):
        return
    try:
        rows = read_shard_table(str(_FOLDER))
        _put_manifest([LAYOUT, ENCODED], rows["digest"].to_pylist())
        Dataset(str(_FOLDER)).sizes()
    except FormatError as error:
        _is_line(error)


def shard(data: bytes) -> None:
    """A shard alone: its footer, its small columns, and every sequence."""
    path = put("shard.parquet", data)
    try:
        with Shard(path) as opened:
            opened.read_metadata()
            opened.column_bytes()
            for row in range(min(opened.num_sequences, 4)):
                opened.places(row)
                for name in ("tokens", "segment_ids", "positions"):
                    opened.read_array(name, row)
    except FormatError as error:
        _is_line(error)


def dataset(data: bytes) -> None:
    """A shard as the trainer reads it, under the table of a sound one: without looking at digests, which find all that is changed."""
    os.makedirs(_FOLDER / "set/sequences", exist_ok=True)
    for path in (SOUND / ("encoded" if data.startswith(b"PAR2") else "plain")).iterdir():
        (_FOLDER / "set" / path.name).write_bytes(path.read_bytes())
    (_FOLDER / "set/sequences/part-000-00000-00000.parquet").write_bytes(b"PAR1" + data[4:])
    try:
        found = Dataset(str(_FOLDER / "set"), verify=False)
        for number in range(len(found)):
            found[number]
        found.sources([0])
        found.find("a")
    except FormatError as error:
        _is_line(error)


def tokens(data: bytes) -> None:
    """A frame of encoded tokens."""
    out = np.empty((ENCODED.sequence_length, ENCODED.token_width), np.uint8)
    try:
        decode(data, ENCODED, out, "row")
    except FormatError as error:
        _is_line(error)


def archive(data: bytes) -> None:
    """A tar: what it lists, and reading what it lists."""
    path = put("a.tar", data)
    container = Container("tar", "a.tar", 0, "a.tar", len(data))
    for listed in tar.list_tar(container, path, _COLUMNS, MEDIA_SUFFIXES):
        _read(listed, path)


def rows(data: bytes) -> None:
    """A table of the kind that the first byte says: its columns, its rows, and the files that they hold."""
    name = f"t.{_SUFFIXES[data[0] % len(_SUFFIXES)]}" if data else "t.csv"
    path = put(name, data[1:])
    for columns in (Columns(), Columns(label="label"), _COLUMNS):
        try:
            table.check_table(path, path, columns)
        except ValueError as error:
            _is_line(error)
            if type(error) is not ValueError:
                raise
        for piece in table.row_groups(Container("table", name, 0, name, len(data)), path):
            if isinstance(piece, Container):
                for listed in table.list_table(piece, path, columns, table.MediaRoot(str(_FOLDER), 0)):
                    _read(listed, path)


def plan(data: bytes) -> None:
    """The summary of a saved plan, and the record of what was listed."""
    for read in (saved.ViewSummary.from_json, saved.Listing.from_json):
        try:
            with saved.intact("plan"):
                read(data)
        except FormatError as error:
            _is_line(error)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "image_header": image_header,
    "video_header": video_header,
    "pixels": pixels,
    "manifest": manifest,
    "shard_table": shard_table,
    "shard": shard,
    "dataset": dataset,
    "tokens": tokens,
    "archive": archive,
    "rows": rows,
    "plan": plan,
}


def put(name: str, data: bytes) -> str:
    """Returns the path of a file of this content and name."""
    path = _FOLDER / name
    path.write_bytes(data)
    return str(path)


def sound_shard(layout: Layout, folder: Path) -> dict[str, bytes]:
    """Returns the files of a dataset of three sequences, by name."""
    with patchpack.ShardWriter(folder, layout) as writer:
        for number, count in enumerate((3, 16, 7)):
            block = np.arange(count * layout.token_width, dtype=np.uint8).reshape(count, -1)
            writer.add(block, (1, 1, count), key=f"k/{number}")
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def frame() -> bytes:
    """Returns the tokens of a sound sequence, encoded."""
    size = ENCODED.sequence_length, ENCODED.token_width
    return encode(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size), ENCODED)


def _as_table(found: object) -> bytes:
    found = found if isinstance(found, list) else [found]
    table = pa.Table.from_pylist(found)
    return table_bytes(found, table.schema)


def _put_manifest(layouts: list[Layout], digests: list[str]) -> None:
    data = json.loads((SOUND / "plain" / MANIFEST_NAME).read_bytes())
    del data["manifest_digest"]
    data |= {
        "requires": ["codec"],
        "layouts": [layout.to_json() for layout in layouts],
        "limits": data["limits"] * len(layouts),
        "dataset_digest": dataset_digest(layouts, digests),
    }
    put(MANIFEST_NAME, json.dumps(data).encode())


def _read(listed: object, path: str) -> None:
    """Reads what was listed, and looks at what was rejected."""
    if isinstance(listed, Reject):
        REASONS[listed.reason]
        if "\n" in listed.detail:
            raise AssertionError(f"a reject of two lines: {listed.detail!r}")
    elif isinstance(listed, Source) and (listed.part.offset >= 0 or listed.part.column):
        try:
            with open_source(listed, path) as file:
                file.read(1024)
        except DecodeError as error:
            REASONS[error.reason]
    elif isinstance(listed, Source) and ".." in listed.path.split("/"):
        raise AssertionError(f"a source outside: {listed.path!r}")


def _is_line(error: ValueError) -> None:
    if "\n" in str(error):
        raise AssertionError(f"an error of two lines: {str(error)!r}")
