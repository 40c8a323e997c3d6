"""The graph: two small Beam pipelines, one line a stage.

The first decides, on integers, and keeps the plan; the second touches pixels, once. Between them the
launcher looks at the plan: conflicting keys and empty inputs stop there, `plan` ends there, and `--resume`
starts there.
"""

import apache_beam as beam

from patchpack.pipeline.config import BuildConfig, PlanConfig
from patchpack.pipeline.execution.transforms import (
    ClassNames,
    Dedupe,
    Group,
    KeepPlan,
    KeepResults,
    ListInputs,
    Probe,
    Sample,
    WriteShards,
)
from patchpack.pipeline.stages.list import Input
from patchpack.pipeline.stages.plan import ShardPlan


def plan_graph(pipeline: beam.Pipeline, inputs: list[Input], folder: str, config: PlanConfig) -> None:
    """Adds list -> probe -> dedupe -> sample -> group -> plan to a pipeline.

    Args:
        pipeline: to add to.
        inputs: what the user named; `Input.number` is its place in this list.
        folder: the output; the plan is saved below it.
        config: of the build.
    """
    roots = [given.root for given in inputs]
    listed = pipeline | "inputs" >> beam.Create(inputs) | "list" >> ListInputs(roots, config)
    classes = listed | "classes" >> ClassNames(folder, config.classes) if config.labels == "folder" else None
    (
        listed
        | "probe" >> Probe(roots, config)
        | "dedupe" >> Dedupe(config)
        | "sample" >> Sample(config)
        | "group" >> Group(config)
        | "plan" >> KeepPlan(folder, config, classes)
    )


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
        | "results" >> KeepResults(folder)
    )
