"""Videos: frame times for planning, the frames of one clip for the shard.

Probing demuxes the file once and decodes a single frame (PyAV shows the display matrix only on
frames); frame counts in headers are not trusted. A clip's frames are picked by presentation time: the
frame on screen at each wanted time. Decoding is sequential from the start of the file, which is exact
for every container, and costs the decoding of what lies before the clip.
"""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import IO, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter

from pipeline.media import boxes
from pipeline.media.errors import DecodeError
from pipeline.media.reader import Reader

# by content only, and never formats that open further files or addresses (HLS, concat, DASH)
_CONTAINER_OPTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf"}

# FFmpeg's default flags lose 14 dB against these: chroma is interpolated, and rounding is exact
_SCALER = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


class VideoHeader(NamedTuple):
    """What planning needs of a video; sizes are oriented, times in units of `time_base` seconds."""

    height: int
    width: int
    pts: tuple[int, ...]
    end_pts: int
    time_base: tuple[int, int]


class Display(NamedTuple):
    """How a stored frame becomes the upright one: rows and columns swapped, then each flipped or not."""

    swap: bool = False
    flip_rows: bool = False
    flip_columns: bool = False


def probe(file: IO[bytes], max_pixels: int = 2**31 - 1) -> VideoHeader:
    """Returns size, presentation times and time base of a file's first video stream.

    Args:
        file: the video.
        max_pixels: most pixels of a frame; larger ones are refused before memory is taken for them.

    Raises:
        DecodeError: no video stream, no frames, or an error of the demuxer.
    """
    with _opened(file, max_pixels) as (container, stream):
        pts: list[int] = []
        last_duration = 0
        first = None
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard or _is_hidden(packet, stream):
                continue
            if packet.is_corrupt:
                raise DecodeError("broken", f"packet {len(pts)} is damaged or cut off")
            if first is None:
                first = next(iter(packet.decode()), None)
            time = packet.pts if packet.pts is not None else packet.dts
            if time is None:
                raise DecodeError("broken", "packets without a time stamp")
            pts.append(time)
            last_duration = packet.duration or last_duration
        if first is None:
            first = next(iter(stream.codec_context.decode(None)), None)
        if first is None or not pts:
            raise DecodeError("no_frames", "the video stream has no frame that decodes")
        # a stream cut before an open group of pictures begins with frames that no decoder can show
        first_pts = min(pts) if first.pts is None else first.pts
        pts = sorted(time for time in pts if time >= first_pts)
        height, width = _oriented_size(first)
        base = stream.time_base
        return VideoHeader(height, width, tuple(pts), pts[-1] + last_duration, (base.numerator, base.denominator))


def clip_times(header: VideoHeader, clip: int, num_clips: int, num_frames: int, fps: float) -> tuple[int, ...]:
    """Returns the presentation times of one clip's frames, (<= num_frames,) in units of the time base.

    The video is cut into `num_clips` equal parts, and the clip lies in the middle of its part (at its
    beginning where it is longer). For each wanted time the frame on screen is taken: sources slower than `fps`
    repeat frames; clips that would run past the end of the video are shorter.
    """
    numerator, denominator = header.time_base
    first, end = header.pts[0], max(header.end_pts, header.pts[-1] + 1)
    step = Fraction(denominator, numerator) / Fraction(fps)
    part = (end - first) // num_clips
    start = first + part * clip + max(0, (part - math.floor(num_frames * step)) // 2)
    wanted = [start + math.floor(i * step) for i in range(num_frames)]
    pts = np.asarray(header.pts, np.int64)
    places = np.searchsorted(pts, [time for time in wanted if time < end], side="right") - 1
    return tuple(int(time) for time in pts[np.maximum(places, 0)])


def decode_clip(
    file: IO[bytes], pts: tuple[int, ...], height: int, width: int, max_pixels: int = 2**31 - 1
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns a clip as (len(pts), height, width, 3) uint8, upright, RGB, and its oriented source size.

    Args:
        file: the video.
        pts: presentation times in rising order, as `clip_times` gives them; equal ones repeat a frame.
        height: of the result, in px.
        width: of the result, in px.
        max_pixels: most pixels of a frame, as for `probe`.

    Raises:
        DecodeError: the decoder reports an error, or a wanted frame does not appear.
    """
    frames_THWC = np.empty((len(pts), height, width, 3), np.uint8)
    places: dict[int, list[int]] = {}
    for place, time in enumerate(pts):
        places.setdefault(time, []).append(place)
    source_size = (0, 0)
    reformatter = VideoReformatter()
    with _opened(file, max_pixels) as (container, stream):
        for frame in container.decode(stream):
            time = frame.pts if frame.pts is not None else frame.dts
            if time in places:
                if frame.is_corrupt:
                    raise DecodeError("broken", f"the frame at {time * stream.time_base} s is corrupt")
                source_size = _oriented_size(frame)
                frames_THWC[places.pop(time)] = _upright_pixels(frame, reformatter, height, width)
            if not places:
                return frames_THWC, source_size
    raise DecodeError("broken", f"{len(places)} of {len(set(pts))} frames did not decode")


def _upright_pixels(frame: av.VideoFrame, reformatter: VideoReformatter, height: int, width: int) -> np.ndarray:
    display = _display(frame)
    if display.swap:
        height, width = width, height
    small = reformatter.reformat(frame, width=width, height=height, format="rgb24", interpolation=_SCALER, threads=1)
    pixels_HWC = small.to_ndarray()
    if display.swap:
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    return pixels_HWC[:: -1 if display.flip_rows else 1, :: -1 if display.flip_columns else 1]


def _display(frame: av.VideoFrame) -> Display:
    """Returns what a frame's display matrix asks for, to the nearest quarter turn, mirrored ones included."""
    data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return Display()
    # libavutil/display.h: x' = a x + c y, y' = b x + d y
    a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Display(False, d < 0, a < 0)
    return Display(True, b < 0, c < 0)


def _oriented_size(frame: av.VideoFrame) -> tuple[int, int]:
    return (frame.width, frame.height) if _display(frame).swap else (frame.height, frame.width)


def _is_hidden(packet: av.Packet, stream: av.VideoStream) -> bool:
    """Returns whether a packet is a VP8 frame that is only referred to; WebM stores such frames as packets."""
    # RFC 6386, section 9.1: bit 4 of the first byte is show_frame
    return stream.codec_context.name == "vp8" and not memoryview(packet)[0] & 0x10


@contextmanager
def _opened(file: IO[bytes], max_pixels: int) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Opens a container's first video stream that is no cover picture.

    Raises:
        DecodeError: any error of FFmpeg.
        OSError: the storage failed.
    """
    reader, streams = Reader(file), []
    # for the decoder that looks for what the header does not tell, too
    limits = {"max_pixels": str(min(max_pixels, 2**31 - 1))}
    try:
        boxes.check_sample_counts(reader)
        # titles in other encodings are no reason to refuse a video
        with av.open(
            reader, options=limits, container_options=_CONTAINER_OPTIONS, metadata_errors="replace"
        ) as container:
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise DecodeError("no_video", "the container has no video stream")
            if streams[0].codec_context is None:
                raise DecodeError("broken", "there is no decoder for its video codec")
            # decoders would else paint over what they cannot read
            streams[0].codec_context.options = limits | {"err_detect": "explode"}
            # one thread: workers already use every core
            streams[0].thread_type = "NONE"
            streams[0].codec_context.thread_count = 1
            yield container, streams[0]
    except Exception as error:
        if reader.error is not None:
            raise reader.error from error
        if isinstance(error, av.error.ArgumentError) and streams:
            # what decoders say of a frame over max_pixels
            raise DecodeError(
                "too_large", f"frames of an impossible size, or over --max-pixels {max_pixels}"
            ) from error
        if isinstance(error, av.error.FFmpegError):
            raise DecodeError("broken", error.strerror or type(error).__name__) from error
        if isinstance(error, DecodeError | MemoryError):
            raise
        raise DecodeError("broken", str(error) or type(error).__name__) from error
    if reader.error is not None:
        raise reader.error
