"""Examples as planning needs them: names and sizes, no pixels; written by a comparison's probing, or read from a saved plan.

Columns, and records only for a group at a time: 130 bytes an image instead of a kilobyte.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchpack.pipeline.inputs.facts import Facts
from patchpack.pipeline.names import PLAN_FOLDER
from patchpack.pipeline.stages import saved
from patchpack.pipeline.stages.records import Example, Source, example_id
from patchpack.pipeline.stages.tables import values
from patchpack.pipeline.storage import files, listing
from patchpack.schemas import storage

Read = TypeVar("Read")

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("clip", pa.int32()),
        ("source_height", pa.int32()),
        ("source_width", pa.int32()),
        # of each view that has frames of its own, otherwise of all; 0 of an image
        ("num_frames", pa.list_(pa.int32())),
        ("captions", pa.list_(pa.string())),
    ]
)
_PLAN_COLUMNS = ["key", "clip", "view", "source_height", "source_width", "frame_pts", "captions"]
_PREFIX = f"{PLAN_FOLDER}/examples-"


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of a comparison, as columns of SCHEMA.

    Attributes:
        keys: (N,) of their sources.
        clips, heights, widths: (N,) int64.
        num_frames: (N,) tuples, or None where all are images.
        captions: (N,) lists, or None where there are none.
        of_plan: whether they come from a saved plan, which keeps none that its sampling rejected.
    """

    keys: list[str]
    clips: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64]
    num_frames: list[tuple[int, ...]] | None = None
    captions: list[list[str]] | None = None
    of_plan: bool = False

    @property
    def has_clips(self) -> bool:
        """Whether any of them is a clip."""
        return self.num_frames is not None

    def take(self, places: npt.NDArray[np.int64]) -> Iterator[Example]:
        """Yields the examples at some places, as probing gives them, but for times, files and labels."""
        columns = (column[places].tolist() for column in (self.clips, self.heights, self.widths))
        for at, clip, height, width in zip(places.tolist(), *columns, strict=True):
            source = Source(self.keys[at], 0, "", 0)
            if self.captions:
                source = source._replace(facts=Facts(captions=tuple(self.captions[at])))
            counts = self.num_frames[at] if self.num_frames else (0,)
            yield Example(
                source,
                clip,
                example_id(source.key, clip),
                height,
                width,
                frame_pts=_frames(counts[0]),
                views=tuple((_frames(count), (), 0.0) for count in counts) if len(counts) > 1 else (),
            )

    @classmethod
    def of_table(cls, table: pa.Table, of_plan: bool = False) -> "Examples":
        """Returns the examples of a table of SCHEMA."""
        clips, heights, widths = (
            table[name].to_numpy().astype(np.int64) for name in ("clip", "source_height", "source_width")
        )
        frames = [tuple(counts) for counts in table["num_frames"].to_pylist()]
        captions = table["captions"]
        return cls(
            table["key"].to_pylist(),
            clips,
            heights,
            widths,
            num_frames=frames if any(map(any, frames)) else None,
            captions=captions.to_pylist() if pc.sum(pc.list_value_length(captions)).as_py() else None,
            of_plan=of_plan,
        )


def write_examples(folder: str, number: int, examples: pa.Table) -> None:
    """Writes a part of the examples, rows of `tables.EXAMPLE_SCHEMA`, below a folder, whole or not at all."""
    counts = [
        _counts([len(view["pts"]) for view in views] or [len(pts)])
        for views, pts in zip(*(values(examples, name) for name in ("views", "frame_pts")), strict=True)
    ]
    columns = {name: examples[name] for name in SCHEMA.names if name != "num_frames"} | {"num_frames": counts}
    table = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    with files.writing(files.join(folder, f"{_PREFIX}{number:05}.parquet")) as file:
        pq.write_table(table, pa.PythonFile(file, mode="w"), compression="zstd")


def _counts(of_views: list[int]) -> list[int]:
    """Returns the frames of each view, or of all where they are equal."""
    return of_views if len(set(of_views)) > 1 else of_views[:1]


def read_probed(folder: str) -> Examples:
    """Returns the examples that `write_examples` wrote below a folder."""
    tables = [SCHEMA.empty_table()]
    for name in listing.names(files.join(folder, PLAN_FOLDER)):
        path = f"{PLAN_FOLDER}/{name}"
        if path.startswith(_PREFIX):
            with files.open_read(files.join(folder, path)) as file:
                tables.append(pq.read_table(file))
    return Examples.of_table(pa.concat_tables(tables))


def read_planned(folder: str, most: int | None = None) -> Examples:
    """Returns the examples of the plan below an output folder; one is a row for each of its views there.

    Args:
        folder: the output.
        most: of its groups as many as hold so many examples, and these evenly drawn from them; None for all.

    Raises:
        FormatError: the plan was damaged.
    """
    found: dict[tuple[str, int], list[object]] = {}
    frames: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    last = ""
    for name, table in _read_plan(folder, lambda plan: plan.read(_PLAN_COLUMNS).select(_PLAN_COLUMNS)):
        # its views are a file each
        group, before = name.rpartition("-")[0], last
        if most is not None and len(found) >= most and group != before:
            break
        last = group
        keys, clips, views, heights, widths, _, captions = (table[name].to_pylist() for name in _PLAN_COLUMNS)
        counts = pc.list_value_length(table["frame_pts"]).to_pylist()
        for key, clip, view, height, width, count, texts in zip(
            keys, clips, views, heights, widths, counts, captions, strict=True
        ):
            found.setdefault((key, clip), [height, width, texts])
            frames[key, clip][view] = count
    step = 1 if most is None else -(-len(found) // most)
    rows = []
    for (key, clip), (height, width, texts) in islice(found.items(), 0, None, step or 1):
        of_views = frames[key, clip]
        first, *others = of_views.values()
        # a view that was rejected has no row; it is taken to be as long as the first that has one
        views = range(max(of_views) + 1 if any(count != first for count in others) else 1)
        counts = [of_views.get(view, first) for view in views]
        rows.append((key, clip, height, width, counts, texts))
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return Examples.of_table(pa.table(arrays, schema=SCHEMA), of_plan=True)


def read_heads(folder: str) -> list[int]:
    """Returns the heads that the plan below an output folder kept, ascending.

    Raises:
        FormatError: the plan was damaged.
    """
    return saved.read_listing(folder, read=storage.read_bytes).heads


def _read_plan(folder: str, read: Callable[[pq.ParquetFile], Read]) -> Iterator[tuple[str, Read]]:
    """Yields the name and what is read of each plan file; by what reads datasets: one may lie in a store where Beam is not installed."""
    for name in saved.plan_names(folder, read=storage.read_bytes):
        path = storage.join(folder, name)
        with storage.open_file(path) as file, saved.intact(path):
            found = read(pq.ParquetFile(file))
        yield name, found


@lru_cache(maxsize=4096)
def _frames(count: int) -> tuple[int, ...]:
    """Returns so many frames; how many is all that planning asks."""
    return tuple(range(count))
