"""The frames of clips, at the size of the shard: only what is needed is decoded.

The plan names the frames requested by their times, and the random access points before them. Packets from an
random access point to its last requested frame are decoded, frames that nothing refers to left out; everything else is only
demuxed (1-3 % of a decode), and in MP4 and Matroska files, which say the time of every packet, a seek passes over what
lies before the first random access point. Frames equal those of decoding everything in order, which is also what happens where an
random access point or a requested frame does not turn up. Memory: one frame, and the clips asked for.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, NamedTuple

import av
import numpy as np

from patchpack.pipeline.media.errors import DecodeError
from patchpack.pipeline.media.video.container import MOST_PIXELS, opened, times_by_order
from patchpack.pipeline.media.video.frame import Scaler, oriented_size
from patchpack.pipeline.media.video.random_access import may_skip
from patchpack.schemas.geometry import Box

# these say the exact time of every packet after a seek; FFmpeg reckons it from the packets before in the others
_SEEKABLE = ("mov", "matroska")


class ClipTarget(NamedTuple):
    """One clip to decode: the times of its frames, in rising order, equal ones repeating a frame; and its size in px.

    `entries` are the times of the key frames from which to decode, as `VideoHeader.random_access_points_for` gives them; none:
    everything is decoded, from the start. `box` is the part of a frame that is shown, in px; None: the whole.
    """

    pts: tuple[int, ...]
    height: int
    width: int
    entries: tuple[int, ...] = ()
    box: Box | None = None


def decode_clip(
    file: IO[bytes],
    pts: tuple[int, ...],
    height: int,
    width: int,
    entries: tuple[int, ...] = (),
    max_pixels: int = MOST_PIXELS,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns a clip as (len(pts), height, width, 3) uint8, upright, RGB, and its oriented source size.

    Args:
        file: the video.
        pts: see `ClipTarget`.
        height: of the result, in px.
        width: of the result, in px.
        entries: see `ClipTarget`.
        max_pixels: most pixels of a frame; larger ones are refused before memory is taken for them.

    Raises:
        DecodeError: the decoder reports an error, or a requested frame does not appear.
        OSError: the storage failed.
    """
    clips, size = decode_clips(file, [ClipTarget(pts, height, width, entries)], max_pixels)
    return clips[0], size


def decode_clips(
    file: IO[bytes], clips: Sequence[ClipTarget], max_pixels: int = MOST_PIXELS
) -> tuple[list[np.ndarray], tuple[int, int]]:
    """Returns clips of one video as `decode_clip` would each, decoding every frame once.

    Raises:
        DecodeError: as `decode_clip` for any of them.
        OSError: the storage failed.
    """
    entries = sorted({entry for clip in clips for entry in clip.entries})
    if entries and all(clip.entries for clip in clips):
        canvas = _Canvas(clips)
        try:
            with opened(file, max_pixels) as (container, stream):
                for frame in _needed_frames(container, stream, entries, canvas.pending):
                    if frame.pts is not None:
                        canvas.take(frame.pts, frame, stream)
                if not canvas.pending:
                    return canvas.frames, canvas.source_size
        except DecodeError:
            # what is left out may be what another decoder's file relied on: the plain way decides
            pass
        file.seek(0)
    canvas = _Canvas(clips)
    with opened(file, max_pixels) as (container, stream):
        for time, frame in _all_frames(container, stream):
            canvas.take(time, frame, stream)
            if not canvas.pending:
                return canvas.frames, canvas.source_size
    raise DecodeError("partial", f"{len(canvas.pending)} of {canvas.count} frames did not decode")


class _Canvas:
    """The clips being filled. `pending` are the target times that have not come yet, with their (clip, place)."""

    def __init__(self, clips: Sequence[ClipTarget]) -> None:
        self.frames = [np.empty((len(clip.pts), clip.height, clip.width, 3), np.uint8) for clip in clips]
        self.pending: dict[int, list[tuple[int, int]]] = {}
        self.source_size = (0, 0)
        self._scalers = [Scaler(clip.height, clip.width, clip.box) for clip in clips]
        for number, clip in enumerate(clips):
            for index, time in enumerate(clip.pts):
                self.pending.setdefault(time, []).append((number, index))
        self.count = len(self.pending)

    def take(self, time: int, frame: av.VideoFrame, stream: av.VideoStream) -> None:
        """Draws a frame wherever it is requested.

        Raises:
            DecodeError: it is requested and corrupt.
        """
        targets = self.pending.get(time)
        if targets is None:
            return
        if frame.is_corrupt:
            raise DecodeError("partial", f"the frame at {float(time * (stream.time_base or 1))} s is corrupt")
        del self.pending[time]
        self.source_size = oriented_size(frame, stream.sample_aspect_ratio)
        drawn: dict[int, np.ndarray] = {}
        for number, index in targets:
            if number not in drawn:
                drawn[number] = self._scalers[number].pixels(frame, self.source_size)
            self.frames[number][index] = drawn[number]


def _all_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields every frame and its time, in order of output."""
    by_order = times_by_order(container, stream)
    times: deque[int] = deque()
    for packet in container.demux(stream):
        # an empty packet stands for a repeated frame in AVI, and at the end for the rest; PyAV sends both as the latter
        if packet.size == 0:
            continue
        if packet.is_corrupt:
            raise DecodeError("partial", "a packet before the last frame is damaged or cut off")
        if by_order:
            times.append(_time_of(packet))
        yield from _timed(packet.decode(), times, by_order)
    yield from _timed(stream.codec_context.decode(None), times, by_order)


def _timed(frames: list[av.VideoFrame], times: deque[int], by_order: bool) -> Iterator[tuple[int, av.VideoFrame]]:
    for frame in frames:
        yield times.popleft() if by_order else _time_of(frame), frame


def _time_of(timed: "av.Packet[av.VideoStream] | av.VideoFrame") -> int:
    """Returns when a frame is shown, or else decoded.

    Raises:
        DecodeError: neither is known.
    """
    time = timed.pts if timed.pts is not None else timed.dts
    if time is None:
        raise DecodeError("broken", "a frame without a time")
    return time


def _needed_frames(
    container: av.container.InputContainer, stream: av.VideoStream, entries: list[int], pending: Mapping[int, object]
) -> Iterator[av.VideoFrame]:
    """Yields frames until none is pending: those requested, and others that had to be decoded.

    Args:
        container: just opened.
        stream: its video.
        entries: times of the key packets to decode from, in rising order; each for the frames from its time to the next.
        pending: the target times; taken out of it by the caller as they come.
    """
    codec = stream.codec_context
    skips = may_skip(codec)
    ahead, unsent, latest = deque(entries), set(pending), entries[0]
    # the entry that decoding began from; None: nothing is due before the next one
    started: int | None = None
    for packet in _packets_from(container, stream, entries[0]):
        if ahead and packet.is_keyframe and packet.pts == ahead[0]:
            ahead.popleft()
            started = packet.pts if started is None else started
        # what is shown before the entry may refer to what was not decoded
        if started is None or packet.pts is None or packet.pts < started:
            continue
        if packet.is_corrupt:
            raise DecodeError("partial", "a packet that is needed is damaged or cut off")
        # only what is shown before an earlier packet: damage may call any frame unreferenced, and the decoder believes it
        codec.skip_frame = "NONREF" if skips and packet.pts not in unsent and packet.pts < latest else "DEFAULT"
        latest = max(latest, packet.pts)
        unsent.discard(packet.pts)
        yield from packet.decode()
        if not any(time < ahead[0] for time in unsent) if ahead else not unsent:
            yield from codec.decode(None)
            if not ahead:
                return
            codec.flush_buffers()
            started = None
    yield from codec.decode(None)


def _packets_from(
    container: av.container.InputContainer, stream: av.VideoStream, entry: int
) -> "Iterator[av.Packet[av.VideoStream]]":
    """Yields packets, the one of the entry among them, from as near before it as the container allows."""
    packets = (packet for packet in container.demux(stream) if packet.size)
    first = next(packets, None)
    if first is None:
        return
    if container.format.name.split(",")[0] in _SEEKABLE and first.pts is not None and first.pts < entry:
        start = first.dts if first.dts is not None else first.pts
        container.seek(entry, stream=stream)
        packets = (packet for packet in container.demux(stream) if packet.size)
        first = next(packets, None)
        if first is None or first.pts is None or first.pts > entry:
            container.seek(start, stream=stream)
            packets = (packet for packet in container.demux(stream) if packet.size)
            first = next(packets, None)
    if first is not None:
        yield first
        yield from packets
