"""The launcher: looks after an output folder from the first check to the manifest.

State in the folder, in the order it appears: run.json (times, host, roots: whatever may differ between equal
builds), plan/ with plan.json last, shards, the tables and the report, manifest.json last. A run that dies
leaves a prefix of that; `--resume` goes on behind it.
"""

import dataclasses
import json
import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import files, finish, plan, runner
from pipeline.build import plan_graph, shard_graph
from pipeline.config import BuildConfig, PlanConfig
from pipeline.media.resize import resolved
from pipeline.options import flag, output_affecting
from pipeline.plan import PLAN_FOLDER, ShardPlan
from pipeline.progress import bar
from pipeline.records import PARTIAL_VIDEO
from pipeline.source import Input, parse_input
from pipeline.transforms import CLASSES_NAME, RESULTS_NAME, library_versions
from schemas.manifest import MANIFEST_NAME, REJECT_TABLE_NAME, SHARD_TABLE_NAME, canonical_json, read_shard_table

RUN_NAME = "run.json"
PLAN_NAME = f"{PLAN_FOLDER}/plan.json"

# the reject fraction of fewer inputs says little
MIN_INPUTS_FOR_REJECT_FRACTION = 100

# source pixels decoded and resized in a second of one core, between images (125 million, median) and clips (67):
# benchmarks/media.py --only throughput
DECODED_PX_PER_S = 90e6


class BuildFailed(RuntimeError):
    """A build or plan did not reach its end, or reached it with too many rejects; the message is one line."""


def build(inputs: list[str], folder: str, config: BuildConfig, options: PipelineOptions | None) -> dict[str, Any]:
    """Builds a packed set and returns its report.

    Args:
        inputs: folders, files, globs or URIs; empty with --resume takes those of the first run.
        folder: where the set goes.
        config: checked options.
        options: of a Beam runner, or None for this machine.

    Raises:
        ValueError: the inputs or the output cannot be used so.
        BuildFailed: a shard failed, or a worker died.
    """
    parsed = _inputs(inputs, folder, config)
    config = _with_backend(config, folder, options)
    with _output(folder, config):
        _start(folder, parsed, config)
        if not (config.resume and _plan_is_kept(folder, config, parsed)):
            _make_plan(parsed, folder, config, options)
        _write_shards(folder, [given.root for given in parsed], config, options)
        results = finish.read_results(folder)
        _check_failures(results, folder)
        report = finish.finish(folder, config, results)
        files.remove(files.join(folder, RESULTS_NAME))
        _note(folder, finished=_now())
        return report


def check_rejects(told: dict[str, Any], config: BuildConfig, folder: str) -> None:
    """Fails a build that is finished but for too many rejects; duplicates were asked for, and do not count.

    Args:
        told: the report of the build.
        config: of the build.
        folder: the output.

    Raises:
        BuildFailed: more than --max-reject-fraction of the inputs were rejected.
    """
    duplicates = sum(row["num_rejects"] for row in told["rejects"] if row["reason"] == "duplicate")
    inputs, rejects = told["totals"]["num_inputs"], told["totals"]["num_rejected_inputs"] - duplicates
    if inputs >= MIN_INPUTS_FOR_REJECT_FRACTION and rejects > config.max_reject_fraction * inputs:
        raise BuildFailed(
            f"{folder}: {rejects} of {inputs} inputs rejected; --max-reject-fraction is {config.max_reject_fraction}; "
            f"the set is complete without them: see {REJECT_TABLE_NAME}, or raise it"
        )


def predict(
    inputs: list[str], folder: str | None, config: PlanConfig, options: PipelineOptions | None
) -> dict[str, Any]:
    """Plans without decoding anything, and returns what a build would give.

    The plan is kept where `folder` is given, so that `build --resume` can start from it.

    Raises:
        ValueError: the inputs or the output cannot be used so.
        BuildFailed: planning failed.
    """
    temporary = tempfile.mkdtemp(prefix="patchpack-plan-") if folder is None else None
    folder = folder or temporary or ""
    try:
        build_config = BuildConfig(**{name: getattr(config, name) for name in PlanConfig.__dataclass_fields__})
        parsed = _inputs(inputs, folder, build_config)
        build_config = _with_backend(build_config, folder, options)
        with _output(folder, build_config):
            _start(folder, parsed, build_config)
            _make_plan(parsed, folder, build_config, options)
        summaries = list(plan.read_summaries(folder))
        totals = finish.planned_totals(summaries)
        planned, length = totals["planned"], config.sequence_length
        rejects = list(plan.read_rejects(folder))
        told = Counter(f"{reject.stage}: {reject.reason}" for reject in rejects)
        return totals | {
            "num_rejected_inputs": len({row.key for row in rejects if (row.stage, row.reason) != PARTIAL_VIDEO}),
            "efficiency": planned["num_tokens"] / (planned["num_sequences"] * length)
            if planned["num_sequences"]
            else 0.0,
            "bounds": finish.global_bounds(summaries, build_config),
            **finish.planned_arrangement(folder, build_config),
            "predicted_bytes": planned["num_sequences"] * plan.sequence_bytes(config),
            "predicted_decode_core_s": planned["source_px"] / DECODED_PX_PER_S,
            "rejects": dict(sorted(told.items())),
            "config": output_affecting(build_config),
        }
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _output(folder: str, config: BuildConfig) -> Iterator[None]:
    """Holds an output folder that this build may write to; takes back an empty one that it made for nothing."""
    made = not files.is_uri(folder) and not os.path.isdir(folder)
    files.make_folder(folder)
    try:
        with files.locked(folder) as mine:
            if not mine:
                raise ValueError(
                    f"{folder}: another build is writing here; one output has one build; wait for it, or choose another --output"
                )
            _check_output(folder, config)
            yield
    finally:
        if made and not files.names(folder):
            os.rmdir(folder)


def _check_output(folder: str, config: BuildConfig) -> None:
    """Refuses a non-empty output, clears what --overwrite replaces, sweeps what a killed run left half-written."""
    if config.overwrite:
        _delete_set(folder)
    elif config.resume:
        for place in (folder, files.join(folder, PLAN_FOLDER)):
            files.sweep(place)
    elif files.names(folder):
        raise ValueError(
            f"{folder}: not empty ({len(files.names(folder))} entries); a build starts in an empty output; "
            "use --resume to go on, --overwrite to replace the set in it, or another --output"
        )


def _inputs(texts: list[str], folder: str, config: BuildConfig) -> list[Input]:
    if not texts and config.resume and files.exists(files.join(folder, RUN_NAME)):
        texts = json.loads(files.read(files.join(folder, RUN_NAME)))["inputs"]
    if not texts:
        raise ValueError("no inputs; build takes folders, files, globs or URIs; name at least one")
    return [parse_input(number, text) for number, text in enumerate(texts)]


def _with_backend(config: BuildConfig, folder: str, options: PipelineOptions | None) -> BuildConfig:
    """Returns the options with --media-backend decided: a kept plan's, else this machine's.

    Raises:
        ValueError: torch is needed, and is not here.
    """
    backend, kept = config.media_backend, files.join(folder, PLAN_NAME)
    if backend == "auto" and config.resume and files.exists(kept):
        backend = json.loads(files.read(kept))["config"]["media_backend"]
    elif backend == "auto" and options is not None:
        # what this machine has says nothing about a remote runner's, which install the base dependencies only
        backend = "pillow"
    return dataclasses.replace(config, media_backend=resolved(backend))


def _start(folder: str, inputs: list[Input], config: BuildConfig) -> None:
    """Writes run.json and takes back an old manifest: from here on the set is unfinished."""
    files.remove(files.join(folder, MANIFEST_NAME))
    files.make_folder(files.join(folder, PLAN_FOLDER))
    record = {
        "started": _now(),
        "host": platform.node(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": library_versions(config.media_backend) | {"apache-beam": beam.__version__},
        "inputs": [files.join(given.root, given.pattern) if given.pattern else given.root for given in inputs],
        "roots": [given.root for given in inputs],
        "workers": config.workers,
    }
    files.write(files.join(folder, RUN_NAME), json.dumps(record, indent=2).encode() + b"\n")


def _note(folder: str, **more: Any) -> None:
    path = files.join(folder, RUN_NAME)
    files.write(path, json.dumps(json.loads(files.read(path)) | more, indent=2).encode() + b"\n")


def _plan_is_kept(folder: str, config: BuildConfig, inputs: list[Input]) -> bool:
    """Returns whether a complete plan is there.

    Raises:
        ValueError: it is the plan of other options or inputs.
    """
    path = files.join(folder, PLAN_NAME)
    if not files.exists(path):
        return False
    kept = json.loads(files.read(path))
    now = json.loads(canonical_json(output_affecting(config)))
    for name, value in kept["config"].items():
        if now.get(name) != value:
            raise ValueError(
                f"{flag(name)}: {now.get(name)} now, {value} in the kept plan of {folder}; --resume goes on with the same options; "
                "give the old value, or --overwrite"
            )
    prefixes = _prefixes(inputs)
    if kept["inputs"] != prefixes:
        raise ValueError(
            f"{folder}: planned from {', '.join(kept['inputs'])}, resumed with {', '.join(prefixes)}; "
            "--resume goes on with the same inputs in the same order; give those, or --overwrite"
        )
    return True


def _prefixes(inputs: list[Input]) -> list[str]:
    """Returns what names the inputs wherever they stand."""
    return ["/".join(part for part in (given.prefix, given.pattern) if part) for given in inputs]


def _make_plan(inputs: list[Input], folder: str, config: BuildConfig, options: PipelineOptions | None) -> None:
    for name in files.names(files.join(folder, PLAN_FOLDER)):
        files.remove(files.join(folder, f"{PLAN_FOLDER}/{name}"))
    with bar("planning", None, "groups") as tell:
        _run(folder, lambda pipeline: plan_graph(pipeline, inputs, folder, config), config, options, lambda: tell(0))
    summaries = list(plan.read_summaries(folder))
    try:
        _check_plan(summaries, inputs)
    except ValueError:
        _delete_set(folder)
        raise
    record = {
        "config": output_affecting(config),
        "inputs": _prefixes(inputs),
        "totals": finish.planned_totals(summaries),
    }
    files.write(files.join(folder, PLAN_NAME), json.dumps(record, indent=2).encode() + b"\n")


def _check_plan(summaries: list[dict[str, Any]], inputs: list[Input]) -> None:
    clashes = [clash for summary in summaries for clash in summary["clashes"]]
    if clashes:
        key, one, two = min(clashes)
        raise ValueError(
            f"{key}: two inputs of this key, {one} and {two}; keys are unique; name each input once, or their common folder"
        )
    totals = finish.planned_totals(summaries)
    if not totals["num_inputs"]:
        named = ", ".join(files.join(given.root, given.pattern) if given.pattern else given.root for given in inputs)
        ignored = ", ".join(f"{count} {why}" for why, count in totals["ignored"].items())
        raise ValueError(
            f"{named}: no media found{f' (ignored: {ignored})' if ignored else ''}; at least one image or video is needed; check the path"
        )


def _write_shards(folder: str, roots: list[str], config: BuildConfig, options: PipelineOptions | None) -> None:
    shards = [ShardPlan(*shard) for summary in plan.read_summaries(folder) for shard in summary["shards"]]
    if not shards:
        rejects = list(plan.read_rejects(folder))
        first, num_inputs = min(rejects), len({row.key for row in rejects})
        raise BuildFailed(
            f"{folder}: nothing to write, all {num_inputs} inputs were rejected (first: {first.key}: {first.reason}, {first.detail}); "
            f"at least one must be readable; see {PLAN_FOLDER}/rejects-*.parquet"
        )
    examples = {shard.name: shard.num_segments for shard in shards}
    versions = library_versions(config.media_backend)

    def done() -> int:
        return sum(examples.get(name, 0) for name in files.names(folder))

    with bar("writing shards", sum(examples.values()), "examples", done()) as tell:
        _run(
            folder,
            lambda pipeline: shard_graph(pipeline, shards, roots, folder, config, versions),
            config,
            options,
            lambda: tell(done()),
        )


def _run(folder: str, add_graph: Any, config: BuildConfig, options: PipelineOptions | None, tick: Any) -> None:
    # a tick lists the output, which an object store charges for
    every_s = 30.0 if files.is_uri(folder) else 0.5
    try:
        runner.run(add_graph, config.workers, options, tick, every_s)
    except runner.PipelineFailed as error:
        raise BuildFailed(str(error)) from error


def _check_failures(results: list[Any], folder: str) -> None:
    failed = [result for result in results if result.failure]
    if failed:
        raise BuildFailed(
            f"{files.join(folder, failed[0].path)}: not written ({failed[0].failure}); {len(failed)} of {len(results)} shards failed, "
            "so the set has no manifest; run the same command with --resume"
        )


def _delete_set(folder: str) -> None:
    """Deletes a set, finished or not: the shards its table or plan names, and the files this module names; nothing else."""
    files.remove(files.join(folder, MANIFEST_NAME))
    shards: list[str] = []
    if files.exists(files.join(folder, SHARD_TABLE_NAME)):
        shards = read_shard_table(folder)["path"].to_pylist()
    else:
        shards = [ShardPlan(*shard).name for summary in plan.read_summaries(folder) for shard in summary["shards"]]
    own = [
        SHARD_TABLE_NAME,
        REJECT_TABLE_NAME,
        finish.REPORT_NAME,
        finish.REPORT_PAGE_NAME,
        RUN_NAME,
        PLAN_NAME,
        CLASSES_NAME,
        RESULTS_NAME,
    ]
    kept_plan = [f"{PLAN_FOLDER}/{name}" for name in files.names(files.join(folder, PLAN_FOLDER))]
    for name in [*shards, *own, *kept_plan]:
        files.remove(files.join(folder, name))
    for place in (files.join(folder, PLAN_FOLDER), folder):
        files.sweep(place)
    if not files.is_uri(folder) and os.path.isdir(os.path.join(folder, PLAN_FOLDER)):
        os.rmdir(os.path.join(folder, PLAN_FOLDER))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
