"""Hostile TIFFs: directories, strips and tiles that lie."""

import struct

import numpy as np
from PIL import Image

from support.hostile_case import PACKED, Case
from support.media_files import photo, pixels, saved

SIZE = (60, 84)
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, SAMPLES, ROWS, COUNTS = (
    256,
    257,
    258,
    259,
    262,
    273,
    277,
    278,
    279,
)
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 322, 323, 324, 325


def tiff(tags: dict[int, int | tuple[int, ...]], data: bytes = b"", following: int = 0, big: bool = False) -> bytes:
    """Returns a TIFF of one directory: tags as 32-bit numbers, and data from byte 1000 on.

    Args:
        tags: values by tag; several are stored behind the directory.
        data: strips or tiles.
        following: where the next directory is.
        big: whether it is a BigTIFF, with 64-bit places.
    """
    start, count, entry, place = (16, "<Q", "<HHQQ", 8) if big else (8, "<H", "<HHII", 4)
    body, extra = struct.pack(count, len(tags)), b""
    beyond = start + len(body) + struct.calcsize(entry) * len(tags) + place
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(packed) > place:
            packed, extra = struct.pack("<Q" if big else "<I", beyond + len(extra)), extra + packed
        body += struct.pack(entry, tag, 4, len(values), int.from_bytes(packed, "little"))
    body += struct.pack("<Q" if big else "<I", following)
    head = b"II+\0\x08\0\0\0" + struct.pack("<Q", start) if big else b"II*\0" + struct.pack("<I", start)
    return (head + body + extra).ljust(1000, b"\0") + data


def overlapping_tags() -> bytes:
    """Returns a TIFF of half a megabyte whose tags all point to most of it, 8 GB together."""
    entries = b"".join(struct.pack("<HHII", tag, 7, 400_000, 8) for tag in range(1000, 21_000))
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", 20_000) + entries + bytes(4)).ljust(500_000, b"x")


def tiff_cases() -> list[Case]:
    """Returns hostile TIFFs."""
    shows, whole = pixels(*SIZE), photo(SIZE, "TIFF")
    picture, data = Image.fromarray(shows), shows.tobytes()
    height, width = SIZE
    tags: dict[int, int | tuple[int, ...]] = {
        WIDTH: width, HEIGHT: height, BITS: (8, 8, 8), COMPRESSION: 1, PHOTOMETRIC: 2, OFFSETS: 1000, SAMPLES: 3,
        ROWS: height, COUNTS: len(data),
    }  # fmt: skip
    padded_HWC = np.pad(shows, ((0, 4), (0, 12), (0, 0)), mode="edge")
    tiles = b"".join(padded_HWC[y : y + 32, x : x + 32].tobytes() for y in (0, 32) for x in (0, 32, 64))
    tiled = {tag: value for tag, value in tags.items() if tag not in (OFFSETS, ROWS, COUNTS)}
    places, sizes = tuple(1000 + 3072 * n for n in range(6)), (3072,) * 6
    tiled |= {TILE_WIDTH: 32, TILE_HEIGHT: 32, TILE_OFFSETS: places, TILE_COUNTS: sizes}
    packed = {
        name: saved(picture, "TIFF", compression=name)
        for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    }
    pages = saved(picture, "TIFF", save_all=True, append_images=[Image.fromarray(pixels(*SIZE, seed=1))])
    grey = Image.fromarray((shows[:, :, 0] / 255).astype(np.float32))
    cases: list[tuple[str, str, bytes]] = [
        ("whole", PACKED, whole), ("by_hand", PACKED, tiff(tags, data)), ("big", PACKED, tiff(tags, data, big=True)),
        ("tiled", PACKED, tiff(tiled, tiles)), ("many_pages", PACKED, pages),
        *((name, PACKED, data) for name, data in packed.items()),
        *((f"{name}_cut", "broken", data[:8] + data[8 : len(data) // 2]) for name, data in packed.items()),
        ("signature", "broken", whole[:4]), ("header_only", "broken", whole[:8]), ("cut", "broken", tiff(tags, data)[:-100]),
        ("cut_by_one", "broken", tiff(tags, data)[:-1]), ("directory_beyond_end", "broken", b"II*\0\xff\xff\xff\x7f" + bytes(99)),
        ("directory_in_header", "broken", b"II*\0\0\0\0\0" + bytes(99)), ("no_tags", "broken", tiff({})),
        ("next_is_itself", PACKED, tiff(tags, data, following=8)), ("next_beyond_end", PACKED, tiff(tags, data, following=2**31)),
        ("vast", "too_large", tiff(tags | {WIDTH: 50_000, HEIGHT: 50_000, ROWS: 50_000}, data)),
        ("flat", "broken", tiff(tags | {HEIGHT: 0}, data)), ("thin", "broken", tiff(tags | {WIDTH: 0}, data)),
        ("strips_missing", "broken", tiff(tags | {ROWS: 20}, data)), ("rows_0", "broken", tiff(tags | {ROWS: 0}, data)),
        ("taller_than_data", "broken", tiff(tags | {HEIGHT: 600, ROWS: 600}, data)),
        ("strip_beyond_end", "broken", tiff(tags | {OFFSETS: 10**9}, data)),
        ("strip_offsets_missing", "broken", tiff({tag: value for tag, value in tags.items() if tag != OFFSETS}, data)),
        ("bits_7", "broken", tiff(tags | {BITS: (7, 7, 7)}, data)), ("samples_99", "broken", tiff(tags | {SAMPLES: 99}, data)),
        ("compression_999", "broken", tiff(tags | {COMPRESSION: 999}, data)),
        ("lzw_of_pixels", "broken", tiff(tags | {COMPRESSION: 5}, data)),
        ("deflate_of_pixels", "broken", tiff(tags | {COMPRESSION: 8}, data)),
        ("jpeg_of_pixels", "broken", tiff(tags | {COMPRESSION: 7}, data)),
        ("tile_missing", "broken", tiff(tiled | {TILE_OFFSETS: places[:5], TILE_COUNTS: sizes[:5]}, tiles)),
        ("tile_nowhere", "broken", tiff(tiled | {TILE_OFFSETS: (*places[:5], 0), TILE_COUNTS: (*sizes[:5], 0)}, tiles)),
        ("tile_beyond_end", "broken", tiff(tiled | {TILE_OFFSETS: (*places[:5], 10**9)}, tiles)),
        ("tile_of_nothing", "broken", tiff(tiled | {TILE_WIDTH: 0}, tiles)),
        ("tile_cut", "broken", tiff(tiled, tiles[:-600])), ("tile_padding_cut", PACKED, tiff(tiled, tiles[:-100])),
        ("floats", "unknown_format", saved(grey, "TIFF")),
        ("tag_count_vast", "broken", b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", BITS, 3, 2**32 - 1, 8) + bytes(99)),
        ("directory_count_vast", "broken", b"II*\0\x08\0\0\0\xff\xff" + bytes(99)),
        ("tags_overlapping", "broken", overlapping_tags()),
        ("strips_many", "broken", tiff(tags | {HEIGHT: 140_000, WIDTH: 1, ROWS: 1, OFFSETS: (1000,) * 140_000, COUNTS: 3}, data)),
        ("trailing_garbage", PACKED, tiff(tags, data) + b"garbage"),
    ]  # fmt: skip
    return [Case(f"tiff/{name}.tif", end, data, shows if end == PACKED else None) for name, end, data in cases]
