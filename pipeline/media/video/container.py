"""Opens videos with FFmpeg: one stream of a few known formats, with errors blamed on whoever made them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import av

from patchpack.pipeline.media.errors import DecodeError
from patchpack.pipeline.media.reader import Reader
from patchpack.pipeline.media.video import boxes

# by content only, and never formats that open further files or addresses (HLS, concat, DASH)
_CONTAINER_OPTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf"}


# that FFmpeg takes
MOST_PIXELS = 2**31 - 1


@contextmanager
def opened(file: IO[bytes], max_pixels: int) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Opens the video stream that players choose (FFmpeg's "best"), never a cover image.

    Args:
        file: the video.
        max_pixels: most pixels of a frame; larger ones are refused before memory is taken for them.

    Raises:
        DecodeError: any error of FFmpeg.
        OSError: the storage failed.
    """
    reader, streams = Reader(file), []
    # for the decoder that looks for what the header does not say, too
    limits = {"max_pixels": str(min(max_pixels, MOST_PIXELS))}
    try:
        boxes.check_sample_counts(reader)
        # titles in other encodings are no reason to refuse a video
        with av.open(
            reader, options=limits, container_options=_CONTAINER_OPTIONS, metadata_errors="replace"
        ) as container:
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise DecodeError("no_video", "the container has no video stream")
            best = container.streams.best("video")
            stream = best if best in streams else streams[0]
            if stream.codec_context is None:
                raise DecodeError("broken", "there is no decoder for its video codec")
            # decoders would otherwise paint over what they cannot read
            stream.codec_context.options = limits | {"err_detect": "explode"}
            # one thread: workers already use every core
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            yield cast(av.container.InputContainer, container), stream
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


def times_by_order(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """Returns whether frames get their times in the order in which the decoder shows them.

    AVI stores no presentation times, and FFmpeg's guess is off by a frame where H.264 or HEVC reorder. There the
    k-th frame shown has the k-th time of the packets.
    """
    return container.format.name == "avi" and stream.codec_context.name in ("h264", "hevc")


def is_hidden(packet: "av.Packet[av.VideoStream]", stream: av.VideoStream) -> bool:
    """Returns whether a packet is a VP8 frame that is only referred to; WebM stores such frames as packets."""
    # RFC 6386, section 9.1: bit 4 of the first byte is show_frame
    return stream.codec_context.name == "vp8" and not memoryview(packet)[0] & 0x10
