"""Decodes a shard's examples in order; clips of one video share a decode.

When the first clip of a video is due, its later clips of the same shard are decoded with it in one pass, as far as
`--decode-cache-bytes` has room, and wait for their turn: within the row group and across row groups. Each is used once, so
nothing has to be evicted; what finds no room is decoded when it is due. The frames are the same either way.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from patchpack.pipeline.media import DecodeError


class Planned(Protocol):
    """What is asked of a planned example."""

    @property
    def key(self) -> str: ...
    @property
    def example_id(self) -> str: ...
    @property
    def view(self) -> int: ...
    @property
    def frame_pts(self) -> tuple[int, ...]: ...


Row = TypeVar("Row", bound=Planned)
_Name = tuple[str, int]


class SharedClips(Generic[Row]):
    """The frames of planned rows, each to be asked for once, in order."""

    def __init__(
        self,
        rows: Sequence[Row],
        decode: Callable[[Sequence[Row]], list[np.ndarray]],
        num_bytes: Callable[[Row], int],
        max_bytes: int,
    ) -> None:
        """Sorts the rows by video.

        Args:
            rows: of a shard, by sequence and segment.
            decode: returns the frames of several rows of one source.
            num_bytes: of the frames of a row.
            max_bytes: most bytes of clips that wait.
        """
        self._decode, self._num_bytes, self._bytes_left = decode, num_bytes, max_bytes
        self._later: dict[str, dict[_Name, Row]] = defaultdict(dict)
        self._waiting: dict[_Name, np.ndarray] = {}
        for row in rows:
            if row.frame_pts:
                self._later[row.key][_name(row)] = row

    def frames(self, row: Row) -> np.ndarray:
        """Returns the frames of one row, (T, H, W, 3) uint8.

        Raises:
            DecodeError: as `decode`.
            OSError: as `decode`.
        """
        later = self._later.get(row.key, {})
        later.pop(_name(row), None)
        waiting = self._waiting.pop(_name(row), None)
        if waiting is not None:
            self._bytes_left += waiting.nbytes
            return waiting
        together = self._that_fit(later)
        if together:
            try:
                frames_THWC, *others = self._decode([row, *together])
            except DecodeError:
                # one of them is broken: each is judged alone
                pass
            else:
                for other, other_THWC in zip(together, others, strict=True):
                    del later[_name(other)]
                    self._waiting[_name(other)] = other_THWC
                    self._bytes_left -= other_THWC.nbytes
                return frames_THWC
        return self._decode([row])[0]

    def _that_fit(self, later: dict[_Name, Row]) -> list[Row]:
        bytes_left, fitting = self._bytes_left, []
        for row in later.values():
            bytes_left -= self._num_bytes(row)
            if bytes_left < 0:
                break
            fitting.append(row)
        return fitting


def _name(row: Planned) -> _Name:
    return row.example_id, row.view
