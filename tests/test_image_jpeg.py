"""JPEGs that are odd and sound: headers are cleaned, pixels are those of lenient decoding, and damage stays a reject."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from support.media_files import SHARED_MEDIA, photo, pixels, saved

from patchpack.pipeline.media import DecodeError, kind_of
from patchpack.pipeline.media.image import animated, damage, decode, jpeg_header
from patchpack.pipeline.media.image import decode as image

SIZE = (48, 72)
SOUND = photo(SIZE)
# behind the start and JFIF's segment
BEHIND_JFIF = 20
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def segment(marker: int, content: bytes) -> bytes:
    """Returns a segment of a JPEG's header."""
    return b"\xff%c" % marker + struct.pack(">H", len(content) + 2) + content


def inserted(data: bytes, place: int = BEHIND_JFIF) -> bytes:
    """Returns the valid image with bytes inserted into its header."""
    return SOUND[:place] + data + SOUND[place:]


def icc(number: int, total: int, content: bytes = PROFILE) -> bytes:
    """Returns a chunk of a profile."""
    return segment(0xE2, b"ICC_PROFILE\0" + bytes([number, total]) + content)


ODD = {
    "two stray bytes": inserted(b"?>"),
    "stray bytes before the scan": inserted(b"?>", SOUND.index(b"\xff\xda")),
    "stuffed zeros among stray bytes": inserted(b"a\xff\0b\xff"),
    "revision 2 of JFIF": SOUND[:11] + b"\2" + SOUND[12:],
    "revision 0 of JFIF": SOUND[:11] + b"\0" + SOUND[12:],
    "a profile of two chunks, one there": inserted(icc(1, 2)),
    "a profile with one chunk twice": inserted(icc(1, 2) * 2),
    "a profile's chunk of number 0": inserted(icc(0, 0)),
    "an empty profile": inserted(icc(1, 1, b"")),
    "all at once": SOUND[:11] + b"\3" + SOUND[12:BEHIND_JFIF] + b"xy" + icc(2, 2) + b"zz" + SOUND[BEHIND_JFIF:],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_headers_give_the_pixels_of_lenient_decoding(name: str) -> None:
    with Image.open(io.BytesIO(ODD[name])) as picture:
        lenient_HWC = np.asarray(picture.convert("RGB"))
    shown_THWC, size = image.decode(ODD[name], *SIZE, "exact")
    assert size == SIZE
    assert np.array_equal(shown_THWC[0], lenient_HWC)
    assert np.array_equal(lenient_HWC, np.asarray(Image.open(io.BytesIO(SOUND)).convert("RGB")))


def test_whole_profiles_and_sound_headers_stay_as_they_are() -> None:
    whole = inserted(icc(2, 2, PROFILE[300:]) + icc(1, 2, PROFILE[:300]))
    assert jpeg_header.cleaned(SOUND) is None and jpeg_header.cleaned(whole) is None
    assert jpeg_header.cleaned(inserted(b"?>" + icc(1, 1))) == inserted(icc(1, 1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (SOUND[:-200] + SOUND[-150:], "Corrupt JPEG|Premature"),
        (inserted(b"?>")[:-2], "Premature end"),
        (inserted(b"?>")[: len(SOUND) * 3 // 4], "Premature end"),
        (SOUND[:-2] + b"\xff\0abcd" * 3 + SOUND[-2:], "extraneous bytes before marker 0xd9"),
        (inserted(segment(0xEE, b"Adobe\0\x64") + b"ab"), "extraneous bytes"),
    ],
    ids=["bytes missing", "no end", "cut", "stray coded data", "a cut colour segment"],
)
def test_damaged_coded_data_and_colours_are_refused_whatever_the_header(data: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message) as told:
        image.decode(data, *SIZE, "exact")
    assert told.value.reason == "broken"


@pytest.mark.parametrize("place", [0, 2, 3, 10, 100, 10**9])
def test_cleaning_ends_in_whatever_bytes(place: int) -> None:
    cut = ODD["all at once"][:place]
    assert jpeg_header.cleaned(cut) is None or place > 1000
    assert jpeg_header.cleaned(b"\xff\xd8" + cut[2:].replace(b"\xff", b"\xff\xd8")) is None


@pytest.mark.skipif(not SHARED_MEDIA.is_dir(), reason=f"{SHARED_MEDIA} is not there")
def test_the_shared_photo_with_stray_bytes_is_taken_as_lenient_decoding_shows_it() -> None:
    data = (SHARED_MEDIA / "images" / "camera_017.jpg").read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        lenient_HWC = np.asarray(picture.convert("RGB"))
    shown_THWC, _ = image.decode(data, *lenient_HWC.shape[:2], "exact")
    assert np.array_equal(shown_THWC[0], lenient_HWC)


def test_of_a_file_of_several_jpegs_the_first_picture_is_taken() -> None:
    first, second = (Image.fromarray(pixels(*SIZE, seed=seed)) for seed in (0, 5))
    data = saved(first, "MPO", save_all=True, append_images=[second], quality=92)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "MPO" and picture.n_frames == 2 and animated.timing(picture) is None
        lenient_HWC = np.asarray(picture.convert("RGB"))
    assert kind_of(data) == "image" and image.probe(io.BytesIO(data)) == SIZE
    assert image.probe_animation(io.BytesIO(data)) is None
    for odd in (data, data[:BEHIND_JFIF] + b"?>" + data[BEHIND_JFIF:], data[: -len(data) // 4]):
        shown_THWC, size = image.decode(odd, *SIZE, "exact")
        assert size == SIZE and np.array_equal(shown_THWC[0], lenient_HWC)


def test_a_file_of_several_pictures_gives_its_first(tmp_path: Path) -> None:
    """As stereo cameras and phones write them; what follows the first image is no stray data."""
    first, second = (Image.new("RGB", (96, 64), colour) for colour in ("red", "blue"))
    path = tmp_path / "two.mpo"
    first.save(path, "MPO", append_images=[second], save_all=True, quality=95)
    shown_THWC, size = image.decode(path.read_bytes(), 32, 48)
    assert size == (64, 96)
    assert np.abs(shown_THWC[0].astype(int) - (254, 0, 0)).max() <= 3


def test_a_progressive_jpeg_counts_for_the_coefficients_that_it_keeps() -> None:
    # 4 bytes a pixel, and 9 where three bands of 16 bits and the image itself are held
    image = Image.new("RGB", (64, 64), (200, 30, 90))
    for progressive, bytes_a_pixel in ((False, 4), (True, 9)):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", progressive=progressive)
        least = 64 * 64 * bytes_a_pixel // 4
        assert decode.probe(buffer, least) == (64, 64)
        buffer.seek(0)
        with pytest.raises(DecodeError) as raised:
            decode.probe(buffer, least - 1)
        assert raised.value.reason == "too_large"


def test_a_jpeg_has_at_most_so_many_scans() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 90)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    for spare in (0, 1):
        more = damage.MAX_SCANS + spare - data.count(b"\xff\xda")
        long = data[:-2] + more * scan + data[-2:]
        with Image.open(io.BytesIO(long)) as image:
            if spare:
                with pytest.raises(DecodeError, match="scans"):
                    damage.check_pixels(image, long)
            else:
                damage.check_pixels(image, long)
