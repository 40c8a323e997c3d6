"""One example as the plan holds it: where it goes, where its source is, and at which size; to Arrow and back."""

import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.stages.records import Part, Source
from patchpack.pipeline.stages.tables import REFERENCE_SCHEMA, values
from patchpack.schemas.geometry import Box, Grid

# columns whose values are others than the reference's, or which it has not
_OWN = {
    "sequence": pa.int32(),
    "labels": pa.list_(pa.int32()),
    "weight": pa.float32(),
    "boxes": pa.list_(pa.list_(pa.float32())),
    "valid_height": pa.int32(),
    "valid_width": pa.int32(),
}


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


PLAN_SCHEMA = pa.schema(
    [(name, _OWN[name] if name in _OWN else REFERENCE_SCHEMA.field(name).type) for name in PlannedExample._fields]
)


def plan_table(
    references: pa.Table, sequences_M: npt.NDArray[np.int64], config: PlanConfig, class_numbers: dict[str, int] | None
) -> pa.Table:
    """Returns the rows of one shard, a table of PLAN_SCHEMA.

    Args:
        references: M rows of `tables.REFERENCE_SCHEMA` at their planned sizes, in stored order.
        sequences_M: the sequence of each in its shard, (M,).
        config: of the build.
        class_numbers: of the names of labels, or None where there are none.
    """
    columns = {name: references[name] for name in PLAN_SCHEMA.names if name in references.column_names}
    columns |= _framing(references, config)
    columns["sequence"] = pa.array(sequences_M.astype(np.int32))
    numbers = {} if class_numbers is None else class_numbers
    # those that are no class are refused, once all of them are known
    columns["labels"] = [
        [numbers[name] for name in names if name in numbers] if class_numbers is not None else []
        for names in values(references, "labels")
    ]
    return pa.table(
        [
            columns[field.name].cast(field.type)
            if isinstance(columns[field.name], pa.ChunkedArray | pa.Array)
            else pa.array(columns[field.name], field.type)
            for field in PLAN_SCHEMA
        ],
        schema=PLAN_SCHEMA,
    )


def _framing(references: pa.Table, config: PlanConfig) -> dict[str, Any]:
    """Returns the columns that say which part of its source an example shows, and at which size."""
    layouts = np.array([layout.stride for layout in config.layouts])[references["layout"].to_numpy()]
    height, width = (references[name].to_numpy() * layouts[:, at] for name, at in (("grid_h", 1), ("grid_w", 2)))
    if config.fit == "resize":
        return {"valid_height": pa.array(height), "valid_width": pa.array(width)}
    names = [f"box_{side}" for side in Box._fields]
    boxes = zip(*(references[name].to_pylist() for name in names), strict=True)
    framings = [
        config.framing(Box(*box), *size, is_shrunk=uncapped > 0)
        for box, uncapped, *size in zip(
            boxes, references["uncapped_tokens"].to_pylist(), height.tolist(), width.tolist(), strict=True
        )
    ]
    columns: dict[str, Any] = {name: [framing.box[at] for framing in framings] for at, name in enumerate(names)}
    columns["valid_height"] = [framing.valid_height for framing in framings]
    columns["valid_width"] = [framing.valid_width for framing in framings]
    return columns


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
