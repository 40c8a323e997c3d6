"""Builds a small real set without Beam: images, a clip, two rejects, several groups, shards and row kinds."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from PIL import Image

from patchpack.pipeline import names
from patchpack.pipeline.config import BuildConfig
from patchpack.pipeline.report.counted import scan_shards
from patchpack.pipeline.stages import finish, probe, sample, saved
from patchpack.pipeline.stages import list as source
from patchpack.pipeline.stages import write as shards
from patchpack.pipeline.stages.group import group_of
from patchpack.pipeline.stages.labels import with_folder_label
from patchpack.pipeline.stages.records import Example, Ignored, Reference, Reject, Source
from patchpack.pipeline.stages.results import save_group as save_group_results
from patchpack.pipeline.stages.results import save_result
from patchpack.pipeline.stages.summary import Listing
from patchpack.schemas import Layout, read_manifest, read_shard_table, sequence_digest
from patchpack.schemas.manifest import SHARD_TABLE_NAME, SHARD_TABLE_SCHEMA, dataset_digest, table_bytes
from patchpack.schemas.sequence import array_columns
from support.manifests import change_manifest
from support.plans import plan_group, save_group

NUM_GROUPS = 2
NUM_IMAGES = 22
# tubelets of two frames, so that a clip of five repeats one and an image its only one
CONFIG = BuildConfig(
    resolution="side:16-64",
    # so that a sequence holds nothing but the file that will have changed
    resolution_slack=0.0,
    tubelet=(2, 8, 8),
    sequence_length=64,
    max_segments=5,
    clip_frames=5,
    labels="folder",
    group_size=12,
    shard_bytes=80_000,
    workers=1,
)
CLASSES = ("left", "right")
# planned like the others, and another file when its shard is written
CHANGED_KEY = "media/left/04.png"
EMPTY_KEY = "media/right/empty.jpg"


def build_small_set(folder: Path) -> Path:
    """Draws media below a folder and returns the finished dataset made of them."""
    media, output = folder / "media", folder / "set"
    _draw_media(media)
    (output / "_plan").mkdir(parents=True)
    (output / names.classes_name(0)).write_text(json.dumps(CLASSES))
    given = source.parse_input(0, str(media))
    references: list[list[Reference]] = [[] for _ in range(NUM_GROUPS)]
    rejects: set[Reject] = set()
    ignored: Counter[str] = Counter()
    for listed in source.list_input(given, ()):
        for outcome in _outcomes(listed, given.root):
            if isinstance(outcome, Ignored):
                ignored[outcome.why] += 1
            elif isinstance(outcome, Reject):
                rejects.add(outcome)
            else:
                references[group_of(outcome.example.source.key, CONFIG.seed, NUM_GROUPS)].append(outcome)
    sources = {one.example.source.key: one.example.source for group in references for one in group}
    listing = Listing(
        dict(ignored),
        num_inputs=len(sources.keys() | {row.key for row in rejects}),
        num_rejects=len(rejects),
        source_bytes=sum(one.size_bytes for one in sources.values()),
        heads=sorted(one.head for one in sources.values()),
        rejects_in=[0],
    )
    (output / names.listing_name(0)).write_bytes(listing.to_json())
    saved.write_rejects(str(output), 0, 0, sorted(rejects))
    # of it, what finishing reads
    (output / names.PLAN_NAME).write_text(json.dumps({"config": {}, "inputs": [], "totals": {}, "earlier": []}))
    planned = []
    for number in range(NUM_GROUPS):
        group = plan_group(number, references[number], CONFIG, CLASSES)
        save_group(str(output), group)
        planned += group.listed
    (media / "left" / "04.png").write_bytes(b"another file")
    results = [
        shards.write_shard(shard, saved.read_shard_rows(str(output), shard), [given.root], str(output), CONFIG, {})
        for shard in planned
    ]
    for shard, result in zip(planned, results, strict=True):
        save_result(str(output), shard, result)
    for number in range(NUM_GROUPS):
        save_group_results(str(output), (0, number), [result for result in results if result.group == number])
    scan = scan_shards(str(output), [result.table_row() for result in results], CONFIG.balance_step)
    finish.finish(str(output), CONFIG, scan)
    return output


def stored_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns every stored sequence in order as Python values: the slow way to know what a dataset holds."""
    names = pq.read_table(folder / SHARD_TABLE_NAME)["path"].to_pylist()
    return [row for name in names for row in pq.read_table(folder / name).to_pylist()]


def read_rows(path: Path, layout: Layout) -> list[dict[str, Any]]:
    """Returns a shard's rows with their raw columns as arrays that can be changed."""
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        for name, (dtype, shape) in array_columns(layout).items():
            row[name] = np.frombuffer(row[name], dtype).reshape(shape).copy()
    return rows


def rewrite_shard(folder: Path, name: str, rows: list[dict[str, Any]], **own: Any) -> None:
    """Writes changed rows into a shard so that only the change is wrong: digests and tables follow.

    Args:
        folder: of the dataset.
        name: of the shard.
        rows: as `read_rows` gave them; each row's digest is made new.
        own: entries of the shard's own record to replace.
    """
    path = folder / name
    schema = pq.read_schema(path)
    record = json.loads(pq.read_metadata(path).metadata[b"patchpack"]) | own
    for row in rows:
        row["digest"] = sequence_digest(row["tokens"], row["segment_ids"], row["positions"])
    stored = [{key: _stored(value) for key, value in row.items()} for row in rows]
    table = pa.Table.from_pylist(stored, schema=schema.with_metadata({"patchpack": json.dumps(record)}))
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    accept_file(folder, name)


def accept_file(folder: Path, name: str, **row: Any) -> None:
    """Makes the shard table and the manifest agree with a shard's file as it is now, and with other values given."""
    content = (folder / name).read_bytes()
    table = read_shard_table(str(folder)).to_pylist()
    for entry in table:
        if entry["path"] == name:
            entry |= {"digest": xxhash.xxh3_128_hexdigest(content), "bytes": len(content)} | row
    write_shard_table(folder, table)


def write_shard_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the shard table, and the totals that follow from it into the manifest."""
    (folder / SHARD_TABLE_NAME).write_bytes(table_bytes(rows, SHARD_TABLE_SCHEMA))
    manifest = read_manifest(str(folder))
    stored = {name: sum(row[name] for row in rows) for name in ("num_sequences", "num_segments", "num_tokens", "bytes")}
    digest = dataset_digest(manifest.layouts, [row["digest"] for row in rows])
    change_manifest(folder, dataset_digest=digest, stored=stored | {"num_shards": len(rows)})


def _outcomes(listed: Source | Reject | Ignored, root: str) -> list[Reference | Reject | Ignored]:
    if not isinstance(listed, Source):
        return [listed]
    listed = with_folder_label(listed)
    path = source.source_path(listed, [root])
    found = probe.probe(listed, path, CONFIG.clip_rule, CONFIG.max_pixels, seed=CONFIG.seed)
    return [sample.sample(example, 0, CONFIG.policy) if isinstance(example, Example) else example for example in found]


def _draw_media(media: Path) -> None:
    """Draws images of many aspects, a clip, an empty file and a text file into two folders."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (media / name).mkdir(parents=True)
    for number in range(NUM_IMAGES):
        height, width = generator.integers(20, 200, 2).tolist()
        pixels = np.linspace((0, 80, 160), (90, 250, 200), height * width).reshape(height, width, 3)
        Image.fromarray(pixels.astype(np.uint8)).save(media / CLASSES[number % 3 == 0] / f"{number:02}.png")
    (media / "right" / "empty.jpg").touch()
    (media / "right" / "notes.txt").write_text("not an image")
    with av.open(str(media / "left" / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 30 * number, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _stored(value: Any) -> Any:
    return value.tobytes() if isinstance(value, np.ndarray) else value
