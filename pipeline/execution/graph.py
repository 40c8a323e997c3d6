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
from patchpack.pipeline.execution.shard_transforms import Before, Finish, PlannedShards, WriteShards
from patchpack.pipeline.execution.shuffle import Shuffle
from patchpack.pipeline.execution.stock import TakeStock, planning_home
from patchpack.pipeline.stages.generations import Grown
from patchpack.pipeline.stages.list import Input, source_roots
from patchpack.pipeline.stages.saved import planned_groups
from patchpack.pipeline.stages.summary import GroupId


def plan_graph(
    pipeline: beam.Pipeline,
    inputs: list[Input],
    folder: str,
    config: PlanConfig,
    shuffle: Shuffle,
    grown: Grown,
) -> PCollection[None]:
    """Adds list -> probe -> dedupe -> sample -> group -> plan to a pipeline; returns an element for each part that is saved.

    Args:
        pipeline: to add to.
        inputs: what the user named; `Input.number` is its place in this list.
        folder: where the plan is saved.
        config: of the build.
        shuffle: how tables travel.
        grown: what the inputs are planned as.
    """
    generation, classes = grown.generation, None
    listed, probed = _probed(pipeline, inputs, folder, config, shuffle, grown)
    met = (listed, probed) | "dedupe" >> Dedupe(config, grown)
    sampled = met | "sample" >> Sample(folder, config, shuffle, generation)
    listing = (listed.ignored, probed.listings, sampled.listings) | "listing" >> SaveListing(folder, generation)
    if config.has_labels:
        classes = (listed, probed) | "classes" >> ClassNames(folder, config, grown)
    planned = sampled | "group" >> Group() | "plan" >> SavePlan(folder, config, shuffle, classes, generation)
    every: PCollection[None] = (listing, planned) | "saved" >> beam.Flatten()
    return every


def probe_graph(
    pipeline: beam.Pipeline, inputs: list[Input], folder: str, config: PlanConfig, shuffle: Shuffle
) -> None:
    """Adds list -> probe -> dedupe to a pipeline, and saves what they give; arguments are those of `plan_graph`."""
    grown = Grown()
    listed, probed = _probed(pipeline, inputs, folder, config, shuffle, grown)
    met = (listed, probed) | "dedupe" >> Dedupe(config, grown)
    saved = met.buckets | "save" >> SaveExamples(folder)
    (listed.ignored, probed.listings, saved) | "listing" >> SaveListing(folder, grown.generation)


def _probed(
    pipeline: beam.Pipeline, inputs: list[Input], folder: str, config: PlanConfig, shuffle: Shuffle, grown: Grown
) -> tuple[Listed, ProbedBuckets]:
    roots = source_roots(inputs, config)
    listed = pipeline | "inputs" >> beam.Create(inputs) | "list" >> ListInputs(roots, config, shuffle, grown)
    return listed, listed | "probe" >> Probe(roots, folder, config, shuffle)


def shard_graph(
    pipeline: beam.Pipeline,
    groups: list[GroupId],
    before: list[GroupId],
    roots: list[str],
    folder: str,
    config: BuildConfig,
    versions: dict[str, str],
) -> None:
    """Adds plan -> write -> finish to a pipeline.

    Args:
        pipeline: to add to.
        groups: of the saved plan, which are to be written.
        before: those of generations before, which are.
        roots: where the sources are, by root number.
        folder: the output.
        config: of the build.
        versions: of the launcher's libraries, which workers must have too.
    """
    _written(pipeline | "groups" >> beam.Create(groups), before, roots, folder, config, versions)


def build_graph(
    pipeline: beam.Pipeline,
    inputs: list[Input],
    folder: str,
    config: BuildConfig,
    versions: dict[str, str],
    grown: Grown,
) -> None:
    """Adds everything from list to finish to a pipeline: one job that needs nobody.

    Args:
        pipeline: to add to.
        inputs: what the user named.
        folder: the output.
        config: of the build.
        versions: of the launcher's libraries, which workers must have too.
        grown: what the inputs are planned as.
    """
    saved = plan_graph(pipeline, inputs, planning_home(folder, config), config, Shuffle(None), grown)
    groups = saved | "stock" >> TakeStock(folder, inputs, config, grown)
    before = planned_groups(folder, grown.generation.before)
    _written(groups, before, source_roots(inputs, config), folder, config, versions)


def _written(
    groups: PCollection[GroupId],
    before: list[GroupId],
    roots: list[str],
    folder: str,
    config: BuildConfig,
    versions: dict[str, str],
) -> None:
    written = (
        groups
        | "shards" >> PlannedShards(folder, config.views)
        | "write" >> WriteShards(folder, roots, config, versions)
    )
    (written, groups.pipeline | "before" >> Before(before)) | "finish" >> Finish(folder, config)
