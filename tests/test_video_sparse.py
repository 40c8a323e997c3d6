"""Decoding only what is needed: the frames equal those of decoding everything, for codecs, containers and any choice of frames."""

import io
import random
from functools import cache
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from support.media_files import video

from patchpack.pipeline.media.video import decode as decoding
from patchpack.pipeline.media.video.decode import decode_clip
from patchpack.pipeline.media.video.frame import Scaler
from patchpack.pipeline.media.video.random_access import may_skip
from patchpack.pipeline.media.video.timeline import VideoHeader, probe

NUM_FRAMES = 40
X264 = {"preset": "veryfast", "g": "9", "crf": "20"}
X265 = "log-level=none:keyint=9:min-keyint=3:bframes=3:pools=none:frame-threads=1"

# name -> what `video` makes
MADE: dict[str, dict[str, Any]] = {
    "h264 mp4": {"b_frames": 3, "options": X264},
    "h264 mov": {"format": "mov", "b_frames": 2, "options": X264},
    "h264 mkv": {"format": "matroska", "b_frames": 3, "options": X264},
    "h264 ts": {"format": "mpegts", "codec": "libx264", "b_frames": 3, "options": X264},
    "h264 flv": {"format": "flv", "b_frames": 2, "options": X264},
    "h264 avi": {"format": "avi", "codec": "libx264", "b_frames": 3, "options": X264, "pix_fmt": "yuv420p"},
    "h264 intra avi": {"format": "avi", "codec": "libx264", "options": X264 | {"g": "1"}, "pix_fmt": "yuv420p"},
    "h264 open mp4": {"b_frames": 3, "options": X264 | {"x264-params": "open-gop=1:b-adapt=0"}},
    "h264 open ts": {"format": "mpegts", "codec": "libx264", "b_frames": 3, "options": X264 | {"x264-params": "open-gop=1"}},
    "h264 open mkv": {"format": "matroska", "b_frames": 3, "options": X264 | {"x264-params": "open-gop=1"}},
    "h264 refreshed": {"format": "matroska", "options": X264 | {"x264-params": "intra-refresh=1:keyint=9"}},
    "h264 one group": {"b_frames": 3, "options": X264 | {"g": "999"}},
    "h264 pyramid": {"b_frames": 4, "options": X264 | {"x264-params": "b-pyramid=normal:ref=4:b-adapt=0"}},
    "h264 variable": {"times_s": [n * n / 300 for n in range(NUM_FRAMES)], "b_frames": 2, "options": X264},
    "hevc closed mp4": {"codec": "libx265", "b_frames": 3, "options": {"x265-params": X265 + ":open-gop=0"}},
    "hevc open mkv": {"codec": "libx265", "format": "matroska", "b_frames": 3, "options": {"x265-params": X265 + ":open-gop=1"}},
    "hevc open ts": {"codec": "libx265", "format": "mpegts", "b_frames": 3, "options": {"x265-params": X265 + ":open-gop=1"}},
    "hevc layers mp4": {"codec": "libx265", "b_frames": 3, "options": {"x265-params": X265 + ":temporal-layers=3:b-adapt=0"}},
    "vp8 webm": {"format": "webm", "options": {"g": "9", "auto-alt-ref": "1", "lag-in-frames": "8"}},
    "vp9 webm": {"format": "webm", "codec": "libvpx-vp9", "options": {"g": "9", "cpu-used": "8", "lag-in-frames": "8"}},
    "vp9 mp4": {"codec": "libvpx-vp9", "options": {"g": "9", "cpu-used": "8"}},
    "av1 mkv": {"codec": "libsvtav1", "format": "matroska", "options": {"preset": "12", "g": "9", "svtav1-params": "lp=1"}},
    "mpeg4 mp4": {"codec": "mpeg4", "b_frames": 2, "options": {"g": "9"}},
    "mpeg4 avi": {"codec": "mpeg4", "format": "avi", "b_frames": 2, "options": {"g": "9"}, "pix_fmt": "yuv420p"},
    "mpeg2 ts": {"format": "mpegts", "b_frames": 2, "options": {"g": "9"}},
    "mpeg2 mkv": {"codec": "mpeg2video", "format": "matroska", "b_frames": 2, "options": {"g": "9"}},
    "mpeg1 mkv": {"codec": "mpeg1video", "format": "matroska", "b_frames": 2, "options": {"g": "9"}, "rate": 25},
    "mjpeg avi": {"format": "avi"},
    "flv1": {"format": "flv", "codec": "flv", "options": {"g": "9"}},
}  # fmt: skip
# times by order: decoded from the start, always
FROM_THE_START = {"h264 avi", "h264 intra avi"}
# a single frame that nothing after it looks behind
ONE_ENTRY = {"h264 one group", "h264 refreshed", "h264 open mp4", "h264 open ts", "h264 open mkv"}


@cache
def made(name: str) -> tuple[bytes, VideoHeader, dict[int, np.ndarray]]:
    """Returns a video, its header, and every frame by its time as decoding everything in order shows it."""
    data = video(**{"num_frames": NUM_FRAMES, "size": (48, 80)} | MADE[name])
    header = probe(io.BytesIO(data))
    frames = every_frame(data)
    if MADE[name].get("format") == "avi":
        # no presentation times: the frames come in order
        frames = dict(zip(header.pts, frames.values(), strict=True))
    return data, header, frames


def every_frame(data: bytes) -> dict[int, np.ndarray]:
    """Returns all frames by time, in order of output: the oracle."""
    scaler = Scaler(24, 40)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.best("video")
        return {(frame.pts, number): scaler.pixels(frame) for number, frame in enumerate(container.decode(stream))}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.slow_beyond(12)
def test_any_choice_of_frames_equals_decoding_everything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, header, frames = made(name)
    expected = list(frames.values())
    assert len(header.pts) == len(expected) == NUM_FRAMES
    entries = len(header.entries)
    assert entries == 0 if name in FROM_THE_START else entries == 1 if name in ONE_ENTRY else entries >= 3
    everything = []
    plain = decoding._all_frames
    monkeypatch.setattr(decoding, "_all_frames", lambda *args: everything.append(0) or plain(*args))
    rng = random.Random(name)
    for count in (1, 1, 1, 2, 2, 3, 5, 16, NUM_FRAMES):
        places = sorted(rng.sample(range(NUM_FRAMES), count))
        pts = tuple(header.pts[place] for place in places)
        entries = header.random_access_points_for(pts)
        assert bool(entries) == (name not in FROM_THE_START)
        frames_THWC, _ = decode_clip(io.BytesIO(data), pts, 24, 40, entries)
        assert np.array_equal(frames_THWC, np.stack([expected[place] for place in places])), places
    assert bool(everything) == (name in FROM_THE_START), "the plain way is for those that need it"


def test_pictures_that_higher_layers_may_refer_to_are_not_left_out() -> None:
    skips = {}
    for name in ("hevc layers mp4", "hevc closed mp4", "hevc open ts", "vp8 webm", "h264 mp4"):
        with av.open(io.BytesIO(made(name)[0])) as container:
            skips[name] = may_skip(container.streams.video[0].codec_context)
    # a transport stream does not say its layers up front
    assert skips == dict.fromkeys(("hevc layers mp4", "hevc open ts", "vp8 webm"), False) | dict.fromkeys(
        ("hevc closed mp4", "h264 mp4"), True
    )


class Codec:
    """A decoder's context that only keeps what it is told to leave out."""

    skip_frame = "DEFAULT"

    def decode(self, packet: None) -> list[Any]:
        return []


class Packet:
    """A packet that notes what its decoder leaves out when it comes."""

    is_corrupt = False

    def __init__(self, pts: int, codec: Codec, seen: dict[int, str]) -> None:
        self.pts, self.is_keyframe, self._codec, self._seen = pts, pts == 0, codec, seen

    def decode(self) -> list[Any]:
        self._seen[self.pts] = self._codec.skip_frame
        return []


def test_only_what_is_shown_before_an_earlier_packet_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, seen = Codec(), {}
    # in the order of decoding: 3 and 4 refer to 5, and are shown before it
    packets = [Packet(pts, codec, seen) for pts in (0, 1, 2, 5, 3, 4, 8, 6, 7, 9)]
    monkeypatch.setattr(decoding, "may_skip", lambda codec: True)
    monkeypatch.setattr(decoding, "_packets_from", lambda *arguments: iter(packets))
    stream: Any = SimpleNamespace(codec_context=codec)
    assert list(decoding._needed_frames(SimpleNamespace(), stream, [0], {4: [], 9: []})) == []
    assert seen == {pts: "NONREF" if pts in (3, 6, 7) else "DEFAULT" for pts in range(10)}
