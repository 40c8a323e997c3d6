"""What planning knows of a video: one demux pass and one decoded frame (1-3 % of a decode).

Frame counts, durations and rates in headers are not trusted: WebM and MPEG-TS say none, and edit lists change
them. Times are those of the packets that will be shown. A file that ends before its container says, or that the demuxer
gives up on, keeps the part before: `damage` says so, and `corrupt_frames` are frames known to be damaged.
"""

from bisect import bisect_right
from fractions import Fraction
from typing import IO, NamedTuple

import av

from patchpack.pipeline.media.errors import DecodeError
from patchpack.pipeline.media.video.container import MOST_PIXELS, is_hidden, opened, times_by_order
from patchpack.pipeline.media.video.frame import Colour, colour_of, oriented_size
from patchpack.pipeline.media.video.random_access import is_random_access_point
from patchpack.pipeline.media.video.truncation import missing_end

# of H.264 and HEVC: max_dec_frame_buffering (H.264, section A.3.1; H.265, section A.4.2)
_MOST_REORDERED = 16


class VideoHeader(NamedTuple):
    """What planning needs of a video; sizes are oriented, times in units of `time_base` seconds.

    `pts` are the frames' times in rising order; `entries` those from which decoding may begin, empty where it must
    begin at the start.
    """

    height: int
    width: int
    pts: tuple[int, ...]
    end_pts: int
    time_base: tuple[int, int]
    entries: tuple[int, ...] = ()
    corrupt_frames: frozenset[int] = frozenset()
    damage: str = ""
    colour: Colour = Colour("bt601", False, False)
    pixel_aspect: Fraction | None = None

    @property
    def rate(self) -> Fraction | None:
        """Mean frames a second from the first frame to the last; None for a single frame."""
        ticks = self.pts[-1] - self.pts[0]
        return Fraction((len(self.pts) - 1) * self.time_base[1], ticks * self.time_base[0]) if ticks else None

    def random_access_points_for(self, pts: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the entries that decoding these frames takes, in rising order; none where it begins at the start."""
        indices = {bisect_right(self.entries, time) - 1 for time in pts}
        return () if not self.entries or -1 in indices else tuple(self.entries[index] for index in sorted(indices))


def probe(file: IO[bytes], max_pixels: int = MOST_PIXELS) -> VideoHeader:
    """Returns size, presentation times and time base of a file's video stream.

    Args:
        file: the video.
        max_pixels: most pixels of a frame; larger ones are refused before memory is taken for them.

    Raises:
        DecodeError: no video stream, no frames, or an error before the first.
    """
    with opened(file, max_pixels) as (container, stream):
        shown = _Shown()
        try:
            for packet in container.demux(stream):
                if packet.size:
                    shown.add(packet, stream)
        except av.error.FFmpegError as error:
            if shown.first is None:
                raise
            shown.note(f"after packet {shown.count - 1}: {error.strerror}")
        first = shown.first or next(iter(stream.codec_context.decode(None)), None)
        if first is None or not shown.pts:
            raise DecodeError("no_frames", "the video stream has no frame that decodes")
        header = shown.header(first, stream, times_by_order(container, stream))
        by_order, format, stream_id = times_by_order(container, stream), container.format.name, stream.id
    # outside: its errors are those of the storage
    missing = missing_end(file, format, stream_id)
    pts = header.pts
    if missing and format == "mpegts":
        # no decoder of HEVC notices that its frame is cut off
        pts = tuple(time for time in pts if time != shown.last_time)
    elif by_order and (missing or shown.damage):
        # frames that are missing may come before some that are there
        pts = pts[:-_MOST_REORDERED]
    if not pts:
        raise DecodeError("broken", shown.damage or missing)
    end_pts = header.end_pts if pts == header.pts else pts[-1] + 1
    return header._replace(pts=pts, end_pts=end_pts, damage=shown.damage or missing)


class _Shown:
    """Gathers what the packets of a stream say."""

    def __init__(self) -> None:
        self.pts: list[int] = []
        self.entries: list[int] = []
        self.corrupt_frames: set[int] = set()
        self.damage = ""
        self.first: av.VideoFrame | None = None
        self.count = 0
        self.last_time = 0
        self._last_duration = 0
        self._exact = True

    def note(self, damage: str) -> None:
        """Keeps the first damage."""
        self.damage = self.damage or damage

    def add(self, packet: "av.Packet[av.VideoStream]", stream: av.VideoStream) -> None:
        """Takes in one packet that is not empty."""
        self.count += 1
        if packet.is_corrupt:
            if self.first is None:
                raise DecodeError("broken", f"packet {self.count - 1} is damaged or cut off")
            self.note(f"packet {self.count - 1} is damaged or cut off")
        elif self.first is None:
            self.first = next(iter(packet.decode()), None)
        time = packet.pts if packet.pts is not None else packet.dts
        if time is None:
            raise DecodeError("broken", "packets without a time stamp")
        self._exact = self._exact and packet.pts is not None
        # an edit list may begin after a key frame, which then is decoded but not shown
        if not packet.is_corrupt and is_random_access_point(packet, stream.codec_context):
            self.entries.append(time)
        if packet.is_discard or is_hidden(packet, stream):
            return
        if packet.is_corrupt:
            self.corrupt_frames.add(time)
        self.pts.append(time)
        self.last_time = time
        self._last_duration = packet.duration or self._last_duration

    def header(self, first: av.VideoFrame, stream: av.VideoStream, by_order: bool) -> VideoHeader:
        """Returns the header; `first` is the first frame that decoded."""
        # a stream cut before an open group of frames begins with frames that no decoder can show
        first_pts = min(self.pts) if first.pts is None or by_order else first.pts
        last_pts = max(time for time in self.pts if time not in self.corrupt_frames)
        pts = sorted(time for time in self.pts if first_pts <= time <= last_pts)
        # times that occur twice, or are guessed, do not name a frame
        exact = self._exact and not by_order and len(set(pts)) == len(pts)
        size = oriented_size(first, stream.sample_aspect_ratio)
        base = stream.time_base
        return VideoHeader(
            *size,
            tuple(pts),
            pts[-1] + self._last_duration,
            (base.numerator, base.denominator) if base is not None else (1, 1),
            tuple(sorted(set(self.entries))) if exact else (),
            frozenset(self.corrupt_frames.intersection(pts)),
            colour=colour_of(first),
            pixel_aspect=stream.sample_aspect_ratio,
        )
