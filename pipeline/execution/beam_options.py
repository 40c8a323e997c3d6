"""Beam's options, as they come after `--`: read, checked before anything is begun, and completed with what workers need.

Beam itself ignores an option that it does not know, and finds out minutes later that no job server is there.
"""

import contextlib
import os
import tempfile
from typing import Any, cast

import grpc
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    WorkerOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.portability.common_urns import environments
from apache_beam.transforms.resources import resource_hints_from_options

import patchpack as package
from patchpack.options import Parser
from patchpack.pipeline.versions import pins

# this machine: what runs is always FnApiRunner (`_local`)
_LOCAL_RUNNERS = ("FnApiRunner", "DirectRunner")
_REFUSED_RUNNERS = {
    "DaskRunner": "it loses data silently (Beam 2.77)",
    "PrismRunner": "it downloads an engine of its own when it starts, and was never tested with this pipeline",
    "InteractiveRunner": "it is for notebooks",
}

# how long a job server may take to answer its first call
JOB_SERVER_ANSWER_S = 15.0


def parse_beam_options(arguments: list[str]) -> PipelineOptions | None:
    """Returns the options given after `--`, or None for the local runner; hands them to Beam's filesystems, too.

    S3's client asks for options even where there are none.

    Raises:
        ValueError: Beam knows no such option, or the runner is one that is not offered.
    """
    known, unknown = _beam_parser().parse_known_args(arguments)
    if unknown:
        raise ValueError(f"{unknown[0]}: no option of Beam's; options after -- go to Beam; put ours before --")
    FileSystems.set_options(PipelineOptions(arguments))
    if not arguments:
        return None
    _check_runner(known.runner)
    others = [text for text in arguments if text.startswith("--") and text.partition("=")[0] != "--runner"]
    if known.runner in (None, *_LOCAL_RUNNERS):
        if others:
            here = "there is no --runner" if known.runner is None else f"--runner {known.runner} is this machine"
            raise ValueError(
                f"{others[0]}: for other runners, and {here}; here --workers, before --, is all there is to set; name the "
                "runner, such as --runner DataflowRunner, or leave it out"
            )
        return None
    if known.template_location and known.runner != "DataflowRunner":
        raise ValueError(
            f"--template_location {known.template_location}: stores a job of Dataflow's, and the runner is {known.runner}; leave it out"
        )
    arguments = list(arguments)
    root = os.path.dirname(os.path.dirname(os.path.abspath(package.__file__)))
    if known.setup_file:
        arguments += ["--setup_file", os.path.abspath(known.setup_file)]
    elif os.path.exists(os.path.join(root, "setup.py")):
        arguments += ["--setup_file", os.path.join(root, "setup.py")]
    options = PipelineOptions(arguments, save_main_session=False)
    _check_environment(options)
    _check_hints(options)
    _pin(options)
    if known.runner == "DataflowRunner":
        _check_dataflow(options)
    if known.runner == "PortableRunner" or known.job_endpoint:
        _check_job_server(known.job_endpoint, f"--runner {known.runner}")
    return options


def beam_options() -> frozenset[str]:
    """Returns the names of all options of Beam's."""
    return frozenset(_beam_parser()._option_string_actions)


def _beam_parser() -> Parser:
    parser = Parser(prog="beam", add_help=False)
    for kind in PipelineOptions.__subclasses__():
        with contextlib.suppress(Exception):  # argparse: two modules of Beam's may define one option
            kind._add_argparse_args(cast(Any, parser))
    return parser


def _check_runner(name: str | None) -> None:
    if name in _REFUSED_RUNNERS:
        raise ValueError(
            f"--runner {name}: {_REFUSED_RUNNERS[name]}; use another runner; leave it out to run on this machine"
        )


def _check_dataflow(options: PipelineOptions) -> None:
    """Checks what Dataflow needs, which Beam finds wrong only when the build has begun.

    Raises:
        ValueError: an option is missing, or has a form that Dataflow does not take.
    """
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner

    cloud = options.view_as(GoogleCloudOptions)
    if not cloud.project:
        raise ValueError("--runner DataflowRunner: no --project; a job belongs to one; add --project P behind --")
    # of $CLOUDSDK_COMPUTE_REGION or gcloud's settings
    if not cloud.region and not DataflowRunner().get_default_gcp_region():
        raise ValueError("--runner DataflowRunner: no --region; a job runs in one; add --region R behind --")
    for text in PipelineOptionsValidator(options, DataflowRunner()).validate_cloud_options(cloud):
        raise ValueError(
            f"--runner DataflowRunner: {text.rstrip('.')}; Dataflow takes no other form; correct it behind --"
        )


def _check_hints(options: PipelineOptions) -> None:
    """Checks what is asked of workers' machines.

    Raises:
        ValueError: Beam knows no such hint, or not this amount.
    """
    try:
        resource_hints_from_options(options)
    except ValueError as error:
        raise ValueError(
            f"--resource_hint: {str(error).rstrip('.')}; hints are min_ram=4GB, cpu_count=4 and accelerator=TEXT; "
            "correct it behind --"
        ) from error


def _check_environment(options: PipelineOptions) -> None:
    """Checks that Beam knows where workers are to run.

    Raises:
        ValueError: it does not.
    """
    kind = options.view_as(PortableOptions).environment_type
    if kind in (None, "LOOPBACK") or kind.startswith("beam:env:") or hasattr(environments, kind):
        return
    raise ValueError(
        f"--environment_type {kind}: Beam knows no such environment; it says where workers run: DOCKER, EXTERNAL, LOOPBACK or "
        "PROCESS; see docs/flink.md"
    )


def _pin(options: PipelineOptions) -> None:
    """Gives workers that install this project the very libraries of this machine: they decide bytes, and a resolver takes the newest."""
    setup, portable = options.view_as(SetupOptions), options.view_as(PortableOptions)
    # an image and a pool bring what they have
    brings = options.view_as(WorkerOptions).sdk_container_image or portable.environment_type not in (None, "DOCKER")
    if brings or portable.job_endpoint == "embed" or setup.requirements_file or not setup.setup_file:
        return
    with tempfile.NamedTemporaryFile("w", prefix="patchpack-requirements-", suffix=".txt", delete=False) as file:
        file.write("".join(f"{pin}\n" for pin in pins()))
    setup.requirements_file = file.name
    if setup.requirements_cache is None:
        # workers fetch them; here they would be fetched first, for this machine's platform, and staged
        setup.requirements_cache = "skip"


def _check_job_server(endpoint: str | None, runner: str) -> None:
    """Checks that something listens where the job is to go, which Beam asks only after minutes, and waits for.

    Raises:
        ValueError: no endpoint is named.
        OSError: nothing answers there.
    """
    if endpoint == "embed":
        return
    if not endpoint:
        raise ValueError(f"{runner}: no --job_endpoint; a job goes to a server; add --job_endpoint HOST:PORT behind --")
    with grpc.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=JOB_SERVER_ANSWER_S)
        except grpc.FutureTimeoutError:
            raise OSError(
                f"--job_endpoint {endpoint}: nothing answers there within {JOB_SERVER_ANSWER_S:.0f} s; a job goes to a job "
                "server of Beam's; start it, or check host and port"
            ) from None
