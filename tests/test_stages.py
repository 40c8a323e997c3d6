"""A stage is a file, a Beam label and a place in the README's figure, all of one name."""

import re
from pathlib import Path

import apache_beam as beam
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from conftest import ROOT

from patchpack.pipeline.config import BuildConfig
from patchpack.pipeline.execution.graph import plan_graph, shard_graph

STAGES = ["list", "probe", "dedupe", "sample", "group", "plan", "write", "finish"]
# what the stages share
SHARED = {"__init__", "records", "planned", "labels", "saved", "summary"}


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
    plan_graph(planning, [], str(tmp_path), config)
    shard_graph(writing, [], [], str(tmp_path), config, {})
    # finish is no transform: the launcher does it, when every shard is there
    assert [*labels_of(planning), *labels_of(writing), "finish"] == STAGES


class Inputs(PipelineVisitor):
    """Gathers what flows into each transform: the transforms that made it, by label."""

    def __init__(self) -> None:
        self.inputs: dict[str, set[str]] = {}
        self.shuffles: list[str] = []

    def visit_transform(self, transform_node: AppliedPTransform) -> None:
        makers = {
            f"{made.producer.full_label}[{made.tag}]" for made in transform_node.main_inputs.values() if made.producer
        }
        self.inputs[transform_node.full_label] = makers
        if isinstance(transform_node.transform, beam.GroupByKey):
            self.shuffles.append(transform_node.full_label)


def test_rejects_are_shuffled_once_and_what_is_ignored_never(tmp_path: Path) -> None:
    planning, visitor = beam.Pipeline(), Inputs()
    plan_graph(planning, [], str(tmp_path), BuildConfig(dedupe="digest", limit=3, labels="folder"))
    planning.visit(visitor)

    def sources(label: str) -> set[str]:
        """Returns every transform that something comes from, with its output's name."""
        makers = visitor.inputs.get(label, set())
        return makers.union(*(sources(maker.rpartition("[")[0]) for maker in makers))

    shuffles = {label: sources(label) for label in visitor.shuffles}
    carrying = {
        kind: {label for label, made in shuffles.items() if any(f"[{kind}]" in name for name in made)}
        for kind in ("Reject", "Ignored", "Reference")
    }
    meeting = "group/meet/CoGroupByKeyImpl/GroupByKey"
    assert {label for label in carrying["Reference"] if "/count/" not in label} == {meeting, "plan/rests meet"}
    # names of classes come from rejects, too, but are names
    planned = {label for label in carrying["Reject"] if not label.startswith("classes/")}
    assert planned == {meeting, "plan/rests meet"}, "the rests of groups are references alone"
    # counts are combined before they are shuffled
    assert all("/count/" in label or "/all/" in label for label in carrying["Ignored"]), carrying["Ignored"]


def test_each_stage_is_in_the_figure_in_order() -> None:
    (figure,) = re.findall(r"^    media ─► .*$", (ROOT / "README.md").read_text(), re.M)
    assert [name.strip("() ") for name in figure.split("─►")][1:-1] == STAGES
