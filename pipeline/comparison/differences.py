"""How two datasets differ: options, inputs, counts, fullness, distributions, rejects, layouts, classes.

Figures come from report.json (from the shards, where that is of another dataset or of an earlier version), options and layouts from the
manifest, rejects from their table. Which inputs are in one dataset alone is a difference of sets of keys, those of stored examples
and of rejects: of each shard the column of keys is read, and nothing else; with equal digests and equal rejects not even that.

Cost: a read of a small column a shard; memory for the distinct keys of both, as Arrow arrays. Given up: which examples of a common
input changed, and where they went; the digests say whether anything did.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, cast, get_args

import pyarrow as pa
import pyarrow.compute as pc

from patchpack.pipeline.execution.progress import bar
from patchpack.pipeline.names import REPORT_NAME
from patchpack.pipeline.report.scan import REPORT_VERSION, read_report
from patchpack.pipeline.stages.records import PARTIAL_VIDEO
from patchpack.schemas import FormatError, Manifest, Shard, read_manifest, read_shard_table
from patchpack.schemas.comparison import ChartName, Comparison, Names, NamesName, OnlyIn, Row, SectionName, Side
from patchpack.schemas.errors import without_secrets
from patchpack.schemas.manifest import REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA, read_table
from patchpack.schemas.opened import missing
from patchpack.schemas.report import DistributionName, Report
from patchpack.schemas.storage import join, read_bytes

# 1: the keys that `schemas.comparison` documents; a key that changes its meaning makes it 2
COMPARISON_VERSION = 1
MAX_NAMES = 10
# keys that wait to be merged with those before: merging more seldom than they double costs no more than twice their number
_LEAST_MERGED = 1_000_000

_COUNTS = ("num_inputs", "num_rejected_inputs", "num_rejects", "num_ignored", "planned", "stored")
_BOUND = ("num_sequences", "bound", "gap", "gap_fraction", "proven_optimal")
_STATISTICS = ("mean", "min", "p5", "median", "p95", "max")
_CLASSES = ("num_classes", "num_labelled", "num_unlabelled", "num_empty_classes")

_Sections = dict[SectionName, dict[str, object]]


class _Dataset(NamedTuple):
    """What is read of a dataset before its shards are opened."""

    folder: str
    manifest: Manifest
    shards: pa.Table
    rejects: pa.Table
    report: Report
    sections: _Sections


def compare(a: str, b: str) -> Comparison:
    """Returns how two datasets differ.

    Args:
        a: folder or URI of the first.
        b: of the second; changes are from the first to it.

    Raises:
        FormatError: one is no finished dataset, or is broken.
        OSError: storage failed.
    """
    one, other = _read(a), _read(b)
    equal_digests = one.manifest.dataset_digest == other.manifest.dataset_digest
    # counts of rejects that one has and the other has not are 0
    sections: dict[SectionName, list[Row]] = {
        name: _rows(values, other.sections[name], 0 if name == "rejects" else None)
        for name, values in one.sections.items()
    }
    sections["classes"] += _renumbered(one.manifest.classes, other.manifest.classes)
    rejected = _rejected(one.rejects), _rejected(other.rejects)
    only_in: dict[NamesName, OnlyIn] = {
        "inputs": _only_in(pa.array([], pa.large_string()), pa.array([], pa.large_string())),
        "rejected": _only_in(*rejected),
        "class_names": _only_in(*(_strings(side.manifest.classes or ()) for side in (one, other))),
    }
    if not (equal_digests and one.rejects.equals(other.rejects)):
        with bar("comparing", len(one.shards) + len(other.shards), "shards") as advance:
            first = _keys(one, advance, 0)
            only_in["inputs"] = _only_in(first, _keys(other, advance, len(one.shards)))
    differing: list[SectionName | NamesName] = [
        *(name for name, rows in sections.items() if any(row["a"] != row["b"] for row in rows)),
        *(name for name, names in only_in.items() if names["a"]["num"] or names["b"]["num"]),
    ]
    charts: tuple[ChartName, ...] = get_args(ChartName)
    return {
        "comparison_version": COMPARISON_VERSION,
        "equal": equal_digests and not differing,
        "equal_digests": equal_digests,
        "differing": differing,
        "a": _side(one),
        "b": _side(other),
        "sections": sections,
        "only_in": only_in,
        "histograms": {name: {"a": one.report[name], "b": other.report[name]} for name in charts},
    }


def _read(folder: str) -> _Dataset:
    manifest, shards = read_manifest(folder), read_shard_table(folder)
    rejects = read_table(folder, REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA)
    report = _read_report(folder, manifest) or read_report(folder)
    try:
        sections = _sections(manifest, report, rejects)
    except (AttributeError, KeyError, TypeError) as error:
        raise _broken_report(folder, repr(error)) from error
    return _Dataset(folder, manifest, shards, rejects, report, sections)


def _read_report(folder: str, manifest: Manifest) -> Report | None:
    """Returns report.json; None where it is not there, is of another dataset, or lacks what reports have by now."""
    try:
        report = json.loads(read_bytes(join(folder, REPORT_NAME)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _broken_report(folder, str(error)) from error
    if not isinstance(report, dict):
        raise _broken_report(folder, f"{type(report).__name__}, and no object")
    version = report.get("report_version", REPORT_VERSION)
    if version != REPORT_VERSION:
        path = join(folder, REPORT_NAME)
        raise FormatError(f"{path}: report version {version}; this reader knows {REPORT_VERSION}; upgrade patchpack")
    if report.get("dataset_digest") != manifest.dataset_digest or not Report.__required_keys__ <= report.keys():
        return None
    return cast(Report, report)


def _broken_report(folder: str, why: str) -> FormatError:
    return FormatError(
        f"{join(folder, REPORT_NAME)}: broken report ({why}); it holds what schemas/report.py lists; write it again with build --resume"
    )


def _sections(manifest: Manifest, report: Report, rejects: pa.Table) -> _Sections:
    """Returns every figure and setting of a dataset by section and name."""
    bounds = {f"view {bound['view']} layout {bound['layout']}": _part(bound, _BOUND) for bound in report["bounds"]}
    names: tuple[DistributionName, ...] = get_args(DistributionName)
    counted = rejects.group_by(["stage", "reason"]).aggregate([([], "count_all")]).to_pylist()
    return {
        "config": {"recipe": manifest.recipe, **manifest.config},
        "counts": _flat({**_part(report["totals"], _COUNTS), **report["frames"]}),
        "efficiency": _flat({**report["efficiency"], **bounds}),
        "distributions": _flat({name: _part(report[name], _STATISTICS) for name in names}),
        "arrangement": _flat(
            {
                "attention_cost": report["attention_cost_per_sequence"],
                "step_balance": report["step_balance"],
                "mixing": report["mixing"],
            }
        ),
        "sizes": dict(report["sizes"] or {}),
        "rejects": {f"{row['stage']}: {row['reason']}": row["count_all"] for row in counted},
        "layouts": _flat({f"layout {number}": layout.to_json() for number, layout in enumerate(manifest.layouts)}),
        "classes": _part(report["classes"] or {}, _CLASSES),
    }


def _part(values: Mapping[str, object], names: Iterable[str]) -> dict[str, object]:
    return {name: values.get(name) for name in names}


def _flat(values: Mapping[str, object]) -> dict[str, object]:
    """Returns the entries of nested mappings, the names of inner ones behind a dot."""
    entries: dict[str, object] = {}
    for name, value in values.items():
        inner = _flat(value) if isinstance(value, Mapping) else None
        entries |= {name: value} if inner is None else {f"{name}.{key}": one for key, one in inner.items()}
    return entries


def _rows(a: Mapping[str, object], b: Mapping[str, object], absent: object) -> list[Row]:
    return [_row(name, a.get(name, absent), b.get(name, absent)) for name in dict.fromkeys([*a, *b])]


def _row(name: str, a: object, b: object) -> Row:
    numbers = [value for value in (a, b) if isinstance(value, int | float) and not isinstance(value, bool)]
    return {"name": name, "a": a, "b": b, "change": numbers[1] - numbers[0] if len(numbers) == 2 else None}


def _renumbered(a: tuple[str, ...] | None, b: tuple[str, ...] | None) -> list[Row]:
    """Returns how many classes of both have another number in B, and the numbers of the first few."""
    numbers = {name: label for label, name in enumerate(b or ())}
    rows = [
        _row(f"label of {name}", label, numbers[name])
        for label, name in enumerate(a or ())
        if numbers.get(name, label) != label
    ]
    return [_row("num_renumbered", 0, len(rows)), *rows[:MAX_NAMES]] if rows else []


def _rejected(rejects: pa.Table) -> pa.Array:
    """Returns the keys of inputs that were rejected, each once; a video that is cut short, and packed, is none."""
    stage, reason = PARTIAL_VIDEO
    lost = pc.or_(pc.not_equal(rejects["stage"], stage), pc.not_equal(rejects["reason"], reason))
    return pc.unique(rejects["key"].filter(lost)).cast(pa.large_string())


def _keys(dataset: _Dataset, advance: Callable[[int], None], done: int) -> pa.Array:
    """Returns the keys of a dataset's stored examples and rejects, each once; `done` shards are read before."""
    keys, waiting = pc.unique(dataset.rejects["key"]).cast(pa.large_string()), []
    for number, name in enumerate(dataset.shards["path"].to_pylist(), start=1):
        waiting.append(_stored_keys(join(dataset.folder, name)))
        if sum(map(len, waiting)) > max(_LEAST_MERGED, len(keys)):
            keys, waiting = pc.unique(pa.chunked_array([keys, *waiting])), []
        advance(done + number)
    return pc.unique(pa.chunked_array([keys, *waiting]))


def _stored_keys(path: str) -> pa.Array:
    try:
        with Shard(path) as shard:
            segments = shard.read_metadata(["segments.list.element.source"])["segments"]
        return pc.unique(segments.combine_chunks().flatten().field("source")).cast(pa.large_string())
    except FileNotFoundError as error:
        raise missing(path) from error
    except (KeyError, pa.ArrowException) as error:
        raise FormatError(f"{path}: cannot be read ({error!r}); the shard is broken; rebuild it") from error


def _only_in(a: pa.Array, b: pa.Array) -> OnlyIn:
    return {"a": _without(a, b), "b": _without(b, a)}


def _without(names: pa.Array, others: pa.Array) -> Names:
    """Returns the names that are not among the others, the first few in the order of their bytes."""
    left = names.filter(pc.invert(pc.is_in(names, value_set=others)))
    first = left.take(pc.select_k_unstable(left, MAX_NAMES, sort_keys=[("", "ascending")]))
    return {"num": len(left), "first": first.to_pylist()}


def _strings(names: Iterable[str]) -> pa.Array:
    return pa.array(names, pa.large_string())


def _side(dataset: _Dataset) -> Side:
    return {"dataset": without_secrets(dataset.folder), "dataset_digest": dataset.manifest.dataset_digest}
