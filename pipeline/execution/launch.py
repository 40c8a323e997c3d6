"""The launcher: from what was asked to a finished dataset, or to one line that says why not.

Refusals come first and change nothing; then the plan is made, or taken over; then shards are written, and the dataset is
finished. What stands in the output meanwhile, and who looks after it, is described in `folder`.
"""

import dataclasses
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from typing import cast

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from patchpack.options import output_affecting
from patchpack.pipeline.config import BuildConfig, PlanConfig
from patchpack.pipeline.errors import BuildFailed, TooManyRejects
from patchpack.pipeline.execution import folder as output
from patchpack.pipeline.execution.graph import plan_graph, probe_graph, shard_graph
from patchpack.pipeline.execution.progress import bar, warn
from patchpack.pipeline.execution.resume import plan_is_kept, resumed, warn_of_new_inputs
from patchpack.pipeline.execution.stage import Writing, bug, planning, run_graph
from patchpack.pipeline.media.resize import resolved
from patchpack.pipeline.names import NEXT_FOLDER, PLAN_FOLDER, PLAN_NAME, RESULTS_NAME
from patchpack.pipeline.stages import finish, plan, saved
from patchpack.pipeline.stages.labels import check_labels
from patchpack.pipeline.stages.list import EXCLUDED, NO_SUFFIX, Input, check_containers, parse_input, source_roots
from patchpack.pipeline.stages.records import PARTIAL_VIDEO, Reject
from patchpack.pipeline.stages.summary import GroupSummary, Listing
from patchpack.pipeline.stages.write import ShardResult
from patchpack.pipeline.storage import files, remote
from patchpack.pipeline.versions import library_versions
from patchpack.pipeline.whatif import examples, rows
from patchpack.pipeline.whatif.cost import DECODED_PX_PER_S
from patchpack.pipeline.whatif.settings import Setting, check_examples, parse_setting
from patchpack.schemas.errors import is_redacted, without_secrets
from patchpack.schemas.figures import Options
from patchpack.schemas.manifest import MANIFEST_NAME, REJECT_TABLE_NAME
from patchpack.schemas.report import Prediction, Report, Totals
from patchpack.schemas.whatif import WhatIf

# the reject fraction of fewer inputs says little
MIN_INPUTS_FOR_REJECT_FRACTION = 100


def build(inputs: list[str], folder: str, config: BuildConfig, options: PipelineOptions | None) -> Report:
    """Builds a dataset and returns its report.

    Args:
        inputs: folders, files, globs or URIs; empty with --resume takes those of the first run.
        folder: where the dataset goes.
        config: checked options.
        options: of a Beam runner, or None for this machine.

    Raises:
        ValueError: the inputs or the output cannot be used so.
        BuildFailed: a shard failed, a worker died, or too many inputs were rejected (`TooManyRejects`).
    """
    _check_stores(folder, inputs, options)
    parsed = _inputs(inputs, folder, config)
    config = _with_backend(config, options)
    with output.held(folder, config):
        if config.resume and plan_is_kept(folder, config, parsed):
            _take_plan_over(parsed, folder, config)
        else:
            _make_plan(parsed, folder, config, options)
        try:
            _write_shards(folder, source_roots(parsed, config), config, options)
            results = finish.read_results(folder)
            _check_failures(results, folder)
            with output.stage_noted(folder, "finish", 1), bar("finishing", len(results), "shards") as advance:
                report = finish.finish(
                    folder, config, results, lambda report: not _too_many_rejects(report, config), advance
                )
            files.remove(files.join(folder, RESULTS_NAME))
            output.note(folder, finished=output.now())
            _check_rejects(report, config, folder)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(f"{folder} is unfinished; build --output {folder} --resume goes on") from error
        return report


def _check_rejects(report: Report, config: BuildConfig, folder: str) -> None:
    """Fails a build that has everything but a manifest, for its many rejects."""
    if rejects := _too_many_rejects(report, config):
        raise TooManyRejects(
            f"{folder}: {rejects} of {report['totals']['num_inputs']} inputs rejected; --max-reject-fraction is "
            f"{config.max_reject_fraction}, so no manifest was written; see {REJECT_TABLE_NAME}; to accept them: build --output "
            f"{folder} --resume --max-reject-fraction X",
            report,
        )


def _too_many_rejects(report: Report, config: BuildConfig) -> int:
    """Returns how many inputs were rejected if that is too many, otherwise 0; duplicates were asked for, and do not count."""
    duplicates = sum(row["num_rejects"] for row in report["rejects"] if row["reason"] == "duplicate")
    inputs, rejects = report["totals"]["num_inputs"], report["totals"]["num_rejected_inputs"] - duplicates
    too_many = inputs >= MIN_INPUTS_FOR_REJECT_FRACTION and rejects > config.max_reject_fraction * inputs
    return rejects if too_many else 0


def predict(inputs: list[str], folder: str | None, config: PlanConfig, options: PipelineOptions | None) -> Prediction:
    """Plans without decoding anything, and returns what a build would give.

    The plan is saved where `folder` is given, so that `build --resume` can start from it.

    Raises:
        ValueError: the inputs or the output cannot be used so.
        BuildFailed: planning failed.
    """
    temporary = tempfile.mkdtemp(prefix="patchpack-plan-") if folder is None else None
    folder = folder or temporary or ""
    try:
        build_config = BuildConfig(**{name: getattr(config, name) for name in PlanConfig.__dataclass_fields__})
        _check_stores(folder, inputs, options)
        parsed = _inputs(inputs, folder, build_config)
        build_config = _with_backend(build_config, options)
        with output.held(folder, build_config):
            _make_plan(parsed, folder, build_config, options)
        summaries = list(saved.read_summaries(folder))
        totals = finish.planned_totals(summaries, saved.read_listing(folder))
        planned, length = totals["planned"], config.sequence_length
        rejects = list(saved.read_rejects(folder))
        reasons = Counter(f"{reject.stage}: {reject.reason}" for reject in rejects)
        return {
            **totals,
            "num_rejected_inputs": len({row.key for row in rejects if (row.stage, row.reason) != PARTIAL_VIDEO}),
            "efficiency": planned["num_tokens"] / (planned["num_sequences"] * length)
            if planned["num_sequences"]
            else 0.0,
            "bounds": [bound.entry for bound in finish.global_bounds(summaries, build_config)],
            **finish.planned_arrangement(folder, build_config),
            "predicted_bytes": sum(
                shard.num_sequences * plan.sequence_bytes(config.layouts[shard.layout])
                for summary in summaries
                for shard in summary.shards
            ),
            "predicted_decode_core_s": planned["source_px"] / DECODED_PX_PER_S,
            "rejects": dict(sorted(reasons.items())),
            "config": cast(Options, output_affecting(build_config)),
        }
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def compare(inputs: list[str], texts: Sequence[str], base: PlanConfig, options: PipelineOptions | None) -> WhatIf:
    """Probes inputs once, decodes nothing, and returns what a build would give under each setting, the base first.

    Raises:
        ValueError: a setting or the inputs cannot be used so.
        BuildFailed: probing failed, or every input was rejected.
    """
    if options is not None:
        raise ValueError(
            "--compare: its probing runs on this machine, and options after -- name another runner; plan --output saves a plan by that "
            "runner, which --from FOLDER --compare takes; leave them out"
        )
    config = _with_backend(
        BuildConfig(**{name: getattr(base, name) for name in PlanConfig.__dataclass_fields__}), options
    )
    settings = _settings(texts, config)
    folder = tempfile.mkdtemp(prefix="patchpack-compare-")
    try:
        _check_stores(folder, inputs, options)
        parsed = _inputs(inputs, folder, config)
        files.make_folder(files.join(folder, PLAN_FOLDER))
        run_graph(
            folder,
            lambda pipeline: probe_graph(pipeline, parsed, folder, config),
            config,
            options,
            lambda counts: planning(counts, config),
        )
        found, rejects = examples.read_probed(folder), list(saved.read_rejects(folder))
        for warning in _check_listing(saved.read_listing(folder), len(found.keys) + len(rejects), parsed, config):
            warn(warning)
        if not found.keys:
            first = min(rejects)
            raise BuildFailed(
                f"nothing to compare, all {len({row.key for row in rejects})} inputs were rejected (first: {first.key}: "
                f"{first.reason}, {first.detail}); at least one must be readable; check the inputs"
            )
        return _compared(found, rejects, settings)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare_saved(folder: str, texts: Sequence[str]) -> WhatIf:
    """Returns the same of the examples of a saved plan, or of a finished dataset's; its own options are the base.

    Raises:
        ValueError: a setting cannot be used so, or there is no plan.
        FormatError: the plan was damaged.
    """
    home = output.plan_home(folder)
    if not files.exists(files.join(home, PLAN_NAME)):
        raise ValueError(
            f"--from {folder}: no {PLAN_NAME} in it; it takes what plan --output saved, or a dataset of build; check the path"
        )
    settings = _settings(texts, resumed({}, folder))
    return _compared(examples.read_planned(home), list(saved.read_rejects(home)), settings)


def _settings(texts: Sequence[str], base: PlanConfig) -> list[Setting]:
    settings = [Setting("", base), *(parse_setting(text, base) for text in texts)]
    for setting in settings[1:]:
        # what can be said before anything is probed
        check_examples(setting, base, clips=False, of_plan=False)
    return settings


def _compared(found: examples.Examples, rejects: list[Reject], settings: list[Setting]) -> WhatIf:
    clips = found.has_clips or any(reject.reason == "slow_source" for reject in rejects)
    for setting in settings[1:]:
        check_examples(setting, settings[0].config, clips=clips, of_plan=found.of_plan)
    with bar("comparing", len(found.keys) * len(settings), "examples") as advance:
        return rows.compare(found, rejects, settings, advance)


def _check_stores(folder: str, inputs: list[str], options: PipelineOptions | None) -> None:
    """Asks the stores that this machine will need; inputs of other runners are read by their workers."""
    if options is None:
        named = [folder, *inputs]
    else:
        cloud = options.view_as(GoogleCloudOptions)
        named = [folder, *filter(None, [cloud.temp_location, cloud.staging_location])]
    remote.check_answers([name for name in named if files.is_uri(name)])


def _inputs(texts: list[str], folder: str, config: BuildConfig) -> list[Input]:
    if not texts and config.resume:
        texts = output.run_record(folder).get("inputs", [])
        if hidden := next(filter(is_redacted, texts), None):
            raise ValueError(
                f"{hidden}: begun with credentials in this input, which no record keeps; --resume goes on with the same inputs; type them again"
            )
    if not texts:
        raise ValueError("no inputs; build takes folders, files, globs or URIs; name at least one")
    inputs = [parse_input(number, text) for number, text in enumerate(texts)]
    check_containers(inputs, config)
    return inputs


def _with_backend(config: BuildConfig, options: PipelineOptions | None) -> BuildConfig:
    """Returns the options with --media-backend decided by this machine, where no earlier build did.

    Raises:
        ValueError: torch is needed, and is not here.
    """
    backend = config.media_backend
    if backend == "auto" and options is not None:
        # what this machine has says nothing about a remote runner's, which install the base dependencies only
        backend = "pillow"
    return dataclasses.replace(config, media_backend=resolved(backend))


def _take_plan_over(inputs: list[Input], folder: str, config: BuildConfig) -> None:
    """Makes the output ready to go on from the plan that is there."""
    output.settle(folder)
    output.sweep(folder)
    output.write_record(folder, inputs, config)
    if warning := warn_of_new_inputs(folder, inputs, config):
        warn(warning)


def _make_plan(inputs: list[Input], folder: str, config: BuildConfig, options: PipelineOptions | None) -> None:
    """Makes the plan; with --overwrite beside the old dataset, which it replaces once it is complete."""
    home = files.join(folder, NEXT_FOLDER) if config.overwrite else folder
    output.clear_next(folder)
    output.clear_plan(home)
    output.write_record(home, inputs, config)
    try:
        with output.stage_noted(home, "plan", config.workers if options is None else None) as counts:
            run_graph(
                home,
                lambda pipeline: plan_graph(pipeline, inputs, home, config),
                config,
                options,
                lambda counts: planning(counts, config),
                counts,
            )
        summaries = list(saved.read_summaries(home))
        listing = saved.read_listing(home)
        warnings = _check_plan(summaries, listing, inputs, config)
        totals = finish.planned_totals(summaries, listing)
        _check_not_all_rejected(home, totals)
        _check_readable(home, totals, config)
    except (BuildFailed, ValueError, OSError, KeyboardInterrupt) as error:
        if config.overwrite:
            output.clear_next(folder)
            raise type(error)(f"{error}; {folder} is as it was".removeprefix("; ")) from error
        if isinstance(error, ValueError):
            # a build that goes on keeps its record: what is wrong may be mended
            (output.clear_plan if config.resume else output.delete_dataset)(folder)
        raise
    record = {
        "config": output_affecting(config),
        "inputs": [given.relative for given in inputs],
        "totals": totals,
    }
    files.write(files.join(home, PLAN_NAME), without_secrets(json.dumps(record, indent=2)).encode() + b"\n")
    for warning in warnings:
        warn(warning)
    if config.overwrite:
        output.settle(folder)


def _check_plan(summaries: list[GroupSummary], listing: Listing, inputs: list[Input], config: BuildConfig) -> list[str]:
    """Returns warnings about a plan.

    Raises:
        ValueError: keys conflict, nothing was found, or what labels were asked for is not there.
    """
    warnings = _check_listing(listing, sum(summary.num_inputs for summary in summaries), inputs, config)
    if config.has_labels:
        gaps = [summary.label_gaps for summary in summaries if summary.label_gaps]
        warnings += filter(None, [check_labels(gaps, config.labels_shown)])
    return warnings


def _check_listing(listing: Listing, num_inputs: int, inputs: list[Input], config: BuildConfig) -> list[str]:
    """Returns warnings about what was listed; raises ValueError where keys conflict or nothing was found."""
    if listing.key_conflict:
        key, (one, two) = listing.key_conflict
        raise ValueError(
            f"{key}: two inputs of this key, {one} and {two}; keys are unique; name each input once, or their common folder"
        )
    if not num_inputs:
        ignored = ", ".join(f"{count} {why}" for why, count in listing.ignored.items())
        by_suffix = any(why == NO_SUFFIX or why.startswith(".") for why in listing.ignored)
        raise ValueError(
            f"{', '.join(given.named for given in inputs)}: no media found{f' (ignored: {ignored})' if ignored else ''}; "
            "at least one image or video is needed; check the path"
            + (", or add --any-suffix to try files whatever their suffix" if by_suffix else "")
        )
    return [
        f"--exclude {pattern}: leaves out nothing; it is matched with whole keys, such as photos/cat/1.jpg; check it"
        for pattern in config.exclude
        if EXCLUDED.format(pattern) not in listing.ignored
    ]


def _check_not_all_rejected(folder: str, totals: Totals) -> None:
    if totals["planned"]["num_shards"]:
        return
    rejects = list(saved.read_rejects(folder))
    first, num_inputs = min(rejects), len({row.key for row in rejects})
    raise BuildFailed(
        f"{folder}: nothing to write, all {num_inputs} inputs were rejected (first: {first.key}: {first.reason}, {first.detail}); "
        f"at least one must be readable; see {PLAN_FOLDER}/rejects-*.parquet"
    )


def _check_readable(folder: str, totals: Totals, config: BuildConfig) -> None:
    """Keeps no plan that was made while storage failed: it would leave out for ever what could not be read then."""
    lost = sorted(row for row in saved.read_rejects(folder) if row.reason in ("unreadable", "not_found"))
    num_inputs = totals["num_inputs"]
    num_lost = len({row.key for row in lost})
    if num_inputs >= MIN_INPUTS_FOR_REJECT_FRACTION and num_lost > config.max_reject_fraction * num_inputs:
        raise BuildFailed(
            f"{folder}: {num_lost} of {num_inputs} inputs cannot be read (first: {lost[0].key}: {lost[0].detail}); "
            f"--max-reject-fraction is {config.max_reject_fraction}, so the plan is not kept; see to the storage and go on with "
            "--resume, or raise it"
        )


def _write_shards(folder: str, roots: list[str], config: BuildConfig, options: PipelineOptions | None) -> None:
    summaries = list(saved.read_summaries(folder))
    shards = [shard for summary in summaries for shard in summary.shards]
    # from here on the dataset is unfinished
    files.remove(files.join(folder, MANIFEST_NAME))
    versions = library_versions(config.media_backend)
    writing = Writing(folder, summaries, lists=options is not None)

    def add_graph(pipeline: beam.Pipeline) -> None:
        shard_graph(pipeline, shards, roots, folder, config, versions)

    with output.stage_noted(folder, "write", config.workers if options is None else None) as counts:
        run_graph(folder, add_graph, config, options, writing.amount, counts)


def _check_failures(results: list[ShardResult], folder: str) -> None:
    failed = [result for result in results if result.failure]
    for result in failed:
        if result.traceback:
            text = f"{result.failure}, writing {result.path}"
            raise bug(folder, text, result.traceback) from RuntimeError(result.traceback)
    if failed:
        raise BuildFailed(
            f"{files.join(folder, failed[0].path)}: not written ({failed[0].failure}); {len(failed)} of {len(results)} shards failed, "
            "so the dataset has no manifest; run the same command with --resume"
        )
