"""What people type, and mistype: the way out stands in the line."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT, Result
from support.cli_doc import document

Run = Callable[..., Result]

COMMANDS = ("build", "plan", "report", "inspect", "diff", "verify", "setup")


def test_help_names_every_command_and_each_command_has_examples(run: Run) -> None:
    told = run("--help").out
    for command in COMMANDS:
        assert f"\n    {command} " in told
        own = run(command, "--help").out
        assert f"\nexamples:\n  patchpack {command} " in own


def test_every_example_is_understood(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs as far as its inputs, which are not there."""
    for command in COMMANDS[:-1]:
        for line in run(command, "--help").out.partition("examples:\n")[2].splitlines():
            typed = shlex.split(line.split("#")[0])[1:]
            ended = run(*(part for part in typed))
            assert ended.code in (1, 2) and ended.err.count("\n") == 1, line
            assert "no such option" not in ended.err and "--help" not in ended.err, (line, ended.err)


def test_a_mistyped_command_names_the_nearest(run: Run) -> None:
    ended = run("trian", "shards")
    assert (ended.code, ended.err) == (
        2,
        "argument COMMAND: trian: no such choice; the nearest is train; see patchpack --help\n",
    )


def test_the_list_of_options_is_that_of_the_commands() -> None:
    assert (ROOT / "docs/cli.md").read_text() == document(), "python tests/support/cli_doc.py > docs/cli.md"


def test_the_version_is_the_package_s(run: Run) -> None:
    assert run("--version").out == f"patchpack {metadata.version('patchpack')}\n"


BEHIND = "an option of Beam's before --; those come last; write ... --"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("build x --output y --project p", f"--project: {BEHIND} --project p"),
        ("plan x --runner=DataflowRunner", f"--runner: {BEHIND} --runner=DataflowRunner"),
        ("plan x --oversize shrnk", "argument --oversize: shrnk: no such choice; the nearest is shrink"),
        ("plan x --squence-length 4", "--squence-length: no such option; the nearest is --sequence-length"),
        ("report x --htm f", "--htm: no such option; the nearest is --html"),
        ("report x y", "y: one argument too many"),
    ],
)
def test_what_is_not_known_is_told_with_what_is_near(typed: str, told: str, run: Run) -> None:
    ended = run(*typed.split())
    assert (ended.code, ended.err) == (2, f"{told}; see patchpack {typed.split()[0]} --help\n")


def test_setup_says_where_it_belongs(run: Run) -> None:
    ended = run("setup", "train")
    assert (ended.code, ended.err) == (
        2,
        "setup: not of this program; the script in the repository makes .venv; ./run_pipeline.sh setup train\n",
    )


HERE = "here --workers, before --, is all there is to set; name the runner, such as --runner DataflowRunner, or leave it out"
ANOTHER = "use another runner; leave it out to run on this machine"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("", f"--project: for other runners, and there is no --runner; {HERE}"),
        (
            "--runner DirectRunner",
            f"--project: for other runners, and --runner DirectRunner is this machine; {HERE}",
        ),
        (
            "--runner PrismRunner",
            "--runner PrismRunner: it downloads an engine of its own when it starts, and was never tested with this pipeline; "
            + ANOTHER,
        ),
        ("--runner InteractiveRunner", f"--runner InteractiveRunner: it is for notebooks; {ANOTHER}"),
        (
            "--runner DataflowRunner",
            "--runner DataflowRunner: no --region; a job runs in one; add --region R behind --",
        ),
        (
            "--runner PortableRunner",
            "--runner PortableRunner: no --job_endpoint; a job goes to a server; add --job_endpoint HOST:PORT behind --",
        ),
        (
            "--runner FlinkRunner --template_location gs://b/t",
            "--template_location gs://b/t: stores a job of Dataflow's, and the runner is FlinkRunner; leave it out",
        ),
    ],
)
def test_no_option_of_beam_is_dropped_without_a_word(
    typed: str, told: str, media: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLOUDSDK_COMPUTE_REGION", raising=False)
    monkeypatch.setenv("PATH", "")  # no gcloud, whose settings may name a region
    ended = run("build", media, "--output", tmp_path / "out", "--", *typed.split(), "--project", "p")
    assert (ended.code, ended.err) == (2, told + "\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("d.json", "a JSON file; a table has an object a line; write it as .jsonl"),
        ("s.tar.gz", "a compressed tar; members are read by their place; gunzip it"),
        ("s.tgz", "a compressed tar; members are read by their place; gunzip it"),
        ("s.zip", "a zip archive; tars, tables and loose files are read; unpack it"),
        ("s.tfrecord", "TFRecord; no kept reader of it comes without TensorFlow; write it as tars or Parquet"),
    ],
)
def test_what_holds_media_and_cannot_be_read_names_the_way_out(name: str, told: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / name).write_bytes(b"anything")
    ended = run("build", tmp_path / name, "--output", tmp_path / "out", "--workers", 1)
    assert (ended.code, ended.err) == (2, f"{tmp_path / name}: {told}\n")


def test_an_output_that_is_a_file_is_one_line(media: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").write_text("mine")
    for more in ((), ("--overwrite",), ("--resume",)):
        ended = run("build", media, "--output", tmp_path / "out", "--workers", 1, *more)
        assert (ended.code, ended.err) == (
            2,
            f"{tmp_path}/out: a file; a dataset is a folder of files; name another --output\n",
        )
    assert (tmp_path / "out").read_text() == "mine"


def test_a_report_or_picture_that_cannot_be_written_is_told_before_anything_is_read(
    packed: Path, tmp_path: Path, run: Run
) -> None:
    suffix = "no image format of this suffix; the suffix says which to write; use .png, .jpg or .webp"
    rules = {
        ("report", packed, "--html", tmp_path): f"{tmp_path}: a folder; the report is one page; name a file in it, such as report.html",
        ("inspect", packed, 0, "--image", tmp_path): f"{tmp_path}: a folder; the image is one file; name a file in it, such as sequence.png",
        ("inspect", packed, 0, "--image", "x.txt"): f"x.txt: {suffix}",
        ("inspect", packed, 0, "--image", "x"): f"x: {suffix}",
    }  # fmt: skip
    for arguments, told in rules.items():
        ended = run(*arguments)
        assert (ended.code, ended.out, ended.err) == (2, "", f"{arguments[-2]} {told}\n")
    for arguments in (("report", packed, "--html"), ("inspect", packed, 0, "--image")):
        place = tmp_path / "nowhere" / "x.png"
        ended = run(*arguments, place)
        told = f"{place}: cannot be written (No such file or directory); check the path and its permissions\n"
        assert (ended.code, ended.out, ended.err) == (1, "", told)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_picture_is_written_though_nobody_reads_the_words(unbuffered: str, packed: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "patchpack", "inspect", packed, "0", "--image", tmp_path / "0.png"],
        env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (0, b"")
    process.stderr.close()
    assert (tmp_path / "0.png").stat().st_size > 1000


def test_reading_what_is_no_set_does_not_speak_of_resuming_it(media: Path, run: Run) -> None:
    for arguments in (("report", media), ("verify", media), ("inspect", media, 0)):
        ended = run(*arguments)
        assert (ended.code, ended.err) == (
            1,
            f"{media}: no dataset; a dataset is a folder with manifest.json; check the path\n",
        )
