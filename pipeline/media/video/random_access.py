"""Where decoding may begin, and what it may leave out, with frames that equal those of decoding everything.

A container's key flag is not enough: H.264 files mark frames as key frames after which frames still refer to
earlier ones. So H.264 and HEVC key packets are looked into, up to their first slice.
"""

from collections.abc import Iterator

import av

# a key frame of these refers to nothing and resets all state; `libdav1d` decodes AV1
_TRUSTED = frozenset({"mpeg4", "vp8", "vp9", "libdav1d", "av1", "mjpeg", "ffv1", "prores", "flv", "h263"})

# decoders of these leave out a frame that no other refers to without a trace. Not VP8, whose such frames may still
# change the segmentation map
_SKIPPING = frozenset({"h264", "mpeg1video", "mpeg2video", "mpeg4"})


def is_random_access_point(packet: "av.Packet[av.VideoStream]", codec: av.VideoCodecContext) -> bool:
    """Returns whether every frame shown from this packet's on decodes exactly without anything before it."""
    if not packet.is_keyframe:
        return False
    if codec.name in ("mpeg1video", "mpeg2video"):
        # with a sequence header (ISO 13818-2, section 6.2.2.1), which brings the matrices back to known ones
        return b"\0\0\1\xb3" in bytes(packet)
    if codec.name == "h264":
        return _is_h264_random_access_point(_units(bytes(packet), codec.extradata or b"", 4))
    if codec.name == "hevc":
        return _is_hevc_random_access_point(_units(bytes(packet), codec.extradata or b"", 21))
    return codec.name in _TRUSTED


def may_skip(codec: av.VideoCodecContext) -> bool:
    """Returns whether the decoder may leave out frames that no other refers to."""
    if codec.name == "hevc":
        # with several temporal layers, such frames are referred to by higher layers (H.265, section 7.4.2.2);
        # hvcC says their number (ISO 14496-15, section 8.3.3.1)
        extradata = codec.extradata or b""
        return len(extradata) > 21 and extradata[0] == 1 and extradata[21] >> 3 & 7 == 1
    return codec.name in _SKIPPING


def _is_h264_random_access_point(units: Iterator[bytes]) -> bool:
    """H.264: an IDR frame (section 7.4.1). Not recovery points: FFmpeg reports errors after a start at one."""
    return next((unit[0] & 31 == 5 for unit in units if 1 <= unit[0] & 31 <= 5), False)


def _is_hevc_random_access_point(units: Iterator[bytes]) -> bool:
    """HEVC: an IRAP frame; those that follow it in output order do not refer to what is before it (section 3.66)."""
    return next((16 <= unit[0] >> 1 & 63 <= 21 for unit in units if unit[0] >> 1 & 63 < 32), False)


def _units(data: bytes, extradata: bytes, length_at: int) -> Iterator[bytes]:
    """Yields NAL units: each after its length where the extradata is an avcC or hvcC box, otherwise after start codes."""
    if extradata[:1] == b"\1" and len(extradata) > length_at:
        size = (extradata[length_at] & 3) + 1
        offset = 0
        while offset + size < len(data):
            length = int.from_bytes(data[offset : offset + size], "big")
            if length:
                yield data[offset + size : offset + size + length]
            offset += size + length
        return
    offset = data.find(b"\0\0\1")
    while offset >= 0:
        following = data.find(b"\0\0\1", offset + 3)
        unit = data[offset + 3 : following if following >= 0 else len(data)]
        if unit:
            yield unit
        offset = following
