"""Images: headers and pixels against Pillow's own operations, and bad ones that must never become images."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from support.media_files import (
    SHARED_MEDIA,
    FailingFile,
    exif_of,
    hostile_contents,
    photo,
    pixels,
    png_of_header,
    saved,
    with_flipped_marker,
)

from patchpack.pipeline.media import DecodeError, kind_of
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.stages.records import REASONS

KINDS = [
    ("JPEG", "RGB"),
    ("JPEG", "L"),
    ("JPEG", "CMYK"),
    ("PNG", "RGB"),
    ("PNG", "RGBA"),
    ("PNG", "LA"),
    ("PNG", "L"),
    ("PNG", "1"),
    ("PNG", "P"),
    ("PNG", "I;16"),
    ("WEBP", "RGB"),
    ("WEBP", "RGBA"),
    ("GIF", "P"),
    ("BMP", "RGB"),
    ("TIFF", "RGB"),
    ("TIFF", "I;16"),
    ("AVIF", "RGB"),
    ("AVIF", "RGBA"),
]


def decoded(data: bytes, height: int = 40, width: int = 56) -> np.ndarray:
    """Returns the image as int, (height, width, 3)."""
    frames_THWC, _ = image.decode(data, height, width)
    assert frames_THWC.shape == (1, height, width, 3) and frames_THWC.dtype == np.uint8
    return frames_THWC[0].astype(int)


def pillow_decoded(data: bytes, height: int = 40, width: int = 56) -> np.ndarray:
    """Returns the same by the slow obvious way: turn the whole image, then resize it."""
    with Image.open(io.BytesIO(data)) as picture:
        upright = ImageOps.exif_transpose(picture)
        return np.asarray(upright.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)).astype(int)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_as_exif_transpose_does(format: str, orientation: int) -> None:
    data = photo((48, 72), format, orientation=orientation)
    assert np.abs(decoded(data) - pillow_decoded(data)).max() <= 3
    sideways = orientation >= 5
    assert image.probe(io.BytesIO(data)) == ((72, 48) if sideways else (48, 72))
    assert image.decode(data, 8, 8)[1] == image.probe(io.BytesIO(data))


def test_all_eight_orientations_of_one_scene_are_the_same_upright_picture() -> None:
    upright = Image.fromarray(pixels(48, 72))
    expected = decoded(saved(upright, "PNG"))
    # what each tag's camera stores: the inverse of what brings its image upright
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.rotate(180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.rotate(90, expand=True),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.rotate(-90, expand=True),
    }
    for orientation, picture in stored.items():
        data = saved(picture, "PNG", exif=exif_of(orientation))
        assert image.probe(io.BytesIO(data)) == (48, 72)
        # one level: Pillow rounds twice, once an axis, and the axes have changed places
        assert np.abs(decoded(data) - expected).max() <= 1, orientation


@pytest.mark.parametrize(("format", "mode"), KINDS)
def test_the_header_tells_the_size_that_decoding_finds(format: str, mode: str) -> None:
    data = photo((50, 34), format, mode)
    assert image.probe(io.BytesIO(data)) == (50, 34)
    assert image.decode(data, 16, 16)[1] == (50, 34)
    assert kind_of(data) == "image"


@pytest.mark.parametrize(("format", "mode"), [kind for kind in KINDS if kind[1] in ("RGB", "L", "CMYK", "1", "P")])
def test_opaque_pictures_are_what_pillow_makes_of_them(format: str, mode: str) -> None:
    data = photo((60, 84), format, mode)
    assert np.abs(decoded(data) - pillow_decoded(data)).max() <= 1


def test_orientation_of_pngs_is_found_wherever_headers_hold_it() -> None:
    raw = exif_of(6).tobytes()
    as_text = PngImagePlugin.PngInfo()
    as_text.add_text("Raw profile type exif", f"\nexif\n{len(raw)}\n{raw.hex()}\n")
    data = saved(Image.fromarray(pixels(48, 72)), "PNG", pnginfo=as_text)
    assert image.probe(io.BytesIO(data)) == (72, 48)
    assert np.abs(decoded(data) - pillow_decoded(data)).max() <= 1


def test_probing_a_png_decodes_nothing() -> None:
    assert image.probe(io.BytesIO(png_of_header(300, 200))) == (300, 200)
    # nor does it read on to look for EXIF behind the pixels
    data = photo((400, 300), "PNG")
    assert len(data) > 20_000
    assert image.probe(FailingFile(data, 10_000)) == (400, 300)


def test_a_size_beyond_pillows_limit_is_told_so_that_max_pixels_can_judge_it() -> None:
    assert image.probe(io.BytesIO(png_of_header(50_000, 50_000))) == (50_000, 50_000)


def test_exif_that_cannot_be_read_leaves_the_picture_as_stored() -> None:
    for exif in (b"Exif\0\0II*\0 this is no directory", b"Exif\0\0neither Intel nor Motorola", b"Exif\0\0MM\0*"):
        for format in ("JPEG", "PNG", "WEBP"):
            data = saved(Image.fromarray(pixels(48, 72)), format, exif=exif)
            assert image.probe(io.BytesIO(data)) == (48, 72)
            assert np.abs(decoded(data) - decoded(saved(Image.fromarray(pixels(48, 72)), format))).max() == 0
    unknown = photo((48, 72), orientation=99)
    assert image.probe(io.BytesIO(unknown)) == (48, 72)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_cut_files_are_refused_or_whole_never_filled_in(format: str) -> None:
    data = photo((60, 84), format, "P" if format == "GIF" else "RGB")
    whole = decoded(data)
    refused = 0
    for end in [*range(1, len(data), len(data) // 40), *range(len(data) - 12, len(data))]:
        try:
            shown = decoded(data[:end])
        except DecodeError as error:
            assert error.reason in REASONS
            refused += 1
        else:
            # only what comes after the pixels is missing
            assert np.array_equal(shown, whole), end
    assert refused >= 40


def test_every_hostile_image_is_a_decode_error_with_a_known_reason() -> None:
    hostile = {name: data for name, data in hostile_contents().items() if kind_of(data[:1024]) == "image"}
    del hostile["huge.png"]
    assert len(hostile) >= 15
    for name, data in hostile.items():
        with pytest.raises(DecodeError) as caught:
            image.decode(data, 16, 16)
        assert caught.value.reason in REASONS, name
        assert str(caught.value), name


def test_damage_that_pillow_passes_over_is_reported() -> None:
    data = photo((120, 160))
    middle = len(data) * 2 // 3
    # an end-of-image marker in the middle of the data: Pillow fills the rest with grey
    damaged = data[:middle] + b"\xff\xd9" + data[middle + 2 :]
    with Image.open(io.BytesIO(damaged)) as picture:
        picture.load()
    with pytest.raises(DecodeError) as caught:
        image.decode(damaged, 16, 16)
    assert caught.value.reason == "broken"


def test_a_flipped_marker_is_refused_at_the_header() -> None:
    with pytest.raises(DecodeError) as caught:
        image.probe(io.BytesIO(with_flipped_marker(photo())))
    assert caught.value.reason == "broken"


def test_a_tiff_without_all_its_strips_is_refused_at_the_header() -> None:
    data = photo((60, 80), "TIFF")
    height = data.index(b"\x01\x01\x03\0") if b"\x01\x01\x03\0" in data else data.index(b"\x01\x01\x04\0")
    taller = data[: height + 8] + (60_000).to_bytes(2, "little") + data[height + 10 :]
    with pytest.raises(DecodeError, match="strips are missing"):
        image.probe(io.BytesIO(taller))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("good_bytes", [0, 20])
def test_errors_of_the_storage_are_no_rejects(format: str, good_bytes: int) -> None:
    data = photo((60, 84), format, "P" if format == "GIF" else "RGB")
    with pytest.raises(OSError, match="on fire"):
        image.probe(FailingFile(data, good_bytes))


@pytest.mark.skipif(not SHARED_MEDIA.is_dir(), reason=f"{SHARED_MEDIA} is not there")
def test_the_shared_orientations_show_one_scene() -> None:
    shown = {
        number: decoded((SHARED_MEDIA / "images" / f"orientation_{number}.jpg").read_bytes(), 192, 256)
        for number in (1, 3, 6, 8)
    }
    for number, picture in shown.items():
        assert np.abs(picture - shown[1]).mean() <= 2, number


@pytest.mark.skipif(not SHARED_MEDIA.is_dir(), reason=f"{SHARED_MEDIA} is not there")
def test_every_shared_image_is_decoded() -> None:
    paths = sorted((SHARED_MEDIA / "images").iterdir())
    for path in paths:
        data = path.read_bytes()
        _, size = image.decode(data, 32, 32)
        assert size == image.probe(io.BytesIO(data)), path.name
    assert len(paths) >= 50
