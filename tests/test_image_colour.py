"""Colours: profiles to sRGB, alpha on white, and every stored mode."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms
from support.media_files import SHARED_MEDIA, photo, pixels, saved

from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.media.image import colour
from patchpack.pipeline.media.image import decode as image

# Adobe RGB (1998) adapted to D50, as its own profile states it; sRGB likewise (IEC 61966-2-1)
ADOBE_TO_XYZ = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB_TO_XYZ = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
GAMMA = 2.2


def matrix_profile(to_xyz: np.ndarray = ADOBE_TO_XYZ, space: bytes = b"RGB ") -> bytes:
    """Returns an ICC profile, version 2: three primaries and a gamma; for GRAY the gamma alone."""

    def xyz(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(GAMMA * 256), 0)
    tags = {
        b"wtpt": xyz(np.array([0.9642, 1.0, 0.8249])),
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78),
    }
    tags |= {b"kTRC": curve} if space == b"GRAY" else {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    if space != b"GRAY":
        tags |= {name: xyz(to_xyz[:, place]) for place, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", place + len(body), len(value))
        body += value
    header = struct.pack(">I4sI4s4s4s", place + len(body), bytes(4), 0x02100000, b"mntr", space, b"XYZ ") + bytes(12)
    header += b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061) + bytes(48)
    return header[:128] + struct.pack(">I", len(tags)) + table + body


def as_srgb(linear_HWC: np.ndarray) -> np.ndarray:
    """Returns linear light as sRGB levels, by the standard's formula."""
    light = linear_HWC.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def decoded(data: bytes, height: int = 40, width: int = 56) -> np.ndarray:
    """Returns the image as int, (height, width, 3)."""
    return image.decode(data, height, width)[0][0].astype(int)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_profile_is_brought_to_srgb(format: str) -> None:
    stored = Image.fromarray(pixels(40, 56) // 2 + 60)
    data = saved(stored, format, icc_profile=matrix_profile(), quality=100)
    plain = decoded(saved(stored, format, quality=100))
    expected = as_srgb((plain / 255.0) ** GAMMA @ (np.linalg.inv(SRGB_TO_XYZ) @ ADOBE_TO_XYZ).T)
    assert np.abs(expected - plain).max() > 8
    assert np.abs(decoded(data) - expected).max() <= 3


def test_a_grey_profile_is_brought_to_srgb() -> None:
    stored = Image.fromarray(pixels(40, 56)).convert("L")
    shown = decoded(saved(stored, "PNG", icc_profile=matrix_profile(space=b"GRAY")))
    expected = as_srgb((np.asarray(stored)[:, :, None] / 255.0) ** GAMMA)
    assert np.abs(shown - expected).max() <= 2
    assert (shown == shown[:, :, :1]).all()


@pytest.mark.parametrize("profile", [b"no profile", matrix_profile()[:200], matrix_profile(space=b"GRAY"), bytes(500)])
def test_a_profile_that_cannot_be_used_is_passed_over(profile: bytes) -> None:
    stored = Image.fromarray(pixels(40, 56))
    assert np.array_equal(decoded(saved(stored, "PNG", icc_profile=profile)), np.asarray(stored))


def test_profiles_that_are_srgb_are_skipped_and_others_kept_by_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert colour._transform(srgb, "RGB") is None
    monkeypatch.setattr(colour, "_transforms", type(colour._transforms)())
    one = colour._transform(matrix_profile(), "RGB")
    assert one is not None and colour._transform(matrix_profile(), "RGB") is one
    monkeypatch.setattr(colour, "_MAX_TRANSFORMS", 3)
    for shift in range(10):
        colour._transform(matrix_profile(ADOBE_TO_XYZ + shift / 100), "RGB")
    assert len(colour._transforms) == 3
    assert colour._transform(matrix_profile(), "RGB") is not None


@pytest.mark.skipif(not SHARED_MEDIA.is_dir(), reason=f"{SHARED_MEDIA} is not there")
def test_a_printing_profile_is_used() -> None:
    data = (SHARED_MEDIA / "images" / "camera_040.jpg").read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
        full = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        naive = np.asarray(picture.convert("RGB")).astype(int)
        height, width = picture.height, picture.width
    assert np.abs(decoded(data, height, width) - np.asarray(full)).max() <= 1
    assert np.abs(decoded(data, height, width) - naive).mean() > 3


def test_lab_is_brought_to_srgb() -> None:
    stored = Image.fromarray(pixels(40, 56) // 2 + 60)
    lab = ImageCms.profileToProfile(
        stored, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert np.abs(decoded(saved(lab, "TIFF")) - np.asarray(stored).astype(int)).max() <= 5
    # a and b change sign within the image: averaging must not wrap round
    halved = stored.resize((28, 20), Image.Resampling.BICUBIC)
    assert np.abs(decoded(saved(lab, "TIFF"), 20, 28) - np.asarray(halved).astype(int)).mean() <= 3


def test_floats_are_refused() -> None:
    with pytest.raises(DecodeError, match="floating-point") as caught:
        image.decode(saved(Image.new("F", (20, 20), 0.5), "TIFF"), 16, 16)
    assert caught.value.reason == "unknown_format"


@pytest.mark.parametrize(("format", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA")])
def test_alpha_is_composited_on_white(format: str, mode: str) -> None:
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    colours = Image.fromarray(pixels(40, 56)).convert(mode)
    for alpha, share in ((0, 0.0), (255, 1.0), (51, 0.2)):
        colours.putalpha(alpha)
        expected = share * np.asarray(colours.convert("RGB")).astype(int) + (1 - share) * 255
        assert np.abs(decoded(saved(colours, format, **options)) - expected).max() <= 1


def test_transparent_pixels_do_not_colour_their_neighbours() -> None:
    # black but transparent, beside white: composited after the resize the edge would be grey
    stored = np.full((64, 64, 4), 255, np.uint8)
    stored[:, ::2] = 0
    assert decoded(saved(Image.fromarray(stored), "PNG"), 32, 32).min() == 255


def test_transparent_colours_are_white() -> None:
    palette = Image.fromarray(pixels(40, 56)).quantize(2)
    for picture, format, options in (
        (palette, "PNG", {"transparency": bytes([0, 0])}),
        (Image.new("RGB", (56, 40), (10, 20, 30)), "PNG", {"transparency": (10, 20, 30)}),
        (Image.new("L", (56, 40), 7), "PNG", {"transparency": 7}),
        (Image.new("I;16", (56, 40), 700), "PNG", {"transparency": 700}),
        (Image.new("P", (56, 40), 0), "GIF", {"transparency": 0}),
    ):
        assert decoded(saved(picture, format, **options)).min() == 255, (picture.mode, format)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_greys_are_scaled_not_clipped(format: str) -> None:
    ramp_HW = np.broadcast_to(np.linspace(0, 65535, 64).astype(np.uint16), (32, 64))
    shown = decoded(saved(Image.fromarray(ramp_HW), format), 32, 64)
    assert np.abs(shown - (ramp_HW / 257)[:, :, None]).max() <= 1
    assert len(np.unique(shown)) > 60


def test_pictures_larger_than_a_strip_are_flattened_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("RGB", "RGBA", "LA", "P", "1", "I;16", "CMYK"):
        data = photo((60, 84), "TIFF" if mode == "CMYK" else "PNG", mode)
        whole = decoded(data)
        with monkeypatch.context() as patch:
            patch.setattr(image, "_STRIP_PX", 84 * 7)
            assert np.array_equal(decoded(data), whole), mode
