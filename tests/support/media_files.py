"""Makes the media of the tests with Pillow and PyAV: valid ones of every kind, and hostile ones."""

import errno
import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

ORIENTATION_TAG = 0x0112
SHARED_MEDIA = Path(__file__).resolve().parents[3] / "shared" / "media"

# container -> codec, options of its encoder, pixel format; what the wheels of PyAV carry
CODECS = {
    "mp4": ("libx264", {"preset": "ultrafast", "crf": "12"}, "yuv420p"),
    "mov": ("libx264", {"preset": "ultrafast", "crf": "12"}, "yuv420p"),
    "matroska": ("libx264", {"preset": "ultrafast", "crf": "12"}, "yuv420p"),
    "webm": ("libvpx", {"deadline": "realtime", "crf": "6", "b": "2M"}, "yuv420p"),
    "avi": ("mjpeg", {"qscale": "2"}, "yuvj420p"),
    "mpegts": ("mpeg2video", {"qscale": "2"}, "yuv420p"),
    "flv": ("libx264", {"preset": "ultrafast", "crf": "12"}, "yuv420p"),
}


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns a smooth colourful image without any symmetry, (height, width, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    red = 40 + 180 * x
    green = 60 + 150 * y
    blue = 127 + 90 * np.sin(7 * x + 4 * y + seed)
    image_HWC = np.stack([red, green, blue], 2)
    # a dark corner block says every orientation from every other
    image_HWC[: height // 3, : width // 4] *= 0.2
    return image_HWC.round().clip(0, 255).astype(np.uint8)


def photo(
    size: tuple[int, int] = (48, 72), format: str = "JPEG", mode: str = "RGB", orientation: int | None = None
) -> bytes:
    """Returns an image file of a stored (height, width); modes with alpha are half transparent."""
    picture = Image.fromarray(pixels(*size))
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture = picture.convert(mode)
    elif mode == "I;16":
        grey = np.asarray(picture.convert("L")).astype(np.uint16)
        picture = Image.fromarray(grey * 257)
    elif mode == "P":
        picture = picture.quantize(64)
    else:
        picture = picture.convert(mode)
    options: dict[str, object] = {"quality": 92} if format in ("JPEG", "WEBP", "AVIF") else {}
    if orientation is not None:
        options["exif"] = exif_of(orientation)
    return saved(picture, format, **options)


def saved(picture: Image.Image, format: str, **options: object) -> bytes:
    """Returns the file Pillow makes of an image."""
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def exif_of(orientation: int) -> Image.Exif:
    """Returns EXIF data with nothing but an orientation."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return exif


def animated_gif(size: tuple[int, int] = (40, 60), num_frames: int = 3) -> bytes:
    """Returns a GIF whose frames differ."""
    frames = [Image.fromarray(pixels(*size, seed=seed)) for seed in range(num_frames)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)


def png_of_header(height: int, width: int) -> bytes:
    """Returns a PNG that claims a size and holds almost nothing."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + _chunk(b"IEND", b"")
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def video(
    size: tuple[int, int] = (48, 64),
    format: str = "mp4",
    num_frames: int = 12,
    rate: Fraction | int = 24,
    times_s: Sequence[float] | None = None,
    b_frames: int = 0,
    rotation: int = 0,
    mirror: bool = False,
    codec: str | None = None,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    pix_fmt: str | None = None,
    mux: dict[str, str] | None = None,
    aspect: Fraction | None = None,
) -> bytes:
    """Returns a video whose frames all differ: each shows its number as bars (see `frame_pixels`).

    Args:
        size: stored (height, width), even numbers.
        format: the muxer's name, a key of CODECS.
        num_frames: how many.
        rate: frames a second, where `times_s` is not given.
        times_s: presentation time of each frame, in rising order: a variable frame rate.
        b_frames: most consecutive frames that are stored out of order.
        rotation: degrees counterclockwise that the display matrix asks for.
        mirror: whether the display matrix also flips left and right.
        codec: instead of the format's own.
        options: of the encoder, besides the format's own.
        metadata: of the container.
        pix_fmt: instead of the format's own.
        mux: options of the muxer.
        aspect: width of a pixel over its height.
    """
    usual_codec, usual_options, usual_pix_fmt = CODECS[format]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format, options=mux or {}) as container:
        container.metadata.update(metadata or {})
        codec_options = (usual_options if codec is None else {}) | {"threads": "1"} | (options or {})
        stream = container.add_stream(codec or usual_codec, rate=rate, options=codec_options)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt or usual_pix_fmt
        if codec or format not in ("webm", "avi"):
            stream.codec_context.max_b_frames = b_frames
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation or mirror:
            stream.set_display_rotation(rotation, hflip=mirror)
        if times_s is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(num_frames if times_s is None else len(times_s)):
            frame = av.VideoFrame.from_ndarray(frame_pixels(number, *size))
            if times_s is not None:
                frame.pts, frame.time_base = round(times_s[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def frame_pixels(number: int, height: int, width: int) -> np.ndarray:
    """Returns the image of a frame, (height, width, 3) uint8: its number in eight grey bars, over a fixed image."""
    image_HWC = pixels(height, width)
    for bit in range(8):
        value = 235 if number >> bit & 1 else 20
        image_HWC[height // 2 :, bit * width // 8 : (bit + 1) * width // 8] = value
    return image_HWC


def number_shown(image_HWC: np.ndarray) -> int:
    """Returns the frame number that an upright image of any size shows."""
    height, width, _ = image_HWC.shape
    row_W3 = image_HWC[height * 3 // 4].astype(int)
    return sum(1 << bit for bit in range(8) if row_W3[(2 * bit + 1) * width // 16].mean() > 127)


def remuxed(
    data: bytes, edit: Callable[[int, bytes], bytes], format: str, options: dict[str, str] | None = None
) -> bytes:
    """Returns a video with each packet's bytes edited; an empty result drops the packet."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format=format, options=options or {}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        # the header is written even where no packet follows
        target.start_encoding()
        for number, packet in enumerate(source.demux(video=0)):
            edited = edit(number, bytes(packet)) if packet.size else b""
            if edited:
                copy = av.Packet(edited)
                copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
                copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, stream
                target.mux(copy)
    return buffer.getvalue()


def without_frames(format: str = "matroska") -> bytes:
    """Returns a container with a video stream and no packets."""
    # MP4: a header of its own, since the usual one is written last and leaves out streams without packets
    options = {"movflags": "empty_moov"} if format == "mp4" else {}
    return remuxed(video(format="mp4"), lambda number, packet: b"", format, options)


def sound_only(format: str) -> bytes:
    """Returns a container with nothing but sound."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream("aac", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def with_flipped_marker(jpeg: bytes) -> bytes:
    """Returns a JPEG whose start-of-scan marker has become another one."""
    place = jpeg.index(b"\xff\xda")
    return jpeg[:place] + b"\xff\x25" + jpeg[place + 2 :]


def hostile_contents() -> dict[str, bytes]:
    """Returns file contents that must each become a reject, by a name that says what they are."""
    jpeg, png = photo((120, 160)), photo((120, 160), "PNG")
    mp4, html = video(), b"<!DOCTYPE html>\n<html><body>404</body></html>\n"
    return {
        "empty.jpg": b"",
        "text.jpg": b"this is no picture\n",
        "page.jpg": html,
        "page.mp4": html,
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "vector.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "zeros.jpg": bytes(4096),
        "ones.mp4": b"\xff" * 4096,
        "signature.jpg": b"\xff\xd8\xff",
        "signature.png": png[:8],
        "cut_in_header.jpg": jpeg[:30],
        "cut_in_data.jpg": jpeg[: len(jpeg) * 2 // 3],
        "cut_near_end.jpg": jpeg[:-40],
        "cut_in_data.png": png[: len(png) // 2],
        "cut_in_data.webp": photo((120, 160), "WEBP")[:-200],
        "cut_in_data.gif": photo((120, 160), "GIF", "P")[:-2000],
        "cut_in_data.bmp": photo((120, 160), "BMP")[:-2000],
        "cut_in_data.tiff": photo((120, 160), "TIFF")[:2000],
        "cut_in_data.avif": photo((120, 160), "AVIF")[:-200],
        "cut_cmyk.jpg": photo((120, 160), "JPEG", "CMYK")[:-500],
        "flipped_marker.jpg": with_flipped_marker(jpeg),
        "huge.png": png_of_header(50_000, 50_000),
        "flat.png": png_of_header(0, 10),
        "lying.png": png_of_header(300, 300),
        "no_frames.mkv": without_frames("matroska"),
        "no_frames.mp4": without_frames("mp4"),
        "sound.mp4": sound_only("mp4"),
        "sound.mkv": sound_only("matroska"),
        "cut_in_middle.mp4": mp4[: len(mp4) // 2],
        "cut_in_middle.avi": video(format="avi")[:-3000],
        "garbled.mp4": mp4[:200] + bytes(len(mp4) - 200),
        "garbled.mkv": video(format="matroska")[:400] + bytes(5000),
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n/etc/passwd\n",
        "concat.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
    }


class FailingFile(io.BytesIO):
    """A file whose storage fails from some byte on."""

    def __init__(self, data: bytes, good_bytes: int) -> None:
        super().__init__(data)
        self._good_bytes = good_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self.tell() > self._good_bytes:
            raise OSError(errno.EIO, "the disk is on fire")
        return data


def write_files(folder: Path, contents: dict[str, bytes]) -> None:
    """Writes files below a folder; names may hold slashes."""
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_odd_names(folder: Path, data: bytes) -> list[str]:
    """Writes one file under each of many odd names, and returns the names as `os` gives them."""
    names = [
        "a b.jpg",
        "[1].jpg",
        "[a-z]*.jpg",
        "what?.jpg",
        "100%.jpg",
        "%41.jpg",
        'quo"te.jpg',
        "apos'trophe.jpg",
        "new\nline.jpg",
        "back\\slash.jpg",
        "-dash.jpg",
        "#hash.jpg",
        "{brace}.jpg",
        "$HOME.jpg",
        "tilde~.jpg",
        "ümläut.jpg",
        "日本語.jpg",
        "semi;colon&.jpg",
        os.fsdecode(b"latin-\xe9.jpg"),
        os.fsdecode(b"\xff\xfe.jpg"),
    ]
    for name in names:
        with open(os.path.join(os.fsencode(folder), os.fsencode(name)), "wb") as file:
            file.write(data)
    return names


def write_odd_entries(folder: Path) -> None:
    """Writes what is in a folder under an image's name and is no image: a folder, links, a pipe."""
    (folder / "folder.jpg").mkdir(parents=True)
    (folder / "dangling.jpg").symlink_to(folder / "not there.jpg")
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
