"""A job for Dataflow, without Dataflow: submitted as a template to an emulated storage, and looked at as it was stored there."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import pytest
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.portability.common_urns import artifact_roles, resource_hints
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.utils import retry
from conftest import ROOT, Result
from support.stores import Proxy, serving

from patchpack.pipeline.config import BuildConfig
from patchpack.pipeline.execution.beam_options import parse_beam_options
from patchpack.pipeline.execution.graph import build_graph
from patchpack.pipeline.stages.generations import Grown
from patchpack.pipeline.stages.list import parse_input
from patchpack.pipeline.storage import files
from patchpack.pipeline.versions import library_versions, pins

Run = Callable[..., Result]

DATAFLOW = ("--runner=DataflowRunner", "--project=project-1", "--region=europe-west1")


class Stored(NamedTuple):
    """A job as it was stored.

    Attributes:
        job: what Dataflow would be sent.
        pipeline: the graph that it names.
        staged: content of what workers install, by name.
        said: what the command said, and its result.
    """

    job: dict[str, Any]
    pipeline: beam_runner_api_pb2.Pipeline
    staged: dict[str, bytes]
    said: Result


@pytest.fixture(scope="module")
def store() -> Iterator[Proxy]:
    with serving("gs") as proxy:
        yield proxy


@pytest.fixture
def stored(store: Proxy, run: Run, monkeypatch: pytest.MonkeyPatch) -> Stored:
    pytest.importorskip("google.cloud.storage", reason="Beam stages files with google-cloud-storage")
    pytest.importorskip("google.cloud.dataflow", reason="Beam makes jobs with google-cloud-dataflow-client")
    # Beam looks for credentials to warn of a bucket's settings, --no_auth or not
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setattr(retry.Clock, "sleep", lambda self, seconds: None)
    store.clear()
    files.write(store.uri("raw/a.jpg"), b"never read")
    said = run(
        *("build", store.uri("raw/**"), "--output", store.uri("out"), "--views", 2, "--detach", "--json", "--"),
        *DATAFLOW,
        *(f"--temp_location={store.uri('tmp')}", f"--staging_location={store.uri('staging')}", "--no_auth"),
        *(f"--template_location={store.uri('template')}", "--labels=team=vision", "--max_num_workers=7"),
        *("--worker_machine_type=n2-highcpu-8", "--resource_hint=min_ram=6GB"),
    )
    assert said.code == 0, said.err
    job = json.loads(files.read(store.uri("template")))
    (pool,) = job["environment"]["workerPools"]
    staged = {
        each["name"]: files.read("gs://" + each["location"].partition("/")[2])
        for each in pool["packages"]
    }  # fmt: skip
    graph = files.read(job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"])
    return Stored(job, beam_runner_api_pb2.Pipeline.FromString(graph), staged, said)


def test_a_stored_job_has_all_that_it_needs(stored: Stored, store: Proxy) -> None:
    options = stored.job["environment"]["sdkPipelineOptions"]["options"]
    assert options["save_main_session"] is False
    assert (options["project"], options["region"], options["max_num_workers"]) == ("project-1", "europe-west1", 7)
    assert stored.job["labels"] == {"team": "vision"} and stored.job["type"] == "JOB_TYPE_BATCH"
    (pool,) = stored.job["environment"]["workerPools"]
    assert pool["machineType"] == "n2-highcpu-8"
    # everything from list to finish, and no list of inputs: the object was never read
    labels = {each.unique_name.partition("/")[0] for each in stored.pipeline.components.transforms.values()}
    assert labels >= {"list", "probe", "sample", "group", "plan", "stock", "shards", "write", "finish"}
    assert not [name for kind, name in store.requests if kind in ("get", "list") and name.startswith("raw/")]
    assert json.loads(stored.said.out)["id"] == store.uri("template")
    assert "stored" in stored.said.err and "gcloud" in stored.said.err


def test_workers_install_this_very_project_and_the_launchers_libraries(stored: Stored) -> None:
    assert {"workflow.tar.gz", "requirements.txt"} <= stored.staged.keys()
    # no session of the launcher's, and no packages for its platform
    assert not [name for name in stored.staged if name.endswith((".whl", ".pickle")) or "session" in name]
    assert stored.staged["requirements.txt"].decode().splitlines() == pins()
    with tarfile.open(fileobj=io.BytesIO(stored.staged["workflow.tar.gz"])) as archive:
        modules = {name.partition("/")[2]: name for name in archive.getnames()}
        for name in ("patchpack/entry.py", "pipeline/execution/graph.py", "schemas/shard.py"):
            packed = archive.extractfile(modules[name])
            assert packed is not None and packed.read() == (ROOT / name).read_bytes()
    (environment,) = stored.pipeline.components.environments.values()
    roles = [each.role_payload for each in environment.dependencies if each.role_urn == artifact_roles.STAGING_TO.urn]
    names = {beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(role).staged_name for role in roles}
    assert {"workflow.tar.gz", "requirements.txt"} <= names
    assert environment.resource_hints == {resource_hints.MIN_RAM_BYTES.urn: b"6000000000"}


@pytest.mark.slow
def test_resource_hints_reach_the_workers_of_other_runners(tmp_path: Path) -> None:
    options = parse_beam_options(
        [
            *("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=DOCKER", "--environment_config=a:b"),
            *("--resource_hint=min_ram=1.5GB", "--resource_hint=cpu_count=4"),
        ]
    )  # fmt: skip
    pipeline = beam.Pipeline(options=options)
    config = BuildConfig()
    build_graph(pipeline, [parse_input(0, str(tmp_path))], str(tmp_path), config, library_versions(), Grown())
    graph = pipeline.to_runner_api(default_environment=PortableRunner._create_environment(options))
    used = {transform.environment_id for transform in graph.components.transforms.values()} - {""}
    expected = {resource_hints.MIN_RAM_BYTES.urn: b"1500000000", resource_hints.CPU_COUNT.urn: b"4"}
    assert used and all(graph.components.environments[name].resource_hints == expected for name in used)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resource_hint=disk=1"], "--resource_hint: Unknown resource hint: disk; hints are min_ram=4GB, "),
        (["--resource_hint=min_ram=many"], "--resource_hint: Resource hint min_ram has invalid value many; "),
        (["--project=P"], "--runner DataflowRunner: Invalid Project ID (P). "),
        (["--job_name=No good"], "--runner DataflowRunner: Invalid job_name (No good); "),
    ],
)
def test_what_beam_would_refuse_later_is_refused_before_anything_is_begun(
    options: list[str], said: str, media: Path, tmp_path: Path, run: Run
) -> None:
    refused = run("build", media, "--output", tmp_path / "set", "--", *DATAFLOW, *options)
    assert refused.code == 2 and refused.err.startswith(said) and refused.err.count("\n") == 1, refused
    assert not (tmp_path / "set").exists()
