"""Makers for the tests of sampling, planning and writing: examples, references, planned rows and their images."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash
from PIL import Image

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.sampling.resolution import Resolution
from patchpack.pipeline.stages.planned import PlannedExample, from_table, plan_table
from patchpack.pipeline.stages.records import Example, Reference, Source
from patchpack.pipeline.stages.sample import Policy
from patchpack.pipeline.stages.summary import ShardPlan
from patchpack.pipeline.stages.write import ShardResult, write_shard
from patchpack.schemas import check_sequence
from patchpack.schemas.geometry import Box, Grid, Layout
from patchpack.schemas.sequence import array_columns
from support.plans import table_of

PICTURE_SIZE = (24, 36)
CONFIG = PlanConfig(tubelet=(1, 4, 4), sequence_length=20, max_segments=4, mean=(0.1, 0.2, 0.3))
VERSIONS = {"numpy": "2"}
Row = dict[str, Any]

# (sequence, name, grid, label): the third sequence has one example, the fourth is full
PLANNED = [
    (0, "a.png", (1, 2, 3), 0),
    (0, "b.jpg", (1, 3, 2), None),
    (0, "c.jpg", (1, 1, 1), 2),
    (1, "d.png", (1, 2, 2), None),
    (1, "e.jpg", (1, 3, 3), 1),
    (2, "f.jpg", (1, 2, 3), None),
    (3, "g.png", (1, 2, 5), None),
    (3, "h.jpg", (1, 5, 2), None),
]


def make_example(key: str, clip: int = 0, height: int = 300, width: int = 200, **more: Any) -> Example:
    """Returns an example as probing would; its source lies under root 0 at its key."""
    source = Source(key, more.pop("root", 0), more.pop("path", key), more.pop("size_bytes", 1000))
    return Example(source, clip, f"{key}#{clip}", height, width, **more)


def make_reference(key: str, grid: tuple[int, int, int] = (1, 1, 1), view: int = 0, clip: int = 0) -> Reference:
    """Returns one view of an example, with the grid it was given."""
    frame_pts = tuple(10**12 * step for step in range(grid[0])) if grid[0] > 1 else ()
    return reference_of(make_example(key, clip, frame_pts=frame_pts, time_base=(1, 600)), grid, view)


def reference_of(example: Example, grid: tuple[int, int, int], view: int = 0, **more: Any) -> Reference:
    """Returns one view of an example that asks for no other size than its grid."""
    box = Box(0, 0, example.source_height, example.source_width)
    given = {"layout": 0, "is_drawn": False, "uncapped_tokens": 0, "box": box, "flip": False}
    cells = Grid(*grid)
    given |= {"num_tokens": cells.num_tokens, "target_height": 48, "target_width": 32}
    return Reference(example=example, view=view, grid=cells, **given | more)


def policy(resolution: str = "native", **more: Any) -> Policy:
    """Returns what samples views of one layout of 16 x 16 px, where nothing else is said."""
    layout = Layout(more.pop("length", 1024), 64, more.pop("tubelet", (1, 16, 16)), **more.pop("cut", {}))
    rule = Resolution.parse(resolution, more.pop("upsample", True), more.pop("fit", "resize"))
    return Policy(**{"layouts": (layout,), "resolution": rule, "cap": 10**4} | more)


def planned_of(example: Example, grid: tuple[int, int, int], config: PlanConfig = CONFIG) -> PlannedExample:
    """Returns an example as planned alone, at a grid."""
    references = table_of([reference_of(example, grid)])
    [row] = from_table(plan_table(references, np.zeros(1, dtype=np.int64), config, None))
    return row


def make_row(sequence: int, key: str, grid: tuple[int, int, int], **more: Any) -> PlannedExample:
    """Returns a planned row, as a plan file holds it; the sizes are those of `write_picture`."""
    row = {
        "sequence": sequence,
        "example_id": xxhash.xxh3_128_hexdigest(key.encode()),
        "view": 0,
        "key": key,
        "clip": 0,
        "root": 0,
        "path": key.encode(),
        "size_bytes": 0,
        "part_offset": -1,
        "part_row_group": -1,
        "part_row": -1,
        "part_column": "",
        "labels": (),
        "captions": (),
        "weight": 1.0,
        "boxes": (),
        "source_height": PICTURE_SIZE[0],
        "source_width": PICTURE_SIZE[1],
        "target_height": 31,
        "target_width": 41,
        "grid_t": grid[0],
        "grid_h": grid[1],
        "grid_w": grid[2],
        "num_tokens": grid[0] * grid[1] * grid[2],
        "box_top": 0,
        "box_left": 0,
        "box_height": PICTURE_SIZE[0],
        "box_width": PICTURE_SIZE[1],
        "valid_height": grid[1] * 4,
        "valid_width": grid[2] * 4,
        "flip": False,
        "caption": -1,
        "num_text_tokens": 0,
        "frame_pts": (),
        "time_base_num": 1,
        "time_base_den": 1,
        "random_access_pts": (),
        "fps": 8.0,
        "extra": "",
    }
    return PlannedExample(**row | more)


def write_picture(path: Path, seed: int, size: tuple[int, int] = PICTURE_SIZE) -> np.ndarray:
    """Draws an image of noise into a file, and returns its pixels, (H, W, 3) uint8."""
    pixels_HWC = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels_HWC).save(path, quality=90)
    return pixels_HWC


def slow_tokens(frames_THWC: np.ndarray, tubelet: tuple[int, int, int]) -> list[list[int]]:
    """Returns the tokens by the words of the format: loops in raster order, the last frame repeated."""
    frames, height, width, channels = frames_THWC.shape
    pt, ph, pw = tubelet
    return [
        [
            int(frames_THWC[min(t + dt, frames - 1), y + dy, x + dx, c])
            for dt in range(pt)
            for dy in range(ph)
            for dx in range(pw)
            for c in range(channels)
        ]
        for t in range(0, frames, pt)
        for y in range(0, height, ph)
        for x in range(0, width, pw)
    ]


class Work:
    """A folder of images and the rows that plan them into one shard."""

    def __init__(self, folder: Path) -> None:
        """Draws the images."""
        self.media, self.output = folder / "media", folder / "out"
        for made in (self.media, self.output):
            made.mkdir(parents=True)
        self.rows: list[PlannedExample] = []
        for number, (sequence, name, grid, label) in enumerate(PLANNED):
            write_picture(self.media / name, number)
            size = (self.media / name).stat().st_size
            self.rows.append(make_row(sequence, name, grid, labels=() if label is None else (label,), size_bytes=size))

    @property
    def path(self) -> Path:
        """Where the shard is written."""
        return self.output / "sequences/part-000-00002-00001.parquet"

    def write(self, config: PlanConfig = CONFIG) -> ShardResult:
        """Writes the shard."""
        plan = ShardPlan(2, 1, 0, 1, 4, len(self.rows), 0)
        return write_shard(plan, self.rows, [str(self.media)], str(self.output), config, VERSIONS)

    def change(self, name: str, **more: Any) -> None:
        """Changes a planned row."""
        self.rows = [row._replace(**more) if row.key == name else row for row in self.rows]

    def row(self, name: str) -> PlannedExample:
        """Returns a planned row."""
        return next(row for row in self.rows if row.key == name)

    def left_over(self) -> list[str]:
        """Returns the names of shards in the output folder."""
        return sorted(f"sequences/{name}" for name in os.listdir(self.output / "sequences"))


def read_rows(path: Path) -> list[Row]:
    """Returns every stored row, as `check_sequence` takes it, read by pyarrow and numpy alone; all are checked."""
    rows = pq.read_table(path).to_pylist()
    for number, row in enumerate(rows):
        for name, (dtype, shape) in array_columns(CONFIG.layouts[0]).items():
            row[name] = np.frombuffer(row[name], dtype).reshape(shape)
        check_sequence(row, CONFIG.layouts[0], f"row {number}")
    return rows
