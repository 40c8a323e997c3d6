"""Whole builds: equal bytes, nothing lost, one line for everything that goes wrong."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult
from conftest import SMALL, Result, said, start
from PIL import Image
from support.family import Family

import patchpack
from patchpack.pipeline.execution import counts, plan_transforms, stage
from patchpack.pipeline.execution.progress import Amount, Progress
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.stages import write as shards
from patchpack.pipeline.storage import files

Run = Callable[..., Result]


def digests(folder: Path) -> dict[str, str]:
    """Returns a digest of every file that equal builds have equal."""
    places = [*folder.iterdir(), *(folder / "sequences").iterdir()]
    names = [path for path in places if path.is_file() and path.name not in ("_run.json", "report.html")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(names)}


def wait_for_shards(output: Path, count: int) -> None:
    """Waits until a build has finished some shards; fails after a minute."""
    for _ in range(600):
        if len(list(output.glob("sequences/part-*.parquet"))) >= count:
            return
        time.sleep(0.1)
    pytest.fail(f"no {count} shards within a minute")


def test_a_build_has_several_groups_and_shards_and_verifies(reference: Path, run: Run) -> None:
    table = pq.read_table(reference / "shards.parquet")
    assert len(table) >= 8
    assert len(set(table["group"].to_pylist())) >= 3
    assert run("verify", reference).code == 0


@pytest.mark.slow
def test_two_workers_another_order_and_another_root_give_the_same_bytes(
    reference: Path, media: Path, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere" / "else where"
    shutil.copytree(media, other)
    inputs = sorted(other.iterdir(), reverse=True)
    process = start("build", *inputs, "--output", tmp_path / "shards", "--workers", 2, *SMALL)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert said(err) == ""
    assert digests(tmp_path / "shards") == digests(reference)
    assert counted(tmp_path / "shards") == counted(reference)


def counted(folder: Path) -> list[dict[str, int]]:
    """Returns what each stage counted, without times."""
    stages = json.loads((folder / "_run.json").read_text())["stages"]
    return [{name: n for name, n in stage["counts"].items() if not name.endswith("_us")} for stage in stages]


def test_a_killed_build_resumes_to_the_same_bytes(reference: Path, media: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "shards"
    command = ("build", *sorted(media.iterdir()), "--output", output, *SMALL)
    process = start(*command, "--workers", 1)
    wait_for_shards(output, 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (output / "sequences/.part-000-00000-00000.parquet.0123.tmp").write_bytes(b"half a shard")
    assert not (output / "manifest.json").exists()
    done = {path: path.stat().st_mtime_ns for path in output.glob("sequences/part-*.parquet")}

    refused = run("report", output)
    assert (refused.code, refused.err) == (
        1,
        f"{output}: no manifest.json; the dataset is not finished, and a finished one has it; finish it with build --resume\n",
    )
    resumed = run(*command, "--workers", 1, "--resume")
    assert resumed.code == 0, resumed.err
    assert digests(output) == digests(reference)
    assert {path: path.stat().st_mtime_ns for path in done} == done, "finished shards were written again"


@pytest.mark.slow
def test_a_dead_worker_process_ends_the_build_with_one_line(media: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    build = Family("build", media, "--output", output, "--workers", 2, *SMALL)
    wait_for_shards(output, 1)
    workers = build.workers()
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    _, err = build.launcher.communicate(timeout=30)
    assert build.launcher.returncode == 1
    assert said(err) == "a worker process died (SIGKILL); run the same command with --resume\n"
    assert build.lives_after(5) == []
    assert not (output / "manifest.json").exists()


def test_workers_end_with_their_launcher_and_without_a_word(media: Path, tmp_path: Path) -> None:
    build = Family("build", media, "--output", tmp_path / "shards", "--workers", 2, *SMALL)
    while not build.servers():
        assert build.launcher.poll() is None
        time.sleep(0.002)
    # what forks them has just begun to import, and would wait for it
    os.kill(build.launcher.pid, signal.SIGKILL)
    out, err = build.launcher.communicate(timeout=20)
    assert (build.launcher.returncode, out, err) == (-signal.SIGKILL, "", "")
    assert build.lives_after(5) == []


def test_every_input_is_packed_rejected_or_ignored(media: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(media, folder)
    good = sum(path.is_file() for path in folder.rglob("*"))
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no image")
    whole = next(media.rglob("*.jpg"))
    (folder / "cut.jpg").write_bytes(whole.read_bytes()[:-2000])
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / ".hidden.jpg").touch()
    (folder / "notes.txt").touch()
    (folder / "a[1].jpg").write_bytes(whole.read_bytes())
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg"))).write_bytes(whole.read_bytes())

    built = run("build", folder, "--output", tmp_path / "shards", "--workers", 1, "--json")
    assert built.code == 0, built.err
    totals = json.loads((tmp_path / "shards/manifest.json").read_text())["totals"]
    rejects = {
        row["key"]: (row["stage"], row["reason"])
        for row in pq.read_table(tmp_path / "shards/rejects.parquet").to_pylist()
    }
    assert rejects == {
        "mixed/empty.jpg": ("probe", "empty"),
        "mixed/text.jpg": ("probe", "unknown_format"),
        "mixed/cut.jpg": ("write", "broken"),
        "mixed/gone.png": ("probe", "not_found"),
        "mixed/pipe.png": ("list", "not_a_file"),
    }
    assert totals["ignored"] == {"(hidden)": 1, ".txt": 1}
    assert (totals["num_inputs"], totals["num_rejects"]) == (good + 7, 5)
    stored = [
        segment["source"]
        for path in sorted((tmp_path / "shards").glob("sequences/part-*.parquet"))
        for row in pq.read_table(path, columns=["segments"])["segments"].to_pylist()
        for segment in row
    ]
    assert len(stored) == len(set(stored)) == good + 2
    assert {"mixed/a[1].jpg", "mixed/%FF.jpg"} <= set(stored)
    assert run("verify", tmp_path / "shards").code == 0


def test_no_tokens_are_invented_at_the_edges_of_an_example(media: Path, reference: Path) -> None:
    """Every stored segment equals its source, decoded and cut by a loop that knows nothing of the pipeline."""
    seen = 0
    for path in sorted(reference.glob("sequences/part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            tokens = np.frombuffer(row["tokens"], np.uint8).reshape(512, 16, 16, 3)
            for segment in row["segments"]:
                if segment["grid_t"] > 1 or segment["timestamps_s"]:
                    continue
                data = (media / segment["source"]).read_bytes()
                picture = image.decode(data, segment["height"], segment["width"], backend="pillow")[0][0]
                for place in range(segment["num_tokens"]):
                    y, x = divmod(place, segment["grid_w"])
                    block = picture[16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
                    assert np.array_equal(tokens[segment["start"] + place], block), segment["source"]
                seen += 1
    assert seen >= 40


def test_overwrite_replaces_the_set_and_keeps_foreign_files(
    reference: Path, media: Path, tmp_path: Path, run: Run
) -> None:
    shutil.copytree(reference, tmp_path / "shards")
    (tmp_path / "shards/mine.txt").write_text("keep")
    (tmp_path / "shards/sequences/part-mine.parquet").write_text("keep")
    ended = run("build", media, "--output", tmp_path / "shards", "--workers", 1, "--overwrite")
    assert ended.code == 0, ended.err
    assert (
        (tmp_path / "shards/mine.txt").read_text()
        == (tmp_path / "shards/sequences/part-mine.parquet").read_text()
        == "keep"
    )
    listed = set(pq.read_table(tmp_path / "shards/shards.parquet")["path"].to_pylist())
    assert {f"sequences/{path.name}" for path in (tmp_path / "shards").glob("sequences/part-0*.parquet")} == listed


@pytest.mark.slow
def test_a_storage_error_fails_its_shard_and_resume_completes(
    reference: Path, media: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = sorted(media.rglob("*.png"))[0]
    opened = files.open_read

    def failing(path: str, *first_bytes: int) -> object:
        if path == str(victim):
            raise OSError(errno.EMFILE, "too many open files", path)
        return opened(path, *first_bytes)

    monkeypatch.setattr(shards.files, "open_read", failing)
    monkeypatch.setattr(shards.files, "retried", lambda call, *arguments: call(*arguments))
    # probing must succeed: only what writes shards sees the error
    monkeypatch.setattr(plan_transforms, "probe", _with(monkeypatch, opened, plan_transforms.probe))
    command = ("build", *sorted(media.iterdir()), "--output", tmp_path / "shards", "--workers", 1, *SMALL)
    ended = run(*command)
    assert ended.code == 1
    assert ended.err.startswith(f"{tmp_path}/shards/sequences/part-000-")
    assert f"({victim}: too many open files); 1 of " in ended.err
    assert ended.err.endswith("so the dataset has no manifest; run the same command with --resume\n")
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "shards/manifest.json").exists()
    monkeypatch.undo()
    resumed = run(*command, "--resume")
    assert resumed.code == 0, resumed.err
    assert digests(tmp_path / "shards") == digests(reference)


def _with(
    monkeypatch: pytest.MonkeyPatch, opened: Callable[..., object], probe: Callable[..., object]
) -> Callable[..., object]:
    def call(*arguments: object) -> object:
        with monkeypatch.context() as whole:
            whole.setattr(files, "open_read", opened)
            return probe(*arguments)

    return call


@pytest.mark.slow
def test_an_input_whose_views_all_fail_is_rejected_once(media: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "some").mkdir()
    whole = next(media.rglob("*.jpg")).read_bytes()
    (tmp_path / "some/good.jpg").write_bytes(whole)
    (tmp_path / "some/cut.jpg").write_bytes(whole[:-2000])
    ended = run("build", tmp_path / "some", "--output", tmp_path / "shards", "--workers", 1, "--views", 3, "--json")
    assert ended.code == 0, ended.err
    rejects = pq.read_table(tmp_path / "shards/rejects.parquet").to_pylist()
    assert [(row["key"], row["stage"], row["reason"]) for row in rejects] == [("some/cut.jpg", "write", "broken")]
    totals = json.loads(ended.out)["totals"]
    assert (totals["num_inputs"], totals["num_rejected_inputs"], totals["planned"]["num_segments"]) == (2, 1, 6)
    assert run("verify", tmp_path / "shards").code == 0


def test_sequences_longer_than_a_position_can_count(media: Path, tmp_path: Path, run: Run) -> None:
    picture = next(media.rglob("*.png"))
    options = (
        "--sequence-length",
        40_000,
        "--tubelet",
        "1,2,2",
        "--max-tokens-per-example",
        40_000,
        "--resolution",
        "side:400-400",
    )
    ended = run("build", picture, "--output", tmp_path / "shards", "--workers", 1, *options)
    assert ended.code == 0, ended.err
    assert run("verify", tmp_path / "shards").code == 0
    (row,) = pq.read_table(
        next((tmp_path / "shards").glob("sequences/part-*")), columns=["num_tokens", "segments"]
    ).to_pylist()
    assert 32_767 < row["num_tokens"] <= 40_000


@pytest.mark.slow
def test_plan_predicts_the_build_and_decodes_nothing(
    reference: Path, media: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("plan decoded an image")

    monkeypatch.setattr(image, "decode", refuse)
    planned = run("plan", *sorted(media.iterdir()), "--workers", 1, *SMALL, "--json")
    assert planned.code == 0, planned.err
    predicted, manifest = json.loads(planned.out), json.loads((reference / "manifest.json").read_text())
    assert predicted["planned"] == manifest["totals"]["planned"]
    assert predicted["bounds"] == manifest["bounds"]
    report = json.loads((reference / "report.json").read_text())
    assert predicted["sizes"] == manifest["totals"]["sizes"] == report["sizes"]
    assert abs(predicted["predicted_bytes"] / manifest["totals"]["stored"]["bytes"] - 1) < 0.02
    kept = run("plan", *sorted(media.iterdir()), "--workers", 1, *SMALL, "--output", tmp_path / "shards")
    assert kept.code == 0, kept.err
    assert "proven optimal" in kept.out or "gap" in kept.out
    sizes = predicted["sizes"]
    assert f"{sizes['num_shrunk_clips']} of {sizes['num_clips']} clips" in kept.out
    assert f"--sequence-length {sizes['cap_for_all']} shrinks none\n" in kept.out
    longer = ("--sequence-length", sizes["cap_for_all"])
    again = run("plan", *sorted(media.iterdir()), "--workers", 1, *SMALL, *longer)
    assert re.search(r"^shrunk to the cap +none$", again.out, re.MULTILINE), again.err
    monkeypatch.undo()
    built = run("build", "--output", tmp_path / "shards", "--workers", 1, *SMALL, "--resume")
    assert built.code == 0, built.err
    assert digests(tmp_path / "shards") == digests(reference)


def test_a_pattern_that_excludes_nothing_is_told(media: Path, run: Run) -> None:
    excluded = ("--exclude", "*.webp", "--exclude", "webp", "--exclude", "*/none/*")
    ended = run("plan", media, "--workers", 1, *excluded)
    assert ended.code == 0
    rule = "leaves out nothing; it is matched with whole keys, such as photos/cat/1.jpg; check it"
    assert ended.err == f"warning: --exclude webp: {rule}\nwarning: --exclude */none/*: {rule}\n"


@pytest.mark.slow
def test_progress_counts_examples(
    reference: Path, media: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    amounts: list[Amount] = []
    monkeypatch.setattr(Progress, "show", lambda self, amount: amounts.append(amount))

    def watched(add: Any, workers: int, tick: Callable[[Counter[str]], object], every: float) -> Counter[str]:
        counted = counts.of_result(_run(add))
        tick(counted)
        return counted

    # a tick behind a graph: what is reported is then known
    monkeypatch.setattr(stage.runner, "run_here", watched)
    totals = json.loads((reference / "manifest.json").read_text())["totals"]
    planned, num_inputs = totals["planned"]["num_segments"], totals["num_inputs"]
    command = ("build", *sorted(media.iterdir()), "--output", tmp_path / "shards", "--workers", 1, *SMALL)
    assert run(*command).code == 0
    shards = pq.read_table(tmp_path / "shards/shards.parquet").to_pylist()
    token_bytes = sum(shard["num_tokens"] for shard in shards) * 16 * 16 * 3
    assert amounts == [
        Amount("planning", "inputs", 0),
        Amount("planning (packing)", "examples", planned, planned, num_rejects=0),
        Amount("writing shards", "examples", 0, planned, 0, 0, 0),
        Amount("finishing", "shards", len(shards), len(shards)),
    ]
    first, second = json.loads((tmp_path / "shards/_run.json").read_text())["stages"]
    assert first["counts"]["num_inputs"] == first["counts"]["num_probed"] == num_inputs
    assert (second["counts"]["num_examples"], second["counts"]["num_token_bytes"]) == (planned, token_bytes)
    # half of it is there already
    for shard in shards[4:]:
        (tmp_path / "shards" / shard["path"]).unlink()
    (tmp_path / "shards/manifest.json").unlink()
    amounts.clear()
    assert run(*command, "--resume").code == 0
    done = sum(shard["num_segments"] for shard in shards[:4])
    written = sum(shard["num_tokens"] for shard in shards[4:]) * 16 * 16 * 3
    assert [amount for amount in amounts if amount.unit != "inputs"] == [
        Amount("writing shards", "examples", 0, planned, 0, 0, 0),
        Amount("finishing", "shards", len(shards), len(shards)),
    ]
    *_, third = json.loads((tmp_path / "shards/_run.json").read_text())["stages"]
    counted = [third["counts"][f"num_{name}"] for name in ("kept_examples", "examples", "token_bytes")]
    assert counted == [done, planned - done, written]


def _run(add_graph: Callable[..., None]) -> PipelineResult:
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        add_graph(pipeline)
    return pipeline.result


@pytest.mark.slow
def test_views_limit_exclude_and_deep_tubelets(media: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "shards"
    ended = run(
        *("build", media, "--output", output, "--workers", 1, "--views", 2, "--limit", 20, "--exclude", "*.webp"),
        *("--tubelet", "2,8,8", "--sequence-length", 2048, "--max-segments", 5),
    )
    assert ended.code == 0, ended.err
    manifest = json.loads((output / "manifest.json").read_text())
    webp, rest = (
        len(list(media.rglob("*.webp"))),
        sum(path.is_file() and path.suffix != ".webp" for path in media.rglob("*")),
    )
    assert manifest["totals"]["ignored"] == {"(beyond --limit)": rest - 20, "(excluded by *.webp)": webp}
    assert manifest["totals"]["num_inputs"] == 20
    assert [bound["view"] for bound in manifest["bounds"]] == [0, 1]
    by_view: dict[int, dict[str, int]] = {0: {}, 1: {}}
    for path in sorted(output.glob("sequences/part-*.parquet")):
        for row in pq.read_table(path, columns=["segments", "num_segments"]).to_pylist():
            assert row["num_segments"] <= 5
            for segment in row["segments"]:
                by_view[segment["view"]][segment["source"]] = segment["num_tokens"]
                stored_frames = 2 * segment["grid_t"]
                assert stored_frames - segment["num_repeated_frames"] <= segment["num_frames"] <= stored_frames
    assert by_view[0].keys() == by_view[1].keys()
    assert len(by_view[0]) == 20
    assert by_view[0] != by_view[1], "both views have the same sizes"


@pytest.mark.slow
def test_plan_predicts_the_time_of_decoding_by_the_pixels_of_the_sources(tmp_path: Path) -> None:
    for number, size in enumerate(((300, 200), (64, 500))):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    planned = patchpack.plan(tmp_path, views=3)
    # 90 million pixels a second of one core: benchmarks/media.py --only throughput
    assert planned["predicted_decode_core_s"] == pytest.approx(3 * (300 * 200 + 64 * 500) / 90e6)
