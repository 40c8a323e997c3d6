"""Damage that the decoders pass over, found in the bytes around them.

Pillow fills a PNG whose data end early with black, checks no checksum of its data and does without its end; libjpeg
decodes as many scans as a file has. Costs a checksum over a PNG (1 GB/s
and more) and a search through a JPEG of several scans (memory speed). A PNG is inflated a second time only where its last row is
zero, as a missing one would be, or where it is interlaced.
"""

import io
import itertools
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from patchpack.pipeline.media.errors import DecodeError
from patchpack.pipeline.media.reader import Reader

# Encoders write at most some 20 scans. A scan costs a pass over all coefficients even if it changes none: at
# --max-pixels 100 of them take seconds, and a file of 1 MB could ask for 100,000.
MAX_SCANS = 100

# a marker in or behind entropy-coded data: no stuffed zero, no restart, no fill byte (ITU-T T.81, section B.1.1)
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_SCAN, _END = b"\xda", b"\xd9"
# starts of frames that are not progressive: Huffman coded, of 8 or 12 bits, and arithmetically coded (table B.1)
_SEQUENTIAL = (b"\xc0", b"\xc1", b"\xc9")

# PNG specification (third edition), table 8: bits a sample that each colour type allows, and its samples a pixel
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# Adam7, section 8.1: first row and column, step down and across
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
# inflated at once when rows are counted
_BLOCK_BYTES = 2**20

_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES = 273, 279, 324, 325
# a strip costs Pillow 20 us and half a kilobyte; one for each row of the highest images is half as many
MAX_STRIPS = 2**17
# of an offset, by its type: SHORT, LONG, LONG8
_OFFSET_BYTES = {3: 2, 4: 4, 16: 8}

# Pillow joins the blocks of comments one by one: 10 MB of them take it half a minute, this much a third of a second
MAX_GIF_EXTENSION_BYTES = 2**20


# libpng writes 8 KiB a chunk, so this is 2 GiB of data; without a limit a list of empty chunks fills the memory
MAX_CHUNKS = 2**18


def _load_directory(self: ImageFileDirectory_v2, file: IO[bytes]) -> None:
    """Loads a TIFF or EXIF directory, unless its entries overlap.

    Pillow copies the value of each entry: 40,000 entries that all point to one megabyte would make 40 GB of a small
    file, and Pillow loads the EXIF data of a JPEG while it opens it.
    """
    offset = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(offset)
    reader = Reader(file, 2 * size + 2**16)
    _pillows_load_directory(self, cast(IO[bytes], reader))
    if reader.error is not None:
        raise reader.error
    for tag in (_STRIP_OFFSETS, _TILE_OFFSETS):
        if len(self._tagdata.get(tag, b"")) > MAX_STRIPS * _OFFSET_BYTES.get(self.tagtype.get(tag, 0), 1):
            raise DecodeError("broken", f"more than {MAX_STRIPS} strips or tiles")


def _check_size(size: tuple[int, int]) -> None:
    """Refuses what Pillow is about to make, where it is larger than this thread allows.

    Pillow asks so of every image when it is opened, of tiles, and of each frame of a GIF, which may be far larger than the image:
    a frame of 65535x65535 that is to be disposed of takes 4 GB before its image is even open.
    """
    width, height = size
    if (most := getattr(_limit, "max_pixels", None)) is not None and width * height > most:
        raise DecodeError(
            "too_large", f"{height}x{width} is {width * height} pixels; --max-pixels is {most} of 4 bytes"
        )


_pillows_load_directory = ImageFileDirectory_v2.load
_pillows_check_size = Image._decompression_bomb_check

_guards = 0
_guards_lock = threading.Lock()
# of the file that a thread has open
_limit = threading.local()


@contextmanager
def guarded_pillow(max_pixels: int | None) -> Iterator[None]:
    """Changes what Pillow does while a file is open, and puts it back.

    Directories are loaded by `_load_directory`, and sizes are checked by `_check_size`: Pillow's own limit of pixels would stand in the
    way of a higher --max-pixels.

    Threads may overlap: what the first found, the last puts back.
    """
    global _guards
    with _guards_lock:
        if not _guards:
            Image._decompression_bomb_check = _check_size
            setattr(ImageFileDirectory_v2, "load", _load_directory)  # noqa: B010 (a method, which type checkers guard)
        _guards += 1
    before, _limit.max_pixels = getattr(_limit, "max_pixels", None), max_pixels
    try:
        yield
    finally:
        _limit.max_pixels = before
        with _guards_lock:
            _guards -= 1
            if not _guards:
                Image._decompression_bomb_check = _pillows_check_size
                setattr(ImageFileDirectory_v2, "load", _pillows_load_directory)  # noqa: B010 (as above)


def check_start(reader: Reader) -> None:
    """Refuses a file that would keep Pillow busy before it knows what it opens; leaves the reader where it was.

    Raises:
        DecodeError: a GIF begins with more comments than anyone reads.
    """
    head = reader.read(13)
    if head.startswith((b"GIF87a", b"GIF89a")) and len(head) == 13:
        # the logical screen's palette, if it has one (GIF89a specification, section 18)
        reader.seek(3 * 2 ** ((head[10] & 7) + 1) if head[10] & 0x80 else 0, io.SEEK_CUR)
        spent = 0
        while reader.read(1) == b"!":
            reader.read(1)
            while size := reader.read(1):
                spent += 1 + size[0]
                if spent > MAX_GIF_EXTENSION_BYTES:
                    raise DecodeError(
                        "broken", f"over {MAX_GIF_EXTENSION_BYTES} bytes of extensions before its first frame"
                    )
                if size == b"\0":
                    break
                reader.seek(size[0], io.SEEK_CUR)
    reader.seek(0)


def check_header(image: Image.Image) -> None:
    """Refuses an image whose header alone shows that pixels will be missing or mean nothing.

    Args:
        image: opened by Pillow, not decoded.

    Raises:
        DecodeError: strips or tiles are missing, or samples have no scale.
    """
    if isinstance(image, TiffImageFile):
        _check_tiff(image)
    elif image.format == "GIF" and isinstance(image, ImageFile) and image.tile:
        # GIF's decoder takes (bits, interlaced)
        (bits, *_) = cast(tuple[int, int], image.tile[0].args)
        # Pillow decodes nothing for 0, and other decoders refuse more than 8
        if not 1 <= bits <= 8:
            raise DecodeError("broken", f"an LZW code size of {bits} bits; it is 1 to 8")


def check_pixels(image: Image.Image, data: bytes) -> None:
    """Refuses a file with damage that its decoder would not report.

    Args:
        image: opened by Pillow from the data.
        data: the whole file.

    Raises:
        DecodeError: there is such damage.
    """
    if image.format in ("JPEG", "MPO"):
        _check_jpeg(data)
    elif image.format == "PNG":
        _check_png(image, data)


def _check_tiff(image: TiffImageFile) -> None:
    boxes = [tile.extents or (0, 0, 0, 0) for tile in image.tile]
    covered = sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)
    if covered < image.width * image.height:
        raise DecodeError("broken", "strips are missing")
    for tag in (_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES):
        values = image.tag_v2.get(tag, ())
        # how sparse files leave out blocks, which Pillow takes from the header instead
        if any(value == 0 for value in (values if isinstance(values, tuple) else (values,))):
            raise DecodeError("broken", "strips or tiles are left out")
    if image.mode == "F":
        raise DecodeError("unknown_format", "floating-point samples, which have no white")


def _check_jpeg(data: bytes) -> None:
    # counted loosely first: the bytes of a scan's marker may also stand in thumbnails, and behind the image
    if not _has_one_scan(data) and data.count(b"\xff" + _SCAN) > MAX_SCANS and (scans := _num_scans(data)) > MAX_SCANS:
        raise DecodeError("broken", f"{scans} scans; no encoder writes more than {MAX_SCANS}")


def _has_one_scan(jpeg: bytes) -> bool:
    """Returns whether a JPEG is sequential and its first scan holds all components: libjpeg then takes no second one."""
    components = None
    for marker, offset in _segments(jpeg):
        if marker in _SEQUENTIAL:
            # behind precision (1 byte), height and width (2 each): ITU-T T.81, section B.2.2
            components = jpeg[offset + 5 : offset + 6]
        elif marker == _SCAN:
            return jpeg[offset : offset + 1] == components
    return False


def _num_scans(jpeg: bytes) -> int:
    """Returns the scans of a JPEG's first image."""
    return sum(marker == _SCAN for marker, _ in _segments(jpeg))


def _segments(jpeg: bytes) -> Iterator[tuple[bytes, int]]:
    """Yields marker and place of content of each segment of a JPEG's first image, entropy-coded data passed over."""
    offset = 2
    while (match := _MARKER.search(jpeg, offset)) and match[1] != _END:
        yield match[1], match.end() + 2
        # the segment's own length counts its two bytes
        (size,) = struct.unpack_from(">H", jpeg.ljust(match.end() + 2, b"\0"), match.end())
        offset = match.end() + size


def _check_png(image: Image.Image, data: bytes) -> None:
    chunks = list(itertools.islice(_png_chunks(data), MAX_CHUNKS + 1))
    if len(chunks) > MAX_CHUNKS:
        raise DecodeError("broken", f"more than {MAX_CHUNKS} chunks")
    names = [name for name, _ in chunks]
    if names[0] != b"IHDR" or names.count(b"IHDR") != 1 or len(chunks[0][1]) != 13:
        raise DecodeError("broken", "no header, or several")
    _, _, depth, colour, compression, filtering, interlacing = struct.unpack(">IIBBBBB", chunks[0][1])
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filtering or interlacing > 1:
        raise DecodeError("broken", f"a header that no PNG has: {chunks[0][1].hex()}")
    palettes = [block for name, block in chunks if name == b"PLTE"]
    if colour == 3 and (not palettes or len(palettes[0]) % 3 or not palettes[0]):
        raise DecodeError("broken", "no palette, or one that is cut")
    image.load()
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    rows_are_there = not interlacing and any(last_row.tobytes())
    if not rows_are_there and not _png_is_full([block for name, block in chunks if name == b"IDAT"], chunks[0][1]):
        raise DecodeError("broken", "rows are missing")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yields name and content of each chunk up to the end of a PNG.

    Raises:
        DecodeError: a checksum is wrong, the end is missing, or a chunk that must be understood is not known.
    """
    view, offset, name = memoryview(data), 8, b""
    while name != b"IEND":
        size = int.from_bytes(view[offset : offset + 4], "big")
        name, end = bytes(view[offset + 4 : offset + 8]), offset + 8 + size
        if end + 4 > len(data):
            raise DecodeError("broken", "the file ends before the image's end")
        if zlib.crc32(view[offset + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise DecodeError("broken", f"wrong checksum of chunk {name!r}")
        if name not in _PNG_CRITICAL and not name[0] & 0x20:
            raise DecodeError("broken", f"unknown critical chunk {name!r}")
        yield name, view[offset + 8 : end]
        offset = end + 4


def _png_is_full(blocks: list[memoryview], header: memoryview) -> bool:
    """Returns whether the compressed data hold every row."""
    width, height, depth, colour, _, _, interlacing = struct.unpack(">IIBBBBB", header)
    bits = depth * _PNG_SAMPLES[colour]
    missing = 0
    for row, column, down, across in _PASSES if interlacing else ((0, 0, 1, 1),):
        num_rows, num_columns = len(range(row, height, down)), len(range(column, width, across))
        missing += num_rows * (1 + (num_columns * bits + 7) // 8) if num_columns else 0
    inflater = zlib.decompressobj()
    for block in blocks:
        while len(block) and missing > 0 and not inflater.eof:
            missing -= len(inflater.decompress(block, _BLOCK_BYTES))
            block = memoryview(inflater.unconsumed_tail)
    while missing > 0 and not inflater.eof and (more := inflater.decompress(b"", _BLOCK_BYTES)):
        missing -= len(more)
    return missing <= 0
