"""Frames to pixels: as faithful as a float64 reference asks, with the colours, shape and stream that the file says."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from support.media_files import SHARED_MEDIA, number_shown, video
from support.video_oracles import WEIGHTS, psnr, reference_pixels

from patchpack.pipeline.media.video.decode import decode_clip
from patchpack.pipeline.media.video.frame import Colour, Scaler, colour_of, oriented_size
from patchpack.pipeline.media.video.timeline import probe

# issue "Media": the worst of all clips
LEAST_DB = 45.0
# AVColorSpace and AVColorRange
TAGS = {"bt601": 6, "bt709": 1, "bt2020": 9}
# decoders that leave the place of chroma open, which is amid its luma; the others put it on the left
AMID = ("libdav1d", "vp8", "vp9", "mjpeg", "mpeg1video")


def first_frame(data: bytes, number: int = 0) -> tuple[av.VideoFrame, bool]:
    """Returns a decoded frame, and whether its chroma lies on the left."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.best("video")
        for place, frame in enumerate(container.decode(stream)):
            if place == number:
                return frame, stream.codec_context.name not in AMID
    raise AssertionError("too few frames")


def coloured(pix_fmt: str, codec: str, matrix: int, colour_range: int, size: tuple[int, int] = (120, 160)) -> bytes:
    """Returns a video of one coloured frame, tagged."""
    height, width = size
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=25, options={"crf": "12", "qscale": "2", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, colour_range
        frame = av.VideoFrame(width, height, pix_fmt)
        bits = 10 if "10" in pix_fmt else 8
        for number, plane in enumerate(frame.planes[:3]):
            y, x = np.mgrid[0 : plane.height, 0 : plane.width] / max(plane.height, plane.width)
            values = (110, 118, 132)[number] + (70, 45, 45)[number] * np.sin((9 + number) * x + 7 * y + 20 * x * y)
            dtype = np.dtype(np.uint16 if bits > 8 else np.uint8)
            rows = np.zeros((plane.height, plane.line_size // dtype.itemsize), dtype)
            rows[:, : plane.width] = (values * 2 ** (bits - 8)).round()
            plane.update(rows.tobytes())
        frame.colorspace, frame.color_range = matrix, colour_range
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_tagged_colours_are_converted_as_tagged(pix_fmt: str, full_range: bool, matrix: str) -> None:
    frame, left = first_frame(coloured(pix_fmt, "libx264", TAGS[matrix], 2 if full_range else 1))
    assert colour_of(frame) == Colour(matrix, True, full_range)
    for size in ((120, 160), (48, 64), (64, 48), (29, 41), (150, 200)):
        expected = reference_pixels(frame, *size, matrix, full_range, left)
        assert psnr(Scaler(*size).pixels(frame), expected) >= LEAST_DB, size


@pytest.mark.parametrize(
    ("size", "matrix"), [((718, 1278), "bt601"), ((720, 32), "bt709"), ((32, 1280), "bt709"), ((480, 640), "bt601")]
)
def test_untagged_colours_go_by_the_size_and_that_is_recorded(size: tuple[int, int], matrix: str) -> None:
    data = coloured("yuv420p", "libx264", 2, 0, size)
    frame, left = first_frame(data)
    assert probe(io.BytesIO(data)).colour == colour_of(frame) == Colour(matrix, False, False)
    expected = reference_pixels(frame, 48, 64, matrix, False, left)
    assert psnr(Scaler(48, 64).pixels(frame), expected) >= LEAST_DB


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9", "mpeg4", "mpeg2video", "mjpeg", "libsvtav1"])
def test_other_codecs_place_their_chroma_where_the_reference_does(codec: str) -> None:
    frame, left = first_frame(coloured("yuvj420p" if codec == "mjpeg" else "yuv420p", codec, 6, 0))
    colour = colour_of(frame)
    for size in ((48, 64), (80, 100)):
        expected = reference_pixels(frame, *size, colour.matrix, colour.full_range, left)
        assert psnr(Scaler(*size).pixels(frame), expected) >= LEAST_DB


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_MEDIA.is_dir(), reason=f"{SHARED_MEDIA} is not there")
def test_every_shared_video_is_near_the_reference() -> None:
    worst = {}
    for path in sorted((SHARED_MEDIA / "videos").iterdir()):
        frame, left = first_frame(path.read_bytes(), 2)
        colour = colour_of(frame)
        for shrink in (0.8, 1.3, 2, 3, 3.9, 5):
            height, width = round(frame.height / shrink), round(frame.width / shrink)
            reference = reference_pixels(frame, height, width, colour.matrix, colour.full_range, left)
            # the reference is as stored, the frame as it is shown; which way is tested elsewhere
            turned = [np.rot90(reference, turns) for turns in range(4)]
            sideways = oriented_size(frame, None) != (frame.height, frame.width)
            got = Scaler(*((width, height) if sideways else (height, width))).pixels(frame)
            worst[path.name, shrink] = max(psnr(got, one) for one in turned if one.shape == got.shape)
    assert min(worst.values()) >= LEAST_DB, min(worst.items(), key=lambda item: item[1])


@pytest.mark.parametrize(
    ("aspect", "size"),
    [(Fraction(4, 3), (48, 85)), (Fraction(8, 9), (54, 64)), (Fraction(1), (48, 64)), (Fraction(1, 2), (96, 64))],
)
def test_pixels_that_are_not_square_make_the_picture_that_is_shown(aspect: Fraction, size: tuple[int, int]) -> None:
    data = video(aspect=aspect)
    header = probe(io.BytesIO(data))
    assert (header.height, header.width) == size
    frames_THWC, told = decode_clip(
        io.BytesIO(data), header.pts[:3], 48, 64, header.random_access_points_for(header.pts[:3])
    )
    assert told == size and [number_shown(frame) for frame in frames_THWC] == [0, 1, 2]
    sideways = probe(io.BytesIO(video(aspect=aspect, rotation=90)))
    assert (sideways.width, sideways.height) == size


def test_an_edit_list_decides_which_frames_are_shown() -> None:
    data = bytearray(video(num_frames=24, rate=8, b_frames=2, options={"g": "8"}))
    whole = probe(io.BytesIO(bytes(data)))
    # ISO 14496-12, section 8.6.6: media_time of the first edit, moved from the first frame to the tenth
    place = data.index(b"elst")
    _, count, duration, media_time = struct.unpack_from(">IIII", data, place + 4)
    assert count == 1
    ticks = (whole.pts[10] - whole.pts[0]) + media_time
    struct.pack_into(">II", data, place + 12, duration * 8 // 24, ticks)
    header = probe(io.BytesIO(bytes(data)))
    assert len(header.pts) == 8 and header.damage == ""
    for places in ((0, 1), (7,), (3, 5)):
        pts = tuple(header.pts[place] for place in places)
        entries = header.random_access_points_for(pts)
        assert entries
        frames_THWC, _ = decode_clip(io.BytesIO(bytes(data)), pts, 48, 64, entries)
        assert [number_shown(frame) - 10 for frame in frames_THWC] == list(places)


def test_of_several_streams_the_one_that_players_choose_is_taken_and_never_a_cover() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        streams = []
        for height, width in ((32, 48), (64, 96), (32, 48)):
            stream = container.add_stream("mjpeg", rate=8)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuvj420p"
            streams.append(stream)
        streams[1].disposition = av.stream.Disposition.default
        streams[0].disposition = av.stream.Disposition.attached_pic
        for number in range(6):
            for stream in streams:
                pixels = np.full((stream.height, stream.width, 3), 30 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
    header = probe(io.BytesIO(buffer.getvalue()))
    assert header[:2] == (64, 96) and len(header.pts) == 6
    frames_THWC, _ = decode_clip(
        io.BytesIO(buffer.getvalue()), header.pts, 16, 24, header.random_access_points_for(header.pts)
    )
    assert np.abs(frames_THWC.mean((1, 2, 3)) - 30 * np.arange(6)).max() < 3
