"""JPEGs whose header is odd and whose pixels are intact: the header without what strict decoding stumbles over.

Of 56 photos at hand one has two stray bytes behind its XMP data, whose length a tool gave too small; every viewer skips
them. So where strict decoding fails, the oddities that say nothing about pixels are taken out of the header, and the
file is decoded strictly once more: damage of the coded data stays a reject. What is left out:

- stray bytes between the segments before the first scan, as libjpeg's `next_marker` skips them;
- an ICC profile whose chunks do not fit together, as libjpeg's `jpeg_read_icc_profile` judges it: it cannot be put together;
- a major revision of JFIF that is not 1: no other has ever been published.

None of them reaches an inverse DCT, so the pixels are those of lenient decoding to the bit (tests/test_image_jpeg.py). Sound
files cost nothing; a broken one costs a walk over its header, and a second decode only if something was left out.
"""

import re
import struct

# a marker behind anything that is none: libjpeg skips bytes up to 0xff, fill bytes, and stuffed zeros
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_APP0, _APP2, _APP14, _SCAN = 0xE0, 0xE2, 0xEE, 0xDA
# markers without content (ITU-T T.81, table B.1): TEM, RST0 to RST7
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
# SOF0 up to the last APPn, and comments; but not the start and the end of an image
_WITH_CONTENT = (frozenset(range(0xC0, 0xF0)) | {0xFE}) - {0xD8, 0xD9} - _BARE

_ICC_NAME = b"ICC_PROFILE\0"
# the name, the chunk's number from 1 on, and the number of chunks (ICC.1:2022, annex B.4)
_ICC_HEAD_BYTES = len(_ICC_NAME) + 2
_JFIF_NAME = b"JFIF\0"


def cleaned(jpeg: bytes) -> bytes | None:
    """Returns a JPEG without the oddities of its header, or None if there are none, or it is no JPEG or damaged otherwise."""
    parsed = _segments(jpeg)
    if parsed is None:
        return None
    segments, scan = parsed
    if not _fits_together([content for marker, content in segments if _is_icc(marker, content)]):
        segments = [(marker, content) for marker, content in segments if not _is_icc(marker, content)]
    header = b"".join(
        b"\xff%c" % marker + struct.pack(">H", len(content) + 2) + _usual_jfif(marker, content)
        for marker, content in segments
    )
    clean = jpeg[:2] + header + jpeg[scan:]
    return clean if clean != jpeg else None


def _segments(jpeg: bytes) -> tuple[list[tuple[int, bytes]], int] | None:
    """Returns marker and content of each segment before the first scan, and where the scan's marker begins."""
    segments: list[tuple[int, bytes]] = []
    offset = 2
    while jpeg[:2] == b"\xff\xd8" and (match := _MARKER.search(jpeg, offset)):
        marker, start = match[1][0], match.end()
        if match.start() > offset and segments and segments[-1][0] == _APP14:
            # of Adobe's segment, which gives the colours: one that was cut is read as none, and shows other colours
            return None
        if marker == _SCAN:
            return segments, start - 2
        offset = start
        if marker in _BARE:
            continue
        size = int.from_bytes(jpeg[start : start + 2], "big")
        if marker not in _WITH_CONTENT or size < 2 or start + size > len(jpeg):
            return None
        offset = start + size
        segments.append((marker, jpeg[start + 2 : offset]))
    return None


def _is_icc(marker: int, content: bytes) -> bool:
    return marker == _APP2 and content.startswith(_ICC_NAME)


def _fits_together(chunks: list[bytes]) -> bool:
    """Returns whether the chunks of an ICC profile are each there once, agree on their number, and are not all empty."""
    if any(len(chunk) < _ICC_HEAD_BYTES for chunk in chunks):
        return False
    numbers = sorted(chunk[len(_ICC_NAME)] for chunk in chunks)
    totals = {chunk[len(_ICC_NAME) + 1] for chunk in chunks}
    is_whole = totals == {len(chunks)} and numbers == list(range(1, len(chunks) + 1))
    return not chunks or (is_whole and any(len(chunk) > _ICC_HEAD_BYTES for chunk in chunks))


def _usual_jfif(marker: int, content: bytes) -> bytes:
    """Returns a segment's content, with revision 1 where it is JFIF's of another one."""
    if marker != _APP0 or not content.startswith(_JFIF_NAME) or len(content) < 14:
        return content
    return _JFIF_NAME + b"\1" + content[6:]
