"""Stage 7: planned rows to one Parquet shard, row group by row group.

Pixels exist only here: each example is read, decoded, resized and cut straight into its place in the row
group's buffer. An example that fails leaves its bin: the later segments of that sequence move left, nothing is
repacked, and the shard's metadata carries the reject. Memory: one row group, one clip, and the clips that wait
(`shared_clips`).
"""

import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from patchpack.options import output_affecting
from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.execution.sandbox import isolated
from patchpack.pipeline.inputs.opened import open_source
from patchpack.pipeline.inputs.text import tokens_of
from patchpack.pipeline.media import SNIFF_BYTES, DecodeError, kind_of
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.patchify import mean_colour, patchify_layout
from patchpack.pipeline.media.shared_clips import SharedClips
from patchpack.pipeline.media.video import decode as video
from patchpack.pipeline.sampling.dropping import kept_tokens
from patchpack.pipeline.sampling.framing import moved_boxes
from patchpack.pipeline.stages.list import source_path
from patchpack.pipeline.stages.planned import PlannedExample
from patchpack.pipeline.stages.records import Reject, Source, reject
from patchpack.pipeline.stages.summary import ShardPlan
from patchpack.pipeline.storage import files
from patchpack.pipeline.storage.reading import read_input
from patchpack.schemas.geometry import Layout, grid_positions
from patchpack.schemas.manifest import FORMAT_VERSION, Limits, ShardRow, canonical_json, largest_limits
from patchpack.schemas.sequence import Segment, measures, rows_per_group
from patchpack.schemas.shard import ShardRecord, read_metadata
from patchpack.schemas.shard_file import ShardFile


@dataclass(frozen=True, order=True, slots=True)
class ShardResult:
    """What writing a shard gave."""

    path: str
    digest: str
    fingerprint: str
    bytes: int
    group: int
    view: int
    layout: int
    num_sequences: int
    num_segments: int
    num_tokens: int
    limits: Limits = field(default_factory=lambda: largest_limits(()))
    rejects: list[Reject] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """Returns the result as an object of JSON."""
        return dataclasses.asdict(self) | {"rejects": [row._asdict() for row in self.rejects]}

    def table_row(self) -> ShardRow:
        """Returns the row of the shard table."""
        return {
            "path": self.path,
            "digest": self.digest,
            "fingerprint": self.fingerprint,
            "bytes": self.bytes,
            "group": self.group,
            "view": self.view,
            "layout": self.layout,
            "num_sequences": self.num_sequences,
            "num_segments": self.num_segments,
            "num_tokens": self.num_tokens,
            "num_rejects": len(self.rejects),
        }


class FilledSequence(NamedTuple):
    """What one sequence became: its counts, the examples that it lacks, and the seconds that its files, each, and the rest took."""

    num_examples: int
    num_tokens: int
    rejects: list[Reject]
    decodes_s: list[float]
    patchify_s: float


def fingerprint(rows: list[PlannedExample], config: PlanConfig, versions: dict[str, str]) -> str:
    """Returns what a shard's bytes depend on, as 32 hex digits: a shard that has it need not be written again.

    Never paths, times, host, runner or workers.
    """
    identity = {
        "format_version": FORMAT_VERSION,
        "config": output_affecting(config),
        "versions": versions,
        "rows": [
            {name: value for name, value in row._asdict().items() if name not in ("root", "path")} for row in rows
        ],
    }
    return xxhash.xxh3_128_hexdigest(canonical_json(identity))


def write_shard(
    shard: ShardPlan,
    rows: list[PlannedExample],
    roots: list[str],
    folder: str,
    config: PlanConfig,
    versions: dict[str, str],
    retry_rejects: bool = False,
    filled: Callable[[FilledSequence], object] = lambda sequence: None,
    known: ShardResult | None = None,
) -> ShardResult:
    """Writes a shard, unless it is there already, and returns its totals.

    Args:
        shard: which one.
        rows: its planned rows, see `plan.PLAN_SCHEMA`, by sequence and segment.
        roots: where sources are, by root number.
        folder: the output.
        config: of the build.
        versions: of the libraries that decide bytes.
        retry_rejects: whether a finished shard that lacks examples is written anew; otherwise only if their files are back.
        filled: called after each sequence, and so at least once if the shard is written.
        known: what an earlier run has noted of it, if it has.

    Raises:
        OSError: storage failed for good; no shard is left under the name.
    """
    path, expected = files.join(folder, shard.name), fingerprint(rows, config, versions)
    existing = known if _still_holds(known, folder, expected) else _finished(path, shard, expected)
    if existing and not (existing.rejects and (retry_rejects or _are_back(existing.rejects, rows, roots))):
        return existing
    rejects: list[Reject] = []
    files.make_folder(path.rpartition("/")[0])
    with files.writing(path) as file, ShardFile(file, config.layouts[shard.layout]) as written:
        _add_row_groups(written, shard, rows, roots, config, rejects, filled)
        record = written.add_record(
            group=shard.group,
            index=shard.index,
            view=shard.view,
            fingerprint=expected,
            rejects=[row._asdict() for row in rejects],
        )
    return _result(shard, record, written.digest, written.size)


def _still_holds(known: ShardResult | None, folder: str, expected: str) -> bool:
    """Returns whether what was noted of a shard is of the one that is planned, and of the file that is there: its bytes are not read."""
    return (
        known is not None
        and known.fingerprint == expected
        and files.size(files.join(folder, known.path)) == known.bytes
    )


def _finished(path: str, shard: ShardPlan, expected: str) -> ShardResult | None:
    """Returns the result of a shard that an earlier run has finished, or None if it must be written."""
    if not files.exists(path):
        return None
    with files.open_read(path) as file:
        try:
            record = read_metadata(pq.ParquetFile(file), path)
        except (ValueError, pa.ArrowException):
            return None
        except OSError as error:
            # pyarrow reports a broken footer as one without a number; those of the storage have one
            if error.errno is not None:
                raise
            return None
        # shards of before do not say the latter
        if record.get("fingerprint") != expected or "max_grid" not in record["totals"]:
            return None
        file.seek(0)
        digest, size = xxhash.xxh3_128(), 0
        while block := file.read(2**20):
            digest.update(block)
            size += len(block)
    return _result(shard, record, digest.hexdigest(), size)


def _are_back(rejects: list[Reject], rows: list[PlannedExample], roots: list[str]) -> bool:
    """Returns whether a file that could not be read when its shard was written can be now, and is the planned one."""
    missing = {row.key for row in rejects if row.reason in ("not_found", "unreadable")}
    for row in (row for row in rows if row.key in missing):
        try:
            with open_source(row.source, source_path(row.source, roots), whole=False) as file:
                if file.seek(0, io.SEEK_END) == row.size_bytes and file.seek(0) == 0 and file.read(1):
                    return True
        except OSError:
            # as before
            continue
    return False


def _result(shard: ShardPlan, record: ShardRecord, digest: str, size: int) -> ShardResult:
    totals = record["totals"]
    return ShardResult(
        path=shard.name,
        digest=digest,
        fingerprint=record["fingerprint"],
        bytes=size,
        group=shard.group,
        view=shard.view,
        layout=shard.layout,
        num_sequences=totals["num_sequences"],
        num_segments=totals["num_segments"],
        num_tokens=totals["num_tokens"],
        limits=largest_limits([totals]),
        rejects=[Reject(**row) for row in record["rejects"]],
    )


def _add_row_groups(
    written: ShardFile,
    shard: ShardPlan,
    rows: list[PlannedExample],
    roots: list[str],
    config: PlanConfig,
    rejects: list[Reject],
    filled: Callable[[FilledSequence], object],
) -> None:
    """Writes the shard's sequences, one row group at a time; rejects are appended to `rejects`."""
    decodes_s: list[float] = []

    def decode(together: Sequence[PlannedExample]) -> list[np.ndarray]:
        began = time.perf_counter()
        try:
            return decode_examples(together, roots, config, warned)
        finally:
            decodes_s.append(time.perf_counter() - began)

    sequences: list[list[PlannedExample]] = [[] for _ in range(shard.num_sequences)]
    for row in rows:
        sequences[row.sequence].append(row)
    layout = config.layouts[shard.layout]
    size = rows_per_group(layout)
    warned: dict[tuple[str, int], str] = {}
    shared = SharedClips(
        rows,
        decode,
        lambda row: len(row.frame_pts) * row.valid_height * row.valid_width * 3,
        config.decode_cache_bytes,
    )
    for first in range(0, len(sequences), size):
        members = sequences[first : first + size]
        arrays = written.new_arrays(len(members))
        segments = []
        for index, planned in enumerate(members):
            began, num_rejects = time.perf_counter(), len(rejects)
            decodes_s.clear()
            own = list(_fill(planned, _row_of(arrays, index), layout, shared, config, rejects, warned))
            patchify_s = time.perf_counter() - began - sum(decodes_s)
            num_tokens = sum(segment["num_tokens"] for segment in own)
            filled(FilledSequence(len(own), num_tokens, rejects[num_rejects:], [*decodes_s], patchify_s))
            segments.append(own)
        written.add_row_group(arrays, segments)


def _fill(
    planned: list[PlannedExample],
    arrays: dict[str, np.ndarray],
    layout: Layout,
    shared: SharedClips[PlannedExample],
    config: PlanConfig,
    rejects: list[Reject],
    warned: dict[tuple[str, int], str],
) -> Iterator[Segment]:
    """Writes one sequence's examples into its row of the buffers; yields the segments that are there."""
    start = number = text_start = 0
    for row in planned:
        try:
            frames_THWC = shared.frames(row)
        except DecodeError as error:
            rejects.append(reject(row.key, "write", error.reason, error))
            continue
        end = start + row.num_tokens
        number += 1
        frames_THWC = placed(frames_THWC, row, layout)
        if row.num_tokens == row.grid.num_tokens:
            patchify_layout(frames_THWC, layout, arrays["tokens"][start:end])
            arrays["positions"][start:end] = grid_positions(row.grid)
        if layout.keep_order:
            kept, ranks = kept_tokens(row.grid.num_tokens, row.num_tokens, config.seed, row.example_id, row.view)
            arrays["keep_order"][start:end] = ranks
            if row.num_tokens < row.grid.num_tokens:
                arrays["tokens"][start:end] = patchify_layout(frames_THWC, layout)[kept]
                arrays["positions"][start:end] = grid_positions(row.grid)[kept]
        arrays["segment_ids"][start:end] = number
        if row.num_text_tokens:
            text = slice(text_start, text_start + row.num_text_tokens)
            arrays["text_ids"][text] = tokens_of(row.captions[row.caption], config.captions, config.max_text_tokens)
            arrays["text_segment_ids"][text] = number
        yield _segment(row, start, text_start, layout, warned.get((row.example_id, row.view), ""))
        start += layout.slots(row.num_tokens)
        text_start += row.num_text_tokens


def _row_of(arrays: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    return {name: array[index] for name, array in arrays.items()}


def placed(frames_THWC: np.ndarray, row: PlannedExample, layout: Layout) -> np.ndarray:
    """Returns a row's frames as they fill its grid: mirrored where they are to be, the rest of the grid in the mean colour."""
    frames_THWC = frames_THWC[:, :, ::-1] if row.flip else frames_THWC
    height, width = row.grid_h * layout.stride[1], row.grid_w * layout.stride[2]
    if frames_THWC.shape[1:3] == (height, width):
        return np.ascontiguousarray(frames_THWC)
    canvas_THWC = np.empty((len(frames_THWC), height, width, layout.channels), np.uint8)
    canvas_THWC[:] = mean_colour(layout)
    canvas_THWC[:, : row.valid_height, : row.valid_width] = frames_THWC
    return canvas_THWC


def decode_example(row: PlannedExample, roots: list[str], config: PlanConfig) -> np.ndarray:
    """Returns the frames of one planned row at its planned size, (T, H, W, 3) uint8; raises as `decode_examples`."""
    return decode_examples([row], roots, config)[0]


def decode_examples(
    rows: Sequence[PlannedExample],
    roots: list[str],
    config: PlanConfig,
    warned: dict[tuple[str, int], str] | None = None,
) -> list[np.ndarray]:
    """Returns the frames of planned rows of one source, each at its planned size, (T, H, W, 3) uint8.

    What a decoder warned of, where that is kept, is added to `warned` by (example_id, view).

    Raises:
        DecodeError: the content is broken, is not what was probed, or cannot be read.
        OSError: storage failed, retries included.
    """
    first = rows[0]
    source = first.source
    clips = [
        video.ClipTarget(row.frame_pts, row.valid_height, row.valid_width, row.random_access_pts, row.box)
        for row in rows
    ]
    path = source_path(source, roots)
    frames, size, warning = read_input(roots[source.root], isolated, config, _read_frames, source, path, clips, config)
    if size != (first.source_height, first.source_width):
        raise DecodeError("changed", f"{size[0]}x{size[1]} now, {first.source_height}x{first.source_width} when probed")
    if warning and warned is not None:
        warned.update({(row.example_id, row.view): warning for row in rows})
    return list(frames)


def _read_frames(
    source: Source, path: str, clips: list[video.ClipTarget], config: PlanConfig
) -> tuple[list[np.ndarray], tuple[int, int], str]:
    with open_source(source, path) as file:
        size = file.seek(0, io.SEEK_END)
        if size != source.size_bytes:
            raise DecodeError("changed", f"{size} bytes now, {source.size_bytes} when probed")
        file.seek(0)
        if kind_of(file.read(SNIFF_BYTES)) == "video":
            file.seek(0)
            return *video.decode_clips(file, clips, config.max_pixels), ""
        file.seek(0)
        data = file.read()
    # --max-pixels again: the file may be another one of as many bytes
    how = (config.media_backend, config.max_pixels)
    if not clips[0].pts:
        warned: list[str] | None = [] if config.on_decoder_warning == "keep" else None
        target = (clips[0].height, clips[0].width, config.decode_quality)
        frames_THWC, image_size = image.decode(data, *target, *how, warned, clips[0].box)
        return [frames_THWC], image_size, "; ".join(warned or ())
    decoded = [image.decode_animation(data, clip.pts, clip.height, clip.width, *how, clip.box) for clip in clips]
    return [frames_THWC for frames_THWC, _ in decoded], decoded[0][1], ""


def _segment(row: PlannedExample, start: int, text_start: int, layout: Layout, warning: str) -> Segment:
    """Returns the stored record of one segment."""
    frames, down, across = layout.stride
    source, grid = (row.source_height, row.source_width), (row.grid_h * down, row.grid_w * across)
    valid = row.valid_height, row.valid_width
    seconds = [pts * row.time_base_num / row.time_base_den for pts in row.frame_pts]
    num_frames = max(1, len(seconds))
    return {
        "example_id": row.example_id,
        "view": row.view,
        "source": row.key,
        "member": None,
        "labels": list(row.labels),
        "captions": list(row.captions),
        "weight": row.weight,
        "start": start,
        "num_tokens": row.num_tokens,
        "grid_t": row.grid_t,
        "grid_h": row.grid_h,
        "grid_w": row.grid_w,
        "source_height": row.source_height,
        "source_width": row.source_width,
        "target_height": row.target_height,
        "target_width": row.target_width,
        "height": grid[0],
        "width": grid[1],
        "timestamps_s": seconds,
        "clip_start_s": seconds[0] if seconds else None,
        "clip_duration_s": num_frames / row.fps if seconds else None,
        "fps": row.fps if seconds else None,
        "num_frames": num_frames,
        "num_repeated_frames": row.grid_t * frames - (len(set(seconds)) or 1),
        "kept_fraction": row.num_tokens / row.grid.num_tokens,
        "extra": _extra(row, warning),
        "crop_top": row.box_top,
        "crop_left": row.box_left,
        "crop_height": row.box_height,
        "crop_width": row.box_width,
        "valid_height": row.valid_height,
        "valid_width": row.valid_width,
        "flipped": row.flip,
        **measures(row.box[2:], valid),
        "text_start": text_start,
        "num_text_tokens": row.num_text_tokens,
        "caption": row.caption,
        "boxes": [list(box) for box in moved_boxes(row.boxes, source, row.box, valid, grid, row.flip)],
    }


def _extra(row: PlannedExample, warning: str) -> str | None:
    """Returns what else is known of an example, as JSON: of its video, the columns kept, what its decoder warned of."""
    if not warning:
        return row.extra or None
    return canonical_json((json.loads(row.extra) if row.extra else {}) | {"decoder_warning": warning}).decode()
