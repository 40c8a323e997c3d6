"""Packing of an unbounded stream: few open bins, and no example waits for ever.

Bounded-space best fit (Csirik and Johnson, "Bounded space on-line bin packing: best is better than first",
Algorithmica 31, 2001): at most K bins are open; an example goes into the fullest that takes it; where none does
and K are open, the fullest is closed for a new one. A bin that is full, or whose first example came `max_delay`
examples ago, is closed at once.

Costs O(log K) an example, and K bins of memory. Gives up what sorting gains: padding against K, from
`benchmarks/streaming.py` (100,000 examples, no limit on delay; best-fit decreasing in the last column):

    set                     capacity    K=1     K=4     K=16    K=64    K=256   sorted
    side_uniform_64_256         1024  0.0707  0.0054  0.0040  0.0040  0.0040  0.0013
    images_and_clips_4096       4096  0.2342  0.0364  0.0106  0.0037  0.0024  0.0008
    native_photos_4096          4096  0.1762  0.0457  0.0274  0.0265  0.0265  0.0161

At K = 64 a delay of at most 256 examples adds 0.0003 to 0.0033, one of 64 adds 0.0013 to 0.0121.
"""

import bisect

from patchpack.pipeline.packing.instance import MAX_CAPACITY, read_integer


class Stream:
    """Packs examples as they come. They are numbered 0, 1, ... in the order in which they are pushed."""

    def __init__(
        self, capacity: int, *, max_segments: int | None = None, lookback: int = 64, max_delay: int | None = None
    ) -> None:
        """Starts an empty stream.

        Args:
            capacity: tokens of a bin.
            max_segments: most examples in one bin; None for no limit.
            lookback: most open bins, K.
            max_delay: an example leaves with the push of the example this many after it, or sooner; 0 packs each
                alone, None sets no limit.

        Raises:
            ValueError: an argument is out of its range.
        """
        self._capacity = _read("capacity", capacity, 1)
        if self._capacity > MAX_CAPACITY:
            raise ValueError(f"capacity: {capacity}; the most is {MAX_CAPACITY}; count in a larger unit")
        self._max_segments = None if max_segments is None else _read("max_segments", max_segments, 1)
        self._lookback = _read("lookback", lookback, 1)
        self._max_delay = None if max_delay is None else _read("max_delay", max_delay, 0)
        self._num_examples = 0
        self._members: dict[int, list[int]] = {}  # of each open bin, known by its first example; the oldest first
        self._by_capacity_left: list[tuple[int, int]] = []  # (tokens left, bin), ascending

    @property
    def num_open(self) -> int:
        """How many bins are open, at most `lookback`."""
        return len(self._members)

    def push(self, length: int) -> list[list[int]]:
        """Takes the next example, and returns the bins this closes: the numbers of their examples.

        Raises:
            ValueError: the length is below 1 or above the capacity; the stream is as before.
        """
        length = _read("length", length, 1)
        if length > self._capacity:
            raise ValueError(
                f"length: {length}; the capacity is {self._capacity}; shrink the example or raise the capacity"
            )
        example = self._num_examples
        self._num_examples += 1
        closed = []
        index = bisect.bisect_left(self._by_capacity_left, (length, 0))
        if index < len(self._by_capacity_left):
            capacity_left, chosen = self._by_capacity_left.pop(index)
        else:
            if len(self._members) == self._lookback:
                closed.append(self._members.pop(self._by_capacity_left.pop(0)[1]))
            capacity_left, chosen = self._capacity, example
            self._members[chosen] = []
        self._members[chosen].append(example)
        if capacity_left == length or len(self._members[chosen]) == self._max_segments:
            closed.append(self._members.pop(chosen))
        else:
            bisect.insort(self._by_capacity_left, (capacity_left - length, chosen))
        return closed + self._expired(example)

    def close(self) -> list[list[int]]:
        """Returns the open bins, the oldest first, and leaves none; more may be pushed."""
        rest = list(self._members.values())
        self._members.clear()
        self._by_capacity_left.clear()
        return rest

    def _expired(self, now: int) -> list[list[int]]:
        """Closes the bins whose first example has waited long enough."""
        closed = []
        while self._max_delay is not None and self._members:
            oldest = next(iter(self._members))
            if now - oldest < self._max_delay:
                break
            self._by_capacity_left = [entry for entry in self._by_capacity_left if entry[1] != oldest]
            closed.append(self._members.pop(oldest))
        return closed


def _read(name: str, value: int, least: int) -> int:
    number = read_integer(name, value)
    if number < least:
        raise ValueError(f"{name}: {number}; the least is {least}")
    return number
