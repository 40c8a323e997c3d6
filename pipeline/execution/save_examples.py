"""The transform at the end of a comparison's probing: what planning needs of the examples, and the rejects, to files."""

from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
import xxhash
from apache_beam.pvalue import PCollection

from patchpack.pipeline.execution.plan_transforms import Stage
from patchpack.pipeline.stages.records import Example, Reject
from patchpack.pipeline.stages.saved import write_rejects
from patchpack.pipeline.whatif.examples import to_row, write_rows

# as many files of each; a million images are 16,384 rows a file
_NUM_BUCKETS = 64

Row = dict[str, object]


@dataclass
class SaveExamples(Stage[tuple[PCollection[Example], PCollection[Reject]], PCollection[None]]):
    """Examples and rejects, saved below a folder in buckets by key."""

    folder: str

    def expand(self, found: tuple[PCollection[Example], PCollection[Reject]]) -> PCollection[None]:
        """Returns nothing of use: what is saved is."""
        examples, rejects = found
        folder = self.folder

        def save(bucket: tuple[int, tuple[Iterable[Row], Iterable[Reject]]]) -> None:
            number, (rows, rejected) = bucket
            write_rows(folder, number, list(rows))
            write_rejects(folder, number, sorted(set(rejected)))

        saved: PCollection[None] = (
            (
                examples | "of examples" >> beam.Map(lambda one: (_bucket(one.source.key), to_row(one))),
                rejects | "of rejects" >> beam.Map(lambda row: (_bucket(row.key), row)),
            )
            | "meet" >> beam.CoGroupByKey()
            | "write" >> beam.Map(save)
        )
        return saved


def _bucket(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode()) % _NUM_BUCKETS
