"""The whole corpus through real builds: every file is accounted for, the packed ones show what they hold, memory is bounded."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import start
from hostile_case import PACKED, PARTIAL, Case
from hostile_files import corpus, write_corpus, write_places
from media_files import photo, write_files
from PIL import Image

from pipeline.source import printable
from schemas.manifest import read_manifest

# what the issue allows a worker, Beam and all else included
MAX_BYTES = 10**9


def built(*arguments: object) -> tuple[int, int]:
    """Builds in a process of its own with one worker inside; returns its exit code and its peak memory in bytes."""
    process = start("build", *arguments, "--workers", 1, "--max-reject-fraction", 1)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.communicate()
    return process.returncode, usage.ru_maxrss * 1024


def stored_pictures(folder: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yields every segment of a set and its first frame, (H, W, 3) uint8."""
    layout = read_manifest(str(folder)).layouts[0]
    for path in sorted(folder.glob("part-*.parquet")):
        table = pq.read_table(path, columns=["tokens", "segments"])
        for row, segments in zip(table["tokens"], table["segments"].to_pylist(), strict=True):
            tokens_LP = np.frombuffer(row.as_py(), np.uint8).reshape(layout.sequence_length, -1)
            for segment in segments:
                h, w = segment["grid_h"], segment["grid_w"]
                blocks = tokens_LP[segment["start"] :][: h * w].reshape(h, w, 16, 16, 3)
                yield segment, blocks.transpose(0, 2, 1, 3, 4).reshape(h * 16, w * 16, 3)


def check_set(folder: Path, cases: list[Case], ends: dict[str, str], prefix: str) -> None:
    """Checks that each file ended once, as it must, and that pictures show what their files hold."""
    shows = {f"{prefix}/{printable(case.name)}": case.shows for case in cases}
    wanted = {f"{prefix}/{printable(case.name)}": case.end for case in cases}
    wanted |= {f"{prefix}/{name}": end for name, end in ends.items()}
    found = {row["key"]: row["reason"] for row in pq.read_table(folder / "rejects.parquet").to_pylist()}
    rejected = set(found)
    for segment, picture_HWC in stored_pictures(folder):
        found[segment["source"]] = PACKED
        if (shown := shows.get(segment["source"])) is not None:
            height, width, _ = picture_HWC.shape
            expected = Image.fromarray(shown).resize((width, height), Image.Resampling.BICUBIC)
            assert np.abs(picture_HWC.astype(int) - np.asarray(expected)).mean() < 6, segment["source"]
    assert not rejected & {key for key, end in found.items() if end == PACKED}
    either = {key for key, end in wanted.items() if end == PARTIAL}
    assert set(found) == set(wanted)
    assert {found[key] for key in either} <= {"broken", PACKED}
    assert {key: found[key] for key in wanted if key not in either and found[key] != wanted[key]} == {}
    assert read_manifest(str(folder)).totals["num_inputs"] == len(wanted)


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
