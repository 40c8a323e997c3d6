"""What Beam would say in a hundred lines, or only after minutes, is one line, and soon."""

import contextlib
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from conftest import Result

from patchpack.pipeline.execution import beam_options, runner

Run = Callable[..., Result]


def test_a_job_server_that_is_not_there_is_told_in_one_line(
    media: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beam_options, "JOB_SERVER_ANSWER_S", 0.2)
    given = ("--runner", "PortableRunner", "--job_endpoint", "localhost:1")
    ended = run("build", media, "--output", tmp_path / "out", "--", *given)
    assert (ended.code, ended.err) == (
        1,
        "--job_endpoint localhost:1: nothing answers there within 0 s; a job goes to a job server of Beam's; start it, or check "
        "host and port\n",
    )
    assert not (tmp_path / "out").exists()


def test_a_job_server_that_is_there_is_taken() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    endpoint = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    try:
        options = beam_options.parse_beam_options(["--runner", "PortableRunner", "--job_endpoint", endpoint])
    finally:
        server.stop(None)
    assert isinstance(options, PipelineOptions)
    assert options.view_as(PortableOptions).job_endpoint == endpoint


def test_what_is_said_while_packages_are_staged_is_kept_off_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    from apache_beam.utils import processes

    talks = [
        sys.executable,
        "-c",
        "import sys; print('* Building sdist...', file=sys.stderr); sys.exit(len(sys.argv) - 1)",
    ]
    said: list[bytes] = []

    def stage(pipeline: object) -> None:
        said.append(processes.check_output(talks))
        processes.check_output([*talks, "fails"])

    with pytest.raises(runner.PipelineFailed, match="Building sdist"):
        runner.run_here(stage, 1, lambda counts: None, 0.1)
    assert said == [b"* Building sdist...\n"]
    assert capfd.readouterr().err == ""


def test_what_beam_says_of_a_dead_worker_after_the_run_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def late() -> None:
        ended.wait(10)
        time.sleep(0.3)
        raise grpc.RpcError

    before = threading.excepthook
    failure: list[BaseException] = []
    thread = threading.Thread(target=late, name="beam_control_read", daemon=True)
    with runner._watched_threads(failure, failure.append):
        thread.start()
        failure.append(RuntimeError("a worker process died"))
        ended.set()
    assert not thread.is_alive() and threading.excepthook is before
    assert len(failure) == 1
    assert capsys.readouterr().err == ""


def test_a_thread_of_beams_that_fails_ends_the_run_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", others.append)
    of_beam: dict[str, Any] = {"__name__": "grpc._server"}
    exec("def serve(error): raise error", of_beam)

    def mine(error: BaseException) -> None:
        raise error

    failure: list[BaseException] = []
    with runner._watched_threads(failure, failure.append):
        for work, error in (
            (mine, ValueError("of somebody")),
            (of_beam["serve"], RuntimeError("can't start new thread")),
        ):
            thread = threading.Thread(target=work, args=(error,))
            thread.start()
            thread.join()
    assert [str(error) for error in failure] == [
        "the launcher cannot go on (RuntimeError: can't start new thread); run the same command with --resume"
    ]
    assert [str(arguments.exc_value) for arguments in others] == ["of somebody"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("a worker process died (out of memory); run the same command with --resume"),
        RuntimeError("can't start new thread"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("Traceback (most recent call last):\n  File x\nMemoryError: [while running 'plan/group']"),
    ],
)
def test_whatever_says_that_there_is_no_memory_says_what_to_do(error: Exception) -> None:
    failed = runner._described(error)
    assert re.fullmatch(
        r"out of memory \(.+\); the launcher takes some 300 MB and each of --workers as much; free memory, or use fewer, and "
        "run the same command with --resume",
        str(failed),
    )
    assert failed.traceback == ""


@pytest.mark.parametrize(
    ("limit", "workers", "fails"), [(2**31, 2, True), (2**31, 1, False), (2**40, 2, False), (-1, 2, False)]
)
def test_too_low_a_limit_of_addresses_is_said_before_grpc_meets_it(
    limit: int, workers: int, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))

    @contextlib.contextmanager
    def of_build() -> Iterator[None]:
        yield None

    monkeypatch.setattr(runner, "of_build", of_build)

    def nothing(pipeline: object) -> None:
        raise RuntimeError("begun")

    said = "out of memory \\(ulimit -v is 2097152\\); .* reserves 3 GB of addresses, .*" if fails else "begun"
    with pytest.raises(runner.PipelineFailed, match=said):
        runner.run_here(nothing, workers, lambda counts: None, 0.1)
