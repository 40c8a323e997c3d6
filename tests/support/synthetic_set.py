"""Writes a small dataset of random tokens with pyarrow and numpy alone: the reader's side of the contract.

It shares no code with the pipeline, so that the trainer's tests do not depend on it.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from patchpack.schemas import Layout, Manifest, sequence_digest, sequence_schema
from patchpack.schemas.manifest import FORMAT_VERSION, SHARD_TABLE_SCHEMA, dataset_digest, table_bytes

SMALL_LAYOUT = Layout(sequence_length=24, max_segments=5, tubelet=(1, 2, 2), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))

Row = dict[str, Any]
TokenMaker = Callable[[np.random.Generator, int, int, int], npt.NDArray[np.uint8]]


def random_tokens(generator: np.random.Generator, length: int, width: int, label: int) -> npt.NDArray[np.uint8]:
    """Returns (N, P) uint8 noise, whatever the label."""
    return generator.integers(0, 256, (length, width), dtype=np.uint8)


def label_tokens(generator: np.random.Generator, length: int, width: int, label: int) -> npt.NDArray[np.uint8]:
    """Returns (N, P) uint8 that shows its label: brightness 60 for 0, 180 for 1, 120 for none, and a little noise."""
    noise = generator.integers(0, 20, (length, width), dtype=np.uint8)
    return noise + np.uint8({-1: 120, 0: 60, 1: 180}[label])


def make_row(
    generator: np.random.Generator, layout: Layout, view: int, num_classes: int, make_tokens: TokenMaker
) -> Row:
    """Returns one sound sequence of random segments as a column -> value mapping; arrays stay arrays.

    One segment in eight has no label, and one in four has lost tokens (its positions have gaps).
    """
    tokens_LP = np.zeros((layout.sequence_length, layout.token_width), np.uint8)
    segment_ids_L = np.zeros(layout.sequence_length, "<i2")
    positions_L3 = np.zeros((layout.sequence_length, 3), "<i2")
    segments: list[Row] = []
    end = 0
    for number in range(1, int(generator.integers(1, layout.max_segments + 1)) + 1):
        grid = tuple(int(n) for n in generator.integers(1, [3, 4, 4]))
        coordinates = [(t, y, x) for t in range(grid[0]) for y in range(grid[1]) for x in range(grid[2])]
        if len(coordinates) > 2 and generator.random() < 0.25:
            coordinates = coordinates[::2]
        if end + len(coordinates) > layout.sequence_length:
            break
        start, end = end, end + len(coordinates)
        label = int(generator.integers(num_classes)) if num_classes and generator.random() > 1 / 8 else -1
        tokens_LP[start:end] = make_tokens(generator, len(coordinates), layout.token_width, label)
        segment_ids_L[start:end] = number
        positions_L3[start:end] = coordinates
        height, width = grid[1] * layout.tubelet[1], grid[2] * layout.tubelet[2]
        segments.append(
            {
                "example_id": f"{int(generator.integers(2**62)):032x}",
                "view": view,
                "source": f"synthetic/{number}.png",
                "labels": [] if label < 0 else [label, 0],
                "captions": ["noise"],
                "weight": 1.0,
                "start": start,
                "num_tokens": end - start,
                "grid_t": grid[0],
                "grid_h": grid[1],
                "grid_w": grid[2],
                "source_height": height,
                "source_width": width,
                "target_height": height,
                "target_width": width,
                "height": height,
                "width": width,
                "timestamps_s": [],
                "num_frames": grid[0] * layout.tubelet[0],
                "num_repeated_frames": 0,
                "kept_fraction": (end - start) / (grid[0] * grid[1] * grid[2]),
                "crop_top": 0,
                "crop_left": 0,
                "crop_height": height,
                "crop_width": width,
                "valid_height": height,
                "valid_width": width,
                "flipped": False,
                "aspect_error": 0.0,
                "scale": 1.0,
                "text_start": 0,
                "num_text_tokens": 0,
                "caption": -1,
                "boxes": [],
            }
        )
    lengths = [segment["num_tokens"] for segment in segments]
    return {
        "tokens": tokens_LP,
        "segment_ids": segment_ids_L,
        "positions": positions_L3,
        "num_tokens": end,
        "num_segments": len(segments),
        "max_segment_tokens": max(lengths),
        "attention_cost": sum(n * n for n in lengths),
        "segments": segments,
        "digest": sequence_digest(tokens_LP, segment_ids_L, positions_L3),
    }


def write_shard(
    path: str, rows: list[Row], layout: Layout, view: int, index: int, fingerprint: str, rows_per_group: int = 2
) -> Row:
    """Writes one shard and returns its row of the shard table."""
    own = {
        "format_version": FORMAT_VERSION,
        "requires": [],
        "layout": layout.to_json(),
        "view": view,
        "group": 0,
        "index": index,
        "fingerprint": xxhash.xxh3_128_hexdigest(f"{fingerprint} {index}".encode()),
        "rejects": [],
        "totals": {"num_sequences": len(rows)},
    }
    schema = sequence_schema(layout).with_metadata({"patchpack": json.dumps(own)})
    stored = [
        {name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in row.items()}
        for row in rows
    ]
    pq.write_table(
        pa.Table.from_pylist(stored, schema=schema),
        path,
        row_group_size=rows_per_group,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
        data_page_size=2**31 - 1,
    )
    with open(path, "rb") as file:
        content = file.read()
    return {
        "path": f"sequences/{os.path.basename(path)}",
        "digest": xxhash.xxh3_128_hexdigest(content),
        "fingerprint": own["fingerprint"],
        "bytes": len(content),
        "group": 0,
        "view": view,
        "num_sequences": len(rows),
        "num_segments": sum(row["num_segments"] for row in rows),
        "num_tokens": sum(row["num_tokens"] for row in rows),
        "num_rejects": 0,
    }


def write_set(
    folder: str,
    *,
    layouts: tuple[Layout, ...] = (SMALL_LAYOUT,),
    rows_per_shard: tuple[int, ...] = (3, 4, 1, 5),
    num_views: int = 1,
    classes: tuple[str, ...] | None = None,
    make_tokens: TokenMaker = random_tokens,
    seed: int = 0,
    fingerprint: str = "0",
    rows_per_group: int = 2,
) -> list[Row]:
    """Writes a finished dataset and returns its rows, in the order that numbers the sequences.

    Args:
        folder: where to; made if it is not there.
        layouts: every layout gets shards of its own.
        rows_per_shard: sequences of each shard of one (layout, view).
        num_views: views of every layout.
        classes: class names, or None for a dataset without labels.
        make_tokens: (generator, N, P, label) -> (N, P) uint8.
        seed: of all that is random.
        fingerprint: what those of the shards are made of.
        rows_per_group: most sequences of a row group.

    Returns:
        One dict a sequence as `make_row` makes it, with `layout` and `view` added.
    """
    os.makedirs(folder, exist_ok=True)
    generator = np.random.default_rng(seed)
    rows: list[Row] = []
    shards: list[Row] = []
    os.makedirs(os.path.join(folder, "sequences"), exist_ok=True)
    for layout_number, layout in enumerate(layouts):
        for view in range(num_views):
            for count in rows_per_shard:
                own = [
                    make_row(generator, layout, view, len(classes) if classes else 0, make_tokens) for _ in range(count)
                ]
                path = os.path.join(folder, f"sequences/part-000-00000-{len(shards):05}.parquet")
                shard = write_shard(path, own, layout, view, len(shards), fingerprint, rows_per_group)
                shards.append(shard | {"layout": layout_number})
                rows += [row | {"layout": layout_number, "view": view} for row in own]
    with open(os.path.join(folder, "shards.parquet"), "wb") as file:
        file.write(table_bytes(shards, SHARD_TABLE_SCHEMA))
    manifest = Manifest(
        dataset_digest=dataset_digest(layouts, [shard["digest"] for shard in shards]),
        layouts=layouts,
        classes=classes,
        totals={"num_sequences": len(rows)},
        bounds=(),
        config={},
    )
    with open(os.path.join(folder, "manifest.json"), "wb") as file:
        file.write(manifest.to_bytes())
    return rows
