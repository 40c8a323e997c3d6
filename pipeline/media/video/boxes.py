"""MP4 and QuickTime files that claim more samples than they have bytes.

FFmpeg makes an index of 24 bytes a sample when it opens a file; where all samples have one size, a file of five
kilobytes can claim a hundred million of them, and takes gigabytes and a minute. A sample has a byte at least, so
the file's size bounds what is true. Costs a seek and a short read for each box of the tables of contents.
"""

import struct
from collections.abc import Iterator

from patchpack.pipeline.media.errors import DecodeError
from patchpack.pipeline.media.reader import Reader

# the boxes that hold others on the way to the sample tables (ISO/IEC 14496-12, section 6)
_FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")


def check_sample_counts(reader: Reader) -> None:
    """Refuses a file whose tables claim more samples than it can hold; leaves the reader at its beginning.

    Raises:
        DecodeError: it claims more, all tables together.
    """
    size = reader.seek(0, 2)
    claimed = sum(_claimed_samples(reader, 0, size))
    reader.seek(0)
    if claimed > size:
        raise DecodeError("broken", f"{claimed} samples in {size} bytes")


def _claimed_samples(reader: Reader, start: int, end: int) -> Iterator[int]:
    """Yields how many samples each table between two places claims without giving them sizes."""
    while start + 8 <= end:
        reader.seek(start)
        head = reader.read(16)
        if len(head) < 8:
            return
        box_size, name = struct.unpack_from(">I4s", head)
        body = start + 8
        if box_size == 1 and len(head) == 16:
            box_size, body = int.from_bytes(head[8:], "big"), start + 16
        # 0: to the end of the file; less than a head: broken, which FFmpeg says better
        box_end = end if box_size == 0 else start + box_size
        if box_end < body:
            return
        if name in _FOLDERS:
            yield from _claimed_samples(reader, body, min(box_end, end))
        elif name in (b"stsz", b"trun"):
            reader.seek(body)
            fields = reader.read(12).ljust(12, b"\0")
            # stsz: version and flags, the size of all samples or 0, their number; trun: version and flags, number
            one, two = struct.unpack_from(">II", fields, 4)
            # samples with sizes of their own have four bytes each here, and FFmpeg reads those that are there
            yield one if name == b"trun" else two if one else 0
        start = box_end
