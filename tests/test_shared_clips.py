"""Clips of one video share a decode: the same frames and bytes as each alone, within the memory allowed."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.media_files import video, write_files
from support.planned import VERSIONS, make_row

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.media.shared_clips import SharedClips
from patchpack.pipeline.media.video.clips import ClipRule
from patchpack.pipeline.stages import write as shards
from patchpack.pipeline.stages.planned import PlannedExample
from patchpack.pipeline.stages.probe import probe
from patchpack.pipeline.stages.records import Example, Source
from patchpack.pipeline.stages.summary import ShardPlan
from patchpack.pipeline.stages.write import write_shard

CONFIG = PlanConfig(tubelet=(1, 4, 4), sequence_length=160, clips_per_video=4)
X264 = {"preset": "ultrafast", "crf": "12", "g": "10"}


class Clip(NamedTuple):
    """What is asked of a planned example, how large its frames are, and whether they are broken."""

    key: str
    example_id: str
    view: int
    frame_pts: tuple[int, ...]
    size: int
    bad: bool


def rows_of(folder: Path, name: str, num_clips: int = 4) -> list[PlannedExample]:
    """Returns planned rows of every clip of a video, each in a sequence of its own, at sizes of their own."""
    path = folder / name
    source = Source(name, 0, name, path.stat().st_size)
    rows = []
    for example in probe(source, str(path), ClipRule(num_clips, 4), 10**8):
        if isinstance(example, Example):
            more = {name: value for name, value in example._asdict().items() if name in PlannedExample._fields}
            more |= {"time_base_num": example.time_base[0], "time_base_den": example.time_base[1]}
            grid = (len(example.frame_pts), 4 + example.clip % 2, 6)
            rows.append(make_row(len(rows), name, grid, size_bytes=source.size_bytes)._replace(**more))
    return rows


def written(folder: Path, rows: list[PlannedExample], config: PlanConfig) -> tuple[bytes, Any]:
    """Returns the bytes of the shard of these rows, and its result."""
    path = folder / "sequences/part-000-00000-00000.parquet"
    path.unlink(missing_ok=True)
    plan = ShardPlan(0, 0, 0, 0, len({row.sequence for row in rows}), len(rows), 0)
    result = write_shard(plan, rows, [str(folder)], str(folder), config, VERSIONS)
    return path.read_bytes(), result


@pytest.mark.parametrize("group_rows", [1, 100])
def test_clips_that_share_a_decode_are_the_clips_decoded_alone(
    tmp_path: Path, group_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(
        tmp_path,
        {"a.mp4": video(num_frames=80, rate=8, options=X264), "b.mkv": video(format="matroska", num_frames=40, rate=8)},
    )
    monkeypatch.setattr(shards, "rows_per_group", lambda layout: group_rows)
    rows = rows_of(tmp_path, "a.mp4") + rows_of(tmp_path, "b.mkv")
    # the two videos take turns
    rows = [row._replace(sequence=place) for place, row in enumerate(sorted(rows, key=lambda row: row.clip))]
    decoded: list[int] = []
    plain = shards.decode_examples
    monkeypatch.setattr(shards, "decode_examples", lambda some, *rest: decoded.append(len(some)) or plain(some, *rest))
    alone, _ = written(tmp_path, rows, dataclasses.replace(CONFIG, decode_cache_bytes=0))
    assert decoded == [1] * 8
    for room, calls in ((10**9, [4, 4]), (4 * 16 * 24 * 3 * 2, None)):
        decoded.clear()
        assert written(tmp_path, rows, dataclasses.replace(CONFIG, decode_cache_bytes=room))[0] == alone
        assert sum(decoded) == 8 and len(decoded) < 8
        assert calls is None or decoded == calls


def test_a_broken_clip_leaves_and_the_others_of_its_video_stay(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.mp4": video(num_frames=80, rate=8, options=X264)})
    rows = rows_of(tmp_path, "a.mp4")
    rows[2] = rows[2]._replace(frame_pts=(rows[2].frame_pts[0] + 1,))
    _, result = written(tmp_path, rows, CONFIG)
    [told] = result.rejects
    assert (told.key, told.stage, told.reason) == ("a.mp4", "write", "partial")
    stored = pq.read_table(tmp_path / "sequences/part-000-00000-00000.parquet", columns=["num_segments"])
    assert stored["num_segments"].to_pylist() == [1, 1, 0, 1]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.booleans()), max_size=30), st.integers(0, 40))
def test_what_waits_never_exceeds_its_memory_and_every_clip_comes_once(
    clips: list[tuple[int, int, bool]], max_bytes: int
) -> None:
    rows = [Clip(str(source), str(place), 0, (0,), size, bad) for place, (source, size, bad) in enumerate(clips)]

    def decode(some: list[Clip]) -> list[np.ndarray]:
        assert len({row.key for row in some}) == 1
        assert sum(row.size for row in some[1:]) <= max_bytes
        if any(row.bad for row in some):
            raise DecodeError("partial", "bad")
        return [np.full(row.size, int(row.example_id), np.uint8) for row in some]

    shared = SharedClips(rows, decode, lambda row: row.size, max_bytes)
    for row in rows:
        if row.bad:
            with pytest.raises(DecodeError):
                shared.frames(row)
        else:
            assert shared.frames(row).tolist() == [int(row.example_id)] * row.size
        assert sum(clip.nbytes for clip in shared._waiting.values()) <= max_bytes
    assert not shared._waiting
