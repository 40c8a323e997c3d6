"""The graph: two small Beam pipelines, one line a stage.

The first decides, on integers, and keeps the plan; the second touches pixels, once. Between them the
launcher looks at the plan: conflicting keys and empty inputs stop there, `plan` ends there, and `--resume`
starts there.
"""

import apache_beam as beam
from apache_beam.pvalue import PCollection

from patchpack.pipeline.config import BuildConfig, PlanConfig
from patchpack.pipeline.execution import counts
from patchpack.pipeline.execution.list_transforms import ListInputs
from patchpack.pipeline.execution.plan_transforms import (
    ClassNames,
    Dedupe,
    Group,
    Listed,
    Probe,
    Sample,
    SaveListing,
    SavePlan,
)
from patchpack.pipeline.execution.save_examples import SaveExamples
from patchpack.pipeline.execution.shard_transforms import SaveResults, WriteShards
from patchpack.pipeline.stages.list import Input, source_roots
from patchpack.pipeline.stages.records import Example, Reject
from patchpack.pipeline.stages.summary import ShardPlan


def plan_graph(pipeline: beam.Pipeline, inputs: list[Input], folder: str, config: PlanConfig) -> None:
    """Adds list -> probe -> dedupe -> sample -> group -> plan to a pipeline.

    Args:
        pipeline: to add to.
        inputs: what the user named; `Input.number` is its place in this list.
        folder: the output; the plan is saved below it.
        config: of the build.
    """
    listed, examples, found = _probed(pipeline, inputs, folder, config)
    sampled = examples | "sample" >> Sample(config)
    not_sampled = sampled.rejects | "count rejects of sizes" >> beam.Map(counts.add_reject)
    rejects = (found, not_sampled) | "rejects" >> beam.Flatten()
    classes = (
        listed | "classes" >> ClassNames(folder, config.classes, config.labels == "folder")
        if config.has_labels
        else None
    )
    (sampled.references, rejects) | "group" >> Group(config) | "plan" >> SavePlan(folder, config, classes)


def probe_graph(pipeline: beam.Pipeline, inputs: list[Input], folder: str, config: PlanConfig) -> None:
    """Adds list -> probe -> dedupe to a pipeline, and saves what they give; arguments are those of `plan_graph`."""
    _, examples, rejects = _probed(pipeline, inputs, folder, config)
    (examples, rejects) | "save" >> SaveExamples(folder)


def _probed(
    pipeline: beam.Pipeline, inputs: list[Input], folder: str, config: PlanConfig
) -> tuple[Listed, PCollection[Example], PCollection[Reject]]:
    """Adds list -> probe -> dedupe; returns what is listed, examples, and rejects."""
    roots, holds = source_roots(inputs, config), any(given.kind != "files" for given in inputs)
    listed = pipeline | "inputs" >> beam.Create(inputs) | "list" >> ListInputs(roots, config, holds)
    probed = listed.sources | "probe" >> Probe(roots, config)
    deduped = probed.examples | "dedupe" >> Dedupe(config)
    rejects = (
        (listed.rejects, probed.rejects, deduped.rejects)
        | "not probed" >> beam.Flatten()
        | "count rejects" >> beam.Map(counts.add_reject)
    )
    ignored = (listed.ignored, probed.ignored) | "ignored" >> beam.Flatten()
    (ignored, listed.conflicts) | "listing" >> SaveListing(folder)
    return listed, deduped.examples, rejects


def shard_graph(
    pipeline: beam.Pipeline,
    shards: list[ShardPlan],
    roots: list[str],
    folder: str,
    config: BuildConfig,
    versions: dict[str, str],
) -> None:
    """Adds plan -> write -> results to a pipeline.

    Args:
        pipeline: to add to.
        shards: of the saved plan.
        roots: where the sources are, by root number.
        folder: the output.
        config: of the build.
        versions: of the launcher's libraries, which workers must have too.
    """
    (
        pipeline
        | "shards" >> beam.Create(shards)
        | "one a worker" >> beam.Reshuffle()
        | "write" >> WriteShards(folder, roots, config, versions)
        | "results" >> SaveResults(folder)
    )
