"""One example as the plan holds it: where it goes, where its source is, and at which size; to Arrow and back."""

import json
import os
from typing import NamedTuple

import pyarrow as pa

from patchpack.pipeline.sampling.framing import Framing
from patchpack.pipeline.stages.records import Part, Reference, Source
from patchpack.schemas.geometry import Box, Grid

PLAN_SCHEMA = pa.schema(
    [
        ("sequence", pa.int32()),
        ("example_id", pa.string()),
        ("view", pa.int32()),
        ("key", pa.string()),
        ("clip", pa.int32()),
        ("root", pa.int32()),
        ("path", pa.binary()),
        ("size_bytes", pa.int64()),
        ("part_offset", pa.int64()),
        ("part_row_group", pa.int32()),
        ("part_row", pa.int32()),
        ("part_column", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("captions", pa.list_(pa.string())),
        ("weight", pa.float32()),
        ("boxes", pa.list_(pa.list_(pa.float32()))),
        ("source_height", pa.int32()),
        ("source_width", pa.int32()),
        ("target_height", pa.int32()),
        ("target_width", pa.int32()),
        ("grid_t", pa.int32()),
        ("grid_h", pa.int32()),
        ("grid_w", pa.int32()),
        ("num_tokens", pa.int32()),
        ("box_top", pa.int32()),
        ("box_left", pa.int32()),
        ("box_height", pa.int32()),
        ("box_width", pa.int32()),
        ("valid_height", pa.int32()),
        ("valid_width", pa.int32()),
        ("flip", pa.bool_()),
        ("caption", pa.int32()),
        ("num_text_tokens", pa.int32()),
        ("frame_pts", pa.list_(pa.int64())),
        ("time_base_num", pa.int32()),
        ("time_base_den", pa.int32()),
        ("random_access_pts", pa.list_(pa.int64())),
        ("fps", pa.float64()),
        ("extra", pa.string()),
    ]
)


class PlannedExample(NamedTuple):
    """A row of the plan; the columns of PLAN_SCHEMA.

    `path` is below the root of that number, in the file system's bytes. Presentation times are in units of
    `time_base_num / time_base_den` seconds, and empty for an image. `labels` are numbers of classes. `boxes` are
    (x0, y0, x1, y1) in fractions of the upright source.
    `num_tokens` of the grid's are kept. The box is the part of the source that is taken; it is resized to `valid_height` x
    `valid_width` px at the grid's corner, and mirrored where it is to `flip`. `caption` is the number of the one that is packed.
    """

    sequence: int
    example_id: str
    view: int
    key: str
    clip: int
    root: int
    path: bytes
    size_bytes: int
    part_offset: int
    part_row_group: int
    part_row: int
    part_column: str
    labels: tuple[int, ...]
    captions: tuple[str, ...]
    weight: float
    boxes: tuple[tuple[float, float, float, float], ...]
    source_height: int
    source_width: int
    target_height: int
    target_width: int
    grid_t: int
    grid_h: int
    grid_w: int
    num_tokens: int
    box_top: int
    box_left: int
    box_height: int
    box_width: int
    valid_height: int
    valid_width: int
    flip: bool
    caption: int
    num_text_tokens: int
    frame_pts: tuple[int, ...]
    time_base_num: int
    time_base_den: int
    random_access_pts: tuple[int, ...]
    fps: float
    extra: str

    @classmethod
    def of(
        cls, reference: Reference, framing: Framing, sequence: int, class_numbers: dict[str, int] | None
    ) -> "PlannedExample":
        """Returns the row of a reference that was packed into a sequence of its shard."""
        example, source = reference.example, reference.example.source
        facts, part = source.facts, source.part
        numbers = {} if class_numbers is None else class_numbers
        names = facts.labels if class_numbers is not None else ()
        return cls(
            sequence=sequence,
            example_id=example.example_id,
            view=reference.view,
            key=source.key,
            clip=example.clip,
            root=source.root,
            path=os.fsencode(source.path),
            size_bytes=source.size_bytes,
            part_offset=part.offset,
            part_row_group=part.row_group,
            part_row=part.row,
            part_column=part.column,
            labels=tuple(numbers[name] for name in names if name in numbers),
            captions=facts.captions,
            weight=facts.weight,
            boxes=facts.boxes,
            source_height=example.source_height,
            source_width=example.source_width,
            target_height=reference.target_height,
            target_width=reference.target_width,
            grid_t=reference.grid.t,
            grid_h=reference.grid.h,
            grid_w=reference.grid.w,
            num_tokens=reference.num_tokens,
            box_top=framing.box.top,
            box_left=framing.box.left,
            box_height=framing.box.height,
            box_width=framing.box.width,
            valid_height=framing.valid_height,
            valid_width=framing.valid_width,
            flip=reference.flip,
            caption=reference.caption,
            num_text_tokens=reference.num_text_tokens,
            frame_pts=example.frame_pts,
            time_base_num=example.time_base[0],
            time_base_den=example.time_base[1],
            random_access_pts=example.random_access_pts,
            fps=example.fps,
            extra=_joined(example.extra, facts.extra),
        )

    @property
    def source(self) -> Source:
        """The file that it comes from."""
        part = Part(self.part_offset, self.part_row_group, self.part_row, self.part_column)
        return Source(self.key, self.root, os.fsdecode(self.path), self.size_bytes, part=part)

    @property
    def grid(self) -> Grid:
        """Tubelets along time, height and width."""
        return Grid(self.grid_t, self.grid_h, self.grid_w)

    @property
    def box(self) -> Box:
        """The part of the source that is taken."""
        return Box(self.box_top, self.box_left, self.box_height, self.box_width)


def to_table(rows: list[PlannedExample]) -> pa.Table:
    """Returns rows as a table of PLAN_SCHEMA."""
    return pa.Table.from_pylist([row._asdict() for row in rows], schema=PLAN_SCHEMA)


def from_table(table: pa.Table) -> list[PlannedExample]:
    """Returns the rows of a table of PLAN_SCHEMA.

    Raises:
        KeyError: it lacks a column.
    """
    rows = table.select(PLAN_SCHEMA.names).to_pylist()
    return [
        PlannedExample(
            **row
            | {name: tuple(row[name]) for name in ("frame_pts", "random_access_pts", "labels", "captions")}
            | {"boxes": tuple(map(tuple, row["boxes"]))}
        )
        for row in rows
    ]


def _joined(*texts: str) -> str:
    """Returns objects of JSON as one."""
    objects = [json.loads(text) for text in texts if text]
    return (
        json.dumps({name: one[name] for one in objects for name in one}, sort_keys=True, separators=(",", ":"))
        if objects
        else ""
    )
