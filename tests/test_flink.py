"""The build on Flink and on Spark, in one process of theirs, where their job servers' jars are: the same bytes as here."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SMALL, start
from support.cluster import contents, free_port, listening
from test_job import here  # noqa: F401 (a fixture)

JARS = {"flink": "FLINK_JOB_SERVER_JAR", "spark": "SPARK_JOB_SERVER_JAR"}


@pytest.fixture(params=JARS)
def endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    """A job server of each engine, which runs jobs inside itself."""
    jar, java = os.environ.get(JARS[request.param]), shutil.which("java")
    if not jar or not java:
        pytest.skip(f"needs Java, and the jar of Beam's job server for {request.param} in {JARS[request.param]}")
    ports = [free_port() for _ in range(3)]
    named = zip(("--job-port", "--artifact-port", "--expansion-port"), map(str, ports), strict=True)
    process = subprocess.Popen([java, "-jar", jar, *(word for pair in named for word in pair)])
    for _ in range(600):
        if listening("localhost", ports[0]):
            break
        time.sleep(0.1)
    yield f"localhost:{ports[0]}"
    process.terminate()
    process.wait()


@pytest.mark.slow
def test_the_same_bytes(endpoint: str, media: Path, here: Path, tmp_path: Path) -> None:  # noqa: F811
    port = free_port()
    pool = start("worker-pool", "--port", port)
    try:
        options = (
            f"--job_endpoint={endpoint}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{port}",
        )
        ended = start("build", media, "--output", tmp_path / "set", *SMALL, "--", "--runner=PortableRunner", *options)
        out, err = ended.communicate(timeout=600)
        assert ended.returncode == 0, (out, err)
    finally:
        pool.terminate()
        pool.communicate()
    assert contents(tmp_path / "set") == contents(here)
