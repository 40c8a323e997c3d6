"""The whole corpus through real builds: every file is accounted for, the packed ones show what they hold, memory is bounded."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import SMALL, said, start
from PIL import Image
from support.accounts import accounted, leftovers, num_files
from support.hostile_case import PACKED, PARTIAL, Case
from support.hostile_files import corpus, write_corpus, write_places
from support.media_files import hostile_contents, photo, write_files
from support.memory import peak_bytes_of

from patchpack.pipeline.execution import checks
from patchpack.pipeline.stages.list import printable
from patchpack.schemas.manifest import read_manifest

# what the issue allows a worker, Beam and all else included
MAX_BYTES = 10**9


def built(*arguments: object) -> tuple[int, int]:
    """Builds in a process of its own with one worker inside; returns its exit code and its peak memory in bytes."""
    process = start("build", *arguments, "--workers", 1, "--max-reject-fraction", 1)
    peak = 0
    while process.poll() is None:
        # what the system says of an ended process includes the memory of the one that started it
        peak = max(peak, peak_bytes_of(process.pid))
        time.sleep(0.02)
    process.communicate()
    return process.returncode, peak


def stored_pictures(folder: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yields every segment of a dataset and its first frame, (H, W, 3) uint8."""
    layout = read_manifest(str(folder)).layouts[0]
    for path in sorted(folder.glob("sequences/part-*.parquet")):
        table = pq.read_table(path, columns=["tokens", "segments"])
        for row, segments in zip(table["tokens"], table["segments"].to_pylist(), strict=True):
            tokens_LP = np.frombuffer(row.as_py(), np.uint8).reshape(layout.sequence_length, -1)
            for segment in segments:
                h, w = segment["grid_h"], segment["grid_w"]
                blocks = tokens_LP[segment["start"] :][: h * w].reshape(h, w, 16, 16, 3)
                yield segment, blocks.transpose(0, 2, 1, 3, 4).reshape(h * 16, w * 16, 3)


def check_set(folder: Path, cases: list[Case], ends: dict[str, str], prefix: str) -> None:
    """Checks that each file ended once, as it must, and that images show what their files hold."""
    shows = {f"{prefix}/{printable(case.name)}": case.shows for case in cases}
    wanted = {f"{prefix}/{printable(case.name)}": case.end for case in cases}
    wanted |= {f"{prefix}/{name}": end for name, end in ends.items()}
    found = {row["key"]: row["reason"] for row in pq.read_table(folder / "rejects.parquet").to_pylist()}
    # a partial video keeps its good clips
    rejected = {key for key, reason in found.items() if reason != "partial"}
    for segment, picture_HWC in stored_pictures(folder):
        found[segment["source"]] = PACKED
        if (shown := shows.get(segment["source"])) is not None:
            height, width, _ = picture_HWC.shape
            expected = Image.fromarray(shown).resize((width, height), Image.Resampling.BICUBIC)
            assert np.abs(picture_HWC.astype(int) - np.asarray(expected)).mean() < 6, segment["source"]
    assert not rejected & {key for key, end in found.items() if end == PACKED}
    either = {key for key, end in wanted.items() if end == PARTIAL}
    assert set(found) == set(wanted)
    assert {found[key] for key in either} <= {"broken", "partial", PACKED}
    assert {key: found[key] for key in wanted if key not in either and found[key] != wanted[key]} == {}
    assert read_manifest(str(folder)).totals["num_inputs"] == len(wanted)


@pytest.mark.slow
def test_a_damaged_video_whose_clips_are_packed_is_no_rejected_input(
    tmp_path: Path, run: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(checks, "MIN_INPUTS_FOR_REJECT_FRACTION", 1)
    cut = hostile_contents()["cut_in_middle.avi"]
    write_files(tmp_path / "media", {"a.avi": cut, "b.avi": cut, "c.jpg": photo()})
    command = (tmp_path / "media", "--workers", 1, "--json")
    planned = json.loads(run("plan", *command, "--dedupe", "digest").out)
    assert planned["rejects"] == {"dedupe: duplicate": 1, "probe: partial": 2}
    assert (planned["num_inputs"], planned["num_rejected_inputs"]) == (3, 1)
    built = run("build", *command, "--output", tmp_path / "set", "--max-reject-fraction", 0)
    assert built.code == 0, built.err
    totals = json.loads(built.out)["totals"]
    assert (totals["num_rejected_inputs"], totals["num_rejects"], totals["stored"]["num_segments"]) == (0, 2, 3)


@pytest.mark.slow
def test_every_hostile_file_is_accounted_for_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = corpus()
    write_corpus(tmp_path / "corpus", cases)
    ends = write_places(tmp_path / "corpus")
    with socket.socket(socket.AF_UNIX) as one:
        # names of sockets are short
        monkeypatch.chdir(tmp_path / "corpus/places")
        one.bind("socket.jpg")
        ends |= {"places/socket.jpg": "not_a_file"}
        code, peak_bytes = built(tmp_path / "corpus", "--output", tmp_path / "set", "--max-segments", 256)
    assert code == 0
    check_set(tmp_path / "set", cases, ends, "corpus")
    print(f"peak of one worker: {peak_bytes / 1e6:.0f} MB")
    assert peak_bytes < MAX_BYTES


@pytest.mark.slow
def test_files_that_change_after_they_were_probed_are_rejects(tmp_path: Path, run) -> None:
    small, large = photo((48, 72)), photo((72, 48))
    size = max(len(small), len(large)) + 10
    before = small.ljust(size, b"\0")
    names = ("sound", "deleted", "longer", "cut", "emptied", "other_size", "broken", "folder", "pipe", "loop", "vast")
    write_files(tmp_path / "media", {f"{name}.jpg": before for name in names})
    planned = run("plan", tmp_path / "media", "--output", tmp_path / "set", "--max-pixels", 5000, "--workers", 1)
    assert planned.code == 0, planned.err
    changed = {
        "longer": before + b"\0", "cut": before[:-100], "emptied": b"", "other_size": large.ljust(size, b"\0"),
        "broken": before[:200] + bytes(size - 200), "vast": photo((200, 200), "PNG").ljust(size, b"\0")[:size],
    }  # fmt: skip
    write_files(tmp_path / "media", {f"{name}.jpg": data for name, data in changed.items()})
    for name in ("deleted", "folder", "pipe", "loop"):
        (tmp_path / f"media/{name}.jpg").unlink()
    (tmp_path / "media/folder.jpg").mkdir()
    os.mkfifo(tmp_path / "media/pipe.jpg")
    (tmp_path / "media/loop.jpg").symlink_to("loop.jpg")
    finished = run(
        "build", tmp_path / "media", "--output", tmp_path / "set", "--max-pixels", 5000, "--workers", 1, "--resume"
    )
    assert finished.code == 0, finished.err
    rejects = pq.read_table(tmp_path / "set/rejects.parquet").to_pylist()
    assert {row["key"].split("/")[1]: (row["stage"], row["reason"]) for row in rejects} == {
        "deleted.jpg": ("write", "not_found"), "longer.jpg": ("write", "changed"),
        "cut.jpg": ("write", "changed"), "emptied.jpg": ("write", "changed"), "other_size.jpg": ("write", "changed"),
        "broken.jpg": ("write", "broken"), "folder.jpg": ("write", "not_a_file"),
        "pipe.jpg": ("write", "not_a_file"), "loop.jpg": ("write", "unreadable"),
        "vast.jpg": ("write", "too_large"),
    }  # fmt: skip
    assert [segment["source"] for segment, _ in stored_pictures(tmp_path / "set")] == ["media/sound.jpg"]
    assert run("verify", tmp_path / "set").code == 0
    assert accounted(tmp_path / "set") == (1, len(names) - 1, 0)


# stands in for a decoder's bugs, in every process that a build starts
SABOTAGE = """
import os, time
from PIL import Image
before = Image.open
def sabotaged(file, *args, **options):
    head = file.read(40)
    file.seek(0)
    for sign, harm in ((b"CRASH", os.abort), (b"HANG", lambda: time.sleep(1000)), (b"EAT", lambda: bytearray(2**36)),
                       (b"DIES", lambda: os.kill(os.getpid(), 9))):
        if sign in head:
            harm()
    return before(file, *args, **options)
Image.open = sabotaged
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_decoders_that_crash_or_hang_cost_their_files_and_not_the_build(workers: int, tmp_path: Path, run) -> None:
    jpeg = photo((48, 72))
    bad = {f"{number}_{sign}.jpg": jpeg[:2] + b"\xff\xfe\0\x08" + sign.ljust(6).encode() + jpeg[2:]
           for number in range(2) for sign in ("CRASH", "HANG", "EAT")}  # fmt: skip
    write_files(tmp_path / "media", bad | {f"good_{number}.jpg": jpeg for number in range(6)})
    write_files(tmp_path, {"code/sitecustomize.py": SABOTAGE.encode()})
    process = start(
        "build", tmp_path / "media", "--output", tmp_path / "set", "--workers", workers,
        "--decode-isolation", "process", "--decode-timeout-s", 1, path=tmp_path / "code",
    )  # fmt: skip
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    rejects = pq.read_table(tmp_path / "set/rejects.parquet").to_pylist()
    reasons = {"CRASH": "crashed", "HANG": "timeout", "EAT": "crashed"}
    assert {row["key"]: row["reason"] for row in rejects} == {
        f"media/{name}": reasons[name[2:].removesuffix(".jpg")] for name in bad
    }
    assert len(list(stored_pictures(tmp_path / "set"))) == 6
    assert run("verify", tmp_path / "set").code == 0
    assert sum(accounted(tmp_path / "set")) == num_files(tmp_path / "media")


@pytest.mark.slow
def test_a_decoder_that_crashes_a_worker_costs_its_file_at_the_second_try(tmp_path: Path, run) -> None:
    jpeg = photo((48, 72))
    bad = {f"{number}.jpg": jpeg[:2] + b"\xff\xfe\0\x08CRASH " + jpeg[2:] for number in range(2)}
    write_files(tmp_path / "media", bad | {f"good_{number}.jpg": jpeg for number in range(6)})
    write_files(tmp_path, {"code/sitecustomize.py": SABOTAGE.encode()})
    process = start("build", tmp_path / "media", "--output", tmp_path / "set", "--workers", 2, path=tmp_path / "code")
    _, err = process.communicate(timeout=120)
    assert (process.returncode, said(err)) == (
        0,
        "warning: a worker process died (SIGABRT); going on with each file decoded in a process of its own\n",
    )
    rejects = pq.read_table(tmp_path / "set/rejects.parquet").to_pylist()
    assert {row["key"]: (row["stage"], row["reason"]) for row in rejects} == {
        f"media/{name}": ("probe", "crashed") for name in bad
    }
    assert run("verify", tmp_path / "set").code == 0
    assert accounted(tmp_path / "set") == (6, 2, 0)
    assert leftovers(tmp_path / "set") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "says"), [(1, ""), (2, "a worker process died (SIGKILL); run the same command with --resume\n")]
)
def test_a_decoder_that_is_killed_ends_the_build_and_isolation_completes_it(
    workers: int, says: str, tmp_path: Path, run
) -> None:
    jpeg = photo((48, 72))
    killer = jpeg[:2] + b"\xff\xfe\0\x08DIES  " + jpeg[2:]
    write_files(tmp_path / "media", {"bad.jpg": killer} | {f"good_{number}.jpg": jpeg for number in range(6)})
    write_files(tmp_path, {"code/sitecustomize.py": SABOTAGE.encode()})
    command = ("build", tmp_path / "media", "--output", tmp_path / "set", "--workers", workers)
    process = start(*command, path=tmp_path / "code")
    _, err = process.communicate(timeout=30)
    assert (process.returncode, said(err)) == (-signal.SIGKILL if workers == 1 else 1, says)
    process = start(*command, "--resume", "--decode-isolation", "process", path=tmp_path / "code")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, said(err)) == (0, "")
    assert run("verify", tmp_path / "set").code == 0
    assert accounted(tmp_path / "set") == (6, 1, 0)


@pytest.mark.slow
def test_isolated_builds_have_the_same_bytes(media: Path, reference: Path, tmp_path: Path, run) -> None:
    inputs = sorted(media.iterdir())
    isolated = run(
        "build", *inputs, "--output", tmp_path / "set", "--workers", 1, "--decode-isolation", "process", *SMALL
    )
    assert isolated.code == 0, isolated.err
    for path in sorted(reference.glob("*.parquet")):
        assert (tmp_path / "set" / path.name).read_bytes() == path.read_bytes(), path.name


def test_names_of_files_command_no_terminal(tmp_path: Path, run) -> None:
    write_files(tmp_path / "media", {"\x1b[31mred\x07\n\u202egpj.jpg": b"text"})
    failed = run("build", tmp_path / "media", "--output", tmp_path / "set", "--workers", 1)
    assert failed.code == 1
    assert failed.err.removesuffix("\n").isprintable() and "\\x1b[31mred\\x07" in failed.err
