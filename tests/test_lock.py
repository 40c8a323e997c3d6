"""requirements.lock: the versions of constraints.txt, all that a build needs and nothing else, each file by its hash, and no address."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "requirements.lock").read_text().splitlines()
LOCKED = [line for line in LINES if not line.startswith("#")]
_TIMEOUT_S = 60


def needed() -> set[str]:
    """Returns the names of all packages that patchpack[beam] brings, as those that are installed here say."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    waiting = [*project["dependencies"], *extras["beam"], *extras["report"]]
    found: set[tuple[str, str]] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name == "patchpack":
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) in found:
                continue
            found.add((name, extra))
            for line in importlib.metadata.requires(name) or []:
                marker = Requirement(line).marker
                if marker is None or marker.evaluate({"extra": extra}):
                    waiting.append(line)
    return {name for name, _ in found}


def test_each_line_is_a_version_and_a_hash_and_no_address() -> None:
    assert LOCKED and all(re.fullmatch(r"[a-z0-9._-]+==[^ ]+ --hash=sha256:[0-9a-f]{64}", line) for line in LOCKED)
    assert "://" not in "\n".join(LINES) and sorted(LOCKED) == LOCKED


def test_versions_are_those_that_were_tested() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}
    locked = {canonicalize_name(line.split("==")[0]): line.split("==")[1].split(" ")[0] for line in LOCKED}
    assert locked == {name: tested.get(name) for name in locked}


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or sys.platform != "linux", reason="the lock is for Python 3.11 on Linux"
)
def test_all_that_a_build_needs_is_locked_and_nothing_else() -> None:
    assert {canonicalize_name(line.split("==")[0]) for line in LOCKED} == needed()


def test_no_locked_version_has_a_known_weakness() -> None:
    pytest.importorskip("pip_audit", reason="pip-audit is not installed")
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--disable-pip",
        "--require-hashes",
        "-r",
        str(ROOT / "requirements.lock"),
    ]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip-audit: its service did not answer within {_TIMEOUT_S} s")
    if re.search(r"Error|Max retries|could not be audited", ended.stdout + ended.stderr):
        pytest.skip("pip-audit: its service cannot be reached from here, or does not know these packages")
    assert ended.returncode == 0, ended.stdout + ended.stderr
