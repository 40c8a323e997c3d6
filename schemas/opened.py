"""Opens a shard for reading: what its small columns say, as arrays, and whether it is the one that the tables mean."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patchpack.schemas.errors import FormatError
from patchpack.schemas.geometry import Layout
from patchpack.schemas.manifest import ShardRow
from patchpack.schemas.shard import Shard

NO_LABEL = -1

SEGMENT_FIELDS = ("start", "num_tokens", "grid_t", "grid_h", "grid_w", "labels", "weight")
# parts of a nested column are read alone, so captions and timestamps are never loaded
METADATA_COLUMNS = [
    "num_tokens",
    "num_segments",
    "digest",
    *(f"segments.list.element.{field}" for field in SEGMENT_FIELDS),
]


@dataclass(frozen=True, eq=False)
class OpenShard:
    """An open shard and what its small columns say of its R sequences of at most S segments.

    Attributes:
        shard: gives the arrays of single rows.
        counts: (R, bytes of a record) uint8, of each row all that it has beside its raw columns in one piece: records of `counts_dtype`.
        digests: stored xxh3_64 of each row.
    """

    shard: Shard
    counts: npt.NDArray[np.uint8]
    digests: list[int]


def open_shard(
    path: str, layout: Layout, entry: ShardRow, num_classes: int | None, max_labels: int = 0, copy: str | None = None
) -> OpenShard:
    """Returns a shard with its small columns as arrays.

    Args:
        path: the shard's file.
        layout: the layout the manifest gives it.
        entry: its row of the shard table.
        num_classes: labels lie below it; None where the dataset has no classes.
        max_labels: the most of one example, if all are to be read (M).
        copy: where to read it, if not there.

    Raises:
        FormatError: the file is missing, is another than the tables say, or contradicts itself.
    """
    try:
        shard = Shard(path if copy is None else copy, path)
    except FileNotFoundError as error:
        raise missing(path) from error
    if shard.layout != layout:
        raise FormatError(f"{path}: its layout is not the manifest's; one dataset has one manifest; rebuild this shard")
    own = shard.metadata
    actual = {
        "group": (own.get("group"), entry["group"]),
        "view": (own.get("view"), entry["view"]),
        "fingerprint": (own.get("fingerprint"), entry["fingerprint"]),
        "num_sequences": (shard.num_sequences, entry["num_sequences"]),
    }
    for name, (value, listed) in actual.items():
        if value != listed:
            raise FormatError(
                f"{path}: {name} is {value}; the shard table says {listed}; a dataset has its own shards, each under its own "
                "name; copy the dataset again, or finish it with build --resume"
            )
    try:
        return _read_small_columns(shard, layout, num_classes, max_labels)
    except (KeyError, TypeError, ValueError, IndexError, pa.ArrowException) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: cannot be read ({error!r}); the shard is broken; rebuild it") from error


def missing(path: str) -> FormatError:
    """Returns what is said of a shard that is not there."""
    return FormatError(
        f"{path}: no such file; every shard of the shard table is there in a finished dataset; "
        "copy it again or finish the dataset with build --resume"
    )


def _read_small_columns(shard: Shard, layout: Layout, num_classes: int | None, max_labels: int) -> OpenShard:
    path, num_sequences = shard.path, shard.num_sequences
    table = shard.read_metadata(METADATA_COLUMNS)
    num_tokens_R, num_segments_R = table["num_tokens"].to_numpy(), table["num_segments"].to_numpy()
    segments = table["segments"].combine_chunks()
    fields = segments.flatten()
    rows_M = pc.list_parent_indices(segments).to_numpy()  # row of each of the shard's M segments
    in_row_R = np.bincount(rows_M, minlength=num_sequences)
    slots_M = np.arange(len(rows_M)) - (np.cumsum(in_row_R) - in_row_R)[rows_M]
    lengths_M = fields.field("num_tokens").to_numpy()
    tokens_R = np.bincount(rows_M, weights=lengths_M, minlength=num_sequences)
    wrong_R = (
        (in_row_R != num_segments_R)
        | (in_row_R > layout.max_segments)
        | (tokens_R != num_tokens_R)
        | (tokens_R > layout.sequence_length)
    )
    if wrong_R.any():
        row = int(np.argmax(wrong_R))
        raise FormatError(
            f"{path} row {row}: {in_row_R[row]} segments with {tokens_R[row]:.0f} tokens, counted as "
            f"{num_segments_R[row]} with {num_tokens_R[row]}; they agree and fit {layout.max_segments} segments "
            f"and {layout.sequence_length} tokens in a valid row; rebuild this shard"
        )
    labels = fields.field("labels")
    labels_MN = label_lists(labels, max(1, max_labels))
    if num_classes is not None and (labels_MN >= num_classes).any():
        worst = int(np.argmax(labels_MN.max(axis=1)))
        raise FormatError(
            f"{path} row {rows_M[worst]}: label {labels_MN[worst].max()}; the manifest has {num_classes} classes; rebuild the dataset"
        )
    most = int(np.diff(labels.offsets.to_numpy()).max(initial=0))
    if max_labels and most > max_labels:
        raise FormatError(
            f"{path}: {most} labels of a segment; the manifest's limit is {max_labels}; rebuild the dataset"
        )

    columns: dict[str, np.ndarray] = {
        "labels": labels_MN[:, 0],
        **({"all_labels": labels_MN} if max_labels > 1 else {}),
        "starts": fields.field("start").to_numpy(),
        "lengths": lengths_M,
        "grids": np.stack([fields.field(f"grid_{axis}").to_numpy() for axis in "thw"], axis=1),
        "weights": fields.field("weight").to_numpy(),
    }
    counts_R = np.zeros(num_sequences, counts_dtype(layout, max_labels))
    counts_R["num_tokens"], counts_R["num_segments"] = num_tokens_R, num_segments_R
    for name, values_M in columns.items():
        if values_M.dtype == np.int64:
            counts_R[name] = NO_LABEL
        counts_R[name][rows_M, slots_M] = values_M
    return OpenShard(
        shard, counts_R.view(np.uint8).reshape(num_sequences, counts_R.dtype.itemsize), table["digest"].to_pylist()
    )


def counts_dtype(layout: Layout, max_labels: int) -> np.dtype:
    """Returns the dtype of a record of what a sequence has beside its raw columns, under the names of a batch, of S segments and M labels.

    `starts`, `lengths`, `labels`, `weights` (S,), `grids` (S, 3), where M is over 1 `all_labels` (S, M), `num_segments` and `num_tokens`;
    the widest come first, so that all lie aligned.
    """
    slots = (layout.max_segments,)
    return np.dtype(
        [
            ("labels", np.int64, slots),
            *([("all_labels", np.int64, (*slots, max_labels))] if max_labels > 1 else []),
            ("starts", np.int32, slots),
            ("lengths", np.int32, slots),
            ("grids", np.int32, (*slots, 3)),
            ("weights", np.float32, slots),
            ("num_segments", np.int32),
            ("num_tokens", np.int32),
        ]
    )


def label_lists(labels: pa.ListArray, width: int) -> npt.NDArray[np.int64]:
    """Returns the first labels of each list, (M, width) int64; -1 where there are fewer."""
    offsets = labels.offsets.to_numpy()
    places_MN = offsets[:-1, None] + np.arange(width)
    there_MN = places_MN < offsets[1:, None]
    lists_MN = np.full((len(labels), width), NO_LABEL, np.int64)
    lists_MN[there_MN] = labels.values.to_numpy()[places_MN[there_MN]]
    return lists_MN
