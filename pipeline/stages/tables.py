"""Records as tables: what crosses a shuffle, and what files of probed examples hold.

A column of a thousand sizes is one array, where records would be a thousand pickles with the names of their classes: 40
bytes an example instead of 600, and no object of Python where a stage only hands rows on.
"""

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from patchpack.pipeline.inputs.facts import Facts
from patchpack.pipeline.stages.records import Example, Part, Reference, Source

SOURCE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("root", pa.int32()),
        ("path", pa.binary()),
        ("size_bytes", pa.int64()),
        ("part_offset", pa.int64()),
        ("part_row_group", pa.int32()),
        ("part_row", pa.int32()),
        ("part_column", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("captions", pa.list_(pa.string())),
        ("weight", pa.float64()),
        ("boxes", pa.list_(pa.list_(pa.float64()))),
        ("extra", pa.string()),
        ("split", pa.string()),
    ]
)
# of records.LabelRow
LABEL_SCHEMA = pa.schema([("key", pa.string()), ("number", pa.int64()), ("label", pa.string())])
_VIEW = pa.struct([("pts", pa.list_(pa.int64())), ("entries", pa.list_(pa.int64())), ("fps", pa.float64())])
# of an example as probed; `extra` is that of its source and its own
EXAMPLE_SCHEMA = pa.schema(
    [
        *SOURCE_SCHEMA,
        ("digest", pa.string()),
        ("head", pa.uint64()),
        ("clip", pa.int32()),
        ("example_id", pa.string()),
        ("source_height", pa.int32()),
        ("source_width", pa.int32()),
        ("frame_pts", pa.list_(pa.int64())),
        ("time_base_num", pa.int32()),
        ("time_base_den", pa.int32()),
        ("random_access_pts", pa.list_(pa.int64())),
        ("fps", pa.float64()),
        ("views", pa.list_(_VIEW)),
    ]
)
_OF_REFERENCE = [
    ("view", pa.int32()),
    ("layout", pa.int32()),
    ("target_height", pa.int32()),
    ("target_width", pa.int32()),
    ("grid_t", pa.int32()),
    ("grid_h", pa.int32()),
    ("grid_w", pa.int32()),
    ("num_tokens", pa.int32()),
    ("is_drawn", pa.bool_()),
    ("uncapped_tokens", pa.int32()),
    ("box_top", pa.int32()),
    ("box_left", pa.int32()),
    ("box_height", pa.int32()),
    ("box_width", pa.int32()),
    ("flip", pa.bool_()),
    ("caption", pa.int32()),
    ("num_text_tokens", pa.int32()),
]
_NOT_OF_REFERENCE = frozenset({"split", "digest", "head", "views"})
REFERENCE_SCHEMA = pa.schema(
    [*(field for field in EXAMPLE_SCHEMA if field.name not in _NOT_OF_REFERENCE), *_OF_REFERENCE]
)


def source_table(sources: Sequence[Source]) -> pa.Table:
    """Returns sources as rows of SOURCE_SCHEMA; digests and heads are none of them."""
    facts, parts = [source.facts for source in sources], [source.part for source in sources]
    return _table(
        SOURCE_SCHEMA,
        key=[source.key for source in sources],
        root=[source.root for source in sources],
        path=[os.fsencode(source.path) for source in sources],
        size_bytes=[source.size_bytes for source in sources],
        part_offset=[part.offset for part in parts],
        part_row_group=[part.row_group for part in parts],
        part_row=[part.row for part in parts],
        part_column=[part.column for part in parts],
        labels=[each.labels for each in facts],
        captions=[each.captions for each in facts],
        weight=[each.weight for each in facts],
        boxes=[each.boxes for each in facts],
        extra=[each.extra for each in facts],
        split=[each.split for each in facts],
    )


def sources_of(table: pa.Table) -> list[Source]:
    """Returns the sources of a table of SOURCE_SCHEMA."""
    names = ("key", "root", "path", "size_bytes")
    parts = zip(
        *(values(table, name) for name in ("part_offset", "part_row_group", "part_row", "part_column")), strict=True
    )
    columns = [values(table, name) for name in names]
    return [
        Source(key, root, os.fsdecode(path), size_bytes, part=Part(*part), facts=facts)
        for key, root, path, size_bytes, part, facts in zip(*columns, parts, _facts(table), strict=True)
    ]


def example_table(examples: Sequence[Example]) -> pa.Table:
    """Returns examples as rows of EXAMPLE_SCHEMA."""
    sources = [example.source for example in examples]
    table = source_table(sources)
    return _table(
        EXAMPLE_SCHEMA,
        **{name: table[name] for name in SOURCE_SCHEMA.names if name != "extra"},
        extra=[_joined(example.extra, example.source.facts.extra) for example in examples],
        digest=[source.digest for source in sources],
        head=[source.head for source in sources],
        clip=[example.clip for example in examples],
        example_id=[example.example_id for example in examples],
        source_height=[example.source_height for example in examples],
        source_width=[example.source_width for example in examples],
        **_timing(examples),
        views=[[dict(zip(("pts", "entries", "fps"), view, strict=True)) for view in one.views] for one in examples],
    )


def examples_of(table: pa.Table) -> list[Example]:
    """Returns the examples of a table of EXAMPLE_SCHEMA as sampling needs them: without their files, labels and boxes."""
    names = ("key", "captions", "clip", "example_id", "source_height", "source_width")
    timing = ("frame_pts", "time_base_num", "time_base_den", "random_access_pts", "fps", "views")
    if not any(map(_is_long, (table["frame_pts"], table["views"]))):
        # images, as nearly always
        return [
            Example(Source(key, 0, "", 0, facts=_of_captions(captions)), *rest)
            for key, captions, *rest in zip(*(values(table, name) for name in names), strict=True)
        ]
    return [
        Example(
            Source(key, 0, "", 0, facts=_of_captions(captions)),
            clip,
            name,
            height,
            width,
            tuple(pts),
            (numerator, denominator),
            tuple(entries),
            fps,
            views=tuple((tuple(view["pts"]), tuple(view["entries"]), view["fps"]) for view in views),
        )
        for key, captions, clip, name, height, width, pts, numerator, denominator, entries, fps, views in zip(
            *(values(table, name) for name in (*names, *timing)), strict=True
        )
    ]


def reference_table(examples: pa.Table, places: Sequence[int], references: Sequence[Reference]) -> pa.Table:
    """Returns references as rows of REFERENCE_SCHEMA.

    Args:
        examples: table of EXAMPLE_SCHEMA.
        places: the row of each reference's example there.
        references: with the frames of their views.
    """
    taken = examples.take(pa.array(places, pa.int64()))
    kept: dict[str, Any] = {name: taken[name] for name in EXAMPLE_SCHEMA.names if name not in _NOT_OF_REFERENCE}
    of_views = [reference.example for reference in references]
    if any(example.frame_pts for example in of_views):
        kept |= _timing(of_views)
    boxes, grids = [reference.box for reference in references], [reference.grid for reference in references]
    said = {
        name: [getattr(reference, name) for reference in references]
        for name, _ in _OF_REFERENCE
        if not name.startswith(("grid_", "box_"))
    }
    for number, name in enumerate(("grid_t", "grid_h", "grid_w")):
        said[name] = [grid[number] for grid in grids]
    for number, name in enumerate(("box_top", "box_left", "box_height", "box_width")):
        said[name] = [box[number] for box in boxes]
    return _table(REFERENCE_SCHEMA, **kept, **said)


def values(table: pa.Table, name: str) -> list[Any]:
    """Returns a column as a list; of lists that are all empty quickly, as most are."""
    column = table[name]
    if pa.types.is_list(column.type) and not _is_long(column):
        return [()] * len(column)
    listed: list[Any] = column.to_pylist()
    return listed


def _table(schema: pa.Schema, **columns: Any) -> pa.Table:
    return pa.table(
        {
            field.name: columns[field.name]
            if isinstance(columns[field.name], pa.ChunkedArray)
            else _array(columns[field.name], field.type)
            for field in schema
        },
        schema=schema,
    )


def _array(items: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind) and not any(items):
        # a hundredth of the time that Arrow takes to look into each
        return pa.ListArray.from_arrays(
            pa.repeat(pa.scalar(0, pa.int32()), len(items) + 1), pa.array([], kind.value_type)
        )
    return pa.array(items, kind)


def _is_long(column: pa.ChunkedArray) -> bool:
    """Returns whether any list of a column has an item."""
    return any(len(chunk.flatten()) for chunk in column.chunks)


def _facts(table: pa.Table) -> Iterable[Facts]:
    names = ("labels", "captions", "weight", "boxes", "extra", "split")
    for labels, captions, weight, boxes, extra, split in zip(*(values(table, name) for name in names), strict=True):
        x0y0x1y1 = tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes)
        yield Facts(tuple(labels), tuple(captions), weight, x0y0x1y1, extra, split)


def _timing(examples: Sequence[Example]) -> dict[str, list[Any]]:
    return {
        "frame_pts": [example.frame_pts for example in examples],
        "time_base_num": [example.time_base[0] for example in examples],
        "time_base_den": [example.time_base[1] for example in examples],
        "random_access_pts": [example.random_access_pts for example in examples],
        "fps": [example.fps for example in examples],
    }


_NO_FACTS = Facts()


def _of_captions(captions: list[str]) -> Facts:
    return Facts(captions=tuple(captions)) if captions else _NO_FACTS


def _joined(*texts: str) -> str:
    """Returns objects of JSON as one."""
    if not any(texts):
        return ""
    objects = [json.loads(text) for text in texts if text]
    return json.dumps({name: one[name] for one in objects for name in one}, sort_keys=True, separators=(",", ":"))
