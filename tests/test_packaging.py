"""What Dataflow's --setup_file sends to workers: an sdist that holds every module and imports by itself."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from apache_beam.runners.portability.stager import Stager
from conftest import ROOT

from patchpack.pipeline.execution.beam_options import parse_beam_options


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution that Beam makes of setup.py."""
    return Path(Stager._build_setup_package(str(ROOT / "setup.py"), str(tmp_path_factory.mktemp("staged"))))


@pytest.mark.slow
def test_the_sdist_holds_every_module_and_imports_in_an_empty_folder(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    modules = {
        str(path.relative_to(ROOT))
        for folder in ("patchpack", "pipeline", "schemas", "trainer")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert (
        modules
        | {
            "pipeline/comparison/page.html",
            "pipeline/report/page.html",
            "pipeline/report/page.css",
            "pipeline/report/gallery.html",
            "pipeline/report/gallery.css",
            "patchpack/py.typed",
        }
        <= packed
    )
    assert not {name for name in packed if name.startswith(("demo/", ".venv/", ".git"))}
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", sdist],
        check=True,
        cwd=tmp_path,
    )
    code = (
        "import patchpack.pipeline.execution.graph, patchpack.pipeline.versions as versions, patchpack.schemas, patchpack.trainer; "
        "print(patchpack.__file__, versions.library_versions())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))


USE = """
import sys, warnings
import numpy as np
import patchpack

layout = patchpack.Layout(8, 2, (1, 1, 1), channels=1, token_dtype="int32")
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    patchpack.pack_arrays([("a", np.ones((5, 1), np.int32), (1, 1, 5))], "set", layout)
assert patchpack.verify("set") == [] and patchpack.report("set")["efficiency"]["efficiency"] == 5 / 8
print(*[str(warning.message) for warning in warned])
try:
    patchpack.build("photos", "shards")
except RuntimeError as error:
    print(error)
print(patchpack.__file__, *(name for name in ("apache_beam", "torch") if name in sys.modules))
"""


@pytest.mark.slow
def test_the_sdist_works_in_an_empty_environment(sdist: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", sdist], check=True, cwd=tmp_path
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([python, "-c", USE], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page, beam, home = done.stdout.splitlines()
    assert page.startswith("report.html is not written: ") and page.endswith("pip install 'patchpack[report]'")
    assert beam.endswith("pip install 'patchpack[beam]'") and "build and plan need the extra beam" in beam
    assert home.startswith(str(tmp_path / "venv")) and len(home.split()) == 1
    command = [tmp_path / "venv/bin/patchpack", "report", "set"]
    shown = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert shown.returncode == 0 and "efficiency" in shown.stdout, shown.stderr
    shown = subprocess.run([*command, "--html", "x.html"], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert (
        shown.returncode == 1 and shown.stderr.count("\n") == 1 and "report.html needs the extra report" in shown.stderr
    )


# `make` a graph and keep it, or `load` every function of one that was kept
GRAPH = """
import sys
import apache_beam as beam
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.portability.common_urns import coders
from apache_beam.runners import pipeline_context

what, path = sys.argv[1:]
if what == "make":
    from patchpack.pipeline.config import BuildConfig
    from patchpack.pipeline.execution.graph import build_graph
    from patchpack.pipeline.stages.generations import Grown
    from patchpack.pipeline.stages.list import parse_input
    from patchpack.pipeline.versions import library_versions

    pipeline = beam.Pipeline()
    # as many stages as there are: labels, captions, copies
    config = BuildConfig(views=2, labels="folder", dedupe="digest")
    build_graph(pipeline, [parse_input(0, "gs://b/raw/**")], "gs://b/out", config, library_versions(), Grown())
    open(path, "wb").write(pipeline.to_runner_api().SerializeToString())
else:
    graph = beam_runner_api_pb2.Pipeline.FromString(open(path, "rb").read())
    context = pipeline_context.PipelineContext(graph.components)
    loaded = [context.transforms.get_by_id(name).transform for name in graph.components.transforms]
    for name in graph.components.coders:
        context.coders.get_by_id(name)
    functions = [each.fn for each in loaded if isinstance(each, beam.ParDo)]
    print(len(functions), *sorted({type(each).__name__ for each in functions}))
    print(*sorted({"torch", "pillow_heif", "matplotlib"} & {name for name in sys.modules}))
"""


@pytest.mark.slow
def test_every_stage_is_pickled_here_and_unpickled_where_only_base_dependencies_are(
    sdist: Path, tmp_path: Path
) -> None:
    """What Dataflow's workers have: Beam, and the sdist without extras."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", sdist, "apache-beam"],
        check=True,
        cwd=tmp_path,
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    there, here = (python, bare), (sys.executable, dict(os.environ))

    def graph(of: tuple[Path | str, dict[str, str]], *arguments: str) -> list[str]:
        done = subprocess.run([of[0], "-c", GRAPH, *arguments], cwd=tmp_path, env=of[1], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    graph(there, "make", "there.pb")
    graph(here, "make", "here.pb")
    loaded = graph(there, "load", "there.pb")
    assert graph(there, "load", "here.pb") == loaded
    number, *names = loaded[0].split()
    assert int(number) > 50 and {"CallableWrapperDoFn", "_WriteFn"} <= set(names), loaded
    # none of it asks for what no worker has
    assert loaded[1] == ""


def test_remote_runners_get_an_absolute_setup_file() -> None:
    options = parse_beam_options(["--runner", "DataflowRunner", "--project", "project-1", "--region", "r"])
    assert options is not None
    known = options.get_all_options()
    assert known["setup_file"] == str(ROOT / "setup.py")
    assert known["save_main_session"] is False
    assert parse_beam_options([]) is None
    assert parse_beam_options(["--runner", "DirectRunner"]) is None
