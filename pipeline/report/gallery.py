"""A few packed sequences to look at: their examples put back together as thumbnails. `choice` says which, `gallery.html` shows them.

Tokens of the chosen ones are read, and of nothing else. Cost: the small columns and some rows of at most as many shards as sequences are
shown, and where the report has not chosen already, three small columns of every shard.

Size: names are shortened, thumbnails small, and what is over `MAX_BYTES` is left out from the end of each sequence, images first. Ties go to
the lower number, so that equal datasets give equal galleries.
"""

import base64
import html
import io
from collections.abc import Iterable, Iterator
from typing import TypedDict

import numpy as np
from PIL import Image

from patchpack.pipeline.inspection.segment import NamedSegment, captions, frame_times, frames_of, named
from patchpack.pipeline.inspection.sequence import open_listed, read_row
from patchpack.pipeline.report.choice import COLUMNS, Choice
from patchpack.pipeline.report.counted import DEFAULT_SEQUENCES
from patchpack.pipeline.report.text import fitted
from patchpack.schemas import Layout, Manifest, check_sequence, read_shard_table
from patchpack.schemas.figures import WorstAspect
from patchpack.schemas.manifest import ShardRow
from patchpack.schemas.sequence import Sequence
from patchpack.schemas.storage import join

MAX_SEQUENCES = 100
# of the gallery in the page: a few seconds of a slow line, and no more than a mail takes
MAX_BYTES = 3_000_000
# of one sequence: drawn, and listed at all
MAX_DRAWN = 64
MAX_LISTED = 256
MAX_FRAMES = 6
IMAGE_PX = 160
FRAME_PX = 104
THUMBNAIL_PX = 72
# smaller ones are enlarged by the page
LEAST_PX = 64
# more pixels than this in one grid are left to `inspect`
_MAX_GRID_BYTES = 1 << 28
_KEY_COLUMNS = 96
_LINE_COLUMNS = 96
# style and words of the section, and in `gallery.html` the markup of a sequence, an example, a line below it and a frame, each rounded up
_PAGE_BYTES, _SEQUENCE_BYTES, _EXAMPLE_BYTES, _LINE_BYTES, _FRAME_BYTES = 6000, 1000, 450, 40, 300
# of a key, where it may break
_BREAK_BYTES = len("<wbr>")
_QUALITY = 80
# of 0 to 6: half the time of Pillow's own, 4, for 3 % more bytes
_EFFORT = 2


class Frame(TypedDict):
    """A thumbnail as a data: URI, the size to show it at (px), and the time of a clip's frame (s)."""

    image: str
    width: int
    height: int
    time_s: float | None


class Example(TypedDict):
    """An example of a sequence.

    Attributes:
        number: of its segment, from 1.
        start, num_tokens: where it lies in the sequence.
        key: of its source, shortened.
        lines: as `inspect` has them: sizes, grid, share of kept tokens, times, labels, caption.
        grid: rows and columns of tubelets.
        frames: none where only numbers are shown.
    """

    number: int
    start: int
    num_tokens: int
    key: str
    lines: list[str]
    grid: tuple[int, int]
    frames: list[Frame]


class Rest(TypedDict):
    """The examples of a sequence that are not listed: how many, and their tokens."""

    num_examples: int
    num_tokens: int


class GallerySequence(TypedDict):
    """A sequence, and which of CRITERIA chose it."""

    number: int
    chosen_as: str
    num_tokens: int
    num_segments: int
    sequence_length: int
    examples: list[Example]
    rest: Rest


class Gallery(TypedDict):
    """Sequences to show, by criterion, the best of each first."""

    sequences: list[GallerySequence]


def check_num_sequences(num_sequences: int) -> None:
    """Checks --gallery.

    Raises:
        ValueError: it is negative, or more than a page shows.
    """
    if not 0 <= num_sequences <= MAX_SEQUENCES:
        raise ValueError(
            f"--gallery {num_sequences}: not a number of sequences for one page; that is 0 to {MAX_SEQUENCES}; inspect shows any other"
        )


def read_gallery(folder: str, manifest: Manifest, num_sequences: int = DEFAULT_SEQUENCES, seed: int = 0) -> Gallery:
    """Returns a few sequences of a dataset, equal for equal datasets.

    Args:
        folder: where the shards and their table lie.
        manifest: of the dataset.
        num_sequences: how many to show, at most MAX_SEQUENCES; 0 reads nothing.
        seed: of those at random.

    Raises:
        FormatError: a shard is missing or broken.
    """
    choice = Choice(num_sequences)
    for shard in read_shard_table(folder).to_pylist() if num_sequences else []:
        with open_listed(folder, shard) as opened:
            choice.add_shard(opened.read_metadata(list(COLUMNS)), opened.layout.sequence_length)
    return show(folder, manifest, choice, seed)


def show(folder: str, manifest: Manifest, choice: Choice, seed: int = 0) -> Gallery:
    """Returns the sequences that were chosen while the report was made; takes and raises as `read_gallery`."""
    why = dict(choice.chosen(seed))
    shown: dict[int, GallerySequence] = {}
    left = MAX_BYTES - _PAGE_BYTES
    for number, row, layout in _rows(folder, sorted(why)):
        budget = left // (len(why) - len(shown))
        shown[number], cost = _sequence(row, layout, manifest.classes, budget)
        shown[number] |= {"number": number, "chosen_as": why[number]}
        left -= cost
    return {"sequences": [shown[number] for number in why]}


def thumbnails(folder: str, worst: list[WorstAspect]) -> list[Frame]:
    """Returns a thumbnail of the first frame of each of some examples.

    Raises:
        FormatError: a shard is missing or broken.
    """
    places = [(one["sequence"], one["segment"]) for one in worst]
    found: dict[tuple[int, int], Frame] = {}
    for number, row, layout in _rows(folder, sorted({sequence for sequence, _ in places})):
        for place in (place for place in places if place[0] == number):
            found[place] = thumbnail(frames_of(row["segments"][place[1]], row, layout)[0], THUMBNAIL_PX)
    return [found[place] for place in places]


def _rows(folder: str, numbers: list[int]) -> Iterator[tuple[int, Sequence, Layout]]:
    """Yields some sequences, checked, with their numbers, which are ascending, and layouts; opens each shard once."""
    if not numbers:
        return
    table: list[ShardRow] = read_shard_table(folder).to_pylist()
    ends = np.cumsum([shard["num_sequences"] for shard in table], dtype=np.int64)
    shards = np.searchsorted(ends, numbers, side="right")
    for at in np.unique(shards).tolist():
        with open_listed(folder, table[at]) as opened:
            metadata = opened.read_metadata()
            for number in (number for number, shard in zip(numbers, shards, strict=True) if shard == at):
                row_index = number - int(ends[at]) + table[at]["num_sequences"]
                row = read_row(opened, metadata, row_index)
                check_sequence(row, opened.layout, f"{join(folder, table[at]['path'])} row {row_index}")
                yield number, row, opened.layout


def _sequence(
    row: Sequence, layout: Layout, classes: tuple[str, ...] | None, budget: int
) -> tuple[GallerySequence, int]:
    """Returns a sequence whose part of the page takes at most so many bytes, and how many; its number is for the caller to say."""
    cost, examples = _SEQUENCE_BYTES, []
    for number, segment in enumerate(row["segments"][:MAX_LISTED], start=1):
        example = _example(number, named(segment, classes))
        # a key stands in the strip, too
        texts = [example["key"], example["key"], *example["lines"]]
        size = _EXAMPLE_BYTES + sum(_LINE_BYTES + len(html.escape(text).encode()) for text in texts)
        size += _BREAK_BYTES * example["key"].count("/")
        # the other half is for images
        if cost + size > max(budget // 2, _SEQUENCE_BYTES):
            break
        examples.append(example)
        cost += size
    for example, segment in zip(examples[:MAX_DRAWN], row["segments"], strict=False):
        if example["grid"][0] * example["grid"][1] * segment["grid_t"] * layout.token_width > _MAX_GRID_BYTES:
            continue
        frames = _frames(frames_of(segment, row, layout), frame_times(segment, layout))
        size = sum(len(frame["image"]) + _FRAME_BYTES for frame in frames)
        if cost + size > budget:
            break
        example["frames"] = frames
        cost += size
    rest = [segment["num_tokens"] for segment in row["segments"][len(examples) :]]
    return {
        "number": -1,
        "chosen_as": "",
        "num_tokens": row["num_tokens"],
        "num_segments": row["num_segments"],
        "sequence_length": layout.sequence_length,
        "examples": examples,
        "rest": {"num_examples": len(rest), "num_tokens": sum(rest)},
    }, cost


def _example(number: int, segment: NamedSegment) -> Example:
    return {
        "number": number,
        "start": segment["start"],
        "num_tokens": segment["num_tokens"],
        "key": fitted(segment["source"], _KEY_COLUMNS),
        "lines": [fitted(line, _LINE_COLUMNS) for line in captions(segment)],
        "grid": (segment["grid_h"], segment["grid_w"]),
        "frames": [],
    }


def _frames(frames_THWC: np.ndarray, times: Iterable[float | None]) -> list[Frame]:
    """Returns thumbnails of an example: one, or a film strip of a few evenly from first to last."""
    count = len(frames_THWC)
    shown = min(count, MAX_FRAMES)
    places = [place * (count - 1) // max(1, shown - 1) for place in range(shown)]
    times = list(times)
    return [thumbnail(frames_THWC[place], FRAME_PX if count > 1 else IMAGE_PX, times[place]) for place in places]


def thumbnail(frame_HWC: np.ndarray, most_px: int, time_s: float | None = None) -> Frame:
    """Returns a frame as an image of at most so many px a side, and its time, if it has one."""
    image = Image.fromarray(frame_HWC[:, :, 0] if frame_HWC.shape[2] == 1 else frame_HWC)
    image.thumbnail((most_px, most_px), Image.Resampling.LANCZOS)
    larger = max(1.0, LEAST_PX / max(image.size))
    content = io.BytesIO()
    image.convert("RGB").save(content, "WEBP", quality=_QUALITY, method=_EFFORT)
    return {
        "image": f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}",
        "width": max(1, round(image.width * larger)),
        "height": max(1, round(image.height * larger)),
        "time_s": time_s,
    }
