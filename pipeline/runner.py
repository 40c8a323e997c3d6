"""Runs a graph: by default on this machine with Beam's FnApiRunner, or on the runner named after `--`.

Local workers are processes. A worker process that dies makes FnApiRunner wait for ever, so the pipeline runs
in a thread of its own, and this thread watches.
"""

import contextlib
import logging
import os
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

import pipeline as package
from pipeline.options import Parser

_LOCAL_RUNNERS = ("FnApiRunner", "DirectRunner", "PrismRunner", "InteractiveRunner")


class PipelineFailed(RuntimeError):
    """A pipeline did not finish; the message is one line."""


def parse_beam_options(arguments: list[str]) -> PipelineOptions | None:
    """Returns the options given after `--`, or None for the local runner.

    Raises:
        ValueError: Beam knows no such option, or the runner is one that is not offered.
    """
    parser = Parser(prog="beam", add_help=False)
    for kind in PipelineOptions.__subclasses__():
        with contextlib.suppress(Exception):  # argparse: two modules of Beam's may define one option
            kind._add_argparse_args(parser)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise ValueError(f"{unknown[0]}: no option of Beam's; options after -- go to Beam; put ours before --")
    if known.runner == "DaskRunner":
        raise ValueError(
            "--runner DaskRunner: it loses data silently (Beam 2.77); use another runner; leave it out to run on this machine"
        )
    if not arguments or known.runner in (None, *_LOCAL_RUNNERS):
        return None
    arguments = list(arguments)
    root = os.path.dirname(os.path.dirname(os.path.abspath(package.__file__)))
    if known.setup_file:
        arguments += ["--setup_file", os.path.abspath(known.setup_file)]
    elif os.path.exists(os.path.join(root, "setup.py")):
        arguments += ["--setup_file", os.path.join(root, "setup.py")]
    return PipelineOptions(arguments, save_main_session=False)


def run(
    add_graph: Callable[[beam.Pipeline], None],
    workers: int,
    options: PipelineOptions | None,
    tick: Callable[[], Any],
    tick_every_s: float,
) -> None:
    """Runs one pipeline to its end.

    Args:
        add_graph: adds the transforms.
        workers: local processes; more than one are started as such, one runs inside this process.
        options: of another runner, or None for this machine.
        tick: called while it runs.
        tick_every_s: how often, in seconds.

    Raises:
        PipelineFailed: it did not finish.
    """
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    failure: list[BaseException] = []
    ended = threading.Event()

    def target() -> None:
        try:
            pipeline = _local(workers) if options is None else beam.Pipeline(options=options)
            add_graph(pipeline)
            pipeline.run().wait_until_finish()
        except BaseException as error:  # raised again in the waiting thread
            failure.append(error)
        finally:
            ended.set()

    with _watched_workers(failure, ended):
        threading.Thread(target=target, name="pipeline", daemon=True).start()
        while not ended.wait(tick_every_s):
            tick()
    if failure:
        raise PipelineFailed(_one_line(failure[0])) from failure[0]


def _local(workers: int) -> beam.Pipeline:
    if workers == 1:
        return beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    # workers are told where this code is: the current folder or site-packages may hold another `pipeline`
    root = os.path.dirname(os.path.dirname(os.path.abspath(package.__file__)))
    os.environ["PYTHONSAFEPATH"] = "1"
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])
    command = f"exec {shlex.quote(sys.executable)} -m pipeline.worker"
    environment = SubprocessSDKEnvironment.from_command_string(command_string=command)
    return beam.Pipeline(
        runner=FnApiRunner(default_environment=environment),
        options=PipelineOptions([f"--direct_num_workers={workers}"]),
    )


@contextlib.contextmanager
def _watched_workers(failure: list[BaseException], ended: threading.Event) -> Iterator[None]:
    """Ends the wait when one of FnApiRunner's worker threads reports that its process died."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if arguments.thread is not None and arguments.thread.name == "run_worker":
            failure.append(
                RuntimeError(f"a worker process died ({arguments.exc_value}); run the same command with --resume")
            )
            ended.set()
        elif not issubclass(
            arguments.exc_type, grpc.RpcError
        ):  # Beam's other threads only complain about the dead worker
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _one_line(error: BaseException) -> str:
    """Returns what a Beam failure says, without the tracebacks that Beam puts into its messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # the last line of a remote traceback: "SomeError: text [while running 'step']"
    last = re.sub(r"\s*\[while running .*\]$", "", lines[-1])
    return re.sub(r"^(?:[A-Za-z_.]+\.)?[A-Za-z_]*(?:Error|Exception): ", "", last)
