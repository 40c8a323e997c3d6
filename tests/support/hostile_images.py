"""Hostile images, by format: cut, damaged, lying, too large, and the odd ones that are intact after all."""

import struct

import numpy as np
from PIL import Image

from support.hostile_case import PACKED, Case, edited
from support.hostile_png import png_cases
from support.hostile_tiff import tiff_cases
from support.media_files import animated_gif, exif_of, photo, pixels, saved

SIZE = (60, 84)
SHOWS = pixels(*SIZE)
PICTURE = Image.fromarray(SHOWS)


def image_cases() -> list[Case]:
    """Returns hostile images of every format."""
    return [*png_cases(), *jpeg_cases(), *gif_cases(), *webp_cases(), *bmp_cases(), *tiff_cases(), *avif_cases()]


def segments(jpeg: bytes) -> list[bytes]:
    """Returns a JPEG cut before each marker; entropy-coded data stay with their start-of-scan."""
    found, place = [jpeg[:2]], 2
    while place < len(jpeg):
        size = 2 if jpeg[place + 1] == 0xD9 else 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        end = place + size
        if jpeg[place + 1] == 0xDA:
            while not (jpeg[end] == 0xFF and jpeg[end + 1] not in (0, *range(0xD0, 0xD8))):
                end += 1
        found.append(jpeg[place:end])
        place = end
    return found


def segment(marker: int, data: bytes, size: int | None = None) -> bytes:
    """Returns one segment of a JPEG; its size may lie."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2 if size is None else size) + data


def jpeg_cases() -> list[Case]:
    """Returns hostile JPEGs."""
    jpeg, progressive = photo(SIZE), saved(PICTURE, "JPEG", quality=92, progressive=True)
    restarts = saved(PICTURE, "JPEG", quality=92, restart_marker_blocks=4)
    cmyk, grey = photo(SIZE, mode="CMYK"), photo(SIZE, mode="L")
    parts = segments(jpeg)
    frame = next(part for part in parts if part[1] == 0xC0)
    at, scan = jpeg.index(frame), jpeg.index(b"\xff\xda") + 14
    middle = (scan + len(jpeg)) // 2
    sized = [
        edited(frame, 5, struct.pack(">HH", *size))
        for size in ((0, 84), (60, 0), (65_500, 65_500), (600, 84), (16, 84))
    ]
    flat, thin, vast, taller, lower = (jpeg.replace(frame, other) for other in sized)
    vast_frame, entries = sized[2], overlapping()
    cases: list[tuple[str, str, bytes]] = [
        ("whole", PACKED, jpeg), ("progressive", PACKED, progressive), ("restarts", PACKED, restarts),
        ("signature", "broken", jpeg[:3]), ("start_and_end", "broken", b"\xff\xd8\xff\xd9"),
        ("cut_in_frame_header", "broken", jpeg[: at + 6]), ("cut_before_scan", "broken", jpeg[: scan - 14]),
        ("cut_after_scan_header", "broken", jpeg[:scan]), ("cut_in_scan", "broken", jpeg[:middle]),
        ("cut_near_end", "broken", jpeg[:-40]), ("without_end_marker", "broken", jpeg[:-2]),
        ("half_an_end_marker", "broken", jpeg[:-1]), ("end_marker_early", "broken", jpeg[:middle] + b"\xff\xd9"),
        ("progressive_cut", "broken", progressive[: len(progressive) // 2]),
        ("progressive_without_end", "broken", progressive[:-2]),
        ("progressive_scans_missing", "broken", progressive[: progressive.rindex(b"\xff\xda")]),
        ("zeros_in_scan", "broken", edited(jpeg, middle, bytes(600))),
        ("marker_in_scan", "broken", edited(jpeg, middle, b"\xff\xc0")),
        ("restarts_swapped", "broken", restarts.replace(b"\xff\xd1", b"\xff\xd5", 1)),
        ("restart_missing", "broken", restarts.replace(b"\xff\xd1", b"", 1)),
        ("flipped_marker", "broken", jpeg.replace(b"\xff\xda", b"\xff\x25")),
        ("bytes_before_marker", PACKED, jpeg.replace(frame, b"\x12\x34" + frame)),
        ("fill_before_marker", PACKED, jpeg.replace(frame, b"\xff\xff\xff" + frame)),
        ("trailing_garbage", PACKED, jpeg + b"garbage" * 100), ("trailing_zeros", PACKED, jpeg + bytes(5000)),
        ("twice", PACKED, jpeg + jpeg), ("archive_behind", PACKED, jpeg + b"PK\3\4" + bytes(100)),
        ("many_scans_behind", PACKED, jpeg + b"\xff\xda\0\x0c" * 5000),
        ("html_inside", PACKED, jpeg[:2] + segment(0xFE, b"<html><script>alert(1)</script></html>") + jpeg[2:]),
        ("two_frames_second_vast", "too_large", jpeg.replace(frame, frame + vast_frame)),
        ("two_frames_first_vast", "broken", jpeg.replace(frame, vast_frame + frame)),
        ("second_frame_in_scan", "broken", jpeg[:middle] + vast_frame + jpeg[middle:]),
        ("hidden_frame", "broken", jpeg.replace(frame, vast_frame[:-1] + b"\0" + frame)),
        ("flat", "broken", flat), ("thin", "broken", thin), ("vast", "too_large", vast),
        ("taller_than_data", "broken", taller), ("lower_than_data", "broken", lower),
        ("no_huffman_tables", PACKED, b"".join(part for part in parts if part[1] != 0xC4)),
        ("no_quantisation", "broken", b"".join(part for part in parts if part[1] != 0xDB)),
        ("huffman_of_ones", "broken", jpeg.replace(b"\xff\xc4", b"\xff\xc4\0\x13\0" + b"\xff" * 16 + b"\xff\xc4", 1)),
        ("twelve_bits", "broken", jpeg.replace(frame, edited(frame, 4, b"\x0c"))),
        ("components_0", "broken", jpeg.replace(frame, edited(frame, 9, b"\0"))),
        ("components_200", "broken", jpeg.replace(frame, edited(frame, 9, b"\xc8"))),
        ("sampling_15", "broken", jpeg.replace(frame, edited(frame, 11, b"\xff"))),
        *((f"coding_{name}", "broken", jpeg.replace(frame, edited(frame, 1, bytes([marker])))) for name, marker in (
            ("lossless", 0xC3), ("differential", 0xC5), ("arithmetic", 0xC9), ("arithmetic_lossless", 0xCB), ("ls", 0xF7))),
        ("segment_size_0", PACKED, jpeg[:2] + segment(0xE5, b"", 0) + jpeg[2:]),
        ("segment_size_1", PACKED, jpeg[:2] + segment(0xE5, b"", 1) + jpeg[2:]),
        ("segment_beyond_end", "broken", jpeg[:2] + segment(0xE5, b"", 65_535) + jpeg[2:]),
        ("scans_2000", "broken", many_scans(progressive, 2000)),
        ("grey", PACKED, grey), ("grey_without_end", "broken", grey[:-2]),
        ("cmyk", PACKED, cmyk), ("cmyk_cut", "broken", cmyk[:-500]), ("cmyk_without_end", "broken", cmyk[:-2]),
        ("cmyk_damaged", "broken", edited(cmyk, len(cmyk) * 3 // 4, b"\xff\xd9")),
        ("exif_of_text", PACKED, photo_with(b"Exif\0\0this is no directory")),
        ("exif_beyond_end", PACKED, photo_with(b"Exif\0\0II*\0\xff\xff\xff\x7f")),
        ("exif_in_loop", PACKED, photo_with(b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0")),
        ("exif_huge", PACKED, jpeg[:2] + segment(0xE1, b"Exif\0\0".ljust(65_000, b"x")) * 20 + jpeg[2:]),
        ("exif_overlapping", PACKED, jpeg[:2] + b"".join(
            segment(0xE1, b"Exif\0\0" + entries[n : n + 65_000]) for n in range(0, len(entries), 65_000)) + jpeg[2:]),
        ("segments_many", "broken", jpeg[:2] + segment(0xE5, b"") * 90_000 + jpeg[2:]),
        ("orientation_0", PACKED, photo(SIZE, orientation=0)), ("orientation_9", PACKED, photo(SIZE, orientation=9)),
        ("profile_of_text", PACKED, saved(PICTURE, "JPEG", quality=92, icc_profile=b"this is no profile" * 20)),
        ("profile_in_parts_missing", PACKED, jpeg[:2] + segment(0xE2, b"ICC_PROFILE\0\2\3" + bytes(200)) + jpeg[2:]),
        ("xmp_of_noise", PACKED, jpeg[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<<<" * 9) + jpeg[2:]),
        ("many_pictures_lying", PACKED, jpeg[:2] + segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff") + jpeg[2:]),
        ("jfif_lying", PACKED, jpeg.replace(b"JFIF\0\1\1", b"JFIF\0\xff\xff")),
    ]  # fmt: skip
    return [Case(f"jpeg/{name}.jpg", end, data, SHOWS if end == PACKED and not name.startswith(("grey", "cmyk")) else None)
            for name, end, data in cases]  # fmt: skip


def photo_with(exif: bytes) -> bytes:
    """Returns a JPEG with EXIF data as given."""
    return saved(PICTURE, "JPEG", quality=92, exif=exif)


def many_scans(progressive: bytes, count: int) -> bytes:
    """Returns a progressive JPEG whose last scan comes again and again: seconds of work in few bytes, if it were large."""
    parts = segments(progressive)
    last = max(number for number, part in enumerate(parts) if part[1] == 0xDA)
    return b"".join([*parts[: last + 1], *parts[last : last + 1] * count, *parts[last + 1 :]])


def overlapping() -> bytes:
    """Returns a TIFF or EXIF directory of a megabyte: its entries all point to nine tenths of it, 40 GB together."""
    entries = b"".join(struct.pack("<HHII", tag, 7, 900_000, 8) for tag in range(1000, 41_000))
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", 40_000) + entries + bytes(4)).ljust(1_000_000, b"x")


def gif_cases() -> list[Case]:
    """Returns hostile GIFs."""
    gif, animated = photo(SIZE, "GIF", "P"), animated_gif(SIZE)
    image = gif.index(b"\x2c\0\0\0\0")
    code_size = gif.index(b"\x2c\0\0\0\0") + 10 + (3 * 2 ** ((gif[image + 9] & 7) + 1) if gif[image + 9] & 0x80 else 0)
    second = [place for place in range(len(animated)) if animated.startswith(b"\x21\xf9\x04", place)][1]
    vast = edited(gif, image + 5, struct.pack("<HH", 50_000, 50_000))
    cases = [
        ("whole", PACKED, gif), ("animated", PACKED, animated), ("signature", "broken", gif[:6]),
        ("header_only", "broken", gif[:13]), ("no_frames", "broken", gif[:image] + b";"), ("cut_in_palette", "broken", gif[:100]),
        ("cut_in_frame_header", "broken", gif[: image + 6]), ("cut_in_data", "broken", gif[: len(gif) * 2 // 3]),
        ("without_trailer", PACKED, gif[:-1]), ("trailing_garbage", PACKED, gif + b"garbage" * 9),
        ("code_size_0", "broken", edited(gif, code_size, b"\0")), ("code_size_13", "broken", edited(gif, code_size, b"\x0d")),
        ("data_of_ones", "broken", edited(gif, code_size + 2, b"\xff" * 250)),
        ("ended_early", "broken", gif[: code_size + 258] + b"\0;"),
        ("frame_beyond_screen", "too_large", vast),
        ("frame_far_outside", "too_large", edited(gif, image + 1, b"\xff\xff\xff\xff")),
        ("screen_vast", "too_large", edited(gif, 6, struct.pack("<HH", 65_535, 65_535))),
        ("screen_of_nothing", PACKED, edited(gif, 6, bytes(4))),
        ("frame_of_nothing", "broken", edited(gif, image + 5, bytes(4))),
        ("second_frame_cut", PACKED, animated[: second + 30]),
        ("second_frame_vast", PACKED, animated[:second] + animated[second:].replace(
            struct.pack("<HH", SIZE[1], SIZE[0]), struct.pack("<HH", 50_000, 50_000))),
        ("comment_long", "broken", gif[:image] + b"\x21\xfe" + (b"\xff" + b"x" * 255) * 5000 + b"\0" + gif[image:]),
        ("comments_many", "broken", gif[:image] + b"\x21\xfe\x01x\0" * 90_000 + gif[image:]),
        ("comment_usual", PACKED, gif[:image] + b"\x21\xfe" + (b"\xff" + b"x" * 255) * 50 + b"\0" + gif[image:]),
        ("comment_without_end", "broken", gif[:image] + b"\x21\xfe" + b"\xffx" * 5000),
        ("extensions_without_end", "broken", gif[:image] + b"\x21\xf9\x04\0\0\0\0\0" * 20_000),
    ]  # fmt: skip
    return [Case(f"gif/{name}.gif", end, data) for name, end, data in cases]


def webp_cases() -> list[Case]:
    """Returns hostile WebPs."""
    lossy, lossless = photo(SIZE, "WEBP"), saved(PICTURE, "WEBP", lossless=True)
    frames = [Image.fromarray(pixels(*SIZE, seed=seed)) for seed in range(3)]
    animated = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], quality=90)
    extended = saved(PICTURE, "WEBP", quality=92, exif=exif_of(1))
    canvas = extended.index(b"VP8X") + 12
    second = animated.index(b"ANMF", animated.index(b"ANMF") + 4)
    alpha = photo(SIZE, "WEBP", "RGBA")
    cases = [
        ("whole", PACKED, lossy), ("lossless", PACKED, lossless), ("animated", PACKED, animated),
        ("signature", "broken", lossy[:12]), ("header_only", "broken", lossy[:30]), ("cut", "broken", lossy[:-200]),
        ("cut_by_one", "broken", lossy[:-1]), ("lossless_cut", "broken", lossless[: len(lossless) // 2]),
        ("alpha_cut", "broken", alpha[: len(alpha) // 2]), ("trailing_garbage", PACKED, lossy + b"garbage" * 9),
        ("size_0", "broken", edited(lossy, 4, bytes(4))), ("size_small", "broken", edited(lossy, 4, struct.pack("<I", 200))),
        ("size_large", "broken", edited(lossy, 4, struct.pack("<I", 2**31))),
        ("chunk_size_large", "broken", edited(lossy, 16, struct.pack("<I", 2**31))),
        ("chunk_unknown", "broken", edited(lossy, 12, b"ZZZZ")), ("start_code_wrong", "broken", edited(lossy, 23, b"\0\0\0")),
        ("size_in_frame_0", "broken", edited(lossy, 26, bytes(4))),
        ("canvas_lying", "broken", edited(extended, canvas, struct.pack("<I", 200)[:3] + struct.pack("<I", 200)[:3])),
        ("canvas_vast", "broken", edited(extended, canvas, b"\xff\x3f\0\xff\x3f\0")),
        ("noise_in_data", "broken", edited(lossless, 60, np.random.default_rng(3).integers(0, 256, 400, np.uint8).tobytes())),
        ("animated_cut_in_second", "broken", animated[: second + 40]),
        ("animated_without_frames", "broken", animated[: animated.index(b"ANMF")]),
        ("second_frame_damaged", "broken", edited(animated, second + 40, bytes(200))),
    ]  # fmt: skip
    return [Case(f"webp/{name}.webp", end, data, SHOWS if end == PACKED and name != "size_lying" else None)
            for name, end, data in cases]  # fmt: skip


def bmp_cases() -> list[Case]:
    """Returns hostile BMPs."""
    bmp, palette = photo(SIZE, "BMP"), photo(SIZE, "BMP", "P")
    upside = edited(bmp, 22, struct.pack("<i", -SIZE[0]))
    rle = palette[:30] + struct.pack("<I", 1) + palette[34:]
    cases = [
        ("whole", PACKED, bmp), ("palette", PACKED, palette), ("top_down", PACKED, upside), ("signature", "broken", b"BM"),
        ("letters", "broken", b"BMW makes cars, and this is no picture at all, but text"),
        ("header_only", "broken", bmp[:54]), ("cut", "broken", bmp[:-2000]), ("cut_by_one", "broken", bmp[:-1]),
        ("trailing_garbage", PACKED, bmp + b"garbage" * 9), ("width_0", "broken", edited(bmp, 18, bytes(4))),
        ("height_0", "broken", edited(bmp, 22, bytes(4))), ("width_negative", "too_large", edited(bmp, 18, struct.pack("<i", -84))),
        ("vast", "too_large", edited(bmp, 18, struct.pack("<ii", 50_000, 50_000))),
        ("height_least", "too_large", edited(bmp, 22, struct.pack("<i", -(2**31)))),
        ("bits_7", "broken", edited(bmp, 28, b"\7\0")), ("compression_99", "broken", edited(bmp, 30, b"\x63\0\0\0")),
        ("header_size_9999", "broken", edited(bmp, 14, struct.pack("<I", 9999))),
        ("data_beyond_end", "broken", edited(bmp, 10, struct.pack("<I", 10**9))),
        ("colours_many", "broken", edited(palette, 46, struct.pack("<I", 2**31))),
        ("rle_of_pixels", "broken", rle), ("rle_ended_early", "broken", rle[:1078] + b"\0\1"),
    ]  # fmt: skip
    return [Case(f"bmp/{name}.bmp", end, data, None) for name, end, data in cases]


def avif_cases() -> list[Case]:
    """Returns hostile AVIFs."""
    avif = photo(SIZE, "AVIF")
    size, data = avif.index(b"ispe") + 8, avif.index(b"mdat") + 4
    cases = [
        ("whole", PACKED, avif), ("signature", "broken", avif[:16]), ("header_only", "broken", avif[: data - 8]),
        ("cut", "broken", avif[:-200]), ("cut_by_one", "broken", avif[:-1]), ("trailing_garbage", PACKED, avif + bytes(90)),
        ("size_lying", PACKED, edited(avif, size, struct.pack(">II", 300, 300))),
        ("size_vast", "broken", edited(avif, size, struct.pack(">II", 50_000, 50_000))),
        ("size_0", "broken", edited(avif, size, bytes(8))), ("data_zeroed", "broken", edited(avif, data, bytes(len(avif) - data))),
        ("no_items", "broken", avif.replace(b"iloc", b"free")), ("box_beyond_end", "broken", avif.replace(b"\0\0\0", b"\x7f\0\0", 2)),
    ]  # fmt: skip
    return [Case(f"avif/{name}.avif", end, data, SHOWS if end == PACKED and name != "size_lying" else None)
            for name, end, data in cases]  # fmt: skip
