"""The README's commands and the format's snippets are the ones that work."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from patchpack import verify
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.resize import resolved


def block(document: str, name: str) -> str:
    """Returns the code block that follows <!-- test: name --> in a document."""
    text = (ROOT / document).read_text()
    found = re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", text, re.S)
    assert found, f"{document} has no block {name}"
    return found[1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files, in a folder with a space in its name, whose .venv is the one that runs these tests."""
    folder = tmp_path_factory.mktemp("clone") / "a clone"
    names = (
        subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    )
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    bin_folder = folder / ".venv/bin"
    bin_folder.mkdir(parents=True)
    # installed as an editable install would: the copy's own folders, as rooms of one package
    installed = shutil.copytree(folder / "patchpack", folder / ".venv/lib/patchpack")
    for room in ("pipeline", "schemas", "trainer"):
        (installed / room).symlink_to(folder / room)
    python = f"PYTHONPATH={shlex.quote(str(installed.parent))} exec {shlex.quote(sys.executable)}"
    (bin_folder / "python").write_text(f'#!/bin/sh\n{python} "$@"\n')
    # what pip would install is there already; a real installation is the CI machine's first step
    (bin_folder / "pip").write_text("#!/bin/sh\nexit 0\n")
    for tool in ("python", "pip"):
        (bin_folder / tool).chmod(0o755)
    return folder


def shell(commands: str, cwd: Path) -> str:
    """Runs commands as typed in a folder and returns what they print."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=cwd, env=variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_first_run_and_the_commands_it_ends_with_work(checkout: Path) -> None:
    printed = shell(block("README.md", "first-run"), checkout)
    assert "efficiency" in printed
    manifest = json.loads((checkout / "demo/shards/manifest.json").read_text())
    assert manifest["totals"]["num_inputs"] >= 44
    assert manifest["totals"]["num_rejects"] == 0
    for command in block("README.md", "next").splitlines():
        shell(command.replace("--steps 50", "--steps 2"), checkout)
    assert (checkout / "sequence.png").stat().st_size > 1000
    # the commands that the demo prints are those of the README
    told = [
        line.strip()
        for line in printed.splitlines()
        if line.startswith("  ") and ("run_pipeline.sh " in line or "trainer" in line)
    ]
    assert len(told) >= 4
    for command in told:
        if "PATH/TO" not in command:
            assert command in block("README.md", "next"), command
    before = (checkout / "demo/shards/manifest.json").read_bytes()
    shell(block("README.md", "first-run"), checkout)
    assert (checkout / "demo/shards/manifest.json").read_bytes() == before


@pytest.mark.slow
def test_the_commands_for_own_media_work(checkout: Path, media: Path) -> None:
    classes = sorted(path for path in media.iterdir())
    shutil.copytree(
        classes[0],
        checkout / "photos",
        ignore=lambda _, names: [name for name in names if not name.endswith(("jpg", "png"))],
    )
    (checkout / "clips/deep").mkdir(parents=True)
    shutil.copy(next(media.rglob("*.mp4")), checkout / "clips/deep")
    printed = shell(block("README.md", "own"), checkout)
    assert "efficiency" in printed
    assert (checkout / "shards/manifest.json").exists()
    code = block("README.md", "load").replace("demo/shards", "shards").replace("batch_size=4", "batch_size=1")
    spoken = subprocess.run(
        [sys.executable, "-c", code + "    print(tokens.shape, labels.shape)\n"],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert spoken.returncode == 0, spoken.stderr
    assert "torch.Size([1, 1024, 768]) torch.Size([1, 64])" in spoken.stdout
    code = block("docs/trainer.md", "model").replace("demo/shards", "shards").replace("batch_size=4", "batch_size=1")
    spoken = subprocess.run(
        [sys.executable, "-c", code + "    print(x_BLD.shape)\n"], cwd=checkout, capture_output=True, text=True
    )
    assert "torch.Size([1, 1024, 96])" in spoken.stdout, spoken.stderr


def test_the_snippet_for_own_tokens_works(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block("README.md", "arrays")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.9
    assert verify(str(tmp_path / "codes")) == []


@pytest.mark.slow
def test_the_documented_snippets_read_a_shard_without_our_code(media: Path, tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "patchpack", "build", media, "--output", tmp_path / "shards", "--workers", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    scope: dict[str, object] = {"path": sorted((tmp_path / "shards").glob("sequences/part-*.parquet"))[0]}
    exec(block("docs/format.md", "read-a-shard"), scope)
    modules = re.findall(r"^(?:import|from) (\w+)", block("docs/format.md", "read-a-shard"), re.M)
    assert set(modules) == {"json", "numpy", "pyarrow"}
    images = [
        (row, number)
        for row, segments in enumerate(scope["segments"])
        for number, segment in enumerate(segments)
        if not segment["timestamps_s"] and segment["start"] == 0
    ]
    row, _ = images[0]
    scope["segments"], scope["tokens"] = scope["segments"][row:], scope["tokens"][row:]
    exec(block("docs/format.md", "see-an-image"), scope)
    segment, frames = scope["segment"], scope["frames"]
    source = media.parent / segment["source"]
    assert np.array_equal(
        frames, image.decode(source.read_bytes(), segment["height"], segment["width"], backend=resolved("auto"))[0]
    )


def test_every_command_and_every_file_that_the_documents_name_is_there(run: object) -> None:
    readme = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (ROOT / link).exists(), link
    for folder in re.findall(r"`(\w+)/`", readme):
        assert (ROOT / folder).is_dir(), folder
    parsed = run("--help")
    for command in set(re.findall(r"^\./run_pipeline\.sh (\w+)", readme, re.M)) - {"setup"}:
        assert re.search(rf"^    {command} ", parsed.out, re.M), command
