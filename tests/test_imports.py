"""Who may import whom: trainer -> schemas <- pipeline, and Beam and OR-Tools only where they are needed."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("schemas", "pipeline", "trainer")

# the graph, what runs it, and `files`, when it meets the first URI
MAY_IMPORT_BEAM = {f"pipeline/{name}.py" for name in "transforms build launch runner worker files remote cli".split()}
MAY_IMPORT_ORTOOLS = {"pipeline/packing/master.py"}


def modules(package: str) -> list[Path]:
    """Returns every module of a package."""
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return found


def imported(node: ast.AST, package: str) -> Iterator[str]:
    """Yields the dotted names that a tree imports, anywhere in it."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            yield from (alias.name for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            yield package if inner.level else str(inner.module)


def roots_of(path: Path, top_level_only: bool = False) -> set[str]:
    """Returns the first components of what a module imports; only what importing it imports, if so asked."""
    package = path.relative_to(ROOT).parts[0]
    statements = ast.parse(path.read_text()).body
    if top_level_only:
        statements = [node for node in statements if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {name.split(".")[0] for node in statements for name in imported(node, package)}


@pytest.mark.parametrize(
    ("package", "strangers"),
    [("schemas", {"pipeline", "trainer"}), ("pipeline", {"trainer"}), ("trainer", {"pipeline", "apache_beam"})],
)
def test_the_two_sides_meet_in_schemas_only(package: str, strangers: set[str]) -> None:
    for path in modules(package):
        assert not roots_of(path) & strangers, path


def test_the_contract_needs_numpy_pyarrow_and_xxhash_alone() -> None:
    needed = {root for path in modules("schemas") for root in roots_of(path)} - set(sys.stdlib_module_names)
    assert needed == {"schemas", "numpy", "pyarrow", "xxhash"}


@pytest.mark.parametrize(("library", "allowed"), [("apache_beam", MAY_IMPORT_BEAM), ("ortools", MAY_IMPORT_ORTOOLS)])
def test_heavy_libraries_are_imported_where_they_are_needed_only(library: str, allowed: set[str]) -> None:
    importers = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in modules(package)
        if library in roots_of(path)
    }
    assert importers and importers <= allowed


@pytest.mark.parametrize("name", ["pipeline/files.py", "pipeline/cli.py"])
def test_beam_is_imported_late_where_most_commands_do_without(name: str) -> None:
    assert "apache_beam" not in roots_of(ROOT / name, top_level_only=True)


def loaded_after(statement: str) -> set[str]:
    """Returns the packages that a fresh process has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(ran.stdout.split())


def test_the_trainer_runs_without_the_pipeline() -> None:
    pytest.importorskip("torch")
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules("trainer")]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith(".__main__")]
    loaded = loaded_after(f"import {', '.join(names)}")
    assert {"trainer", "schemas", "torch"} <= loaded
    assert not loaded & {"apache_beam", "pipeline", "ortools", "av", "PIL"}


def test_planning_without_a_runner_loads_neither_beam_nor_ortools() -> None:
    loaded = loaded_after("import pipeline.plan, pipeline.shards, pipeline.cli; pipeline.cli._parser()")
    assert {"pipeline", "schemas", "av"} <= loaded
    assert not loaded & {"apache_beam", "ortools", "trainer", "torch"}
