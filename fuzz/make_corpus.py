"""`python fuzz/make_corpus.py`: makes fuzz/corpus, a few small sound files for each target, and the tables of their datasets in fuzz/sound."""

import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE)]

from support.hostile_fuzz import originals
from support.media_files import photo
from targets import ENCODED, LAYOUT, frame, sound_shard

from patchpack.pipeline.report.sizes import SizeCounts
from patchpack.pipeline.stages.records import KeyConflict
from patchpack.pipeline.stages.summary import Chunk, LabelGaps, Listing, ShardPlan, ViewSummary
from patchpack.schemas import read_shard_table

IMAGES = ("jpeg", "jpeg.progressive", "png", "png.palette", "webp", "gif.animated", "bmp", "avif", "tiff.jpeg")
VIDEOS = ("mp4", "mkv", "webm", "avi", "ts", "flv")


def media() -> dict[str, bytes]:
    """Returns the smallest of the mutation tests' originals."""
    found = originals()
    return {name: found[name] for name in (*IMAGES, *VIDEOS)}


def archive() -> bytes:
    """Returns a tar of samples with sidecars, a link, a folder and a long name."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as tar:
        members = {
            "a/0.png": photo((8, 8), "PNG"),
            "a/0.json": b'{"label": "x", "boxes": [[0, 0, 1, 1]]}',
            "a/0.label": b"x",
            "b" * 120: b".",
        }
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, kind in (("l.png", tarfile.SYMTYPE), ("d", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../x"
            tar.addfile(info)
    return data.getvalue().rstrip(b"\0") + bytes(1024)


def tables() -> dict[str, bytes]:
    """Returns a table of each kind, behind the byte that says which."""
    lines = [
        {"path": "a.png", "label": "x", "caption": ["y"], "weight": 1, "boxes": [[0, 0, 1, 1]], "keep": 1, "split": "t"}
    ]
    held = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [{"bytes": b"P5", "path": "a"}], "label": [["x", "y"]], "id": ["k"]}), held)
    return {
        "csv": b'\0path,label,caption,weight,boxes,keep,split\na.png,x,"y,z",0.5,"[0,0,1,1]",k,t\n../b.png,,,,,,\n',
        "tsv": b"\1path\tlabel\na.png\tx\n",
        "jsonl": b"\2" + b"\n".join(json.dumps(line).encode() for line in lines) + b"\n",
        "parquet": b"\3" + held.getvalue().to_pybytes(),
    }


def corpus() -> dict[str, dict[str, bytes]]:
    """Returns the files of each target, by name."""
    with tempfile.TemporaryDirectory() as folder:
        plain, encoded = (sound_shard(layout, Path(folder, layout.codec)) for layout in (LAYOUT, ENCODED))
        listed = json.dumps(read_shard_table(f"{folder}/{LAYOUT.codec}").to_pylist()).encode()
    for name, files in (("plain", plain), ("encoded", encoded)):
        (HERE / "sound" / name).mkdir(parents=True, exist_ok=True)
        for table in ("manifest.json", "shards.parquet"):
            (HERE / "sound" / name / table).write_bytes(files[table])
    shards = [next(files[name] for name in files if name.startswith("sequences/")) for files in (plain, encoded)]
    unsigned = json.loads(plain["manifest.json"])
    del unsigned["manifest_digest"]
    found = media()
    here = Path(__file__).parent.parent / "tests/golden/raw-plain/manifest.json"
    return {
        "image_header": {name: found[name] for name in IMAGES},
        "video_header": {name: found[name] for name in VIDEOS},
        "manifest": {"unsigned": json.dumps(unsigned).encode(), "signed": here.read_bytes()},
        "shard_table": {"parquet": plain["shards.parquet"], "rows": listed},
        "shard": {"plain": shards[0], "encoded": shards[1]},
        "dataset": {"plain": shards[0], "encoded": b"PAR2" + shards[1][4:]},
        "tokens": {"frame": frame()},
        "archive": {"tar": archive()},
        "rows": tables(),
        "plan": {
            "summary": _summary(),
            "listing": Listing(
                {".txt": 1}, KeyConflict("a", ("b", "c")), 1, 0, 100, [7], LabelGaps(1, 0, "", {"x": 1})
            ).to_json(),
        },
    }


def _summary() -> bytes:
    sizes = SizeCounts(1, 0, 0, 0, 0, 0, 0, {4: 1}, {}, {})
    shard, chunk = ShardPlan(0, 0, 0, 0, 1, 1, 3), Chunk(0, 1, 1, 1)
    return ViewSummary(0, 0, 64, sizes, [{3: 1}], [chunk], [shard]).to_json()


def main() -> None:
    """Writes the corpus, and says how large it is."""
    total = 0
    for target, files in corpus().items():
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
            total += len(data)
    print(f"{total} bytes")


if __name__ == "__main__":
    main()
