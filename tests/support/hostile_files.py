"""The corpus of hostile files: a name, what it holds, and how it must end. Deterministic, small, made in a second.

Bytes come from `hostile_images`, `hostile_videos` and here (what is no medium at all); entries of a folder that are
no files are made by `write_places`.
"""

import gzip
import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from support.hostile_case import PACKED, Case
from support.hostile_images import image_cases
from support.hostile_videos import video_cases
from support.media_files import photo, pixels, video

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>404</body></html>\n"


def corpus() -> list[Case]:
    """Returns every hostile file that is made of bytes alone; names are distinct."""
    cases = [*image_cases(), *video_cases(), *stranger_cases(), *named_wrongly()]
    assert len({case.name for case in cases}) == len(cases)
    return cases


def stranger_cases() -> list[Case]:
    """Returns files that are no image or video that patchpack reads, under names that say otherwise."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("a.txt"), "text")
    wave = (
        b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16) + b"data" + struct.pack("<I", 800) + bytes(800)
    )
    contents = {
        "text.jpg": b"this is no picture\n",
        "one_byte.jpg": b"\xff",
        "letters_bm.jpg": b"BYE",
        "html.jpg": HTML,
        "html_after_space.jpg": b"\n\n  " + HTML,
        "html_after_mark.png": b"\xef\xbb\xbf" + HTML,
        "html.mp4": HTML,
        "xml.jpg": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "svg.jpg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        "svg_in_xml.png": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        "json.jpg": b'{"error": "rate limited"}',
        "utf16.jpg": "this is no image".encode("utf-16"),
        "gzip.jpg": gzip.compress(photo(), mtime=0),
        "empty_gzip.jpg": gzip.compress(b"", mtime=0),
        "zlib.png": zlib.compress(photo((8, 8), "PNG")),
        "zip.jpg": archive.getvalue(),
        "pdf.jpg": b"%PDF-1.7\n1 0 obj <</Type/Catalog>> endobj\ntrailer <</Root 1 0 R>>\n%%EOF\n",
        "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n",
        "eps_dos.jpg": b"\xc5\xd0\xd3\xc6" + bytes(60),
        "wmf.bmp": b"\xd7\xcd\xc6\x9a" + bytes(60),
        "emf.bmp": struct.pack("<II", 1, 100) + bytes(32) + b" EMF" + bytes(60),
        "xcf.png": b"gimp xcf v011\0" + struct.pack(">III", 64, 64, 0),
        "psd.tif": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 64, 64, 8, 3) + bytes(12),
        "icon.png": b"\0\0\1\0\1\0\1\1\0\0\1\0\x20\0" + struct.pack("<II", 40, 22) + bytes(40),
        "icon_lying.png": b"\0\0\1\0\xff\xff" + b"\xff" * 16,
        "cursor.png": b"\0\0\2\0\1\0" + bytes(16),
        "targa.bmp": b"\0\0\2"
        + bytes(9)
        + struct.pack("<HHBB", 8, 8, 24, 0)
        + bytes(192)
        + b"\0" * 8
        + b"TRUEVISION-XFILE.\0",
        "portable.png": b"P6\n8 8\n255\n" + bytes(192),
        "jpeg_2000.jpg": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 ",
        "codestream.jpg": b"\xff\x4f\xff\x51\0\x29" + bytes(41),
        "jpeg_xl.jpg": b"\xff\x0a" + bytes(40),
        "jpeg_xl_box.jpg": b"\0\0\0\x0cJXL \r\n\x87\n",
        "jpeg_xr.jpg": b"II\xbc\x01" + bytes(60),
        "dds.png": b"DDS |\0\0\0" + bytes(120),
        "exr.tif": b"\x76\x2f\x31\x01\2\0\0\0" + bytes(60),
        "radiance.tif": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n\1\1\1\1",
        "mng.png": b"\x8aMNG\r\n\x1a\n" + bytes(40),
        "mp3.mp4": b"ID3\4\0\0\0\0\0\0" + b"\xff\xfb\x90\0" + bytes(413),
        "mp3_bare.jpg": b"\xff\xfb\x90\0" + bytes(413),
        "wave.avi": b"RIFF" + struct.pack("<I", 4 + len(wave)) + b"WAVE" + wave,
        "flac.mp4": b"fLaC\0\0\0\x22" + bytes(34),
        "program.jpg": b"\x7fELF\2\1\1" + bytes(57),
        "program.png": b"MZ\x90\0" + bytes(60),
        "script.mp4": b"#!/bin/sh\nrm -rf /\n",
        "sqlite.jpg": b"SQLite format 3\0" + bytes(84),
        "pickle.jpg": b"\x80\4\x95\x1d\0\0\0\0\0\0\0\x8c\5posix\x94\x8c\6system\x94\x93\x94.",
        "zeros.jpg": bytes(4096),
        "zeros.mp4": bytes(4096),
        "ones.png": b"\xff" * 4096,
        "ones.mp4": b"\xff" * 4096,
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n/etc/passwd\n",
        "concat.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "session.mp4": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "dash.mp4": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"/>',
        "yuv4mpeg.mp4": b"YUV4MPEG2 W4 H4 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(24),
        "noise.jpg": np.random.default_rng(1).integers(0, 256, 5000, np.uint8).tobytes(),
        "shifted.jpg": b"\n" + photo(),
        "as_text.png": photo((16, 16), "PNG").replace(b"\r\n", b"\n"),
        "base64.jpg": b"data:image/jpeg;base64,/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgG",
    }
    cases = [Case(f"strangers/{name}", "unknown_format", data) for name, data in contents.items()]
    heic = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(40)
    cases += [Case("strangers/heic.avif", "broken", heic)]
    pointers = {
        "pointer.jpg": LFS_POINTER,
        "pointer.mp4": LFS_POINTER,
        "pointer_crlf.png": LFS_POINTER.replace(b"\n", b"\r\n"),
    }
    cases += [Case(f"strangers/{name}", "lfs_pointer", data) for name, data in pointers.items()]
    cases += [Case(f"strangers/empty{suffix}", "empty", b"") for suffix in (".jpg", ".png", ".mp4", ".mkv")]
    return cases


def named_wrongly() -> list[Case]:
    """Returns sound media whose names lie or are odd: all are packed, by their content."""
    shows = pixels(48, 72)
    jpeg = photo((48, 72))
    return [
        Case("names/webp.jpg", PACKED, photo((48, 72), "WEBP"), shows),
        Case("names/png.jpg", PACKED, photo((48, 72), "PNG"), shows),
        Case("names/jpeg.png", PACKED, jpeg, shows),
        Case("names/tiff.gif", PACKED, photo((48, 72), "TIFF"), shows),
        Case("names/picture.mp4", PACKED, jpeg, shows),
        Case("names/mkv.avi", PACKED, video(format="matroska")),
        Case("names/video.jpg", PACKED, video()),
        Case("names/CAPITALS.JPG", PACKED, jpeg, shows),
        Case("names/new\nline.jpg", PACKED, jpeg, shows),
        Case("names/carriage\rreturn\t.jpg", PACKED, jpeg, shows),
        Case("names/\x1b[31mred\x07.jpg", PACKED, jpeg, shows),
        Case("names/quo\"te'.jpg", PACKED, jpeg, shows),
        Case("names/back\\slash.jpg", PACKED, jpeg, shows),
        Case("names/-dash.jpg", PACKED, jpeg, shows),
        Case("names/ space .jpg", PACKED, jpeg, shows),
        Case("names/[a-z]*?.jpg", PACKED, jpeg, shows),
        Case("names/100%.jpg", PACKED, jpeg, shows),
        Case("names/%41%.jpg", PACKED, jpeg, shows),
        Case("names/日本語 \N{PILE OF POO}.jpg", PACKED, jpeg, shows),
        Case("names/u\N{COMBINING DIAERESIS}.jpg", PACKED, jpeg, shows),
        Case("names/\N{LATIN SMALL LETTER U WITH DIAERESIS}.jpg", PACKED, jpeg, shows),
        Case("names/right\N{RIGHT-TO-LEFT OVERRIDE}gpj.jpg", PACKED, jpeg, shows),
        Case("names/" + "n" * 251 + ".jpg", PACKED, jpeg, shows),
        Case("names/" + "/".join(["deep"] * 60) + "/a.jpg", PACKED, jpeg, shows),
        Case("names/" + os.fsdecode(b"latin-\xe9.jpg"), PACKED, jpeg, shows),
        Case("names/" + os.fsdecode(b"\xff\xfe.jpg"), PACKED, jpeg, shows),
        Case("names/" + os.fsdecode(b"half \xe6\x97.jpg"), PACKED, jpeg, shows),
    ]  # fmt: skip


def write_corpus(folder: Path, cases: list[Case]) -> None:
    """Writes the files of a corpus below a folder; names may be no UTF-8."""
    for case in cases:
        path = os.path.join(folder, case.name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(case.data)


def write_places(folder: Path) -> dict[str, str]:
    """Makes what is in a folder under an image's name and is no usual file; returns how each must end, by name.

    Sizes stand for sparse files of that many bytes: they take no room, and must not be read.
    """
    place = folder / "places"
    (place / "folder.jpg").mkdir(parents=True)
    (place / "dangling.jpg").symlink_to(place / "not there.jpg")
    (place / "itself.jpg").symlink_to(place / "itself.jpg")
    (place / "there.jpg").symlink_to(place / "and back.jpg")
    (place / "and back.jpg").symlink_to(place / "there.jpg")
    (place / "loop").symlink_to(folder)
    (place / "device.jpg").symlink_to("/dev/zero")
    (place / "sound.jpg").write_bytes(photo((48, 72)))
    (place / "link.jpg").symlink_to(place / "sound.jpg")
    os.mkfifo(place / "pipe.jpg")
    os.mkfifo(place / "pipe.mp4")
    heads = {"zeros.jpg": b"", "jpeg.jpg": photo((48, 72)), "png.png": photo((48, 72), "PNG"), "mp4.mp4": video()}
    for name, head in heads.items():
        with (place / f"sparse_{name}").open("wb") as file:
            file.write(head)
            file.truncate(2**30)
    ends = {
        "dangling.jpg": "not_found",
        "itself.jpg": "unreadable",
        "there.jpg": "unreadable",
        "and back.jpg": "unreadable",
    }
    ends |= {"device.jpg": "not_a_file", "pipe.jpg": "not_a_file", "pipe.mp4": "not_a_file"}
    ends |= {f"sparse_{name}": "too_large" for name in heads}
    ends |= {"sound.jpg": PACKED, "link.jpg": PACKED}
    return {f"places/{name}": end for name, end in ends.items()}
