"""A job of another runner: submitted to a job server of Beam's and run by worker pools, left, met again, cancelled, looked at."""

import contextlib
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SMALL, Result, start
from support.cluster import Cluster, contents
from support.media_files import photo, write_files

import patchpack
from patchpack.pipeline.execution import job as jobs
from patchpack.pipeline.execution import outcome
from patchpack.pipeline.execution.beam_options import parse_beam_options

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def here(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset that a build of this machine makes, with the backend of remote workers."""
    folder = tmp_path_factory.mktemp("here") / "set"
    ended = start("build", media, "--output", folder, "--workers", 1, *SMALL)
    assert ended.wait() == 0, ended.communicate()
    return folder


@pytest.mark.slow
def test_pools_on_several_hosts_make_the_same_bytes(cluster: Cluster, media: Path, here: Path, tmp_path: Path) -> None:
    ended = start("build", media, "--output", tmp_path / "set", *SMALL, "--", *cluster.options)
    out, err = ended.communicate(timeout=300)
    assert ended.returncode == 0, (out, err)
    assert contents(tmp_path / "set") == contents(here)
    assert patchpack.verify(str(tmp_path / "set")) == []


@pytest.mark.slow
def test_inputs_are_added_by_one_job(cluster: Cluster, media: Path, here: Path, tmp_path: Path, run: Run) -> None:
    """The dataset of this machine has all of the demo's media; what is added to it are three photos, one of them broken."""
    grown = tmp_path / "media"
    shutil.copytree(media, grown)
    write_files(grown, {"new/1.jpg": photo((50, 90)), "new/2.jpg": photo((90, 50)), "new/3.jpg": b""})
    folders = []
    for name, options in (("here", ("--workers", 1)), ("there", ("--", *cluster.options))):
        folders.append(tmp_path / name)
        shutil.copytree(here, folders[-1])
        added = run("build", grown, "--output", folders[-1], "--append", *options)
        assert added.code == 0, added.err
        again = run("build", grown, "--output", folders[-1], "--append", *options)
        assert again.code == 0 and "nothing to add" in again.err, again.err
    assert contents(folders[0]) == contents(folders[1])
    assert len(patchpack.Dataset(folders[1]).manifest.earlier) == 1
    assert patchpack.status(folders[1])["state"] == "finished"


@pytest.mark.slow
def test_a_host_that_dies_costs_no_byte(media: Path, here: Path, tmp_path: Path) -> None:
    made = Cluster(tmp_path / "cluster")
    try:
        process = start("build", media, "--output", tmp_path / "set", *SMALL, "--", *made.options)
        while not list((tmp_path / "set").glob("sequences/*.parquet")) and process.poll() is None:
            time.sleep(0.02)
        made.kill_host(0)
        _, err = process.communicate(timeout=300)
        if process.returncode:
            # Beam's job server gives up where a worker is gone, and says so; what is left of the cluster goes on
            assert process.returncode == 1, err
            again = start("build", "--output", tmp_path / "set", "--resume", "--", *made.options)
            _, err = again.communicate(timeout=300)
            assert again.returncode == 0, err
        assert contents(tmp_path / "set") == contents(here)
    finally:
        made.close()


@pytest.mark.slow
def test_a_job_that_is_left_is_looked_at_met_again_and_never_doubled(
    cluster: Cluster, media: Path, here: Path, tmp_path: Path, run: Run
) -> None:
    output = tmp_path / "set"
    behind = ("--", *cluster.options)
    with cluster.paused():
        left = run("build", media, "--output", output, "--detach", "--json", *SMALL, *behind)
        assert left.code == 0, left.err
        job = json.loads(left.out)
        assert job["id"] in left.err and "status" in left.err
        seen = json.loads(run("status", output, "--json").out)
        assert (seen["job"], seen["state"], seen["stage"]) == (job, "running", "planning")
        for command in (
            ("--output", output, "--resume", "--detach"),
            (media, "--output", output, "--overwrite", *SMALL),
        ):
            refused = run("build", *command, *behind)
            assert refused.code == 2 and f"job {job['id']} of PortableRunner is writing here" in refused.err, refused
        waiting = start("build", "--output", output, "--resume", *behind)
        assert waiting.stderr is not None
        while f"waiting for job {job['id']}" not in (line := waiting.stderr.readline()):
            assert line, waiting.wait()
    waiting.communicate(timeout=300)
    assert waiting.returncode == 0
    assert contents(output) == contents(here)
    ended = run("status", output)
    assert ended.code == 0 and "finished" in ended.out, ended


@pytest.mark.slow
def test_what_a_left_job_refuses_is_said_by_status_and_by_whoever_goes_on(
    cluster: Cluster, tmp_path: Path, run: Run
) -> None:
    media, output = tmp_path / "media", tmp_path / "set"
    media.mkdir()
    (media / "broken.jpg").write_bytes(b"broken")
    assert run("build", media, "--output", output, "--detach", *SMALL, "--", *cluster.options).code == 0
    for _ in range(600):
        seen = patchpack.status(output)
        if seen["state"] != "running":
            break
        time.sleep(0.1)
    assert seen["state"] == "failed" and seen["num_shards"] is None
    assert "all 1 inputs were rejected (first: media/broken.jpg" in (seen["message"] or "")
    again = run("build", "--output", output, "--resume", "--", *cluster.options)
    assert again.code == 1 and again.err.strip().endswith(seen["message"])
    assert run("status", output).code == 1


@pytest.mark.slow
def test_an_interrupted_launcher_cancels_its_job(cluster: Cluster, media: Path, tmp_path: Path) -> None:
    output = tmp_path / "set"
    with cluster.paused():
        process = start("build", media, "--output", output, *SMALL, "--", *cluster.options)
        record: Any = None
        while record is None:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
            with contextlib.suppress(OSError, ValueError):
                record = json.loads((output / "_run.json").read_text()).get("job")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and "interrupted" in err
    met = jobs.met_again(record)
    assert met is None or not jobs.is_running(met)


def test_a_build_of_this_machine_cannot_be_left(media: Path, tmp_path: Path, run: Run) -> None:
    refused = run("build", media, "--output", tmp_path / "set", "--detach")
    assert refused.code == 2 and refused.err.startswith("--detach: this build runs on this machine"), refused
    embedded = ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK")
    refused = run("build", media, "--output", tmp_path / "set", "--detach", "--", *embedded)
    assert refused.code == 2 and "is in this very process" in refused.err, refused
    assert not (tmp_path / "set").exists()


def test_an_environment_that_beam_does_not_know_is_one_line(media: Path, tmp_path: Path, run: Run) -> None:
    refused = run(
        *("build", media, "--output", tmp_path / "set", "--", "--runner=PortableRunner", "--job_endpoint=embed"),
        *("--environment_type=MOON", "--environment_config=x"),
    )
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert refused.err.startswith("--environment_type MOON: Beam knows no such environment; ")


def test_status_of_builds_of_this_machine(reference: Path, tmp_path: Path, run: Run) -> None:
    assert patchpack.status(reference)["state"] == "finished"
    nothing = run("status", tmp_path)
    assert nothing.code == 2 and nothing.err.startswith(f"{tmp_path}: no build was begun here; ")
    begun = tmp_path / "begun"
    (begun / "_plan").mkdir(parents=True)
    (begun / "_run.json").write_text('{"started": "2026-11-30T00:00:00+00:00"}')
    seen = run("status", begun)
    assert seen.code == 1
    assert seen.out.splitlines() == [
        f"output    {begun}",
        "state     unfinished (planning)",
        "started   2026-11-30T00:00:00+00:00",
        f"next      build --output {begun} --resume goes on",
    ]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a: wrong; a rule; a way"),
        patchpack.BuildFailed("a: failed"),
        patchpack.TooManyRejects("too many", {}),
    ],  # type: ignore[typeddict-item]
)
def test_what_went_wrong_far_away_is_raised_here(error: Exception, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"efficiency": 1}')
    with outcome.saved(str(tmp_path)):
        raise error
    with pytest.raises(type(error), match=str(error)) as raised:
        outcome.raise_saved(str(tmp_path))
    if isinstance(raised.value, patchpack.TooManyRejects):
        assert raised.value.report == {"efficiency": 1}
    # wrong use leaves nothing behind
    assert (tmp_path / "_plan").exists() == (not isinstance(error, ValueError))


def test_workers_that_install_this_project_get_the_libraries_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    dataflow = ["--runner", "DataflowRunner", "--project", "project-1", "--region", "r"]
    options = parse_beam_options(dataflow)
    assert options is not None
    known = options.get_all_options()
    pins = dict(line.split("==") for line in Path(known["requirements_file"]).read_text().splitlines())
    assert known["requirements_cache"] == "skip"
    assert {"numpy", "pyarrow", "pillow", "simplejpeg", "av", "ortools", "xxhash", "pillow-heif"} <= pins.keys()
    assert "torch" not in pins and "pytest" not in pins
    # an image brings what it has, and who names a file means it
    for given in (["--sdk_container_image", "x/y:z"], ["--requirements_file", str(ROOT / "constraints.txt")]):
        told = parse_beam_options(dataflow + given)
        assert told is not None
        assert told.get_all_options()["requirements_file"] == (None if "image" in given[0] else given[1])
