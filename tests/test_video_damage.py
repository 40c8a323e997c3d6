"""Damaged videos: what is whole stays, what is not is reported, and no frame is painted over or passed off as another."""

import io
from typing import Any

import av
import numpy as np
import pytest
from support.media_files import hostile_contents, number_shown, remuxed, video

from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.media.video.clips import ClipRule
from patchpack.pipeline.media.video.decode import decode_clip
from patchpack.pipeline.media.video.timeline import VideoHeader, probe
from patchpack.pipeline.stages.probe import probe as probe_source
from patchpack.pipeline.stages.records import REASONS, Example, Ignored, Reject, Source

X264 = {"preset": "ultrafast", "crf": "12", "g": "8"}
X265 = {"x265-params": "log-level=none:keyint=8:bframes=3:pools=none:frame-threads=1"}

CUT: dict[str, dict[str, Any]] = {
    "mp4": {},
    "mp4 index first": {"mux": {"moov_size": "4000"}},
    "mp4 in fragments": {"mux": {"movflags": "frag_keyframe+empty_moov"}, "options": X264},
    "mkv": {"format": "matroska"},
    "webm": {"format": "webm"},
    "avi": {"format": "avi"},
    "h264 avi": {"format": "avi", "codec": "libx264", "b_frames": 3, "pix_fmt": "yuv420p"},
    "ts": {"format": "mpegts"},
    "h264 ts": {"format": "mpegts", "codec": "libx264", "b_frames": 3, "options": X264},
    "hevc ts": {"format": "mpegts", "codec": "libx265", "b_frames": 3, "options": X265},
    "flv": {"format": "flv"},
}


def probed(data: bytes) -> VideoHeader:
    """Returns the header of a video's bytes."""
    return probe(io.BytesIO(data))


def outcomes(data: bytes, folder: Any, rule: ClipRule) -> list[Example | Reject | Ignored]:
    """Returns what the bytes become as an input."""
    (folder / "a").write_bytes(data)
    return probe_source(Source("a", 0, "a", len(data)), str(folder / "a"), rule, 10**8)


def shown(data: bytes, pts: tuple[int, ...], header: VideoHeader) -> list[int]:
    """Returns the numbers of frames."""
    frames_THWC, _ = decode_clip(io.BytesIO(data), pts, 96, 128, header.random_access_points_for(pts))
    return [number_shown(frame) for frame in frames_THWC]


@pytest.mark.parametrize("name", CUT)
@pytest.mark.slow_beyond(3)
def test_a_video_cut_anywhere_shows_its_own_frames_and_is_marked(name: str) -> None:
    data = video((96, 128), num_frames=24, rate=10, **CUT[name])
    header = probed(data)
    whole = dict(zip(header.pts, range(24), strict=True))
    assert header.damage == "" and len(whole) == 24
    refused = unmarked = noticed = 0
    ends = range(20, len(data) - 1, len(data) // 60)
    for end in ends:
        try:
            header = probed(data[:end])
        except DecodeError as error:
            assert error.reason in REASONS
            refused += 1
            continue
        unmarked += not header.damage
        try:
            numbers = shown(data[:end], header.pts, header)
        except DecodeError as error:
            assert error.reason in REASONS
            noticed += 1
        else:
            assert numbers == [whole[time] for time in header.pts], end
    assert refused >= 2
    # cut where a frame or fragment ends; Flash and fragments do not say how many there were
    assert unmarked <= {"flv": 6, "ts": 2, "h264 ts": 2, "hevc ts": 2, "mp4 in fragments": 2}.get(name, 0)
    assert noticed <= len(ends) // 5


@pytest.mark.parametrize("name", ["h264 ts", "hevc ts"])
def test_a_transport_stream_cut_between_its_packets_is_marked_and_loses_the_cut_picture(name: str) -> None:
    data = video((96, 128), num_frames=24, rate=10, **CUT[name])
    whole = probed(data).pts
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        pid = stream.id
        last = max((packet for packet in container.demux(stream) if packet.size > 600), key=lambda packet: packet.pos)
    # from the frame's second packet on, as long as it goes on after that
    end = last.pos + 2 * 188
    assert int.from_bytes(data[end + 1 : end + 3], "big") & 0x1FFF == pid
    header = probed(data[:end])
    assert header.damage == "the last frame is cut off"
    assert set(header.pts) < set(whole) and last.pts not in header.pts


def test_damage_that_a_decoder_notices_is_not_painted_over() -> None:
    data = video((96, 128), format="avi", num_frames=4)
    damaged = remuxed(data, lambda number, packet: packet[: len(packet) * 3 // 4] if number == 2 else packet, "avi")
    header = probed(damaged)
    with pytest.raises(DecodeError) as caught:
        decode_clip(io.BytesIO(damaged), header.pts, 48, 64, header.random_access_points_for(header.pts))
    assert caught.value.reason in ("partial", "broken")


def test_a_video_that_breaks_off_keeps_its_clips_and_is_marked_partial(tmp_path: Any) -> None:
    data = hostile_contents()["cut_in_middle.avi"]
    example, marked = outcomes(data, tmp_path, ClipRule())
    assert isinstance(example, Example) and isinstance(marked, Reject)
    assert (marked.stage, marked.reason) == ("probe", "partial")
    assert marked.detail == "packet 3 is damaged or cut off; 1 of 1 clips are taken from what is whole"
    frames_THWC, _ = decode_clip(io.BytesIO(data), example.frame_pts, 48, 64, example.random_access_pts)
    assert [number_shown(frame) for frame in frames_THWC] == [0]


def test_a_video_that_breaks_in_the_middle_keeps_its_good_clips() -> None:
    # groups of 8 frames; a packet of the third is garbage
    data = video((96, 128), num_frames=64, rate=8, options=X264)
    damaged = remuxed(
        data, lambda number, packet: packet[:9] + bytes(len(packet) - 9) if number == 20 else packet, "mp4"
    )
    header = probed(damaged)
    lost = []
    for group in range(8):
        pts = header.pts[8 * group : 8 * group + 8]
        try:
            assert shown(damaged, pts, header) == list(range(8 * group, 8 * group + 8))
        except DecodeError as error:
            assert error.reason in REASONS
            lost.append(group)
    assert lost == [2]


def test_packets_that_the_container_calls_damaged_cost_only_their_own_clips(tmp_path: Any) -> None:
    data = bytearray(video((96, 128), format="mpegts", codec="libx264", num_frames=64, rate=8, options=X264))
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        pid, places = stream.id, [packet.pos for packet in container.demux(stream) if packet.size]
    # transport_error_indicator (ISO 13818-1, section 2.4.3.2) in the packet after the head of frame 20
    place = places[20]
    assert int.from_bytes(data[place + 1 : place + 3], "big") & 0x1FFF == pid
    data[place + 1] |= 0x80
    header = probed(bytes(data))
    assert header.damage and header.corrupt_frames
    *examples, marked = outcomes(bytes(data), tmp_path, ClipRule(8, 8))
    assert marked.reason == "partial" and marked.detail.endswith("7 of 8 clips are taken from what is whole")
    assert [example.clip for example in examples] == [0, 1, 3, 4, 5, 6, 7]
    for example in examples:
        assert shown(bytes(data), example.frame_pts, header) == list(range(8 * example.clip, 8 * example.clip + 8))


def test_a_frame_that_the_decoder_calls_corrupt_makes_its_clip_partial(monkeypatch: pytest.MonkeyPatch) -> None:
    class Corrupt:
        is_corrupt, pts, time_base = True, 0, 1

    data = video((96, 128), num_frames=4)
    monkeypatch.setattr("patchpack.pipeline.media.video.decode._all_frames", lambda container, stream: [(0, Corrupt())])
    with pytest.raises(DecodeError, match="the frame at 0.0 s is corrupt") as caught:
        decode_clip(io.BytesIO(data), probed(data).pts, 48, 64)
    assert caught.value.reason == "partial"


def test_h264_in_avi_has_every_frame_at_its_time() -> None:
    data = video((96, 128), num_frames=24, rate=8, **CUT["h264 avi"])
    header = probed(data)
    assert len(header.pts) == 24 and np.diff(header.pts).tolist() == [1] * 23
    for place in (0, 1, 5, 11, 23):
        assert shown(data, header.pts[place : place + 1], header) == [place]
