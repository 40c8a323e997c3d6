"""Shards over time: finished ones stay, broken ones are written anew, storage errors leave nothing, bytes never change."""

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from apache_beam.utils import retry
from support.planned import CONFIG, VERSIONS, Work, make_row, slow_tokens

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.media.video import timeline
from patchpack.pipeline.stages import write as shards
from patchpack.pipeline.stages.planned import PlannedExample
from patchpack.pipeline.stages.summary import ShardPlan
from patchpack.pipeline.stages.write import write_shard
from patchpack.schemas import Layout, Shard


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Images in a fresh folder."""
    return Work(tmp_path)


@pytest.mark.parametrize("lost", [[], ["b.jpg", "f.jpg"]])
def test_a_finished_shard_is_not_written_again(work: Work, lost: list[str]) -> None:
    for name in lost:
        (work.media / name).unlink()
    result = work.write()
    os.utime(work.path, ns=(1, 1))
    assert work.write() == result
    assert [told.key for told in result.rejects] == lost
    assert work.path.stat().st_mtime_ns == 1
    # not even its sources are needed
    for row in work.rows:
        (work.media / row.key).unlink(missing_ok=True)
    assert work.write() == result


def test_a_shard_of_another_fingerprint_is_written_again(work: Work) -> None:
    before = work.write()
    after = work.write(dataclasses.replace(CONFIG, fps=9.0))
    assert after.digest != before.digest
    assert after.digest == xxhash.xxh3_128_hexdigest(work.path.read_bytes())
    assert work.write() == before


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _empty(content: bytes) -> bytes:
    return b""


def _broken_footer(content: bytes) -> bytes:
    size = int.from_bytes(content[-8:-4], "little")
    return content[: -8 - size] + b"\xff" * size + content[-8:]


def _foreign(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    return sink.getvalue().to_pybytes()


def _without_fingerprint(content: bytes) -> bytes:
    table = pa.table({"a": [1]})
    own = {"format_version": 1, "requires": [], "layout": CONFIG.layouts[0].to_json()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"patchpack": json.dumps(own)}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("damage", [_cut, _empty, _broken_footer, _foreign, _without_fingerprint])
def test_a_shard_that_is_not_whole_is_written_again(work: Work, damage: Callable[[bytes], bytes]) -> None:
    result, content = work.write(), work.path.read_bytes()
    work.path.write_bytes(damage(content))
    assert work.write() == result
    assert work.path.read_bytes() == content


def _no_handles(*args: Any) -> None:
    raise OSError(errno.EMFILE, "too many open files")


def _no_space(*args: Any) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


@pytest.mark.parametrize("before", [False, True], ids=["fresh", "over an older shard"])
@pytest.mark.parametrize(
    ("where", "failing"),
    [
        pytest.param("patchpack.pipeline.stages.write._read_frames", _no_handles, id="too many open files"),
        pytest.param("os.fsync", _no_space, id="no space left"),
    ],
)
def test_a_storage_error_leaves_no_shard(
    work: Work, where: str, failing: Callable[..., None], before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = b""
    if before:
        work.write(dataclasses.replace(CONFIG, fps=9.0))
        older = work.path.read_bytes()
    monkeypatch.setattr(where, failing)
    with pytest.raises(OSError, match="too many|no space"):
        work.write()
    assert work.left_over() == ([f"sequences/{work.path.name}"] if before else [])
    assert not before or work.path.read_bytes() == older
    monkeypatch.undo()
    assert work.write().rejects == []


def test_a_storage_error_that_passes_changes_no_byte(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = work.write()
    work.path.unlink()
    read, calls = shards._read_frames, []

    def every_other_time(*args: Any) -> Any:
        calls.append(args)
        if len(calls) % 2:
            raise TimeoutError("the store is slow today")
        return read(*args)

    monkeypatch.setattr(shards, "_read_frames", every_other_time)
    monkeypatch.setattr(retry.Clock, "sleep", lambda self, seconds: None)
    assert work.write() == expected
    assert len(calls) == 2 * len(work.rows)


def test_a_row_group_of_several_mebibytes_is_still_raw(work: Work) -> None:
    config = dataclasses.replace(CONFIG, tubelet=(1, 128, 128))
    work.write(config)
    table = pq.read_table(work.path)
    with Shard(str(work.path)) as shard:
        assert shard.layout.token_bytes * len(table) > 3 * 2**20
        assert all(start is not None for starts in shard._direct.values() for start in starts)
        for row in range(4):
            assert shard.read_array("tokens", row).tobytes() == table.column("tokens")[row].as_py()


def test_a_clip_lands_with_its_times(tmp_path: Path) -> None:
    frames_THWC = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10, width=24, height=16, pix_fmt="bgr0")
        stream.codec_context.time_base = Fraction(1, 10)
        for number, frame_HWC in enumerate(frames_THWC):
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with open(path, "rb") as file:
        header = timeline.probe(file)
    assert (header.height, header.width, len(header.pts)) == (16, 24, 5)
    times = (header.pts[1], header.pts[1], header.pts[4])
    row = make_row(
        0,
        "a.mkv",
        (2, 4, 6),
        size_bytes=path.stat().st_size,
        source_height=16,
        source_width=24,
        frame_pts=times,
        time_base_num=header.time_base[0],
        time_base_den=header.time_base[1],
        fps=5.0,
    )
    config = PlanConfig(tubelet=(2, 4, 4), sequence_length=48, fps=5.0)
    write_shard(ShardPlan(0, 0, 0, 0, 1, 1, 48), [row], [str(tmp_path)], str(tmp_path), config, VERSIONS)
    [stored] = pq.read_table(tmp_path / "sequences/part-000-00000-00000.parquet").to_pylist()
    tokens_LP = np.frombuffer(stored["tokens"], np.uint8).reshape(48, 96)
    assert tokens_LP.tolist() == slow_tokens(frames_THWC[[1, 1, 4]], (2, 4, 4)), "lossless, and no resize"
    segment = stored["segments"][0]
    assert segment["timestamps_s"] == pytest.approx([0.1, 0.1, 0.4])
    assert segment["clip_start_s"] == pytest.approx(0.1) and segment["clip_duration_s"] == pytest.approx(3 / 5)
    assert (segment["fps"], segment["num_frames"], segment["num_repeated_frames"]) == (5.0, 3, 2)


def test_a_shard_that_is_read_and_written_again_is_still_one(work: Work) -> None:
    work.write()
    with Shard(str(work.path)) as shard:
        before = [
            [shard.read_array(name, row) for name in ("tokens", "positions")] for row in range(shard.num_sequences)
        ]
        record = shard.metadata
        assert shard.is_direct
    pq.write_table(pq.read_table(work.path), work.path)
    with Shard(str(work.path)) as shard:
        assert shard.metadata == record and not shard.is_direct
        for row, arrays in enumerate(before):
            assert np.array_equal(shard.read_array("tokens", row), arrays[0])
            assert np.array_equal(shard.read_array("positions", row), arrays[1])


GOLDEN_CONTENT = "e29b1e979fa653291e1ab5a0c3b838c4"
# another pyarrow may word the same content in other bytes; then the content alone is compared
GOLDEN_FILE = {"25.0.1": "ec9056e00181f76d78dc3ff152d2c653"}


def test_a_tiny_shard_has_the_same_bytes_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def arithmetic(row: PlannedExample, *_: Any) -> np.ndarray:
        shape = max(1, len(row.frame_pts)), row.grid_h * 2, row.grid_w * 2, 3
        return (np.arange(np.prod(shape)).reshape(shape) * 7 % 251).astype(np.uint8)

    # neither decoders nor new options move this shard: only the format does
    monkeypatch.setattr(shards, "decode_examples", lambda rows, *rest: [arithmetic(row, *rest) for row in rows])
    monkeypatch.setattr(shards, "fingerprint", lambda *args: "f" * 32)
    monkeypatch.setattr(shards, "rows_per_group", lambda layout: 2)
    rows = [
        make_row(0, "photos/ä.jpg", (1, 2, 3), labels=(1,)),
        make_row(0, "photos/b%FF.png", (1, 1, 1)),
        make_row(2, "clip.mp4", (2, 2, 1), frame_pts=(0, 512, 1024), time_base_den=12800),
    ]
    config = PlanConfig(tubelet=(2, 2, 2), sequence_length=8, max_segments=2)
    result = write_shard(ShardPlan(0, 0, 0, 0, 3, 3, 0), rows, [], str(tmp_path), config, {})
    path = tmp_path / result.path
    assert config.layouts[0] == Layout(8, 2, (2, 2, 2))
    content = json.dumps(pq.read_table(path).to_pylist(), sort_keys=True, default=bytes.hex)
    assert xxhash.xxh3_128_hexdigest(content.encode()) == GOLDEN_CONTENT
    if pa.__version__ in GOLDEN_FILE:
        assert xxhash.xxh3_128_hexdigest(path.read_bytes()) == result.digest == GOLDEN_FILE[pa.__version__]
