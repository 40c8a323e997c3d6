"""What several test files share: sample media, and the commands run in this process or in one of their own."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support import accounts
from support.accounts import Undisturbed, contents
from support.browser import OpenPage, page_opener, started_browser
from support.family import Family
from support.inputs import OPTIONS, picture
from support.media_files import photo, video, write_files
from support.small_set import build_small_set

from patchpack import command
from patchpack.pipeline.demo import draw_media
from patchpack.pipeline.execution import progress
from patchpack.pipeline.execution.sandbox import module_search

ROOT = Path(__file__).parent.parent
FIRST = ROOT / "tests/support/first"

# at least 8 shards and 3 groups of the demo's media
SMALL = (
    *("--group-size", 12, "--shard-bytes", 900_000, "--sequence-length", 512, "--labels", "folder"),
    *("--media-backend", "pillow"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Lets all processes of a test run share the script of the report's page; they inherit both."""
    sys.path.insert(0, str(FIRST))
    if "PATCHPACK_TEST_SCRIPTS" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="patchpack-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ["PATCHPACK_TEST_SCRIPTS"] = folder.name


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the cases that `slow_beyond` counts out as slow, before `-m` selects."""
    quick = Counter[str]()
    for item in items:
        mark = item.get_closest_marker("slow_beyond")
        if mark is not None and item.get_closest_marker("slow") is None:
            function = item.nodeid.partition("[")[0]
            quick[function] += 1
            if quick[function] > mark.args[0]:
                item.add_marker(pytest.mark.slow)


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's media, in folders by class; tests read them and never change them."""
    folder = tmp_path_factory.mktemp("drawn") / "media"
    draw_media(str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps lines of progress, which only slow machines see, out of what commands of this process say."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", float("inf"))


def said(err: str) -> str:
    """Returns what a command of another process said but for its progress."""
    return re.sub(
        r"^(planning( \(\w+\))?|writing shards|finishing|looking for new inputs): .*after [\d:]+.*\n",
        "",
        err,
        flags=re.M,
    )


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command of the pipeline in this process."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        try:
            code = command.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def start(*arguments: object, cwd: Path = ROOT, path: Path | None = None) -> subprocess.Popen[str]:
    """Starts a command of the pipeline in a process group of its own; `path` is where Python looks for modules first."""
    search = module_search()
    if path is not None:
        search["PYTHONPATH"] = os.pathsep.join([str(path), search["PYTHONPATH"]])
    return subprocess.Popen(
        [sys.executable, "-m", "patchpack", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | search,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="session")
def reference(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset built by one worker inside one process."""
    output = tmp_path_factory.mktemp("reference") / "shards"
    process = start("build", *sorted(media.iterdir()), "--output", output, "--workers", 1, *SMALL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert said(err) == ""
    return output


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What tests compare with that disturb the same build."""
    folder = tmp_path_factory.mktemp("undisturbed")
    images = {f"{'ab'[number % 2]}/{number}.jpg": photo((40 + 9 * number, 90)) for number in range(20)}
    write_files(folder / "media", images | {"a/clip.mp4": video(), "b/broken.jpg": b"broken", "b/notes.txt": b"text"})
    began = time.monotonic()
    whole = Family("build", folder / "media", "--output", folder / "set", "--workers", 2, *accounts.OPTIONS)
    _, err = whole.launcher.communicate(timeout=120)
    assert (whole.launcher.returncode, said(err)) == (0, "")
    assert whole.lives_after(5) == []
    return Undisturbed(folder / "media", contents(folder / "set"), time.monotonic() - began)


@pytest.fixture(scope="session")
def of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset built of three images, with `OPTIONS` of support.inputs; they are in `media` beside it; tests change copies."""
    folder = tmp_path_factory.mktemp("three")
    (folder / "media").mkdir()
    for number in range(3):
        (folder / f"media/{number}.png").write_bytes(picture(number))
    code = command.main(["build", f"{folder}/media", "--output", f"{folder}/set", *map(str, OPTIONS)])
    assert code == 0
    return folder / "set"


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset, finished; tests that damage one copy it."""
    return build_small_set(tmp_path_factory.mktemp("small"))


@pytest.fixture
def own(packed: Path, tmp_path: Path) -> Path:
    """A copy of the small set to damage."""
    return Path(shutil.copytree(packed, tmp_path / "set"))


@pytest.fixture(scope="module")
def open_page() -> Iterator[OpenPage]:
    """Opens pages in the one browser of a module; while it runs no other event loop can, so it ends with its module."""
    with started_browser() as browser:
        yield page_opener(browser)
