"""Tokens of one's own in, the same shards out: packed, written, reported, without media and without Beam.

Examples are buffered, packed a group at a time and written at once, so memory is one group. The same examples in the same
order, with the same arguments, give the same bytes.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import NamedTuple

import numpy as np
import xxhash

from patchpack.pipeline.names import shard_name
from patchpack.pipeline.packing import pack
from patchpack.pipeline.packing.proof import prove
from patchpack.pipeline.packing.streaming import num_in_whole_bins
from patchpack.pipeline.report.counted import scan_shards
from patchpack.pipeline.sampling.draws import shuffled
from patchpack.pipeline.stages.finish import publish, write_rejects
from patchpack.pipeline.stages.packed import even_runs
from patchpack.pipeline.stages.records import example_id
from patchpack.pipeline.storage import files, listing
from patchpack.schemas.geometry import Grid, Layout, ceil_div, grid_positions
from patchpack.schemas.manifest import (
    FORMAT_VERSION,
    SHARD_TABLE_NAME,
    SHARD_TABLE_SCHEMA,
    Manifest,
    ShardRow,
    canonical_json,
    dataset_digest,
    largest_limits,
    table_bytes,
)
from patchpack.schemas.report import Bound, Report
from patchpack.schemas.sequence import Segment, rows_per_group, sequence_digest
from patchpack.schemas.shard_file import ShardFile

_GROUP_BYTES = 2**30


class _Example(NamedTuple):
    """One example that waits to be packed; its segment says `start` once it is."""

    tokens_NP: np.ndarray
    positions_N3: np.ndarray
    segment: Segment


class ShardWriter:
    """Writes a dataset out of tokens, an example at a time; a context, whose end writes what is left and the manifest.

    An exception inside the context leaves the dataset without a manifest, and so unfinished.

    Attributes:
        report: of the finished dataset, as in report.json; None before.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        layout: Layout,
        *,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        group_size: int = 16_384,
        shard_bytes: int = 256_000_000,
    ) -> None:
        """Makes the output folder.

        Args:
            output: an empty folder, or one that is not there yet.
            layout: of the sequences. A token of `layout.token_width` values may be anything: for tokens that are no pixels,
                `Layout(1024, 64, (1, 1, 1), channels=width, token_dtype="float32")`.
            classes: names by label number.
            seed: of the packing and of the order of the sequences.
            group_size: most examples packed together; a group also ends at 1 GiB of tokens.
            shard_bytes: aim for shards of at most this many bytes.

        Raises:
            ValueError: the output is not empty, or a number is below 1.
        """
        self._folder, self._layout = os.fspath(output), layout
        self._classes = None if classes is None else tuple(classes)
        self._seed, self._group_size, self._shard_bytes = seed, group_size, shard_bytes
        for name, value in (("group_size", group_size), ("shard_bytes", shard_bytes)):
            if value < 1:
                raise ValueError(f"{name} {value}: nothing fits; the least is 1; leave it out for the default")
        files.make_folder(self._folder)
        if names := listing.names(self._folder):
            raise ValueError(
                f"{self._folder}: not empty ({len(names)} entries); a dataset starts in an empty folder; choose another"
            )
        self._pending: list[_Example] = []
        self._pending_bytes = 0
        self._shards: list[ShardRow] = []
        self._lengths: Counter[int] = Counter()
        self._limits = largest_limits(())
        self._chunks: list[tuple[int, int]] = []
        self._keys: set[bytes] = set()
        self.report: Report | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()

    def add(
        self,
        tokens_NP: np.ndarray,
        grid: tuple[int, int, int],
        *,
        key: str,
        positions_N3: np.ndarray | None = None,
        labels: Sequence[int] = (),
        captions: Sequence[str] = (),
        weight: float = 1.0,
        extra: str | None = None,
    ) -> None:
        """Adds one example.

        Args:
            tokens_NP: (N, P) of the layout's dtype, in raster order (t, y, x) of the grid.
            grid: tokens along (time, height, width); (1, 1, N) for a plain run.
            key: its name, unique in the dataset.
            positions_N3: (N, 3) of the tokens that are there, where some of the grid's were dropped; rising in raster order.
            labels: class numbers.
            captions: texts that belong to it.
            weight: of the example, for the trainer.
            extra: JSON of one's own.

        Raises:
            ValueError: naming the example, what is wrong with it, and the rule.
        """
        cells = Grid(*grid)
        where = f"example {key}"
        if self.report is not None:
            raise ValueError(
                f"{where}: the dataset is finished; its manifest is written; add every example before the end"
            )
        self._check_tokens(tokens_NP, cells, positions_N3, where)
        for label in labels:
            if self._classes is None or not 0 <= label < len(self._classes):
                count = 0 if self._classes is None else len(self._classes)
                raise ValueError(f"{where}: label {label}; there are {count} classes; name them with classes=[...]")
        name = xxhash.xxh3_128_digest(key.encode())
        if name in self._keys:
            raise ValueError(f"{where}: added twice; keys are unique; give each example its own")
        self._keys.add(name)
        self._pending.append(
            _Example(
                # the caller may write into its array again
                tokens_NP.copy(),
                grid_positions(cells) if positions_N3 is None else np.array(positions_N3, np.int16),
                self._segment(key, cells, len(tokens_NP), labels, captions, weight, extra),
            )
        )
        self._pending_bytes += tokens_NP.nbytes
        if len(self._pending) >= self._group_size or self._pending_bytes >= _GROUP_BYTES:
            self._write_group(last=False)

    def finish(self) -> Report:
        """Writes what is left, the tables, the report and the manifest, and returns the report."""
        if self.report is None:
            self._write_group(last=True)
            bound = prove(self._lengths, self._layout, self._chunks)
            files.write(files.join(self._folder, SHARD_TABLE_NAME), table_bytes(self._shards, SHARD_TABLE_SCHEMA))
            scan = scan_shards(self._folder, self._shards, None)
            self.report = publish(
                self._folder, self._manifest(bound.entry), [bound], write_rejects(self._folder, []), scan
            )
        return self.report

    def _check_tokens(self, tokens_NP: np.ndarray, grid: Grid, positions_N3: np.ndarray | None, where: str) -> None:
        layout, count = self._layout, len(tokens_NP)
        if tokens_NP.shape != (count, layout.token_width) or tokens_NP.dtype != np.dtype(layout.token_dtype):
            raise ValueError(
                f"{where}: {tokens_NP.dtype} {tokens_NP.shape}; the layout takes {layout.token_dtype} (N, {layout.token_width}); "
                "convert the tokens, or change the layout"
            )
        most = layout.sequence_length // layout.align_tokens * layout.align_tokens
        if not 1 <= count <= most:
            raise ValueError(
                f"{where}: {count} tokens; an example has 1 to {most}, since it lies in one sequence; "
                "cut it, or raise sequence_length"
            )
        if positions_N3 is None:
            if count != grid.num_tokens or min(grid) < 1:
                raise ValueError(
                    f"{where}: {count} tokens on grid {tuple(grid)}, which holds {grid.num_tokens}; they are equal unless "
                    "positions_N3 says which are there; correct the grid"
                )
            return
        positions = np.asarray(positions_N3)
        inside = positions.shape == (count, 3) and bool(((positions >= 0) & (positions < np.array(grid))).all())
        if not inside or (np.diff(np.ravel_multi_index(positions.T.astype(np.int64), grid)) <= 0).any():
            raise ValueError(
                f"{where}: positions_N3 of shape {positions.shape} are no rising cells of grid {tuple(grid)}; each token has one, "
                "in raster order (t, y, x); sort them"
            )

    def _segment(
        self,
        key: str,
        grid: Grid,
        num_tokens: int,
        labels: Sequence[int],
        captions: Sequence[str],
        weight: float,
        extra: str | None,
    ) -> Segment:
        frames, height, width = self._layout.stride
        height, width = grid.h * height, grid.w * width
        return {
            "example_id": example_id(key, 0),
            "view": 0,
            "source": key,
            "member": None,
            "labels": list(labels),
            "captions": list(captions),
            "weight": weight,
            "start": 0,
            "num_tokens": num_tokens,
            "grid_t": grid.t,
            "grid_h": grid.h,
            "grid_w": grid.w,
            "source_height": height,
            "source_width": width,
            "target_height": height,
            "target_width": width,
            "height": height,
            "width": width,
            "timestamps_s": [],
            "clip_start_s": None,
            "clip_duration_s": None,
            "fps": None,
            "num_frames": grid.t * frames,
            "num_repeated_frames": 0,
            "kept_fraction": num_tokens / grid.num_tokens,
            "extra": extra,
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

    def _write_group(self, *, last: bool) -> None:
        """Packs what waits, and writes it as shards of its own; before the last, what would half fill a sequence waits on."""
        capacity, limit = self._layout.sequence_length, self._layout.max_segments
        lengths = [self._layout.slots(len(example.tokens_NP)) for example in self._pending]
        num_packed = len(lengths) if last else num_in_whole_bins(lengths, capacity, limit)
        examples, self._pending = self._pending[:num_packed], self._pending[num_packed:]
        self._pending_bytes = sum(example.tokens_NP.nbytes for example in self._pending)
        if not examples:
            return
        lengths = lengths[:num_packed]
        packing = pack(lengths, capacity, max_segments=limit, seed=self._seed)
        bins = [[examples[number] for number in of_bin] for of_bin in packing.members()]
        group = len(self._chunks)
        self._lengths.update(lengths)
        self._chunks.append((packing.num_bins, packing.bound))
        bins = [bins[number] for number in shuffled(len(bins), self._seed, "bins", group, 0, 0)]
        num_shards = ceil_div(len(bins) * self._layout.token_bytes, self._shard_bytes)
        for index, part in enumerate(even_runs(bins, num_shards)):
            self._write_shard(group, index, part)

    def _write_shard(self, group: int, index: int, sequences: Sequence[list[_Example]]) -> None:
        name = shard_name(0, group, index)
        path = files.join(self._folder, name)
        files.make_folder(path.rpartition("/")[0])
        content = xxhash.xxh3_128(canonical_json([FORMAT_VERSION, self._layout.to_json()]))
        size = rows_per_group(self._layout)
        with files.writing(path) as file, ShardFile(file, self._layout) as written:
            for first in range(0, len(sequences), size):
                members = sequences[first : first + size]
                arrays = written.new_arrays(len(members))
                segments = []
                for position, sequence in enumerate(members):
                    row = {column: array[position] for column, array in arrays.items()}
                    segments.append(_fill(sequence, row, self._layout))
                    digest = sequence_digest(row["tokens"], row["segment_ids"], row["positions"])
                    content.update(canonical_json([digest, *segments[-1]]))
                written.add_row_group(arrays, segments)
            record = written.add_record(group=group, index=index, view=0, fingerprint=content.hexdigest(), rejects=[])
        self._limits = largest_limits([self._limits, record["totals"]])
        self._shards.append(
            {
                "path": name,
                "digest": written.digest,
                "fingerprint": record["fingerprint"],
                "bytes": written.size,
                "group": group,
                "view": 0,
                "layout": 0,
                "num_sequences": record["totals"]["num_sequences"],
                "num_segments": record["totals"]["num_segments"],
                "num_tokens": record["totals"]["num_tokens"],
                "num_rejects": 0,
            }
        )

    def _manifest(self, bound: Bound) -> Manifest:
        layout, num_sequences, num_examples = self._layout, bound["num_sequences"], self._lengths.total()
        num_tokens = sum(shard["num_tokens"] for shard in self._shards)
        return Manifest(
            dataset_digest=dataset_digest([layout], [shard["digest"] for shard in self._shards]),
            layouts=(layout,),
            classes=self._classes,
            totals={
                "num_inputs": num_examples,
                "num_rejects": 0,
                "ignored": {},
                "planned": {
                    "num_shards": len(self._shards),
                    "num_sequences": num_sequences,
                    "num_segments": num_examples,
                    "num_tokens": num_tokens,
                    "source_px": 0,
                    "source_bytes": None,
                },
                "sizes": None,
                "stored": {
                    "num_shards": len(self._shards),
                    "num_sequences": num_sequences,
                    "num_segments": num_examples,
                    "num_tokens": num_tokens,
                    "bytes": sum(shard["bytes"] for shard in self._shards),
                },
            },
            bounds=(bound,),
            config={"sequence_length": layout.sequence_length, "tubelet": list(layout.tubelet)},
            limits=(self._limits,),
        )


def pack_arrays(
    examples: Iterable[tuple[str, np.ndarray, tuple[int, int, int]]],
    output: str | os.PathLike[str],
    layout: Layout,
    *,
    labels: dict[str, int] | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Report:
    """Writes a dataset out of tokens, and returns its report; `ShardWriter` takes more of each example.

    Args:
        examples: (key, tokens (N, P), grid) of each.
        output: an empty folder, or one that is not there yet.
        layout: of the sequences, see `ShardWriter`.
        labels: class number by key.
        classes: names by class number.
        seed: of the packing and of the order of the sequences.

    Raises:
        ValueError: naming the example, what is wrong with it, and the rule.
    """
    with ShardWriter(output, layout, classes=classes, seed=seed) as writer:
        for key, tokens_NP, grid in examples:
            label = (labels or {}).get(key)
            writer.add(tokens_NP, grid, key=key, labels=() if label is None else (label,))
        return writer.finish()


def _fill(sequence: list[_Example], row: dict[str, np.ndarray], layout: Layout) -> list[Segment]:
    """Writes a sequence's examples into its arrays, each where the layout lets it start, and returns their segments."""
    start, segments = 0, []
    for number, example in enumerate(sequence, start=1):
        end = start + len(example.tokens_NP)
        row["tokens"][start:end] = example.tokens_NP
        row["segment_ids"][start:end] = number
        row["positions"][start:end] = example.positions_N3
        segment = example.segment.copy()
        segment["start"] = start
        segments.append(segment)
        start += layout.slots(end - start)
    return segments
