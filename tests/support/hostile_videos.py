"""Hostile videos: cut, damaged, empty, lying."""

import io
import struct
from collections.abc import Callable

import av
import numpy as np

from support.hostile_case import PACKED, PARTIAL, Case, edited
from support.media_files import CODECS, animated_gif, photo, png_of_header, remuxed, sound_only, video, without_frames

FORMATS = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm", "avi": "avi", "ts": "mpegts", "flv": "flv"}


def boxes(data: bytes) -> list[bytes]:
    """Returns the top-level boxes of an MP4."""
    found, place = [], 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        found.append(data[place : place + size])
        place += size
    return found


def moov_first(mp4: bytes) -> bytes:
    """Returns an MP4 with its table of contents before its data, as web servers want it."""
    parts = boxes(mp4)
    (moov,) = [box for box in parts if box[4:8] == b"moov"]
    table = moov.index(b"stco") + 8
    (count,) = struct.unpack_from(">I", moov, table)
    places = [place + len(moov) for place in struct.unpack_from(f">{count}I", moov, table + 4)]
    moved = edited(moov, table + 4, struct.pack(f">{count}I", *places))
    return b"".join([parts[0], moved, *(box for box in parts[1:] if box[4:8] != b"moov")])


def fragmented() -> bytes:
    """Returns an MP4 in fragments of four frames."""
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    return remuxed(video(options={"g": "4"}), lambda number, packet: packet, "mp4", options)


def zeroed(share: float) -> Callable[[int, bytes], bytes]:
    """Returns an edit that zeroes the end of every packet but the first."""
    return lambda number, packet: (
        packet if number == 0 else packet[: int(len(packet) * share)].ljust(len(packet), b"\0")
    )


def picture_and_sound() -> bytes:
    """Returns an MP4 whose first stream is intact and second a video."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=8000)
        sound.layout = "mono"
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8))))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def video_cases() -> list[Case]:
    """Returns hostile videos."""
    return [Case(f"videos/{name}", end, data) for name, end, data in (*_whole(), *_cut(), *_damaged(), *_lying())]


def _whole() -> list[tuple[str, str, bytes]]:
    mp4 = video()
    return [
        *((f"whole.{suffix}", PACKED, video(format=format)) for suffix, format in FORMATS.items()),
        ("one_frame.mp4", PACKED, video(num_frames=1)),
        ("tiny.mp4", PACKED, video((2, 2), num_frames=3)),
        ("wide.mp4", PACKED, video((16, 2048), num_frames=2)),
        ("moov_first.mp4", PACKED, moov_first(mp4)),
        ("fragmented.mp4", PACKED, fragmented()),
        ("sound_first.mp4", PACKED, picture_and_sound()),
        ("garbage_behind.mp4", PACKED, mp4 + b"garbage!" * 50),
        ("html_behind.mp4", PACKED, mp4 + struct.pack(">I", 8 + 90) + b"free" + b"<html>".ljust(90)),
        ("twice.mkv", PACKED, video(format="matroska") * 2),
        ("sound.mp4", "no_video", sound_only("mp4")),
        ("sound.mkv", "no_video", sound_only("matroska")),
        ("no_frames.mp4", "no_frames", without_frames("mp4")),
        ("no_frames.mkv", "broken", without_frames("matroska")),
        ("animation.mp4", PACKED, animated_gif()),
        ("picture.mkv", PACKED, photo()),
    ]


def _cut() -> list[tuple[str, str, bytes]]:
    mp4, mkv, ts = video(num_frames=24), video(format="matroska", num_frames=24), video(format="mpegts", num_frames=24)
    fast = moov_first(mp4)
    parts = fragmented()
    whole = {suffix: video(format=format) for suffix, format in FORMATS.items()}
    return [
        *((f"first_16.{suffix}", "broken", data[:16]) for suffix, data in whole.items() if suffix != "ts"),
        ("first_16.ts", "unknown_format", whole["ts"][:16]),
        *(
            (f"first_200.{suffix}", "broken", whole[suffix][:200])
            for suffix in ("mp4", "mov", "mkv", "webm", "avi", "flv")
        ),
        ("cut_half.mp4", PARTIAL, mp4[: len(mp4) // 2]),
        ("cut_one_byte_of_moov.mp4", PACKED, mp4[:-1]),
        ("without_moov.mp4", "broken", b"".join(box for box in boxes(mp4) if box[4:8] != b"moov")),
        ("without_mdat.mp4", "no_frames", b"".join(box for box in boxes(fast) if box[4:8] != b"mdat")),
        ("cut_in_mdat.mp4", PARTIAL, fast[: len(fast) * 2 // 3]),
        ("cut_in_fragment.mp4", PARTIAL, parts[: len(parts) * 2 // 3]),
        ("cut_in_cluster.mkv", PARTIAL, mkv[: len(mkv) * 2 // 3]),
        ("cut_half.avi", PARTIAL, whole["avi"][: len(whole["avi"]) // 2]),
        ("cut_in_packet.ts", PARTIAL, ts[: len(ts) * 2 // 3]),
    ]


def _damaged() -> list[tuple[str, str, bytes]]:
    mp4, ts = video(num_frames=24), video(format="mpegts", num_frames=48)
    packets = [ts[place : place + 188] for place in range(0, len(ts), 188)]
    dropped = b"".join(packet for number, packet in enumerate(packets) if number < 4 or number % 7)
    moov = mp4.index(b"moov")
    return [
        ("zeroed_packets.mp4", PARTIAL, remuxed(mp4, zeroed(0), "mp4")),
        ("zeroed_half.mp4", PARTIAL, remuxed(mp4, zeroed(0.5), "mp4")),
        ("zeroed_packets.mkv", PARTIAL, remuxed(mp4, zeroed(0), "matroska")),
        ("zeroed_packets.avi", PARTIAL, remuxed(video(format="avi"), zeroed(0), "avi")),
        ("zeroed_all.mp4", PARTIAL, mp4[:200] + bytes(len(mp4) - 200)),
        ("zeroed_all.mkv", "broken", video(format="matroska")[:400] + bytes(5000)),
        ("dropped_packets.ts", PARTIAL, dropped),
        ("without_key_frame.mkv", "no_frames", remuxed(mp4, lambda number, packet: packet if number else b"", "matroska")),
        ("shortened_packets.mkv", PARTIAL, remuxed(mp4, lambda n, packet: packet if n == 0 else packet[:-9], "matroska")),
        ("random_packets.webm", PARTIAL, remuxed(video(format="webm"), lambda n, packet: packet if n == 0 else bytes(
            np.random.default_rng(n).integers(0, 256, len(packet), np.uint8)), "webm")),
        ("moov_in_zeros.mp4", "no_video", edited(mp4, moov + 40, bytes(300))),
        ("text_in_mp4.mp4", "broken", mp4[:32] + b"lorem ipsum " * 300),
        ("ftyp_then_zeros.mp4", "broken", mp4[:32] + bytes(20_000)),
        ("ebml_then_noise.mkv", "broken", b"\x1aE\xdf\xa3" + np.random.default_rng(2).integers(0, 256, 9000, np.uint8).tobytes()),
        ("flv_then_zeros.flv", "broken", b"FLV\1\5\0\0\0\x09" + bytes(9000)),
        ("ogg_then_zeros.ogv", "broken", b"OggS" + bytes(9000)),
        ("asf_then_zeros.wmv", "broken", b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\0\xaa\0b\xcel" + bytes(9000)),
        ("pack_then_zeros.mpg", "broken", b"\0\0\1\xba" + bytes(9000)),
        ("sequence_then_zeros.mpg", "broken", b"\0\0\1\xb3" + bytes(9000)),
        ("sync_bytes.ts", "broken", (b"G" + bytes(187)) * 40),
        ("avi_then_zeros.avi", "broken", b"RIFF\0\0\0\0AVI " + bytes(9000)),
    ]  # fmt: skip


def _lying() -> list[tuple[str, str, bytes]]:
    mp4, parts = video(), fragmented()
    avc, table, header = mp4.rindex(b"avc1"), mp4.index(b"stsz"), mp4.index(b"tkhd")
    offsets = mp4.index(b"stco")
    return [
        ("box_of_size_1.mp4", "broken", edited(mp4, 0, struct.pack(">I", 1))),
        ("box_beyond_end.mp4", "broken", edited(mp4, 0, b"\xff\xff\xff\xff")),
        ("box_in_box.mp4", "broken", b"".join(struct.pack(">I", 8 * (200 - n)) + b"moov" for n in range(200))),
        ("sample_sizes.mp4", "no_frames", edited(mp4, table + 16, b"\x7f\xff\xff\xff" * 4)),
        ("sample_count.mp4", "broken", edited(mp4, table + 12, b"\xff\xff\xff\xf0")),
        ("chunk_offsets.mp4", "no_frames", edited(mp4, offsets + 12, b"\x7f\xff\xff\xff")),
        ("codec_unknown.mp4", "broken", edited(mp4, avc, b"zzzz")),
        (
            "sizes_in_header.mp4",
            PACKED,
            edited(edited(mp4, header + 80, b"\xff\xff\0\0"), header + 84, b"\xff\xff\0\0"),
        ),
        ("no_bytes_of_codec.mp4", "broken", edited(mp4, mp4.index(b"avcC") + 4, bytes(20))),
        ("huge.mov", "too_large", huge_video()),
        ("samples_of_one_size.mp4", "broken", with_samples(mp4, 50_000_000)),
        (
            "samples_in_fragment.mp4",
            "broken",
            edited(parts, parts.index(b"trun") + 4, struct.pack(">II", 1, 80_000_000)),
        ),
    ]


def with_samples(mp4: bytes, count: int) -> bytes:
    """Returns an MP4 that claims a number of samples of one byte each: FFmpeg makes an index of them."""
    for table, place, values in ((b"stsz", 8, (1, count)), (b"stts", 12, (count,)), (b"stsc", 16, (count,))):
        mp4 = edited(mp4, mp4.index(table) + place, struct.pack(f">{len(values)}I", *values))
    return mp4


def huge_video() -> bytes:
    """Returns a video whose header says 64 x 48 and whose frames claim 15,000 x 15,000."""
    buffer, frame = io.BytesIO(), png_of_header(15_000, 15_000)
    with av.open(buffer, "w", format="mov") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        container.start_encoding()
        for number in range(3):
            packet = av.Packet(frame)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = stream.time_base, stream, True
            container.mux(packet)
    return buffer.getvalue()


assert set(FORMATS.values()) == set(CODECS)
