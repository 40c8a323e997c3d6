"""Hostile PNGs: chunks and their checksums, bombs, lies in the header."""

import struct
import zlib

import numpy as np
from PIL import Image

from support.hostile_case import PACKED, Case
from support.media_files import exif_of, photo, pixels, png_of_header, saved

SIZE = (60, 84)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Adam7, PNG specification, section 8.2: first row, first column, row step, column step
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def chunk(name: bytes, data: bytes, checksum: int | None = None) -> bytes:
    """Returns one chunk; its checksum may be wrong."""
    return (
        struct.pack(">I", len(data))
        + name
        + data
        + struct.pack(">I", zlib.crc32(name + data) if checksum is None else checksum)
    )


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Returns the chunks of a PNG: name and data."""
    found, place = [], 8
    while place < len(png):
        size = int.from_bytes(png[place : place + 4], "big")
        found.append((png[place + 4 : place + 8], png[place + 8 : place + 8 + size]))
        place += 12 + size
    return found


def png(*parts: bytes) -> bytes:
    """Returns a PNG of chunks."""
    return SIGNATURE + b"".join(parts)


def header(height: int, width: int, depth: int = 8, colour: int = 2, *methods: int) -> bytes:
    """Returns a header chunk; methods are compression, filter, interlacing."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, *(methods or (0, 0, 0))))


def rows(picture_HWC: np.ndarray, kind: int = 0) -> bytes:
    """Returns the unfiltered rows of an image, each with its filter's number."""
    return b"".join(bytes([kind]) + row.tobytes() for row in picture_HWC)


def png_cases() -> list[Case]:
    """Returns hostile PNGs."""
    shows = pixels(*SIZE)
    cases = _broken_chunks(shows) | _lies(shows) | _odd(shows)
    plain = {"sixteen_bits", "one_pixel", "one_row", "one_column", "grey_column"}
    return [
        Case(f"png/{name}.png", end, data, shows if end == PACKED and name not in plain else None)
        for name, (end, data) in cases.items()
    ]


def _broken_chunks(shows: np.ndarray) -> dict[str, tuple[str, bytes]]:
    whole = saved(Image.fromarray(shows), "PNG")
    data, end = zlib.compress(rows(shows)), chunk(b"IEND", b"")
    head, body = header(*SIZE), chunk(b"IDAT", zlib.compress(rows(shows)))
    half = len(data) // 2
    flipped = data[:half] + bytes([data[half] ^ 16]) + data[half + 1 :]
    return {
        "whole": (PACKED, whole),
        "in_many_chunks": (PACKED, png(head, *(chunk(b"IDAT", data[n : n + 99]) for n in range(0, len(data), 99)), end)),
        "signature": ("broken", whole[:8]),
        "cut_in_header": ("broken", whole[:20]),
        "cut_in_data": ("broken", whole[: len(whole) // 2]),
        "cut_in_data_checksum": ("broken", whole[:-14]),
        "without_end": ("broken", whole[:-12]),
        "cut_in_end": ("broken", whole[:-2]),
        "no_data": ("broken", png(head, end)),
        "header_only": ("broken", png(head)),
        "end_only": ("broken", png(end)),
        "two_headers": ("broken", png(head, header(50, 50), body, end)),
        "header_late": ("broken", png(body, head, end)),
        "checksum_of_header": ("broken", png(head[:-4] + b"\1\2\3\4", body, end)),
        "checksum_of_data": ("broken", png(head, body[:-4] + b"\1\2\3\4", end)),
        "checksum_of_end": ("broken", png(head, body, end[:-4] + b"\1\2\3\4")),
        "checksum_of_text": ("broken", png(head, chunk(b"tEXt", b"Title\0x", 5), body, end)),
        "checksum_of_text_behind": ("broken", png(head, body, chunk(b"tEXt", b"Title\0x", 5), end)),
        "checksum_of_zlib": ("broken", png(head, chunk(b"IDAT", data[:-4] + b"\1\2\3\4"), end)),
        "flipped_in_zlib": ("broken", png(head, chunk(b"IDAT", flipped), end)),
        "flipped_in_data": ("broken", png(head, body[: 8 + half] + flipped[half : half + 1] + body[9 + half :], end)),
        "zlib_cut": ("broken", png(head, chunk(b"IDAT", data[:half]), end)),
        "zlib_of_text": ("broken", png(head, chunk(b"IDAT", b"this is no zlib stream"), end)),
        "rows_missing": ("broken", png(head, chunk(b"IDAT", zlib.compress(rows(shows[:30]))), end)),
        "data_after_end": (PACKED, png(head, body, end, chunk(b"IDAT", data))),
        "trailing_garbage": (PACKED, whole + b"garbage" * 50),
        "twice": (PACKED, whole + whole),
        "data_in_two_places": ("broken", png(
            head, chunk(b"IDAT", data[:half]), chunk(b"tEXt", b"Title\0x"), chunk(b"IDAT", data[half:]), end)),
        "chunk_beyond_end": ("broken", png(head, struct.pack(">I", 2**31 - 1) + b"IDAT" + data)),
        "chunk_size_negative": ("broken", png(head, struct.pack(">I", 2**32 - 1) + b"tEXt" + data)),
        "critical_unknown": ("broken", png(head, chunk(b"ABCD", b"x"), body, end)),
        "apple_variant": ("broken", png(chunk(b"CgBI", bytes(4)), head, body, end)),
        "chunk_name_odd": ("broken", png(head, chunk(b"\0\1\2\3", b""), body, end)),
    }  # fmt: skip


def _lies(shows: np.ndarray) -> dict[str, tuple[str, bytes]]:
    body, end = chunk(b"IDAT", zlib.compress(rows(shows))), chunk(b"IEND", b"")
    head, grey = header(*SIZE), chunk(b"IDAT", zlib.compress(rows(shows[:, :, 0])))
    bomb = zlib.compress(bytes(50_000_000), 9)
    return {
        "vast": ("too_large", png_of_header(50_000, 50_000)),
        "vast_row": ("too_large", png_of_header(1, 2**31 - 1)),
        "side_over_2_31": ("too_large", png_of_header(10, 2**32 - 1)),
        "flat": ("broken", png_of_header(0, 10)),
        "thin": ("broken", png_of_header(10, 0)),
        "taller_than_data": ("broken", png(header(600, 84), body, end)),
        "depth_3": ("broken", png(header(*SIZE, 3), body, end)),
        "colour_5": ("broken", png(header(*SIZE, 8, 5), body, end)),
        "compression_1": ("broken", png(header(*SIZE, 8, 2, 1, 0, 0), body, end)),
        "filter_method_1": ("broken", png(header(*SIZE, 8, 2, 0, 1, 0), body, end)),
        "interlacing_2": ("broken", png(header(*SIZE, 8, 2, 0, 0, 2), body, end)),
        "filter_9": ("broken", png(head, chunk(b"IDAT", zlib.compress(rows(shows, 9))), end)),
        "palette_missing": ("broken", png(header(*SIZE, 8, 3), grey, end)),
        "palette_of_5_bytes": ("broken", png(header(*SIZE, 8, 3), chunk(b"PLTE", b"12345"), grey, end)),
        "text_bomb": ("broken", png(head, chunk(b"zTXt", b"Title\0\0" + bomb), body, end)),
        "text_bomb_behind": ("broken", png(head, body, chunk(b"zTXt", b"Title\0\0" + bomb), end)),
        "unicode_bomb": ("broken", png(head, chunk(b"iTXt", b"Title\0\1\0\0\0" + bomb), body, end)),
        "profile_bomb": ("broken", png(head, chunk(b"iCCP", b"profile\0\0" + bomb), body, end)),
        "chunks_many": ("broken", png(head, chunk(b"tEXt", b"a\0b") * 120_000, body, end)),
        "data_in_empty_chunks": ("broken", png(head, chunk(b"IDAT", b"") * (2**18 + 1), body, end)),
        "data_bomb": (PACKED, png(head, chunk(b"IDAT", zlib.compress(rows(shows) + bytes(20_000_000))), end)),
    }


def _odd(shows: np.ndarray) -> dict[str, tuple[str, bytes]]:
    picture, height = Image.fromarray(shows), SIZE[0]
    head, body, end = header(*SIZE), chunk(b"IDAT", zlib.compress(rows(shows))), chunk(b"IEND", b"")
    passes = (shows[y::down, x::across] for y, x, down, across in PASSES)
    woven = b"".join(rows(part) for part in passes if part.size)
    interlaced = png(header(*SIZE, 8, 2, 0, 0, 1), chunk(b"IDAT", zlib.compress(woven)), end)
    frames = [Image.fromarray(pixels(*SIZE, seed=seed)) for seed in range(3)]
    animated = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=100)
    parts = chunks(animated)
    later = [number for number, (name, _) in enumerate(parts) if name == b"fdAT"]
    damaged = png(*(chunk(name, data[:4] + bytes(len(data) - 4) if number == later[0] else data)
                    for number, (name, data) in enumerate(parts)))  # fmt: skip
    wide = np.broadcast_to(np.array([10, 200, 90], np.uint8), (1, 30_000, 3))
    return {
        "interlaced": (PACKED, interlaced),
        "interlaced_cut": ("broken", interlaced[: len(interlaced) * 2 // 3]),
        "interlaced_rows_missing": ("broken", png(
            header(*SIZE, 8, 2, 0, 0, 1), chunk(b"IDAT", zlib.compress(woven[: len(woven) // 2])), end)),
        "animated": (PACKED, animated),
        "animated_second_frame_damaged": (PACKED, damaged),
        "animated_control_damaged": ("broken", png(head, chunk(b"acTL", b"\0"), body, end)),
        "animated_of_0_frames": (PACKED, png(head, chunk(b"acTL", bytes(8)), body, end)),
        "ancillary_unknown": (PACKED, png(head, chunk(b"abCd", b"x" * 999), body, end)),
        "profile_of_text": (PACKED, png(head, chunk(b"iCCP", b"p\0\0" + zlib.compress(b"this is no profile")), body, end)),
        "exif_huge": (PACKED, png(head, chunk(b"eXIf", b"II*\0" + bytes(5_000_000)), body, end)),
        "exif_of_text": (PACKED, png(head, chunk(b"eXIf", b"this is no directory"), body, end)),
        "orientation_9": (PACKED, saved(picture, "PNG", exif=exif_of(9))),
        "sixteen_bits": (PACKED, photo(SIZE, "PNG", "I;16")),
        "one_pixel": (PACKED, photo((1, 1), "PNG")),
        "one_row": (PACKED, png(header(1, 30_000), chunk(b"IDAT", zlib.compress(rows(wide))), end)),
        "one_column": (PACKED, png(header(30_000, 1), chunk(b"IDAT", zlib.compress(rows(wide.transpose(1, 0, 2)))), end)),
        "grey_column": (PACKED, png(header(height, 1, 8, 0), chunk(b"IDAT", zlib.compress(rows(shows[:, :1, 0]))), end)),
    }  # fmt: skip


__all__ = ["chunk", "chunks", "header", "png", "png_cases", "rows"]
