"""The corpus of the fuzzers and every find of before, replayed: each ends, or raises the error that its reader promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FUZZ = ROOT / "fuzz"
sys.path.append(str(FUZZ))

from targets import TARGETS  # noqa: E402

CORPUS = sorted(path for path in FUZZ.glob("corpus/*/*") if path.is_file())
# what a corpus of files is also tried by
ALSO = {"image_header": "pixels", "video_header": "pixels", "shard": "dataset"}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_target_ends_as_its_reader_promises(path: Path) -> None:
    names = [path.parent.name, *filter(None, [ALSO.get(path.parent.name)])]
    # whatever else it raised would be a find
    assert [TARGETS[name](path.read_bytes()) for name in names] == [None] * len(names)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 64, b"{}", b"[]", b"null", b"PAR1" * 4, b"\x03PAR1PAR1"])
def test_next_to_nothing_is_no_find(target: str, data: bytes) -> None:
    assert TARGETS[target](data) is None


def test_the_corpus_is_small_and_has_each_target() -> None:
    assert (
        sum(path.stat().st_size for path in FUZZ.rglob("*") if path.parent.name != "found" and path.is_file()) < 200_000
    )
    assert {path.parent.name for path in CORPUS} | {"pixels"} == set(TARGETS)


@pytest.mark.slow
def test_the_script_keeps_a_find_names_it_and_fails(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="needs the extra fuzz")
    for name in ("run.sh", "run.py"):
        (tmp_path / name).write_bytes((FUZZ / name).read_bytes())
    (tmp_path / "targets.py").write_text(
        "def bad(data):\n    if data[:1] == b'!':\n        raise KeyError(data)\n"
        "def good(data):\n    pass\n"
        "TARGETS = {'bad': bad, 'good': good}\n"
    )
    (tmp_path / "corpus/bad").mkdir(parents=True)
    (tmp_path / "corpus/bad/seed").write_bytes(b"!x")
    (tmp_path / "corpus/good").mkdir()
    ended = subprocess.run(
        ["bash", tmp_path / "run.sh", "2"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable},
        timeout=120,
    )
    assert ended.returncode == 1
    assert "good: nothing found" in ended.stdout
    (found,) = (tmp_path / "found").iterdir()
    assert f"bad: a find; it is kept as {found}" in ended.stderr and "KeyError" in ended.stderr
    assert found.read_bytes() == b"!x"
