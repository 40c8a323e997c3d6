"""What no decoder reports: single bits flipped in valid files, and how many of them change pixels unseen.

    python benchmarks/bitflips.py [IMAGE] [FLIPS]

IMAGE: by default astronaut.png of ../shared/media beside the checkout; FLIPS: per format, by default 1000. The
image is saved in each format (512 x 512; a video of 48 frames that pan over it), one random bit of the whole file is
flipped, and the file is probed and decoded as `build` does it. A flip is detected (the file is rejected), harmless
(the same pixels), or undetected (other pixels). Beside it: what Pillow alone, or FFmpeg by its defaults, detects.
"""

import io
import random
from collections import Counter
from collections.abc import Callable

import av
import numpy as np
from harness import SHARED, read, say_where
from PIL import Image

from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.video.clips import clip_times
from patchpack.pipeline.media.video.decode import decode_clip
from patchpack.pipeline.media.video.timeline import probe

SIDE = 512
IMAGES = {
    "JPEG": ("JPEG", {"quality": 90}),
    "JPEG, progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {"quality": 90}),
    "WebP, lossless": ("WEBP", {"lossless": True}),
    "GIF": ("GIF", {}),
    "TIFF, LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "AVIF": ("AVIF", {"quality": 80}),
}
VIDEOS = {"H.264 in MP4": ("mp4", "libx264", {}), "H.264 in MPEG-TS": ("mpegts", "libx264", {}),
          "VP9 in WebM": ("webm", "libvpx-vp9", {"b": "1M"})}  # fmt: skip


def main() -> None:
    """Prints the table."""
    values = read(__doc__, image=SHARED / "media/images/astronaut.png", flips=1000)
    flips = values.flips
    say_where()
    image = Image.open(values.image).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    print(f"{'':20} {'bytes':>8} {'detected':>9} {'harmless':>9} {'undetected':>11}   detected by the library alone")
    for name, (format, options) in IMAGES.items():
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        _row(name, buffer.getvalue(), flips, _decoded_image, _pillow_image)
    for name, (format, codec, options) in VIDEOS.items():
        # a video takes as long as ten images
        _row(name, _video(image, format, codec, options), flips // 4, _decoded_clip, _ffmpeg_clip)


def _row(
    name: str, data: bytes, flips: int, ours: Callable[[bytes], np.ndarray], theirs: Callable[[bytes], object]
) -> None:
    whole, draw = ours(data), random.Random(0)
    ends: Counter[str] = Counter()
    for _ in range(flips):
        place = draw.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        try:
            shown = ours(bytes(flipped))
            ends["harmless" if np.array_equal(shown, whole) else "undetected"] += 1
        except DecodeError:
            ends["detected"] += 1
        try:
            theirs(bytes(flipped))
        except Exception:  # noqa: BLE001 (a decoder may raise anything)
            ends["theirs"] += 1
    shares = {end: ends[end] / flips for end in ("detected", "harmless", "undetected", "theirs")}
    print(
        f"{name:20} {len(data):8} {shares['detected']:9.3f} {shares['harmless']:9.3f} {shares['undetected']:11.3f}   "
        f"{shares['theirs']:.3f}"
    )


def _decoded_image(data: bytes) -> np.ndarray:
    height, width = image.probe(io.BytesIO(data))
    if height * width > 4 * SIDE * SIDE:
        # --max-pixels would say, and memory is not what this measures
        raise DecodeError("too_large", f"{height}x{width}")
    frames_THWC, size = image.decode(data, SIDE, SIDE)
    return frames_THWC if size == (SIDE, SIDE) else np.append(frames_THWC, 0)


def _pillow_image(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > 4 * SIDE * SIDE:
            raise ValueError("too large")
        image.load()


def _decoded_clip(data: bytes) -> np.ndarray:
    header = probe(io.BytesIO(data), 4 * SIDE * SIDE)
    pts = clip_times(header, 0, 1, 16, 8.0)
    frames_THWC, _ = decode_clip(
        io.BytesIO(data), pts, SIDE // 2, SIDE // 2, header.random_access_points_for(pts), 4 * SIDE * SIDE
    )
    return frames_THWC


def _ffmpeg_clip(data: bytes) -> None:
    with av.open(
        io.BytesIO(data), options={"max_pixels": str(4 * SIDE * SIDE)}, metadata_errors="replace"
    ) as container:
        if not sum(1 for _ in container.decode(video=0)):
            raise ValueError("no frames")


def _video(image: Image.Image, format: str, codec: str, options: dict[str, str]) -> bytes:
    """Returns 48 frames, 2 s, that pan over the upper left half of an image."""
    buffer, half = io.BytesIO(), SIDE // 2
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=24, options={"threads": "1"} | options)
        stream.width = stream.height = half
        stream.pix_fmt = "yuv420p"
        for number in range(48):
            window = image.crop((4 * number, 2 * number, 4 * number + half, 2 * number + half))
            container.mux(stream.encode(av.VideoFrame.from_image(window)))
        container.mux(stream.encode(None))
    return buffer.getvalue()


if __name__ == "__main__":
    main()
