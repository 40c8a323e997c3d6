"""What `verify` checks in one row: the rules of the format, and those that need the manifest or other rows."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import cast

import xxhash

from patchpack.schemas import Layout, Shard, check_sequence
from patchpack.schemas.geometry import Box, Grid
from patchpack.schemas.sequence import Row, Segment, Sequence, array_columns, measures


class Seen:
    """Which (example, view) and which sources have occurred: 16 bytes each, whatever the names.

    Attributes:
        num_rows: how many rows could be read.
        lengths: by (view, layout), how many examples there are of each number of tokens.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self.lengths: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
        self._examples: set[bytes] = set()
        self._sources: set[bytes] = set()

    @property
    def num_sources(self) -> int:
        """Different keys seen so far."""
        return len(self._sources)

    def add_source(self, key: str) -> None:
        """Notes that an input is accounted for."""
        self._sources.add(xxhash.xxh3_128_digest(key.encode(errors="surrogateescape")))

    def add_example(self, example_id: str, view: int) -> bool:
        """Notes a stored example; returns whether it is the first of its kind."""
        before = len(self._examples)
        self._examples.add(xxhash.xxh3_128_digest(f"{view}\0{example_id}".encode()))
        return len(self._examples) > before


def row_problems(
    shard: Shard, row_index: int, row: Row, classes: tuple[str, ...] | None, view: int, seen: Seen
) -> Iterator[str]:
    """Yields what is wrong with one stored sequence.

    Args:
        shard: it lies in.
        row_index: its row there.
        row: its small columns.
        classes: of the manifest.
        view: of the shard.
        seen: what other rows hold; this row is added.
    """
    where = f"{shard.path} row {row_index}"
    arrays = {name: shard.read_array(name, row_index) for name in array_columns(shard.layout)}
    try:
        check_sequence(cast(Sequence, {**row, **arrays}), shard.layout, where)
    except ValueError as error:
        yield str(error)
    except TypeError as error:
        yield f"{where}: a value is missing ({error}); required columns have no nulls; rebuild this shard"
        return
    seen.num_rows += 1
    for number, segment in enumerate(row["segments"], start=1):
        which = f"{where}, segment {number}, example {segment['example_id']} ({segment['source']})"
        seen.add_source(segment["source"])
        if not seen.add_example(segment["example_id"], segment["view"]):
            yield f"{which}: view {segment['view']} is stored twice; an example lands exactly once; rebuild the dataset"
        for wrong in _segment_problems(segment, shard.layout, classes, view):
            yield f"{which}: {wrong}; rebuild this shard"


def _segment_problems(segment: Segment, layout: Layout, classes: tuple[str, ...] | None, view: int) -> Iterator[str]:
    """Yields what is wrong with a segment's record, as `<what, with the value>; <the rule>`."""
    if segment["view"] != view:
        yield f"view {segment['view']}; the shard is of view {view}"
    frames, height, width = layout.stride
    t, h, w = Grid(segment["grid_t"], segment["grid_h"], segment["grid_w"])
    if (segment["height"], segment["width"]) != (h * height, w * width):
        yield f"{segment['height']}x{segment['width']} px; its grid {h}x{w} makes {h * height}x{w * width}"
    if not (t - 1) * frames < segment["num_frames"] <= t * frames:
        yield f"{segment['num_frames']} frames; its grid holds {(t - 1) * frames + 1} to {t * frames}"
    times = segment["timestamps_s"]
    if times and len(times) != segment["num_frames"]:
        yield f"{len(times)} timestamps; it has {segment['num_frames']} frames"
    if any(later < sooner for sooner, later in itertools.pairwise(times)):
        yield "timestamps go back; frames stand in the order of time"
    yield from _framing_problems(segment)
    kept = segment["num_tokens"] / max(1, t * h * w)
    # stored as float32
    if not math.isclose(segment["kept_fraction"], kept, rel_tol=1e-6):
        yield f"kept_fraction {segment['kept_fraction']:.6f}; {segment['num_tokens']} of {t * h * w} tokens are {kept:.6f}"
    for label in segment["labels"]:
        if classes is None:
            yield f"label {label}; the manifest has no classes"
        elif not 0 <= label < len(classes):
            yield f"label {label}; the manifest has classes 0 to {len(classes) - 1}"


def _framing_problems(segment: Segment) -> Iterator[str]:
    """Yields what is wrong with the part that a segment shows; earlier versions say nothing of it."""
    if "valid_height" not in segment:
        return
    crop = Box(*(segment[f"crop_{name}"] for name in Box._fields))  # type: ignore[literal-required]
    source = segment["source_height"], segment["source_width"]
    if not (
        0 <= crop.top <= crop.top + crop.height <= source[0] and 0 <= crop.left <= crop.left + crop.width <= source[1]
    ):
        yield f"a part at {crop.top},{crop.left} of {crop.height}x{crop.width} px; its source has {source[0]}x{source[1]}"
    valid = segment["valid_height"], segment["valid_width"]
    if not (1 <= valid[0] <= segment["height"] and 1 <= valid[1] <= segment["width"] and min(crop[2:]) >= 1):
        yield f"{valid[0]}x{valid[1]} px of it are an image; it has {segment['height']}x{segment['width']}"
        return
    for name, value in measures(crop[2:], valid).items():
        stored = cast(float, segment[name])  # type: ignore[literal-required]
        if not math.isclose(stored, cast(float, value), rel_tol=1e-5, abs_tol=1e-6):
            yield f"{name} {stored:.6f}; {crop.height}x{crop.width} px as {valid[0]}x{valid[1]} are {value:.6f}"
