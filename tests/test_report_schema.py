"""docs/report.schema.json describes every report: made of the types, valid for builds of every kind, and strict about what they promise."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytest
from conftest import ROOT, Result
from jsonschema import Draft202012Validator
from PIL import Image
from support.report_schema import COMMAND, documents, record_schemas

import patchpack
from patchpack.pipeline.report.scan import REPORT_VERSION
from patchpack.schemas.comparison import Comparison
from patchpack.schemas.report import DatasetTotals, Prediction
from patchpack.schemas.whatif import WhatIf

Run = Callable[..., Result]
Report = dict[str, Any]

SCHEMA = json.loads((ROOT / "docs" / "report.schema.json").read_text())
# readers pass over keys that they do not know; a report has none that is not listed
STRICT = copy.deepcopy(SCHEMA)
for record in (STRICT, *(record for name, record in STRICT["$defs"].items() if name != "Options")):
    record["additionalProperties"] = False
OPTIONS = ("--workers", 1, "--media-backend", "pillow", "--sequence-length", 256)


def faults(report: Report, schema: dict[str, Any] = SCHEMA) -> list[str]:
    """Returns what is wrong with a report, as path and message."""
    found = [*Draft202012Validator(schema).iter_errors(report)]
    # where null would do as well, what is wrong with the object stands inside
    return [f"{error.json_path}: {error.message}" for whole in found for error in (whole, *(whole.context or ()))]


def read(folder: Path) -> Report:
    report: Report = json.loads((folder / "report.json").read_text())
    return report


def draw(folder: Path, number: int) -> None:
    folder.mkdir(parents=True)
    for n in range(number):
        Image.new("RGB", (90 + 31 * n, 200 - 9 * n), (20 * n, 9, 200)).save(folder / f"{n}.png")


@pytest.mark.parametrize("name", ["report.schema.json", "report.md"])
def test_the_documents_are_those_of_the_types(name: str) -> None:
    stored = (ROOT / "docs" / name).read_text()
    assert stored == documents()[name], f"docs/{name} is of other types; write it again with {COMMAND}"


def test_the_schema_is_one_and_says_its_version(packed: Path) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["report_version"]["const"] == REPORT_VERSION == read(packed)["report_version"]
    assert SCHEMA["$id"].endswith(f":{REPORT_VERSION}") and SCHEMA["title"].endswith(f" {REPORT_VERSION}")


def test_images_and_a_clip_with_rejects_and_classes_are_valid(packed: Path) -> None:
    report = read(packed)
    assert report["frames"]["num_clips"] and report["frames"]["num_images"] and report["rejects"] and report["classes"]
    assert faults(report, STRICT) == []


def test_several_layouts_and_views_of_images_are_valid(tmp_path: Path, run: Run) -> None:
    draw(tmp_path / "photos", 10)
    options = ("--patch-sizes", "8,16", "--views", 2, "--resolution", "side:64-128")
    more = ("--drop-tokens", "beta:0.4,0.8", "--balance-step", 2)
    assert run("build", tmp_path / "photos", "--output", tmp_path / "set", *OPTIONS, *options, *more).code == 0
    report = read(tmp_path / "set")
    assert report["step_balance"]["num_steps"] and report["kept_fraction"]["max"] < 1
    assert len(report["layouts"]) == 2 and {bound["view"] for bound in report["bounds"]} == {0, 1}
    assert report["classes"] is None and report["sizes"] is not None
    assert faults(report, STRICT) == []


@pytest.mark.slow
def test_rejects_only_are_valid(tmp_path: Path, run: Run) -> None:
    draw(tmp_path / "photos", 2)
    for path in (tmp_path / "photos").iterdir():
        # the header is whole, so that it is planned
        path.write_bytes(path.read_bytes()[:120])
    assert run("build", tmp_path / "photos", "--output", tmp_path / "set", *OPTIONS).code == 0
    report = read(tmp_path / "set")
    assert report["totals"]["num_rejects"] == 2 and report["totals"]["stored"]["num_tokens"] == 0
    assert faults(report, STRICT) == []


@pytest.mark.parametrize("num_examples", [0, 1, 30])
def test_datasets_of_arrays_are_valid(tmp_path: Path, num_examples: int) -> None:
    layout = patchpack.Layout(64, 8, (1, 1, 1), channels=1, token_dtype="int32")
    with patchpack.ShardWriter(tmp_path / "set", layout, classes=["a", "b"]) as writer:
        for n in range(num_examples):
            writer.add(np.zeros((n + 1, 1), np.int32), (1, 1, n + 1), key=f"{n}", labels=[n % 2])
    report = read(tmp_path / "set")
    assert report["totals"]["stored"]["num_segments"] == num_examples
    assert faults(report, STRICT) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        # percent, and what no fraction can be
        (("efficiency", "efficiency"), 99.0),
        (("efficiency", "padding_fraction"), -0.01),
        (("attention_cost_per_sequence", "fraction_of_full"), 1.5),
        (("totals", "stored", "num_tokens"), 0.5),
        (("totals", "ignored"), {".txt": "2"}),
        (("bounds", 0, "proven_optimal"), 1),
        (("sequence_fill", "counts"), None),
        (("layouts", 0, "tubelet"), [2, 8, 8.5]),
        (("sizes",), []),
        (("classes", "largest", 0, "name"), None),
        (("dataset_digest",), None),
        (("report_version",), REPORT_VERSION + 1),
    ],
)
def test_another_type_or_a_fraction_beyond_one_is_found(packed: Path, path: tuple[str | int, ...], value: Any) -> None:
    report: Any = read(packed)
    inner = report
    for step in path[:-1]:
        inner = inner[step]
    assert path[-1] in inner or isinstance(inner, list)
    inner[path[-1]] = value
    found = faults(report)
    assert found and all(f"$.{path[0]}" in fault for fault in found)


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yields every object of a report."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(inner)
    if isinstance(value, dict):
        yield value


@pytest.mark.slow
def test_every_key_is_needed_but_options_and_names(packed: Path) -> None:
    report = read(packed)
    # counts by name, and what depends on the build
    free = ("ignored", "texts", "config", "bytes_by_column", "random_by_ranks", "max_over_mean")
    for number, whole in enumerate(objects(report)):
        if any(whole is inner.get(name) for inner in objects(report) for name in free):
            continue
        for name in whole:
            less = copy.deepcopy(report)
            del [*objects(less)][number][name]
            assert f"'{name}' is a required property" in "\n".join(faults(less)), name


def test_a_key_more_is_no_fault(packed: Path) -> None:
    report = read(packed)
    for inner in [*objects(report)]:
        # counts by name take counts alone
        inner["new"] = 1
    assert faults(report) == []


def test_every_key_stands_on_the_page_with_its_meaning() -> None:
    records = [SCHEMA, *SCHEMA["$defs"].values()]
    keys = [(name, value) for record in records for name, value in record["properties"].items()]
    assert len(keys) > 100 and all(re.search(r"\w", value.get("description", "")) for _, value in keys)
    assert all(re.search(r"\w", record["description"]) for record in records)
    page = (ROOT / "docs" / "report.md").read_text()
    rows = re.findall(r"^\| `(?:[\w\[\]]+\.)*(\w+)` \| [^|]+ \| (?:\\\||[^|])+ \|$", page, re.M)
    assert sorted(rows) == sorted(name for name, _ in keys)


@pytest.mark.parametrize("kind", [Comparison, DatasetTotals, Prediction, WhatIf])
def test_every_key_of_other_records_has_its_meaning(kind: type) -> None:
    records = record_schemas(kind)
    assert all(value["description"] for record in records.values() for value in record["properties"].values())


def test_a_key_without_its_meaning_is_named() -> None:
    class Kind(TypedDict):
        num_things: int

    with pytest.raises(ValueError, match=r"^Kind\.num_things: no text; every key"):
        record_schemas(Kind)
