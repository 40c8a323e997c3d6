"""What the commands do, as functions: the same options, by name; the same results, as plain data.

An option is a keyword of the name that `--help` shows, with underscores: `build(..., sequence_length=2048)`. Values are
those of `BuildConfig` and `PlanConfig`, which check them when they are made. Beam is imported by `build` and `plan` only.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from patchpack.collecting import uncollected
from patchpack.extras import MissingExtra
from patchpack.options import flag
from patchpack.pipeline.config import BuildConfig, PlanConfig
from patchpack.pipeline.recipes import with_recipe
from patchpack.pipeline.rules import default_workers
from patchpack.schemas.comparison import Comparison
from patchpack.schemas.report import Prediction, Report
from patchpack.schemas.run import JobRecord, Status
from patchpack.schemas.whatif import WhatIf

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def build(
    inputs: Inputs, output: str | os.PathLike[str], *, beam_options: Sequence[str] = (), **options: Any
) -> Report:
    """Builds a dataset and returns its report.

    Args:
        inputs: folders, files, globs or URIs; empty with `resume`, `append` or `from_plan` takes those of the build before.
        output: folder or URI of the dataset.
        beam_options: as typed behind `--`, such as `["--runner", "DataflowRunner", ...]`; empty runs on this machine.
        options: of `BuildConfig`.

    Raises:
        TypeError: there is no such option.
        ValueError: an option, an input or the output cannot be used so; nothing was changed.
        BuildFailed: a shard was not written, or too many inputs were rejected (`TooManyRejects`, with the report).
        OSError: storage failed.
    """
    with _launched(output, beam_options, options) as (launch, folder, config, beam):
        report: Report = launch.build(_listed(inputs), folder, config, beam)
        return report


def submit(inputs: Inputs, output: str | os.PathLike[str], *, beam_options: Sequence[str], **options: Any) -> JobRecord:
    """Hands a build to another runner, and returns its job, which needs nobody from then on; `status` says where it stands.

    Args and errors are those of `build`, where it does not end before this returns. `build(output=..., resume=True)` waits for it.

    Raises:
        ValueError: also where the runner is this machine, or needs this process.
    """
    with _launched(output, beam_options, options) as (launch, folder, config, beam):
        job: JobRecord = launch.submit(_listed(inputs), folder, config, beam)
        return job


def status(output: str | os.PathLike[str]) -> Status:
    """Returns where the build of an output stands, from what is on storage and, where another runner has the job, from its service.

    Raises:
        ValueError: no build was begun there.
        OSError: storage failed.
    """
    from patchpack.pipeline.execution.status import read_status

    return read_status(os.fspath(output))


@contextlib.contextmanager
def _launched(
    output: str | os.PathLike[str], beam_options: Sequence[str], options: dict[str, Any]
) -> Iterator[tuple[Any, str, BuildConfig, Any]]:
    """Yields the launcher, the output, the options of a build, and Beam's, with the workers of this machine started."""
    folder, options = os.fspath(output), with_recipe(options)
    # before Beam is loaded
    goes_on = options.get("resume") or options.get("append") or options.get("from_plan") is not None
    config = None if goes_on else BuildConfig(**options)
    if options.get("split") is not None and options.get("split_name") is None:
        raise ValueError(
            f"split {options['split']}: build makes one dataset, and these are several; build_splits makes them all; call that"
        )
    workers = options.get("workers", default_workers())
    with _root_logger_kept(), _started(workers, beam_options, options.get("media_backend", "auto")):
        with needing_beam():
            from patchpack.pipeline.execution import launch, resume
            from patchpack.pipeline.execution.beam_options import parse_beam_options
        beam = parse_beam_options(list(beam_options))
        yield launch, folder, config or resume.resumed(options, folder), beam


def build_splits(
    inputs: Inputs,
    output: str | os.PathLike[str],
    *,
    split: str,
    beam_options: Sequence[str] = (),
    **options: Any,
) -> dict[str, Report]:
    """Builds a dataset of each split, in a folder of its name below the output, and returns their reports by name.

    Inputs are listed once for each split, and read once: for the split that they belong to. Classes are those of all.

    Args:
        inputs: as for `build`.
        output: a folder, a path or URI; each split has the rules of `build` for the folder of its own.
        split: such as "train:0.98,val:0.02".
        beam_options: as for `build`.
        options: of `BuildConfig`.

    Raises:
        Error: as `build`, for the first split that fails; those before it are finished.
    """
    from patchpack.pipeline.inputs.split import parse_splits
    from patchpack.pipeline.storage.files import join

    names = [one.name for one in parse_splits(split)]
    return {
        name: build(
            inputs,
            join(os.fspath(output), name),
            beam_options=beam_options,
            **with_recipe(options) | {"split": split, "split_name": name},
        )
        for name in names
    }


def plan(
    inputs: Inputs,
    output: str | os.PathLike[str] | None = None,
    *,
    beam_options: Sequence[str] = (),
    **options: Any,
) -> Prediction:
    """Plans a build without decoding and returns what it would give: sequences, efficiency, bytes, decoding time.

    Args:
        inputs: as for `build`.
        output: where the plan is saved, so that `build(..., resume=True)` can go on from it; None saves nothing.
        beam_options: as for `build`.
        options: of `PlanConfig`.

    Raises:
        TypeError: there is no such option.
        ValueError: an option, an input or the output cannot be used so.
        BuildFailed: planning failed.
        OSError: storage failed.
    """
    config = PlanConfig(**with_recipe(options))
    if config.split is not None and output is not None:
        raise ValueError(
            f"--split {config.split} --output: a saved plan is of one dataset, and these are several; plan without --output looks at "
            "all of them together; leave one out"
        )
    with _root_logger_kept(), _started(config.workers, beam_options):
        with needing_beam():
            from patchpack.pipeline.execution import launch
            from patchpack.pipeline.execution.beam_options import parse_beam_options
        beam = parse_beam_options(list(beam_options))
        folder = None if output is None else os.fspath(output)
        return launch.predict(_listed(inputs), folder, config, beam)


def compare(
    inputs: Inputs,
    settings: Sequence[str],
    *,
    saved: str | os.PathLike[str] | None = None,
    beam_options: Sequence[str] = (),
    **options: Any,
) -> WhatIf:
    """Returns what builds of the same examples would give under several settings and packers; decodes nothing, probes once.

    Args:
        inputs: as for `build`; empty with `saved`.
        settings: options of `plan` as typed, such as "--sequence-length 2048", each changing the base.
        saved: a saved plan or a finished dataset, whose examples and options are then the base: nothing is probed.
        beam_options: as for `build`.
        options: of `PlanConfig`, the base.

    Raises:
        TypeError: there is no such option.
        ValueError: an option, a setting or an input cannot be used so.
        BuildFailed: probing failed, or every input was rejected.
        FormatError: the saved plan was damaged.
        OSError: storage failed.
    """
    given = _listed(inputs)
    if saved is not None and (given or options):
        what = given[0] if given else flag(next(iter(options)))
        raise ValueError(
            f"--from {os.fspath(saved)}: {what} beside it; the base is that plan, with its inputs and options; leave one out, or name "
            "options in --compare"
        )
    if saved is None and not given:
        raise ValueError(
            "no inputs; plan takes folders, files, globs or URIs; name at least one, or a saved plan with --from"
        )
    base = PlanConfig(**with_recipe(options))
    with _root_logger_kept():
        with needing_beam():
            from patchpack.pipeline.execution import compare as comparison
            from patchpack.pipeline.execution.beam_options import parse_beam_options
        if saved is not None:
            return comparison.compare_saved(os.fspath(saved), settings)
        return comparison.compare(given, settings, base, parse_beam_options(list(beam_options)))


def report(dataset: str | os.PathLike[str]) -> Report:
    """Returns how well a finished dataset is packed, and what was left out: the content of report.json.

    Raises:
        FormatError: there is no finished dataset, or it is broken.
    """
    from patchpack.pipeline.report.scan import read_report
    from patchpack.pipeline.whatif.advice import with_advice
    from patchpack.schemas.manifest import read_manifest

    folder = os.fspath(dataset)
    return with_advice(folder, read_manifest(folder), read_report(folder))


def verify(dataset: str | os.PathLike[str]) -> list[str]:
    """Reads a dataset again, every byte, and returns what is wrong with it, a line each; empty where nothing is.

    Raises:
        FormatError: there is no finished dataset.
    """
    from patchpack.pipeline.verification.dataset import verify as verify_dataset
    from patchpack.schemas.manifest import read_manifest

    folder = os.fspath(dataset)
    read_manifest(folder)
    return verify_dataset(folder)


def diff(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Comparison:
    """Returns how two finished datasets differ: options, inputs, counts, fullness, distributions, rejects, layouts, classes.

    Raises:
        FormatError: one is no finished dataset, or is broken.
    """
    from patchpack.pipeline.comparison.differences import compare

    return compare(os.fspath(a), os.fspath(b))


def _started(
    workers: int, beam_options: Sequence[str], backend: str = "pillow"
) -> contextlib.AbstractContextManager[None]:
    """Starts the worker processes of this machine before Beam is loaded here, which takes them as long."""
    from patchpack.pipeline.execution.workers import started

    return started(1 if beam_options else workers, backend)


@contextlib.contextmanager
def needing_beam() -> Iterator[None]:
    """Imports of modules that import Beam: nothing of what it says then is shown.

    Raises:
        MissingExtra: Beam is not installed.
    """
    try:
        with _quietly(), uncollected():
            yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("patchpack"):
            # a bug of ours, and no extra
            raise
        raise MissingExtra(error.name, "build and plan need", "beam") from error
    except (ImportError, MemoryError, SystemError) as error:
        # how an interpreter without memory fails
        raise RuntimeError(
            f"Beam cannot be imported ({' '.join(str(error).split()) or 'out of memory'}); it takes some 300 MB; free memory, "
            "or raise the limit (ulimit -v)"
        ) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps off the screen what Beam says while it is imported."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Takes back the handler that Beam gives the root logger whenever it makes options."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    try:
        yield
    finally:
        root.handlers[:] = handlers


def _listed(inputs: Inputs) -> list[str]:
    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    return [os.fspath(path) for path in inputs]
