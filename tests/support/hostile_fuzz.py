"""Mutated media: what our decoding says of each, against an independent strict decode of the same bytes.

Runs in a sandbox (see `pipeline.execution.sandbox`), so that a decoder that crashes or hangs is a finding and not the
end of the test. Everything is a function of a seed.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
import simplejpeg
from PIL import Image

from patchpack.pipeline.media import SNIFF_BYTES, DecodeError, kind_of
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.image import jpeg_header
from patchpack.pipeline.media.video.clips import clip_times
from patchpack.pipeline.media.video.decode import decode_clip
from patchpack.pipeline.media.video.timeline import probe
from patchpack.pipeline.stages.records import REASONS
from support.hostile_png import PASSES, SIGNATURE, chunk, header, png, rows
from support.hostile_tiff import tiff_cases
from support.media_files import animated_gif, photo, pixels, saved, video

# small ones, so that mutants cannot ask for much either
MAX_PIXELS = 10_000_000


def originals() -> dict[str, bytes]:
    """Returns sound media to mutate, by name; the part before the first dot is the format."""
    size = (40, 56)
    picture = Image.fromarray(pixels(*size))
    others = [Image.fromarray(pixels(*size, seed=seed)) for seed in (1, 2)]
    several: dict[str, Any] = {"save_all": True, "append_images": others}
    woven = b"".join(rows(pixels(*size)[y::down, x::across]) for y, x, down, across in PASSES)
    interlaced = png(header(*size, 8, 2, 0, 0, 1), chunk(b"IDAT", zlib.compress(woven)), chunk(b"IEND", b""))
    tiffs = {case.name[5:-4]: case.data for case in tiff_cases() if case.end == "packed"}
    return {
        "jpeg": photo(size), "jpeg.progressive": saved(picture, "JPEG", progressive=True), "jpeg.grey": photo(size, mode="L"),
        "jpeg.cmyk": photo(size, mode="CMYK"), "jpeg.restarts": saved(picture, "JPEG", restart_marker_blocks=2),
        "png": saved(picture, "PNG"), "png.palette": photo(size, "PNG", "P"), "png.interlaced": interlaced,
        "png.animated": saved(picture, "PNG", **several), "png.sixteen": photo(size, "PNG", "I;16"),
        "webp": photo(size, "WEBP"), "webp.lossless": saved(picture, "WEBP", lossless=True),
        "webp.alpha": photo(size, "WEBP", "RGBA"), "webp.animated": saved(picture, "WEBP", **several),
        "gif": photo(size, "GIF", "P"), "gif.animated": animated_gif(size), "bmp": photo(size, "BMP"),
        "bmp.palette": photo(size, "BMP", "P"), "avif": photo(size, "AVIF"), "avif.alpha": photo(size, "AVIF", "RGBA"),
        **{f"tiff.{name}": tiffs[name] for name in ("whole", "big", "tiled", "many_pages", "tiff_lzw", "packbits", "jpeg")},
        "mp4": video(size, num_frames=20, options={"g": "8"}, b_frames=2), "mp4.mpeg4": video(size, codec="mpeg4"),
        "mkv": video(size, "matroska", num_frames=20, options={"g": "8"}), "webm": video(size, "webm"),
        "webm.vp9": video(size, "webm", codec="libvpx-vp9", num_frames=6), "avi": video(size, "avi"),
        "ts": video(size, "mpegts", num_frames=20), "flv": video(size, "flv", num_frames=20),
    }  # fmt: skip


def mutant(original: bytes, seed: int) -> bytes:
    """Returns a damaged copy: one to three of the ways below."""
    draw = random.Random(seed)
    data = bytearray(original)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if len(data) > 8:
            draw.choice(_WAYS)(draw, data)
    # damage behind the checksums: else a PNG is always found out there
    return _mended(bytes(data)) if original.startswith(SIGNATURE) and draw.random() < 0.6 else bytes(data)


def _flip_bits(draw: random.Random, data: bytearray) -> None:
    for _ in range(draw.choice((1, 1, 1, 4, 32))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _cut(draw: random.Random, data: bytearray) -> None:
    del data[draw.randrange(1, len(data)) :]


def _block(draw: random.Random, data: bytearray) -> slice:
    start = draw.randrange(len(data))
    return slice(start, start + draw.choice((1, 2, 4, 16, 64, 512, 4096)))


def _drop(draw: random.Random, data: bytearray) -> None:
    del data[_block(draw, data)]


def _zero(draw: random.Random, data: bytearray) -> None:
    place = _block(draw, data)
    data[place] = bytes(len(data[place]))


def _fill(draw: random.Random, data: bytearray) -> None:
    place = _block(draw, data)
    data[place] = draw.choice((b"\xff", b"\x7f", b"\x80", b"\xd9")) * len(data[place])


def _noise(draw: random.Random, data: bytearray) -> None:
    place = _block(draw, data)
    data[place] = draw.randbytes(len(data[place]))


def _insert(draw: random.Random, data: bytearray) -> None:
    place = draw.randrange(len(data))
    data[place:place] = draw.randbytes(draw.choice((1, 3, 40)))


def _double(draw: random.Random, data: bytearray) -> None:
    place = _block(draw, data)
    data[place.start : place.start] = data[place]


def _move(draw: random.Random, data: bytearray) -> None:
    block = bytes(data[_block(draw, data)])
    place = draw.randrange(len(data))
    data[place : place + len(block)] = block


def _extreme(draw: random.Random, data: bytearray) -> None:
    # headers are where numbers stand
    place = draw.randrange(min(len(data) - 4, 800)) if len(data) > 5 else 0
    value = draw.choice((0, 1, 255, 256, 65_535, 50_000, 2**31 - 1, 2**31, 2**32 - 1))
    data[place : place + 4] = struct.pack(draw.choice((">I", "<I")), value)


_WAYS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _flip_bits, _flip_bits, _cut, _drop, _zero, _fill, _noise, _insert, _double, _move, _extreme, _extreme,
)  # fmt: skip


def _mended(data: bytes) -> bytes:
    """Returns a PNG with right checksums, as far as its chunks can be reported."""
    parts, place = [data[:8]], 8
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        content = data[place + 8 : place + 8 + size]
        parts.append(chunk(data[place + 4 : place + 8], content))
        place += 12 + size
    return b"".join(parts)


def findings(name: str, original: bytes, seeds: list[int]) -> list[str]:
    """Returns what is wrong with how the mutants of these seeds end, one line each, and last how many were packed."""
    found, packed = [], 0
    for seed in seeds:
        data = mutant(original, seed)
        try:
            verdict = verdict_on(data, original)
        except Exception as error:  # noqa: BLE001 (any error is an answer)
            found.append(f"{name} seed {seed}: {type(error).__name__}: {error}")
            continue
        packed += verdict == "packed"
        if verdict not in ("packed", *REASONS):
            found.append(f"{name} seed {seed}: {verdict}")
    return [*found, str(packed)]


def verdict_on(data: bytes, original: bytes) -> str:
    """Returns the reason of the reject that bytes become, "packed", or what the oracle holds against packing them."""
    kind = kind_of(data[:SNIFF_BYTES])
    try:
        if kind == "image":
            height, width = image.probe(io.BytesIO(data))
            if height * width > MAX_PIXELS:
                return "too_large"
            image.decode(data, 16, 16)
        elif kind == "video":
            head = probe(io.BytesIO(data), MAX_PIXELS)
            wanted = clip_times(head, 0, 1, 8, 8.0)
            clip_THWC, _ = decode_clip(
                io.BytesIO(data), wanted, 16, 16, head.random_access_points_for(wanted), MAX_PIXELS
            )
        else:
            return "unknown_format"
    except DecodeError as error:
        return error.reason
    complaint = image_complaint(data) if kind == "image" else video_complaint(data, set(wanted))
    if complaint and kind == "video" and np.array_equal(clip_THWC, whole_clip(original, wanted)):
        # the damage is in a frame that the clip neither holds nor refers to
        complaint = ""
    return complaint or "packed"


def whole_clip(original: bytes, wanted: tuple[int, ...]) -> np.ndarray | None:
    """Returns the same frames of the undamaged file, decoding everything; None where it does not have them."""
    try:
        return decode_clip(io.BytesIO(original), wanted, 16, 16)[0]
    except DecodeError:
        return None


def image_complaint(data: bytes) -> str:
    """Returns what a strict decoder says against an image; empty for nothing."""
    try:
        if data.startswith(b"\xff\xd8"):
            colours = simplejpeg.decode_jpeg_header(data, strict=False)[2]
            space = "CMYK" if colours in ("CMYK", "YCCK") else "RGB"
            # an odd header is mended, which must not show
            mended = jpeg_header.cleaned(data) or data
            simplejpeg.decode_jpeg(mended, space, strict=True)
            with Image.open(io.BytesIO(mended)) as one, Image.open(io.BytesIO(data)) as other:
                if one.tobytes() != other.tobytes():
                    return "packed, but mending its header changed its pixels"
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
        if data.startswith(SIGNATURE):
            return _png_complaint(data)
    except Exception as error:  # noqa: BLE001 (any error is an answer)
        return f"packed, but {type(error).__name__}: {error}"
    return ""


def _png_complaint(data: bytes) -> str:
    """Returns what the specification has against a PNG: checksums, and the number of bytes in its rows."""
    place, name, body, head = 8, b"", b"", b""
    while name != b"IEND":
        (size,) = struct.unpack_from(">I", data, place)
        name, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        if struct.unpack_from(">I", data, place + 8 + size)[0] != zlib.crc32(name + content):
            return f"packed, but the checksum of {name!r} is wrong"
        head, body = (content if name == b"IHDR" else head), body + (content if name == b"IDAT" else b"")
        place += 12 + size
    width, height, depth, colour, *_, interlaced = struct.unpack(">IIBBBBB", head)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    expected = 0
    for y, x, down, across in PASSES if interlaced else ((0, 0, 1, 1),):
        columns = len(range(x, width, across))
        expected += len(range(y, height, down)) * (1 + -(-columns * bits // 8)) if columns else 0
    there = len(zlib.decompressobj().decompress(body, max(1, expected)))
    return f"packed, but {expected - there} bytes of pixels are missing" if there < expected else ""


def video_complaint(data: bytes, wanted: set[int]) -> str:
    """Returns what decoding everything in order has against a clip: frames at or behind an error up to the next key frame."""
    good: set[int] = set()
    start, broken = 0, False
    for number, (is_key, frames) in enumerate(_decoded(data)):
        if frames is None and not broken:
            # frames that came before the error may still be inside the decoder, and die with it
            good |= {time for _, known in _decoded(data, start, number) for time in known or ()}
        if is_key:
            start, broken = number, False
        broken = broken or frames is None
        if not broken:
            good |= set(frames or ())
    return f"packed, but {len(wanted - good)} of its frames are damaged" if wanted - good else ""


def _decoded(data: bytes, start: int = 0, end: int = 2**31) -> Iterator[tuple[bool, list[int] | None]]:
    """Yields for each packet whether it is a key frame's, and the times of the frames that come out.

    The decoder's rest comes last; None stands for an error.
    """
    limits = {"max_pixels": str(MAX_PIXELS)}
    with av.open(io.BytesIO(data), options=limits, metadata_errors="replace") as container:
        stream = next(s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
        context = stream.codec_context
        context.options, context.thread_type, context.thread_count = {"err_detect": "explode"}, "NONE", 1
        packets = container.demux(stream)
        number = 0
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                packet = None  # of the demuxer: what came before it counts
            if packet is None or not packet.size or number >= end:
                break
            if number >= start:
                yield packet.is_keyframe, _times(context, packet)
            number += 1
        yield False, _times(context, None)


def _times(context: av.VideoCodecContext, packet: av.Packet | None) -> list[int] | None:
    try:
        frames = context.decode(packet)
    except av.error.FFmpegError:
        context.flush_buffers()
        return None
    return [frame.pts if frame.pts is not None else frame.dts for frame in frames if not frame.is_corrupt]
