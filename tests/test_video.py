"""Videos: frames by presentation time against decoding everything in order, and bad ones that must not become clips."""

import io
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.media_files import (
    CODECS,
    SHARED_MEDIA,
    FailingFile,
    frame_pixels,
    hostile_contents,
    number_shown,
    photo,
    pixels,
    remuxed,
    sound_only,
    video,
    without_frames,
)

from patchpack.pipeline.media import DecodeError, kind_of
from patchpack.pipeline.media.reader import Reader
from patchpack.pipeline.media.video.clips import clip_times
from patchpack.pipeline.media.video.decode import decode_clip
from patchpack.pipeline.media.video.timeline import VideoHeader, probe
from patchpack.pipeline.stages.records import REASONS

VARIABLE_TIMES_S = (0, 0.05, 0.1, 0.4, 0.41, 0.42, 0.43, 0.8, 1.3, 1.31, 1.5, 1.9, 2.0, 2.4)


def probed(data: bytes) -> VideoHeader:
    """Returns the header of a video's bytes."""
    return probe(io.BytesIO(data))


def clip(data: bytes, number: int = 0, num_clips: int = 1, num_frames: int = 16, fps: float = 8.0) -> np.ndarray:
    """Returns a clip at the video's own size, (T, H, W, 3) uint8."""
    header = probed(data)
    frames_THWC, size = decode_clip(
        io.BytesIO(data), clip_times(header, number, num_clips, num_frames, fps), header.height, header.width
    )
    assert size == (header.height, header.width)
    return frames_THWC


def numbers(frames_THWC: np.ndarray) -> list[int]:
    """Returns the frame numbers that a clip shows."""
    return [number_shown(frame) for frame in frames_THWC]


def all_frames(data: bytes) -> list[tuple[Fraction, np.ndarray]]:
    """Returns every frame and its time in seconds, by decoding the whole file in order."""
    with av.open(io.BytesIO(data)) as container:
        return [(frame.pts * frame.time_base, np.asarray(frame.to_image())) for frame in container.decode(video=0)]


CASES = {
    "faster than the clip": {"rate": 24, "num_frames": 60},
    "no multiple of the clip": {"rate": Fraction(25, 2), "num_frames": 40},
    "NTSC": {"rate": Fraction(30_000, 1001), "num_frames": 75},
    "slower than the clip": {"rate": 3, "num_frames": 9},
    "variable": {"times_s": VARIABLE_TIMES_S},
    "variable, stored out of order": {"times_s": VARIABLE_TIMES_S, "b_frames": 3},
    "stored out of order": {"rate": 24, "num_frames": 60, "b_frames": 3},
    "Matroska": {"format": "matroska", "rate": 24, "num_frames": 60, "b_frames": 2},
    "WebM": {"format": "webm", "rate": 15, "num_frames": 40},
    "AVI": {"format": "avi", "rate": 12, "num_frames": 30},
    "MPEG-TS": {"format": "mpegts", "rate": 25, "num_frames": 60, "b_frames": 2},
    "Flash": {"format": "flv", "rate": 24, "num_frames": 50, "b_frames": 2},
    "QuickTime": {"format": "mov", "rate": 24, "num_frames": 50},
    "VP9": {"format": "webm", "codec": "libvpx-vp9", "rate": 15, "num_frames": 30},
    "MPEG-4": {"codec": "mpeg4", "rate": 24, "num_frames": 50, "b_frames": 2},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_clips", [1, 3])
def test_a_clip_shows_the_frame_on_screen_at_each_wanted_time(case: str, num_clips: int) -> None:
    data = video(**CASES[case])
    shown = all_frames(data)
    times_s = [time for time, _ in shown]
    header = probed(data)
    tick = Fraction(*header.time_base)
    assert [time * tick for time in header.pts] == times_s
    # the clip lies in the middle of its part, or at its beginning where it is longer
    end_s = max(header.end_pts * tick, times_s[-1])
    part_s = (end_s - times_s[0]) / num_clips
    for number in range(num_clips):
        start_s = times_s[0] + part_s * number + max(Fraction(0), (part_s - 2) / 2)
        frames_THWC = clip(data, number, num_clips)
        wanted_s = [start_s + Fraction(place, 8) for place in range(16)]
        assert len(frames_THWC) == sum(time < end_s for time in wanted_s)
        for wanted, frame in zip(wanted_s, frames_THWC, strict=False):
            # the last frame at or before the target time; two ticks of the clock for rounding
            earliest, latest = (
                max(place for place, time in enumerate(times_s) if time <= max(moment, times_s[0]))
                for moment in (wanted - 2 * tick, wanted + 2 * tick)
            )
            assert earliest <= number_shown(frame) <= latest
            expected = shown[number_shown(frame)][1].astype(int)
            # FFmpeg's default flags, which to_image() uses, are that far off
            assert np.abs(frame - expected).mean() < 4


def test_wanted_times_that_fall_on_frames_take_those_very_frames() -> None:
    # 24 / 8: every third frame, from the middle of 60: (60 - 48) / 2 = 6
    assert numbers(clip(video(rate=24, num_frames=60))) == list(range(6, 54, 3))
    assert numbers(clip(video(rate=24, num_frames=60), fps=24.0, num_frames=5)) == [27, 28, 29, 30, 31]


def test_slow_sources_repeat_frames() -> None:
    assert numbers(clip(video(rate=4, num_frames=8))) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]


def test_videos_are_cut_into_even_clips() -> None:
    data = video(rate=10, num_frames=80, format="matroska")
    # 80 frames in 4 parts of 20; clips of 4 frames at 5 a second take 8 of them, from the 6th on
    taken = [numbers(clip(data, number, 4, 4, 5.0)) for number in range(4)]
    assert taken == [[20 * number + place for place in (6, 8, 10, 12)] for number in range(4)]


def test_clips_longer_than_the_video_are_shorter() -> None:
    assert numbers(clip(video(rate=24, num_frames=12))) == [0, 3, 6, 9]
    assert numbers(clip(video(rate=24, num_frames=2))) == [0]
    assert numbers(clip(video(rate=10, num_frames=6, format="avi"))) == [0, 1, 2, 3, 5]


def test_a_video_of_one_frame_gives_that_frame() -> None:
    for format in CODECS:
        # not too small: FFmpeg recognises MPEG-TS by its number of packets
        data = video((192, 256), format, num_frames=1)
        assert numbers(clip(data)) == [0], format
        assert len(probed(data).pts) == 1


def test_more_clips_than_frames_still_have_frames() -> None:
    data = video(rate=24, num_frames=2)
    for number in range(5):
        assert len(clip(data, number, 5)) >= 1


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("format", ["mp4", "matroska"])
def test_rotated_and_mirrored_videos_are_upright(format: str, rotation: int, mirror: bool) -> None:
    data = video((48, 80), format, num_frames=3, rotation=rotation, mirror=mirror)
    upright = np.rot90(frame_pixels(0, 48, 80), rotation // 90)
    upright = upright[:, ::-1] if mirror else upright
    assert probed(data)[:2] == upright.shape[:2]
    frames_THWC = clip(data, num_frames=1, fps=24.0)
    first_THWC, _ = decode_clip(io.BytesIO(data), probed(data).pts[:1], *upright.shape[:2])
    assert frames_THWC.shape[1:] == upright.shape
    assert np.abs(first_THWC[0].astype(int) - upright).mean() < 8


def test_frames_are_resized_to_the_wanted_size() -> None:
    data = video((64, 96), num_frames=3)
    frames_THWC, size = decode_clip(io.BytesIO(data), probed(data).pts, 24, 40)
    assert frames_THWC.shape == (3, 24, 40, 3) and frames_THWC.dtype == np.uint8
    assert size == (64, 96)
    assert numbers(frames_THWC) == [0, 1, 2]


def test_hidden_frames_are_no_frames() -> None:
    # VP8's show_frame bit of packet 5 taken away: the decoder keeps the frame for reference and shows nothing
    data = video(format="webm", num_frames=12)
    data = remuxed(
        data, lambda number, packet: bytes([packet[0] & ~0x10 if number == 5 else packet[0]]) + packet[1:], "webm"
    )
    assert len(all_frames(data)) == 11
    header = probed(data)
    assert len(header.pts) == 11
    frames_THWC, _ = decode_clip(io.BytesIO(data), header.pts, header.height, header.width)
    assert numbers(frames_THWC) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


def test_a_stream_cut_before_an_open_group_begins_with_its_first_decodable_frame() -> None:
    options = {"x265-params": "log-level=none:open-gop=1:keyint=8:min-keyint=8:bframes=3:b-adapt=0:scenecut=0"}
    data = video(codec="libx265", options=options, num_frames=30, format="matroska", b_frames=3)
    with av.open(io.BytesIO(data)) as container:
        keys = [number for number, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    cut = remuxed(data, lambda number, packet: packet if number >= keys[1] else b"", "matroska")
    shown = all_frames(cut)
    with av.open(io.BytesIO(cut)) as container:
        num_packets = sum(packet.size > 0 for packet in container.demux(video=0))
    assert len(shown) < num_packets
    header = probed(cut)
    assert [time * Fraction(*header.time_base) for time in header.pts] == [time for time, _ in shown]
    assert len(numbers(clip(cut))) >= 5


def test_metadata_in_another_encoding_is_no_obstacle() -> None:
    data = video(metadata={"title": "Caf?Caf?Caf?"}).replace(b"Caf?", b"Caf\xe9")
    assert b"Caf\xe9" in data
    assert numbers(clip(data)) == [0, 3, 6, 9]


def test_a_wanted_frame_that_does_not_appear_is_a_decode_error() -> None:
    data = video(num_frames=6)
    pts = probed(data).pts
    with pytest.raises(DecodeError) as caught:
        decode_clip(io.BytesIO(data), (pts[0], pts[1] + 1), 48, 64)
    assert caught.value.reason == "partial"


def test_containers_without_pictures_are_refused_by_name() -> None:
    for data, reason in (
        (sound_only("mp4"), "no_video"),
        (sound_only("matroska"), "no_video"),
        (without_frames("mp4"), "no_frames"),
        # FFmpeg does not even open it
        (without_frames("matroska"), "broken"),
    ):
        assert kind_of(data[:1024]) == "video"
        with pytest.raises(DecodeError) as caught:
            probed(data)
        assert caught.value.reason == reason


def test_every_hostile_video_is_a_decode_error_with_a_known_reason() -> None:
    for name, data in hostile_contents().items():
        # that one keeps a clip, see test_video_damage.py
        if name.endswith((".mp4", ".mkv", ".avi")) and name != "cut_in_middle.avi":
            with pytest.raises(DecodeError) as caught:
                clip(data)
            assert caught.value.reason in REASONS, name
            assert str(caught.value), name


def test_ffmpeg_is_not_let_into_other_formats() -> None:
    # frames and raw frames, which it would read; playlists, which would lead it to further files
    for data in (
        photo((48, 64), "PNG"),
        b"YUV4MPEG2 W4 H4 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(24),
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n",
    ):
        with pytest.raises(DecodeError):
            probed(data)


@pytest.mark.parametrize("format", ["mp4", "matroska", "webm", "avi", "mpegts", "flv"])
def test_errors_of_the_storage_are_no_rejects_and_no_short_videos(
    format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = video((192, 256), format, num_frames=300 if format == "webm" else 150)
    pts = probed(data).pts
    # more than one read of FFmpeg's
    assert len(data) > 40_000
    for share in (0, 0.4, 0.9):
        with pytest.raises(OSError, match="on fire"):
            probe(FailingFile(data, math.floor(len(data) * share)))
        with pytest.raises(OSError, match="on fire"):
            decode_clip(FailingFile(data, math.floor(len(data) * share)), pts[-1:], 48, 64)
    # nothing of it is left behind for the next file
    assert probed(data).pts == pts
    assert "exception" not in capfd.readouterr().err


def test_places_where_no_file_can_be_are_past_the_end_and_not_the_storages_fault(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with (tmp_path / "a").open("rb") as file:
        reader = Reader(file)
        for impossible in (-1, 2**63 - 1, 2**70):
            reader.seek(impossible)
            assert reader.read(4) == b""
            assert reader.seek(3) == 3
            assert reader.read(4) == b"3456"
        assert reader.error is None


@pytest.mark.skipif(not SHARED_MEDIA.is_dir(), reason=f"{SHARED_MEDIA} is not there")
def test_the_shared_rotations_come_out_upright() -> None:
    sizes = {0: (320, 568), 180: (320, 568), 90: (568, 320), 270: (568, 320)}
    shown = {}
    for degrees, size in sizes.items():
        data = (SHARED_MEDIA / "videos" / f"video_{degrees}.mov").read_bytes()
        assert probed(data)[:2] == size
        shown[degrees] = clip(data)[0].astype(int)
        assert shown[degrees].shape[:2] == size
    # opposite ways of holding one camera: nearly the same scene, and far from it upside down
    for one, two in ((0, 180), (90, 270)):
        right = np.abs(shown[one] - shown[two]).mean()
        assert right < np.abs(shown[one] - shown[two][::-1, ::-1]).mean()


@pytest.mark.skipif(not SHARED_MEDIA.is_dir(), reason=f"{SHARED_MEDIA} is not there")
def test_every_shared_video_is_decoded_with_the_frames_that_sequential_decoding_shows() -> None:
    for path in sorted((SHARED_MEDIA / "videos").iterdir()):
        with path.open("rb") as file:
            header = probe(file)
            wanted = clip_times(header, 0, 1, 16, 8.0)
            file.seek(0)
            frames_THWC, size = decode_clip(file, wanted, 48, 64)
        assert size == (header.height, header.width), path.name
        assert len(frames_THWC) == len(wanted) >= 1, path.name
        assert frames_THWC.std() > 5, path.name


def test_the_pictures_of_the_makers_have_no_symmetry() -> None:
    picture = pixels(48, 64).astype(int)
    for other in (picture[::-1], picture[:, ::-1], picture[::-1, ::-1]):
        assert np.abs(picture - other).mean() > 20
