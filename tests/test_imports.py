"""Who may import whom: trainer -> schemas <- pipeline, and Beam and OR-Tools only where they are needed."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("patchpack", "schemas", "pipeline", "trainer")

# what runs the graph, and storage, when it meets the first URI
MAY_IMPORT_BEAM = ("pipeline/execution/", "pipeline/storage/")
MAY_IMPORT_ORTOOLS = ("pipeline/packing/exact/",)


def modules(package: str) -> list[Path]:
    """Returns every module of a package."""
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return found


def imported(node: ast.AST) -> Iterator[str]:
    """Yields the dotted names that a tree imports, anywhere in it."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            yield from (alias.name for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            assert not inner.level, "imports are absolute"
            # `from patchpack import pipeline` and `from patchpack.pipeline import files` alike
            yield from (f"{inner.module}.{alias.name}" for alias in inner.names)


def roots_of(path: Path, top_level_only: bool = False) -> set[str]:
    """Returns the libraries, and rooms of patchpack, that a module imports; only what importing it imports, if so asked."""
    statements = ast.parse(path.read_text()).body
    if top_level_only:
        statements = [node for node in statements if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
        statements = [
            node for node in statements if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ]
    names = [name.split(".") for node in statements for name in imported(node)]
    return {".".join(parts[: 2 if parts[0] == "patchpack" else 1]) for parts in names}


@pytest.mark.parametrize(
    ("package", "strangers"),
    [
        ("schemas", {"patchpack.pipeline", "patchpack.trainer"}),
        ("pipeline", {"patchpack.trainer"}),
        ("trainer", {"patchpack.pipeline", "apache_beam"}),
    ],
)
def test_the_two_sides_meet_in_schemas_only(package: str, strangers: set[str]) -> None:
    for path in modules(package):
        assert not roots_of(path) & strangers, path


def test_the_contract_needs_numpy_pyarrow_and_xxhash_alone() -> None:
    needed = {root for path in modules("schemas") for root in roots_of(path, top_level_only=True)}
    assert needed - set(sys.stdlib_module_names) == {"patchpack.schemas", "numpy", "pyarrow", "xxhash"}
    # when the first URI is met that pyarrow does not know
    late = {root for path in modules("schemas") for root in roots_of(path)} - needed - set(sys.stdlib_module_names)
    assert late == {"fsspec"}


@pytest.mark.parametrize(("library", "allowed"), [("apache_beam", MAY_IMPORT_BEAM), ("ortools", MAY_IMPORT_ORTOOLS)])
@pytest.mark.slow_beyond(1)
def test_heavy_libraries_are_imported_where_they_are_needed_only(library: str, allowed: tuple[str, ...]) -> None:
    importers = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in modules(package)
        if library in roots_of(path)
    }
    assert importers
    assert not [name for name in importers if not name.startswith(allowed)]


@pytest.mark.parametrize("name", ["files", "listing", "remote"])
def test_beam_is_imported_late_where_most_commands_do_without(name: str) -> None:
    assert "apache_beam" not in roots_of(ROOT / f"pipeline/storage/{name}.py", top_level_only=True)


def loaded_after(statement: str) -> set[str]:
    """Returns the libraries, and rooms of patchpack, that a fresh process has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    names = [name.split(".") for name in ran.stdout.split()]
    return {".".join(parts[: 2 if parts[0] == "patchpack" else 1]) for parts in names}


@pytest.mark.slow
def test_the_trainer_runs_without_the_pipeline() -> None:
    pytest.importorskip("torch")
    names = [".".join(("patchpack", *path.relative_to(ROOT).with_suffix("").parts)) for path in modules("trainer")]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith(".__main__")]
    # what other libraries load is theirs
    names = [name for name in names if ".adapters." not in name]
    loaded = loaded_after(f"import {', '.join(names)}")
    assert {"patchpack.trainer", "patchpack.schemas", "torch"} <= loaded
    assert not loaded & {
        "apache_beam",
        "patchpack.pipeline",
        "ortools",
        "av",
        "PIL",
        "timm",
        "transformers",
        "torchvision",
    }


def test_planning_without_a_runner_loads_neither_beam_nor_ortools() -> None:
    loaded = loaded_after(
        "from patchpack import command; from patchpack.pipeline.stages import plan, write; command.make_parser()"
    )
    assert {"patchpack.pipeline", "patchpack.schemas", "av"} <= loaded
    assert not loaded & {"apache_beam", "ortools", "patchpack.trainer", "torch"}
