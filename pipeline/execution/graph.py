"""The graph: two small Beam pipelines, one line a stage.

The first decides, on integers, and keeps the plan; the second touches pixels, once, and finishes the dataset. Between
them the plan is looked at (`stock`): conflicting keys and empty inputs stop there, `plan` ends there, and `--resume` starts
there. On this machine they run one after the other; on another runner they are one job, which needs nobody.
"""

import apache_beam as beam
from apache_beam.pvalue import PCollection

from patchpack.pipeline.config import BuildConfig, PlanConfig
from patchpack.pipeline.execution.list_transforms import Listed, ListInputs
from patchpack.pipeline.execution.plan_transforms import (
    ClassNames,
    Dedupe,
    Group,
    Probe,
    ProbedBuckets,
    Sample,
    SaveListing,
    SavePlan,
)
from patchpack.pipeline.execution.save_examples import SaveExamples
from patchpack.pipeline.execution.shard_transforms import Finish, PlannedShards, WriteShards
from patchpack.pipeline.execution.shuffle import Shuffle
from patchpack.pipeline.execution.stock import TakeStock, planning_home
from patchpack.pipeline.stages.list import Input, source_roots


def plan_graph(
    pipeline: beam.Pipeline, inputs: list[Input], folder: str, config: PlanConfig, shuffle: Shuffle
) -> PCollection[None]:
    """Adds list -> probe -> dedupe -> sample -> group -> plan to a pipeline; returns an element for each part that is saved.

    Args:
        pipeline: to add to.
        inputs: what the user named; `Input.number` is its place in this list.
        folder: the output; the plan is saved below it.
        config: of the build.
        shuffle: how tables travel.
    """
    listed, probed = _probed(pipeline, inputs, folder, config, shuffle)
    met = (listed, probed) | "dedupe" >> Dedupe(config)
    sampled = met | "sample" >> Sample(folder, config, shuffle)
    listing = (listed.ignored, probed.listings, sampled.listings) | "listing" >> SaveListing(folder)
    given = (listed, probed)
    classes = (
        given | "classes" >> ClassNames(folder, config.classes, config.labels == "folder")
        if config.has_labels
        else None
    )
    planned = sampled | "group" >> Group() | "plan" >> SavePlan(folder, config, shuffle, classes)
    every: PCollection[None] = (listing, planned) | "saved" >> beam.Flatten()
    return every


def probe_graph(
    pipeline: beam.Pipeline, inputs: list[Input], folder: str, config: PlanConfig, shuffle: Shuffle
) -> None:
    """Adds list -> probe -> dedupe to a pipeline, and saves what they give; arguments are those of `plan_graph`."""
    listed, probed = _probed(pipeline, inputs, folder, config, shuffle)
    met = (listed, probed) | "dedupe" >> Dedupe(config)
    saved = met.buckets | "save" >> SaveExamples(folder)
    (listed.ignored, probed.listings, saved) | "listing" >> SaveListing(folder)


def _probed(
    pipeline: beam.Pipeline, inputs: list[Input], folder: str, config: PlanConfig, shuffle: Shuffle
) -> tuple[Listed, ProbedBuckets]:
    roots = source_roots(inputs, config)
    listed = pipeline | "inputs" >> beam.Create(inputs) | "list" >> ListInputs(roots, config, shuffle)
    return listed, listed | "probe" >> Probe(roots, folder, config, shuffle)


def shard_graph(
    pipeline: beam.Pipeline,
    groups: list[int],
    roots: list[str],
    folder: str,
    config: BuildConfig,
    versions: dict[str, str],
) -> None:
    """Adds plan -> write -> finish to a pipeline.

    Args:
        pipeline: to add to.
        groups: of the saved plan.
        roots: where the sources are, by root number.
        folder: the output.
        config: of the build.
        versions: of the launcher's libraries, which workers must have too.
    """
    _written(pipeline | "groups" >> beam.Create(groups), roots, folder, config, versions)


def build_graph(
    pipeline: beam.Pipeline, inputs: list[Input], folder: str, config: BuildConfig, versions: dict[str, str]
) -> None:
    """Adds everything from list to finish to a pipeline: one job that needs nobody.

    Args:
        pipeline: to add to.
        inputs: what the user named.
        folder: the output.
        config: of the build.
        versions: of the launcher's libraries, which workers must have too.
    """
    saved = plan_graph(pipeline, inputs, planning_home(folder, config), config, Shuffle(None))
    groups = saved | "stock" >> TakeStock(folder, inputs, config)
    _written(groups, source_roots(inputs, config), folder, config, versions)


def _written(
    groups: PCollection[int], roots: list[str], folder: str, config: BuildConfig, versions: dict[str, str]
) -> None:
    (
        groups
        | "shards" >> PlannedShards(folder, config.views)
        | "write" >> WriteShards(folder, roots, config, versions)
        | "finish" >> Finish(folder, config)
    )
