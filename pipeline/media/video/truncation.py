"""Whether a file ends before its container says: what FFmpeg takes for the regular end of a shorter video.

Matroska and WebM, MP4 and QuickTime, and AVI say their sizes; MPEG-TS consists of whole packets, and its last
video packet ends with a frame. A file cut exactly at the end of a cluster of unknown size, of a fragment, of a Flash tag or
of an Ogg page cannot be reported from a whole one.
"""

import io
from typing import IO

_TS_SIZES = (188, 192, 204)
# sound and tables after the last frame: 190 kB of them, more than a second
_TS_TAIL_PACKETS = 1000


def missing_end(file: IO[bytes], format: str, stream_id: int) -> str:
    """Returns what is missing at the end of a file, for people; empty if nothing is known to be.

    Args:
        file: at any place; left at any place.
        format: FFmpeg's name of the container.
        stream_id: of the video stream; the PID in MPEG-TS.

    Raises:
        OSError: the storage failed.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if format == "mpegts":
        return _missing_of_ts(file, size, stream_id)
    find_end = {"matroska": _matroska_end, "avi": _avi_end, "mov": _boxes_end}.get(format.split(",")[0])
    end = find_end(file, size) if find_end else None
    return f"{size} bytes of {end}" if end is not None and end > size else ""


def _matroska_end(file: IO[bytes], size: int) -> int | None:
    """Returns where the segment ends; None where its size is unknown, as in live streams (RFC 8794, section 6)."""
    offset, head = 0, file.read(64)
    # the EBML header, then the segment
    for expected in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        if head[offset : offset + 4] != expected:
            return None
        length = 9 - head[offset + 4].bit_length()
        value = int.from_bytes(head[offset + 4 : offset + 4 + length], "big") & ((1 << 7 * length) - 1)
        offset += 4 + length
        if value == (1 << 7 * length) - 1:
            return None
        if expected[0] == 0x18:
            return offset + value
        offset += value
    return None


def _avi_end(file: IO[bytes], size: int) -> int | None:
    """Returns where the last of the RIFF chunks ends; OpenDML files have several."""
    offset = 0
    while offset < size:
        file.seek(offset)
        head = file.read(8)
        if len(head) < 8 or head[:4] != b"RIFF":
            break
        offset += 8 + int.from_bytes(head[4:], "little")
    return offset or None


def _boxes_end(file: IO[bytes], size: int) -> int | None:
    """Returns where the last of the top-level boxes ends (ISO 14496-12, section 4.2)."""
    offset = 0
    while offset < size:
        file.seek(offset)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:
            return size
        if length < 8:
            # no box: what writers leave behind the last one is not ours to judge
            return offset
        offset += length
    return offset


def _missing_of_ts(file: IO[bytes], size: int, pid: int) -> str:
    """MPEG-TS: packets of 188 bytes, some with 4 bytes before or 16 after (ISO 13818-1, section 2.4.3).

    A frame ends with a packet that is padded (one in 184 happens to fit, and is taken for one that is cut).
    """
    head = file.read(1024)
    for length in _TS_SIZES:
        start = 4 if length == 192 else 0
        if len(head) > start + 2 * length and head[start] == head[start + length] == head[start + 2 * length] == 0x47:
            break
    else:
        return ""
    if size % length:
        return f"{size} bytes are no whole number of packets of {length}"
    file.seek(max(0, size - _TS_TAIL_PACKETS * length))
    tail = file.read(_TS_TAIL_PACKETS * length)
    for offset in range(len(tail) - length + start, -1, -length):
        if int.from_bytes(tail[offset + 1 : offset + 3], "big") & 0x1FFF == pid:
            # adaptation_field_control: 1 is payload alone
            return "the last frame is cut off" if tail[offset + 3] >> 4 & 3 == 1 else ""
    return ""
