"""Sequences of a dataset by their numbers, as numpy arrays: any one alone, without torch.

A sequence has its place in its file (docs/format.md): it is read with one `preadv` a column, tokens straight into the memory that is given,
and one hash over the bytes. Nothing is decoded, joined or padded here; that was paid for once, when the dataset was built.

Files. A shard is opened when its turn comes, and at most `max_open` are open at a time: enough for two windows of a shuffled epoch, and never
more than a quarter of what the process may open. A shard that is let go is closed by its last reader.

Cost: opening a shard reads its footer and its small columns, some milliseconds; `benchmarks/loader.py` measures the reading.
"""

import bisect
import contextlib
import errno
import functools
import os
import resource
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from patchpack.schemas.cache import Ahead, RemoteShard, ShardCache
from patchpack.schemas.errors import FormatError
from patchpack.schemas.geometry import Layout
from patchpack.schemas.manifest import Manifest, ShardRow, dataset_digest, read_manifest, read_shard_table
from patchpack.schemas.opened import NO_LABEL, OpenShard, counts_dtype, missing, open_shard
from patchpack.schemas.sequence import array_columns
from patchpack.schemas.storage import join

OnCorrupt = Literal["raise", "skip"]
Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]

# what an empty sequence or slot holds where it is not 0
EMPTY = {"labels": NO_LABEL, "all_labels": NO_LABEL, "index": -1, "dataset": -1}

MAX_OPEN = 128
LEAST_OPEN = 8


class Dataset:
    """The sequences of one layout of a dataset.

    Sequences are numbered 0, 1, ... through the shard table, those of other layouts too (`index` of a batch); `sequence` reads one by its
    number. A map-style dataset, as torch's DataLoader takes it: `len(dataset)`, and `dataset[i]` for the i-th sequence of this layout and
    view. A copy in another process opens its own files.

    Attributes:
        path: as given.
        manifest: what the dataset says of itself.
        layout: the layout that is read.
        layout_number: its number in the manifest.
        max_labels: the most of one example (M), or 0 where the dataset does not say; may be set to more before anything is read.
        skipped: broken sequences that came as empty ones, by their numbers, and what was wrong.
        first_index: (num_shards + 1,) number of the first sequence of each shard, and of the one after all.
        shards_of_view: of each view of the layout the numbers of its shards.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        layout: int = 0,
        view: int | None = None,
        verify: bool = True,
        cache: ShardCache | None = None,
        on_corrupt: OnCorrupt = "raise",
    ) -> None:
        """Reads manifest and shard table; shards are opened when their turn comes.

        Args:
            path: the dataset's folder, a local path or a URI.
            layout: number of the layout in the manifest; sequences of other layouts are not read.
            view: count of the view for `len` and `dataset[i]`; None for all of them.
            verify: check the stored digest of every sequence read.
            cache: where to keep local copies of its shards; None: shards are read where they are.
            on_corrupt: whether a broken sequence is an error ("raise"), or comes as an empty one, counted and named in `skipped` ("skip").

        Raises:
            ValueError: there is no such layout or view, or `on_corrupt` is neither.
            FormatError: the dataset is unfinished, broken or too new.
        """
        self.path = path = os.fspath(path)
        self.manifest: Manifest = read_manifest(path)
        if not 0 <= layout < len(self.manifest.layouts):
            raise ValueError(
                f"{path}: no layout {layout}; it has {len(self.manifest.layouts)}, counted from 0; choose one of them"
            )
        self.layout: Layout = self.manifest.layouts[layout]
        self.layout_number = layout
        self.max_labels = self.manifest.limits[layout]["max_labels"]
        self._columns = array_columns(self.layout)
        self._read_table()
        if view is not None and not 0 <= view < len(self.shards_of_view):
            raise ValueError(
                f"{path}: no view {view}; layout {layout} has {len(self.shards_of_view)}, counted from 0; choose one of them"
            )
        self._shards = np.sort(_joined(self.shards_of_view if view is None else self.shards_of_view[view : view + 1]))
        if on_corrupt not in ("raise", "skip"):
            raise ValueError(f"on_corrupt {on_corrupt!r}: not known; it is 'raise' or 'skip'; choose one")
        self._again = functools.partial(
            Dataset, path, layout=layout, view=view, verify=verify, cache=cache, on_corrupt=on_corrupt
        )
        self._verify, self._on_corrupt, self._warned = verify, on_corrupt, False
        self._cache = cache
        self._ahead: Ahead | None = None
        self._ahead_places: dict[int, int] = {}
        self.skipped: dict[int, str] = {}
        self._broken: set[int] = set()
        self._fetched_again: set[int] = set()
        self._max_open, self._lock = max_open(), threading.Lock()
        # the last used last; one that is let go is closed with its last reader's reference, never under its hands
        self._opened: dict[int, OpenShard] = {}

    @functools.cached_property
    def numbers(self) -> npt.NDArray[np.int64]:
        """Numbers of the sequences of this layout and view, in the order of the shard table."""
        return _joined([np.arange(self.first_index[shard], self.first_index[shard + 1]) for shard in self._shards])

    def __len__(self) -> int:
        """Returns the number of sequences of this layout and view."""
        return len(self.numbers)

    def __getitem__(self, at: int) -> dict[str, np.ndarray]:
        """Returns the at-th sequence of this layout and view; raises as `sequence`."""
        return self.sequence(int(self.numbers[at]))

    def __reduce__(self) -> tuple[Callable[[], "Dataset"], tuple[()]]:
        """Makes copies in other processes open their own files."""
        return self._again, ()

    def sequence(self, index: int) -> dict[str, np.ndarray]:
        """Returns one sequence: what a row of a batch of `PackedShards` has, as numpy arrays of its own memory.

        Args:
            index: its number in the dataset.

        Raises:
            IndexError: there is none, or it is of another layout.
            FormatError: it is broken.
        """
        if not 0 <= index < self.first_index[-1] or self._table[self.shard_of(index)]["layout"] != self.layout_number:
            raise IndexError(
                f"{self.path}: no sequence {index} of layout {self.layout_number}; the dataset has {self.first_index[-1]}, counted from 0"
            )
        arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in self.shapes(1).items()}
        self.read_into(index, arrays, 0)
        return {name: array[0] for name, array in arrays.items()}

    def find(self, name: str) -> list[tuple[int, int]]:
        """Returns where an example is, by its id or its key: number of the sequence and of the segment in it, from 0, one pair a view and clip.

        Reads the names in all shards of this layout and view; none found is an empty list.
        """
        found: list[tuple[int, int]] = []
        names = ("example_id", "source")
        for number in self._shards.tolist():
            columns = [f"segments.list.element.{each}" for each in names]
            shard = self._open(number).shard
            with shard.intact():
                segments = shard.read_metadata(columns)["segments"].combine_chunks()
                fields = segments.flatten()
                rows = pc.list_parent_indices(segments).to_numpy()
                slots = np.arange(len(rows)) - np.searchsorted(rows, rows)
                is_it = pc.or_(*(pc.equal(fields.field(each), name) for each in names)).to_numpy(zero_copy_only=False)
            first = int(self.first_index[number])
            found += [(first + int(row), int(slot)) for row, slot in zip(rows[is_it], slots[is_it], strict=True)]
        return found

    def sources(self, indices: list[int]) -> list[str]:
        """Returns the keys of the examples in sequences, by number in the dataset; of empty ones (-1) none. Reads their shards."""
        # each shard once, whatever the order
        segments: dict[int, pa.ChunkedArray] = {}
        keys: list[str] = []
        for index in indices:
            if index < 0:
                continue
            number = self.shard_of(index)
            if number not in segments:
                segments[number] = self._open(number).shard.read_metadata(["segments.list.element.source"])["segments"]
            with self._open(number).shard.intact():
                keys += [segment["source"] for segment in segments[number][index - self._first_index[number]].as_py()]
        return keys

    def shapes(self, size: int) -> Shapes:
        """Returns shape and dtype of every array of a batch of so many sequences; `PackedShards` says what each is."""
        counts = counts_dtype(self.layout, self.max_labels)
        # numpy gives fields of several values as their dtype and shape
        fields = {name: counts[name].subdtype or (counts[name], ()) for name in counts.names or ()}
        return {
            "tokens": ((size, self.layout.sequence_length, self.layout.token_width), np.dtype(self.layout.token_dtype)),
            **{
                name: ((size, *shape), np.dtype(np.int32))
                for name, (_, shape) in self._columns.items()
                if name != "tokens"
            },
            **{name: ((size, *shape), dtype) for name, (dtype, shape) in fields.items()},
            "index": ((size,), np.dtype(np.int64)),
        }

    def read_into(self, index: int, arrays: Mapping[str, np.ndarray], at: int) -> None:
        """Writes a sequence into a row of a batch; takes and raises as `read_batch`."""
        self.read_batch([index], {name: array[at : at + 1] for name, array in arrays.items()})

    def read_batch(self, indices: Sequence[int], arrays: Mapping[str, np.ndarray]) -> None:
        """Writes sequences into the first rows of a batch; empty ones for those that are broken, where `on_corrupt` is "skip".

        Args:
            indices: their numbers in the dataset.
            arrays: as `shapes` says.

        Raises:
            FormatError: one of them, or its shard, is broken or missing.
            OSError: a shard cannot be opened.
        """
        # as it is stored: the batch has wider integers, and what comes behind the raw columns is split once a batch
        stored = {name: np.empty(shape, dtype) for name, (dtype, shape) in self._columns.items() if name != "tokens"}
        counts_N = np.empty(len(indices), counts_dtype(self.layout, self.max_labels))
        counts_NB = counts_N.view(np.uint8).reshape(len(indices), counts_N.dtype.itemsize)
        broken = []
        for at, index in enumerate(indices):
            try:
                columns = {"tokens": arrays["tokens"][at], **stored}
                try:
                    counts_NB[at] = self._read(index, columns)
                except FormatError:
                    if not self._is_fetched_again(self.shard_of(index)):
                        raise
                    counts_NB[at] = self._read(index, columns)
            except FormatError as error:
                if self._on_corrupt == "raise":
                    raise
                broken.append(at)
                self._note_skipped(index, error)
            for name, values in stored.items():
                arrays[name][at] = values
        for name in counts_N.dtype.names or ():
            arrays[name][: len(indices)] = counts_N[name]
        arrays["index"][: len(indices)] = indices
        for at in broken:
            fill_empty(arrays, at)

    def _is_fetched_again(self, number: int) -> bool:
        """Drops the local copy of a shard that reads broken, once: it may be the copy alone. Returns whether there was one to drop."""
        if self._cache is None or number in self._fetched_again:
            return False
        self._fetched_again.add(number)
        self._cache.drop(self._remote(number).digest)
        with self._lock:
            self._opened.pop(number, None)
        return True

    def _note_skipped(self, index: int, error: FormatError) -> None:
        """Notes a broken sequence, and warns of the first of each shard."""
        number = self.shard_of(index)
        self.skipped[index] = str(error)
        if number not in self._broken:
            self._broken.add(number)
            warnings.warn(
                f"sequence {index} comes as an empty one, and so do others of its shard that are broken: {error}",
                stacklevel=3,
            )

    def _read(self, index: int, columns: Mapping[str, np.ndarray]) -> npt.NDArray[np.uint8]:
        """Reads the raw columns of a sequence, as they are stored, and returns the bytes of its record of counts."""
        number = self.shard_of(index)
        opened = self._open(number)
        row = index - self._first_index[number]
        digest = xxhash.xxh3_64() if self._verify else None
        opened.shard.read_into(row, columns, digest)
        if digest is not None and digest.intdigest() != opened.digests[row]:
            raise FormatError(
                f"{opened.shard.path} row {row}: digest is {digest.intdigest():016x}, stored {opened.digests[row]:016x}; "
                "its tokens, segment ids or positions changed after it was written; rebuild or copy again this shard"
            )
        record: npt.NDArray[np.uint8] = opened.counts[row]
        return record

    def shard_of(self, index: int) -> int:
        """Returns the number of the shard that a sequence is in."""
        return bisect.bisect_right(self._first_index, index) - 1

    def _read_table(self) -> None:
        """Reads which shards there are; raises FormatError where the table is that of another dataset."""
        path, layout = self.path, self.layout_number
        table = read_shard_table(path)
        digest = dataset_digest(self.manifest.layouts, table["digest"].to_pylist())
        if digest != self.manifest.dataset_digest:
            raise FormatError(
                f"{path}: manifest.json is of the dataset {self.manifest.dataset_digest}, shards.parquet of {digest}; a dataset has its own "
                "tables; copy it again, or finish it with build --resume"
            )
        self._table: list[ShardRow] = table.to_pylist()
        self.first_index = np.concatenate([[0], np.cumsum(table["num_sequences"].to_numpy())]).astype(np.int64)
        # searched for each sequence: a list answers some ten times faster
        self._first_index: list[int] = self.first_index.tolist()
        views, layouts = table["view"].to_numpy(), table["layout"].to_numpy()
        self.shards_of_view: list[npt.NDArray[np.int64]] = [
            np.flatnonzero((layouts == layout) & (views == view)) for view in np.unique(views[layouts == layout])
        ]

    @contextlib.contextmanager
    def fetched_ahead(self, shards: Sequence[int], window: int) -> Iterator[None]:
        """As long as this context lasts, shards of a store are fetched into the cache in this order, up to the window after that in use."""
        if self._cache is None:
            yield
            return
        with Ahead(self._cache, [self._remote(number) for number in shards], window) as ahead:
            self._ahead, self._ahead_places = ahead, {number: place for place, number in enumerate(shards)}
            try:
                yield
            finally:
                self._ahead, self._ahead_places = None, {}

    def sizes(self) -> list[int]:
        """Returns the bytes of each shard of this layout and view."""
        return [self._table[number]["bytes"] for number in self._shards.tolist()]

    def _remote(self, number: int) -> RemoteShard:
        entry = self._table[number]
        return RemoteShard(join(self.path, entry["path"]), entry["digest"], entry["bytes"])

    def _copy(self, number: int) -> str | None:
        """Returns where the local copy of a shard is, once it is there; None where there is no cache."""
        if self._cache is None:
            return None
        ahead, place = self._ahead, self._ahead_places.get(number)
        remote = self._remote(number)
        try:
            return self._cache.fetch(*remote) if ahead is None or place is None else ahead.path(place)
        except FileNotFoundError as error:
            raise missing(remote.uri) from error

    def _open(self, number: int) -> OpenShard:
        """Returns a shard of those that are open, or opens it and lets go of the one that was not used for longest."""
        with self._lock:
            opened = self._opened.pop(number, None)
            if opened is not None:
                self._opened[number] = opened
                return opened
        opened = self._open_number(number)
        with self._lock:
            self._opened[number] = opened
            while len(self._opened) > self._max_open:
                del self._opened[next(iter(self._opened))]
        return opened

    def _open_number(self, number: int) -> OpenShard:
        entry, classes = self._table[number], self.manifest.classes
        layout = self.manifest.layouts[entry["layout"]]
        num_classes = None if classes is None else len(classes)
        path = join(self.path, entry["path"])
        try:
            opened = open_shard(path, layout, entry, num_classes, self.max_labels, self._copy(number))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            raise OSError(
                error.errno,
                f"{path}: too many open files; a dataset keeps at most {self._max_open} open, others of this process or machine have "
                "the rest; close some, or raise ulimit -n",
            ) from error
        if not opened.shard.is_direct and not self._warned:
            self._warned = True
            warnings.warn(
                f"{path}: its values do not lie as patchpack writes them; another tool has written this file, and a sequence of it is read with "
                "its whole row group, some 20 times slower; copy the files as they were, or build again",
                stacklevel=2,
            )
        return opened


def _joined(parts: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *parts])


def max_open() -> int:
    """Returns how many shards are kept open: two windows of a shuffled epoch, and at most a quarter of what the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_OPEN if soft == resource.RLIM_INFINITY else soft // 4
    return max(LEAST_OPEN, min(MAX_OPEN, most))


def fill_empty(arrays: Mapping[str, np.ndarray], rows: slice | int) -> None:
    """Writes empty sequences (all padding, index -1) into rows of a batch."""
    for name, array in arrays.items():
        array[rows] = EMPTY.get(name, 0)
