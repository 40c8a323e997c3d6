"""What a file is, by its first bytes: names lie, and neither Pillow nor FFmpeg should guess among all they know.

Magic numbers: the formats' own specifications, as collected in Pillow's plugins and FFmpeg's probes.
"""

# enough for every signature below, two MPEG-TS packets included
SNIFF_BYTES = 1024

_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# top-level boxes that a QuickTime or MP4 file may begin with
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


# what is often found under the names of images and videos; only for the reject's words, so a short list
_STRANGERS = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML document"),
    (b"{", "JSON or another text"),
    (b"%pdf", "a PDF document"),
    (b"%!ps", "PostScript"),
    (b"\x1f\x8b", "gzip data"),
    (b"pk\3\4", "a ZIP archive"),
    (b"8bps", "a Photoshop file"),
    (b"\0\0\1\0", "an icon"),
    (b"\0\0\0\x0cjp  ", "a JPEG 2000 image"),
    (b"#extm3u", "a playlist"),
    (b"id3", "an MP3 file"),
)
# the first line of a pointer, https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def kind_of(head: bytes) -> str:
    """Returns "image", "video", "lfs_pointer" or "unknown" for the first SNIFF_BYTES of a file."""
    if head.startswith(_LFS_POINTER):
        return "lfs_pointer"
    return "image" if _is_image(head) else "video" if _is_video(head) else "unknown"


def described(head: bytes) -> str:
    """Returns what a file of unknown kind is, in words, as far as its beginning shows."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    words = [word for signature, word in _STRANGERS if start.startswith(signature) or head.startswith(signature)]
    return f"{words[0]}, by its first bytes" if words else f"begins with {head[:12]!r}"


def is_heif(head: bytes) -> bool:
    """Returns whether the first SNIFF_BYTES of a file are those of a HEIF image that is no AVIF."""
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS:
        return False
    # mif1 and msf1 are generic: both name them, and AVIF then stands among the compatible brands
    size = int.from_bytes(head[:4], "big")
    brands = [head[offset : offset + 4] for offset in range(8, min(size, len(head)), 4)]
    return not any(brand in _AVIF_BRANDS for brand in brands)


def _is_image(head: bytes) -> bool:
    if head[4:8] == b"ftyp":
        return head[8:12] in _AVIF_BRANDS or head[8:12] in _HEIF_BRANDS
    return head.startswith(
        (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    ) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")


def _is_video(head: bytes) -> bool:
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return False
    if head.startswith((b"\x1aE\xdf\xa3", b"FLV\x01", b"OggS", b"\0\0\1\xba", b"\0\0\1\xb3", b"0&\xb2u\x8ef\xcf\x11")):
        return True
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return True
    # MPEG-TS: a sync byte every 188 bytes, or every 192 after a 4-byte time code
    is_ts = len(head) > 576 and (head[0] == head[188] == head[376] == 0x47 or head[4] == head[196] == head[388] == 0x47)
    return is_ts or head[4:8] in _MOV_BOXES
