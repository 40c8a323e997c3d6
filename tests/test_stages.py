"""A stage is a file, a Beam label and a place in the README's figure, all of one name."""

import re
from pathlib import Path

import apache_beam as beam
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from conftest import ROOT

from patchpack.pipeline.config import BuildConfig
from patchpack.pipeline.execution.graph import build_graph, plan_graph, shard_graph
from patchpack.pipeline.execution.shuffle import Shuffle
from patchpack.pipeline.stages.generations import Grown

STAGES = ["list", "probe", "dedupe", "sample", "group", "plan", "write", "finish"]
# what the stages share
SHARED = {
    "__init__",
    "records",
    "tables",
    "buckets",
    "probed",
    "packed",
    "planned",
    "generations",
    "labels",
    "saved",
    "summary",
    "results",
    "rejects",
}


class Labels(PipelineVisitor):
    """Gathers the labels of the transforms at the top of a graph, in order."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def enter_composite_transform(self, transform_node: AppliedPTransform) -> None:
        if transform_node.full_label and "/" not in transform_node.full_label:
            self.labels.append(transform_node.full_label)


def labels_of(pipeline: beam.Pipeline) -> list[str]:
    """Returns the labels of a graph that are stages."""
    visitor = Labels()
    pipeline.visit(visitor)
    return [label for label in visitor.labels if label in STAGES]


def test_each_stage_is_a_file() -> None:
    assert {path.stem for path in (ROOT / "pipeline/stages").glob("*.py")} == {*STAGES, *SHARED}


def test_each_stage_is_a_label_of_the_graph_in_order(tmp_path: Path) -> None:
    planning, writing, config = beam.Pipeline(), beam.Pipeline(), BuildConfig()
    plan_graph(planning, [], str(tmp_path), config, Shuffle(None), Grown())
    shard_graph(writing, [], [], [], str(tmp_path), config, {})
    assert [*labels_of(planning), *labels_of(writing)] == STAGES


def test_one_job_has_all_of_them(tmp_path: Path) -> None:
    whole = beam.Pipeline()
    build_graph(whole, [], str(tmp_path), BuildConfig(), {}, Grown())
    assert labels_of(whole) == STAGES


def test_each_stage_is_in_the_figure_in_order() -> None:
    (figure,) = re.findall(r"^    media ─► .*$", (ROOT / "README.md").read_text(), re.M)
    assert [name.strip("() ") for name in figure.split("─►")][1:-1] == STAGES
