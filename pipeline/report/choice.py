"""Which sequences the gallery shows: the best few by each of some criteria, and some at random.

Three small columns of every shard are looked at, a shard at a time, and only the best few are kept: a million sequences take no more memory
than one shard. Ties go to the lower number.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from patchpack.pipeline.sampling.draws import draw, integer

CRITERIA = ("fullest", "emptiest", "most examples", "longest example", "at random")
COLUMNS = ("num_tokens", "num_segments", "max_segment_tokens")


class Choice:
    """The best few sequences by each criterion among those added so far."""

    def __init__(self, num_sequences: int) -> None:
        self._num = num_sequences
        self._best = [(np.empty(0), np.empty(0, np.int64)) for _ in CRITERIA[:-1]]
        self._total = 0

    def add(
        self, fill: np.ndarray, num_segments: np.ndarray, max_segment_tokens: np.ndarray, first: int | None = None
    ) -> None:
        """Adds sequences, each array (R,): share of real tokens, examples, tokens of the longest one.

        They follow those before, or the first has the place `first`: places sort as the numbers in the dataset do.
        """
        first = self._total if first is None else first
        numbers = np.arange(first, first + len(fill))
        self._total += len(fill)
        for at, values in enumerate((fill, -fill, num_segments, max_segment_tokens)):
            self._keep(at, values.astype(float), numbers)

    def add_shard(self, table: pa.Table, sequence_length: int, first: int | None = None) -> None:
        """Adds the sequences of a shard, by its columns COLUMNS, as `add` does."""
        tokens, segments, longest = (table[name].to_numpy() for name in COLUMNS)
        self.add(tokens / sequence_length, segments, longest, first)

    def merge(self, other: "Choice") -> None:
        """Adds the sequences of another."""
        self._total += other._total
        for at, (values, numbers) in enumerate(other._best):
            self._keep(at, values, numbers)

    def number(self, number_of: Callable[[int], int]) -> None:
        """Numbers the places of the sequences, once all are added."""
        self._best = [
            (values, np.array([number_of(place) for place in places.tolist()], np.int64))
            for values, places in self._best
        ]

    def _keep(self, at: int, values: np.ndarray, numbers: np.ndarray) -> None:
        joined = [np.concatenate(pair) for pair in zip(self._best[at], (values, numbers), strict=True)]
        # of equal ones the first
        best = np.lexsort((joined[1], -joined[0]))[: self._num]
        self._best[at] = joined[0][best], joined[1][best]

    def chosen(self, seed: int) -> list[tuple[int, str]]:
        """Returns numbers of sequences, each once, and the criterion: they take turns, each with its best that no other took."""
        num = min(self._num, self._total)
        drawn = _drawn(num, self._total, seed)
        fullest, emptiest = self._best[:2]
        # what is as full as the fullest shows nothing as one of the emptiest
        emptiest_numbers = emptiest[1][-emptiest[0] < fullest[0].max(initial=0)]
        ranked = (fullest[1], emptiest_numbers, *(numbers for _, numbers in self._best[2:]))
        left = [*(iter(numbers.tolist()) for numbers in ranked), iter(drawn)]
        taken: dict[int, int] = {}
        while len(taken) < num:
            for criterion, numbers in enumerate(left):
                number = next((number for number in numbers if number not in taken), None)
                if number is not None and len(taken) < num:
                    taken[number] = criterion
        return [(number, CRITERIA[of]) for number, of in sorted(taken.items(), key=lambda item: item[1])]


def _drawn(count: int, total: int, seed: int) -> list[int]:
    """Returns so many different ones of 0..total-1, drawn as everything here is: by words that no version of numpy changes."""
    drawn: dict[int, None] = {}
    turn = 0
    while len(drawn) < count:
        drawn[integer(draw(seed, "gallery", turn), 0, total - 1)] = None
        turn += 1
    return list(drawn)
