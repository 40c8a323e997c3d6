"""The transform at the end of a comparison's probing: what planning needs of the examples, and the rejects, to files."""

from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import PCollection

from patchpack.pipeline.execution.plan_transforms import Found, of_bucket
from patchpack.pipeline.execution.transform import Transform
from patchpack.pipeline.stages.saved import write_rejects
from patchpack.pipeline.stages.summary import Listing
from patchpack.pipeline.whatif.examples import write_examples


@dataclass
class SaveExamples(Transform[PCollection[tuple[int, Iterable[Found]]], PCollection[Listing]]):
    """Examples and rejects, saved below a folder in their buckets."""

    folder: str

    def expand(self, buckets: PCollection[tuple[int, Iterable[Found]]]) -> PCollection[Listing]:
        """Returns what became of the inputs of each bucket."""
        folder = self.folder

        def save(bucket: tuple[int, Iterable[Found]]) -> Listing:
            number, found = bucket
            examples, rejects = of_bucket(folder, number, found)
            write_examples(folder, number, examples)
            write_rejects(folder, 0, number, rejects)
            keys = {*examples["key"].to_pylist(), *(row.key for row in rejects)}
            return Listing(num_inputs=len(keys), rejects_in=[number])

        saved: PCollection[Listing] = buckets | "bucket" >> beam.Map(save)
        return saved
