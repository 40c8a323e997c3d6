"""Duplicates: which input is kept is a matter of names, never of order or workers."""

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Result
from hypothesis import given
from hypothesis import strategies as st
from support.media_files import photo, video, write_files

from patchpack.pipeline.stages import dedupe


@given(st.dictionaries(st.text("abc", min_size=1, max_size=4), st.sampled_from("xyz"), max_size=12), st.randoms())
def test_of_each_content_the_least_key_is_kept_whatever_the_order(
    contents: dict[str, str], order: random.Random
) -> None:
    for digest in "xyz":
        keys = [key for key, value in contents.items() if value == digest]
        found = [(key, len(key), 2) for key in keys]
        order.shuffle(found)
        copies = list(dedupe.rejects_of_copies((digest, found))) if found else []
        # in the bucket of each: which one, of which it is a copy, and how many examples less that makes
        assert sorted(copies) == sorted((len(key), (key, min(keys), 2)) for key in sorted(keys)[1:])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_a_build_keeps_one_of_equal_files(workers: int, tmp_path: Path, run) -> None:
    one, clip = photo((48, 72)), video()
    contents = {
        "b/one.jpg": one,
        "a/two.png": one,
        "c.jpg": one,
        "d.mp4": clip,
        "e.mkv": clip,
        "f.jpg": photo((40, 40)),
    }
    write_files(tmp_path / "media", contents | {"g.jpg": b"", "h.jpg": b""})
    options = ("--workers", workers, "--clips-per-video", 2, "--clip-frames", 2)
    built: Result = run("build", tmp_path / "media", "--output", tmp_path / "set", "--dedupe", "digest", *options)
    assert built.code == 0, built.err
    rejects = pq.read_table(tmp_path / "set/rejects.parquet").to_pylist()
    assert [(row["key"], row["stage"], row["reason"], row["detail"]) for row in rejects] == [
        ("media/b/one.jpg", "dedupe", "duplicate", "the same bytes as media/a/two.png"),
        ("media/c.jpg", "dedupe", "duplicate", "the same bytes as media/a/two.png"),
        ("media/e.mkv", "dedupe", "duplicate", "the same bytes as media/d.mp4"),
        ("media/g.jpg", "probe", "empty", "0 bytes"),
        ("media/h.jpg", "probe", "empty", "0 bytes"),
    ]
    segments = pq.read_table(next((tmp_path / "set").glob("sequences/part-*.parquet")))["segments"].to_pylist()
    packed = sorted(segment["source"] for row in segments for segment in row)
    assert packed == ["media/a/two.png", "media/d.mp4", "media/d.mp4", "media/f.jpg"]


def test_without_being_asked_nothing_is_a_duplicate(tmp_path: Path, run) -> None:
    write_files(tmp_path / "media", {"a.jpg": photo(), "b.jpg": photo()})
    built: Result = run("build", tmp_path / "media", "--output", tmp_path / "set", "--workers", 1)
    assert built.code == 0, built.err
    assert pq.read_table(tmp_path / "set/rejects.parquet").num_rows == 0


@pytest.mark.slow
def test_duplicates_do_not_count_as_too_many_rejects(tmp_path: Path, run) -> None:
    write_files(tmp_path / "media", {f"{number:03}.jpg": photo((32, 32)) for number in range(100)})
    built: Result = run(
        "build", tmp_path / "media", "--output", tmp_path / "set", "--workers", 1, "--dedupe", "digest",
        "--max-reject-fraction", 0,
    )  # fmt: skip
    assert built.code == 0, built.err
    assert pq.read_table(tmp_path / "set/rejects.parquet").num_rows == 99
