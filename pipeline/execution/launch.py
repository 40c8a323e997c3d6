"""The launcher: from what was asked to a finished dataset, or to one line that says why not.

Refusals come first and change nothing; then the plan is made, or taken over; then shards are written, and the dataset is
finished. What stands in the output meanwhile, and who looks after it, is described in `folder`.
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import cast

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.runners.runner import PipelineResult

from patchpack.options import output_affecting
from patchpack.pipeline.config import BuildConfig, PlanConfig
from patchpack.pipeline.errors import NothingNew
from patchpack.pipeline.execution import folder as output
from patchpack.pipeline.execution import job, outcome
from patchpack.pipeline.execution.graph import build_graph, plan_graph, shard_graph
from patchpack.pipeline.execution.progress import Amount, say, warn
from patchpack.pipeline.execution.resume import fetch_plan, growth, plan_is_kept, warn_of_new_inputs
from patchpack.pipeline.execution.stage import Building, Writing, planning, run_graph, run_job
from patchpack.pipeline.execution.stock import planning_home, take_stock, undone_if_refused
from patchpack.pipeline.media.resize import resolved
from patchpack.pipeline.names import REPORT_NAME
from patchpack.pipeline.report.rejects import RejectCounts
from patchpack.pipeline.stages import finish, saved
from patchpack.pipeline.stages.generations import Grown
from patchpack.pipeline.stages.list import Input, check_containers, parse_input, source_roots
from patchpack.pipeline.storage import files, remote
from patchpack.pipeline.versions import library_versions
from patchpack.pipeline.whatif.cost import DECODED_PX_PER_S
from patchpack.schemas.errors import is_redacted
from patchpack.schemas.figures import Options
from patchpack.schemas.manifest import MANIFEST_NAME, read_manifest
from patchpack.schemas.report import Prediction, Report
from patchpack.schemas.run import JobRecord, StageName


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
    if template := job.template_of(options):
        raise ValueError(
            f"--template_location {template}: stores the job and runs nothing, and build waits for its end; it goes with --detach; add that"
        )
    check_stores(folder, inputs, options)
    parsed = read_inputs(inputs, folder, config)
    config = with_backend(config, options)
    with output.held(folder, config):
        try:
            if not _waited_for(folder, config):
                _build(parsed, folder, config, options)
            outcome.raise_saved(folder)
        except KeyboardInterrupt as error:
            what = str(error) or f"{folder} is unfinished; build --output {folder} --resume goes on"
            raise KeyboardInterrupt(what) from error
        except NothingNew as error:
            say(str(error))
        return cast(Report, json.loads(files.read(files.join(folder, REPORT_NAME))))


def submit(inputs: list[str], folder: str, config: BuildConfig, options: PipelineOptions | None) -> JobRecord:
    """Hands a build to another runner and returns its job, which needs nobody from then on; arguments and errors are those of `build`.

    With --template_location the job is stored, and its id is where.
    """
    job.check_detachable(options)
    check_stores(folder, inputs, options)
    parsed = read_inputs(inputs, folder, config)
    config = with_backend(config, options)
    with output.held(folder, config):
        record = output.record_begun(folder).get("job")
        if record is not None and _running(record, folder) is not None:
            raise _still_running(folder, record)
        _build(parsed, folder, config, options, leaves=True)
        return output.record_begun(folder).get("job") or job.stored_as(options)


def _build(
    inputs: list[Input], folder: str, config: BuildConfig, options: PipelineOptions | None, *, leaves: bool = False
) -> None:
    """Builds what is not there yet; with `leaves` it only submits the job."""
    outcome.clear(folder)
    if config.resume and output.is_growing(folder):
        # its plan was not complete: it is made again, of what was probed
        config = dataclasses.replace(config, resume=False, append=True)
    grown = growth(folder) if config.append else Grown()
    is_planned = config.resume and plan_is_kept(folder, config, inputs)
    if config.from_plan is not None and not is_planned:
        fetch_plan(config.from_plan, inputs, folder, config)
        is_planned = True
    if is_planned:
        _take_plan_over(inputs, folder, config)
    elif options is None:
        _make_plan(inputs, folder, config, options, grown)
    if is_planned or options is None:
        _write_shards(folder, source_roots(inputs, config), config, options, leaves=leaves)
    else:
        _run_all(inputs, folder, config, options, grown, leaves=leaves)


def _waited_for(folder: str, config: BuildConfig) -> bool:
    """Waits for the job of another runner that an earlier command has left in this output; returns whether there was one.

    Raises:
        ValueError: there is one, and it is to be replaced.
        BuildFailed: it did not finish.
    """
    record = output.record_begun(folder).get("job")
    running = None if record is None else _running(record, folder)
    if record is None or running is None:
        return False
    if not config.resume:
        raise _still_running(folder, record)
    say(f"waiting for job {record['id']} of {record['runner']}, which writes {folder}")
    with output.stage_noted(output.begun_home(folder), "build", None) as counts:
        run_job(folder, lambda: running, lambda _: True, Building(folder, config).amount, counts)
    return True


def _running(record: JobRecord, folder: str) -> PipelineResult | None:
    """Returns the job of a record if it has not ended."""
    try:
        met = job.met_again(record)
    except OSError as error:
        raise OSError(
            f"{folder}: job {record['id']} of {record['runner']} may be writing here, and its service does not say ({error}); "
            "one output has one build; see to the service"
        ) from error
    return met if met is not None and job.is_running(met) else None


def _still_running(folder: str, record: JobRecord) -> ValueError:
    return ValueError(
        f"{folder}: job {record['id']} of {record['runner']} is writing here; one output has one build; wait for it with "
        "build --resume, look with status, or cancel it"
    )


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
        check_stores(folder, inputs, options)
        parsed = read_inputs(inputs, folder, build_config)
        build_config = with_backend(build_config, options)
        with output.held(folder, build_config):
            _make_plan(parsed, folder, build_config, options, Grown())
        every = finish.Planned(saved.read_summaries(folder), build_config)
        totals = every.totals(saved.read_listing(folder))
        planned, length = totals["planned"], config.sequence_length
        rejected = RejectCounts()
        rejected.add(saved.read_rejects(folder))
        reasons = {f"{kind['stage']}: {kind['reason']}": kind["num_rejects"] for kind in rejected.by_kind()}
        return {
            **totals,
            "num_rejected_inputs": rejected.num_inputs,
            "efficiency": planned["num_tokens"] / (planned["num_sequences"] * length)
            if planned["num_sequences"]
            else 0.0,
            "bounds": [bound.entry for bound in every.bounds()],
            **saved.read_arranged(folder, 0),
            "predicted_bytes": every.num_bytes,
            "predicted_decode_core_s": planned["source_px"] / DECODED_PX_PER_S,
            "rejects": dict(sorted(reasons.items())),
            "config": cast(Options, output_affecting(build_config)),
        }
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def check_stores(folder: str, inputs: list[str], options: PipelineOptions | None) -> None:
    """Asks the stores that this machine will need; inputs of other runners are read by their workers."""
    if options is None:
        named = [folder, *inputs]
    else:
        cloud = options.view_as(GoogleCloudOptions)
        named = [folder, *filter(None, [cloud.temp_location, cloud.staging_location])]
    remote.check_answers([name for name in named if files.is_uri(name)])


def read_inputs(texts: list[str], folder: str, config: BuildConfig) -> list[Input]:
    """Returns what was named, or what the build to go on with was begun with; raises ValueError where it cannot be used."""
    if not texts and config.from_plan is not None:
        texts = output.run_record(config.from_plan).get("inputs", [])
    elif not texts and (config.resume or config.append):
        if config.append:
            # where there is none, that is what is wrong
            read_manifest(folder)
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


def with_backend(config: BuildConfig, options: PipelineOptions | None) -> BuildConfig:
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
    output.write_record(folder, inputs, config, saved.read_generations(folder)[-1])
    if warning := warn_of_new_inputs(folder, inputs, config):
        warn(warning)


def _make_plan(
    inputs: list[Input], folder: str, config: BuildConfig, options: PipelineOptions | None, grown: Grown
) -> None:
    """Makes the plan; with --overwrite and --append beside the old dataset, until it is complete."""
    home = _begin_plan(inputs, folder, config, grown)
    with undone_if_refused(folder, config):
        with (
            output.stage_noted(home, "plan", config.workers if options is None else None) as counts,
            output.shuffling(home, is_local=options is None) as shuffle,
        ):
            _run(
                home,
                lambda pipeline: plan_graph(pipeline, inputs, home, config, shuffle, grown),
                config,
                options,
                lambda counts: planning(counts, config),
                counts,
            )
        for warning in take_stock(folder, inputs, config, grown):
            warn(warning)


def _begin_plan(inputs: list[Input], folder: str, config: BuildConfig, grown: Grown) -> str:
    """Returns where the plan is to be made, with nothing of an earlier one but what may be kept."""
    home = planning_home(folder, config)
    output.clear_next(folder, keep_probed=config.append)
    if not config.append:
        output.clear_plan(home, keep_probed=config.resume)
    output.write_record(home, inputs, config, grown.generation.number)
    return home


def _run_all(
    inputs: list[Input],
    folder: str,
    config: BuildConfig,
    options: PipelineOptions | None,
    grown: Grown,
    *,
    leaves: bool,
) -> None:
    """Builds with one job of another runner."""
    home = _begin_plan(inputs, folder, config, grown)
    versions = library_versions(config.media_backend)
    with _noted(home, "build", None, leaves=leaves) as counts:
        _run(
            home,
            lambda pipeline: build_graph(pipeline, inputs, folder, config, versions, grown),
            config,
            options,
            Building(folder, config).amount,
            counts,
            leaves=leaves,
        )


def _write_shards(
    folder: str, roots: list[str], config: BuildConfig, options: PipelineOptions | None, *, leaves: bool
) -> None:
    versions = library_versions(config.media_backend)
    *earlier, last = saved.read_generations(folder)
    groups, before = saved.planned_groups(folder, [last]), saved.planned_groups(folder, earlier)
    writing = Writing(folder, saved.read_plan_record(folder), lists=options is not None)
    if not output.is_of_before(folder, len(earlier)):
        # from here on the dataset is unfinished; one that is added to is whole until its tables are replaced
        files.remove(files.join(folder, MANIFEST_NAME))

    def add_graph(pipeline: beam.Pipeline) -> None:
        shard_graph(pipeline, groups, before, roots, folder, config, versions)

    workers = config.workers if options is None else None
    with _noted(folder, "write", workers, leaves=leaves) as counts:
        _run(folder, add_graph, config, options, writing.amount, counts, leaves=leaves)


def _noted(
    folder: str, name: StageName, workers: int | None, *, leaves: bool
) -> contextlib.AbstractContextManager[Counter[str]]:
    """Notes the time of a stage; of a job that is left nobody takes it."""
    return contextlib.nullcontext(Counter()) if leaves else output.stage_noted(folder, name, workers)


def _run(
    folder: str,
    add_graph: Callable[[beam.Pipeline], object],
    config: BuildConfig,
    options: PipelineOptions | None,
    amount: Callable[[Counter[str]], Amount],
    counts: Counter[str],
    *,
    leaves: bool = False,
) -> None:
    """Runs a graph here, or as a job of another runner, which is noted before anybody waits for it."""
    if options is None:
        run_graph(folder, add_graph, config, amount, counts)
        return

    def start() -> PipelineResult:
        pipeline = beam.Pipeline(options=options)
        add_graph(pipeline)
        return pipeline.run()

    def submitted(result: PipelineResult) -> bool:
        record = job.record_of(result, options)
        if record is not None:
            output.note(folder, job=record)
        return not leaves

    run_job(folder, start, submitted, amount, counts)
