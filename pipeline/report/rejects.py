"""Rejects, counted one by one: how many by stage and reason, and of how many inputs."""

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Self

import pyarrow as pa

from patchpack.pipeline.stages.records import PARTIAL_VIDEO, Reject
from patchpack.pipeline.stages.rejects import RejectedInputs
from patchpack.schemas.report import RejectCount

MAX_SAMPLE_KEYS = 3


class RejectCounts:
    """Counts of rejects, those of an input one after the other, as files of rejects have them.

    Attributes:
        num_rejects: how many there are.
    """

    def __init__(self) -> None:
        self.num_rejects = 0
        self._inputs = RejectedInputs()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._samples: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """Returns the counts of a table of rejects."""
        counted = cls()
        for batch in table.to_batches():
            counted.add(map(Reject, *(column.to_pylist() for column in batch.columns)))
        return counted

    @property
    def num_inputs(self) -> int:
        """Of how many inputs they are, not counting videos that are only marked as damaged."""
        return self._inputs.number

    def add(self, rejects: Iterable[Reject]) -> None:
        """Adds some."""
        for row in rejects:
            key, kind = row.key, (row.stage, row.reason)
            self.num_rejects += 1
            self._counts[kind] += 1
            if kind != PARTIAL_VIDEO:
                self._inputs.add(row)
            samples = self._samples[kind]
            if len(samples) < MAX_SAMPLE_KEYS or key < samples[-1]:
                at = bisect.bisect_left(samples, key)
                if samples[at : at + 1] != [key]:
                    samples.insert(at, key)
                    del samples[MAX_SAMPLE_KEYS:]

    def by_kind(self) -> list[RejectCount]:
        """Returns how many each stage and reason has, most first, with the first few keys of each.

        An input with several clips or views can be rejected more than once.
        """
        return [
            {"stage": stage, "reason": reason, "num_rejects": count, "sample_keys": self._samples[stage, reason]}
            for (stage, reason), count in sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        ]
