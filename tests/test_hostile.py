"""The corpus of hostile files, one by one through probing and decoding: each ends as the corpus says, within bounds."""

import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from support.hostile_case import PACKED, PARTIAL, Case
from support.hostile_files import corpus, write_corpus, write_places
from support.hostile_images import PICTURE, SIZE
from support.hostile_png import chunk, chunks, png
from support.media_files import photo, saved
from support.planned import planned_of

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.media.image import damage
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.patchify import patchify
from patchpack.pipeline.media.video import timeline
from patchpack.pipeline.media.video.clips import ClipRule
from patchpack.pipeline.stages.probe import probe
from patchpack.pipeline.stages.records import REASONS, Example, Reject, Source
from patchpack.pipeline.stages.write import decode_example
from patchpack.pipeline.storage.reading import read_input

CONFIG = PlanConfig()
CORPUS = corpus()
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]


def ended(path: Path, name: str) -> str | np.ndarray:
    """Returns the reason of a file's reject, or its frames at 48 x 64, (T, H, W, 3) uint8."""
    size_bytes = os.path.getsize(path) if os.path.isfile(path) else 0
    source = Source("key", 0, name, size_bytes)
    try:
        options = (CONFIG.clip_rule, CONFIG.max_pixels, CONFIG.max_bytes)
        found, *partial = read_input(str(path.parent), probe, source, str(path), *options)
    except DecodeError as error:
        return error.reason
    assert all(row.reason == "partial" for row in partial)
    if isinstance(found, Reject):
        assert found.detail and "\n" not in found.detail
        return found.reason
    assert isinstance(found, Example)
    row = planned_of(found, (max(1, len(found.frame_pts)), 3, 4), CONFIG)
    try:
        frames_THWC = decode_example(row, [str(path)[: -len(name) - 1]], CONFIG)
    except DecodeError as error:
        assert str(error)
        return error.reason
    assert len(patchify(frames_THWC, CONFIG.tubelet)) == row.grid_t * 12
    return frames_THWC


def test_the_corpus_is_large_and_knows_every_reason_that_a_file_can_have() -> None:
    rejected = [case for case in CORPUS if case.end != PACKED]
    assert len(CORPUS) >= 400 and len(rejected) >= 250
    ends = {case.end for case in CORPUS} - {PACKED, PARTIAL}
    assert ends <= set(REASONS)
    # the others are about places, options and time
    assert set(REASONS) - ends <= {
        "not_found", "unreadable", "not_a_file", "oversize", "changed", "duplicate", "crashed", "timeout", "partial", "slow_source",
        "outside", "bad_row"
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted({case.name.split("/")[0] for case in CORPUS}))
def test_each_hostile_file_ends_as_it_must(kind: str, tmp_path: Path) -> None:
    cases = [case for case in CORPUS if case.name.startswith(f"{kind}/")]
    write_corpus(tmp_path, cases)
    wrong = {}
    for case in cases:
        end = ended(Path(os.path.join(tmp_path, case.name)), case.name)
        if not _is_right(case, end):
            wrong[case.name] = end if isinstance(end, str) else f"packed, mean {end.mean():.0f}"
    assert wrong == {}


def _is_right(case: Case, end: str | np.ndarray) -> bool:
    if isinstance(end, str):
        return end == case.end or (case.end == PARTIAL and end == "broken")
    if case.end not in (PACKED, PARTIAL):
        return False
    if case.shows is None:
        return True
    wanted = Image.fromarray(case.shows).resize((64, 48), Image.Resampling.BICUBIC)
    # palettes and strong compression stand between them
    return float(np.abs(end[0].astype(int) - np.asarray(wanted)).mean()) < 6


def test_what_is_no_usual_file_ends_without_being_read(tmp_path: Path) -> None:
    for name, end in write_places(tmp_path).items():
        found = ended(tmp_path / name, name)
        assert (PACKED if isinstance(found, np.ndarray) else found) == end, name


def test_files_over_max_bytes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(photo())
    source = Source("a.jpg", 0, "a.jpg", 0)
    size = (tmp_path / "a.jpg").stat().st_size
    (found,) = probe(source, str(tmp_path / "a.jpg"), ClipRule(), 10**6, size)
    assert isinstance(found, Example)
    # no reading at all: the content would not survive it
    monkeypatch.setattr("patchpack.pipeline.stages.probe.kind_of", lambda head: 1 / 0)
    (found,) = probe(source, str(tmp_path / "a.jpg"), ClipRule(), 10**6, size - 1)
    assert isinstance(found, Reject)
    assert (found.reason, found.detail) == ("too_large", f"{size} bytes; --max-bytes is {size - 1}")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("variant", ["plain", "other"])
def test_every_prefix_of_a_picture_is_refused_or_decoded_as_the_whole(format: str, variant: str) -> None:
    others = {
        "JPEG": {"progressive": True}, "PNG": {"bits": 4}, "WEBP": {"lossless": True}, "GIF": {"interlace": False},
        "TIFF": {"compression": "tiff_lzw"}, "AVIF": {"quality": 30}, "BMP": {},
    }  # fmt: skip
    picture = PICTURE.resize((40, 28)).convert(
        "P" if format == "GIF" or (variant == "other" and format == "PNG") else "RGB"
    )
    data = saved(picture.convert("L") if format == "BMP" and variant == "other" else picture, format,
                 **(others[format] if variant == "other" else {}))  # fmt: skip
    whole, refused = image.decode(data, 16, 16)[0], 0
    for end in range(1, len(data), max(1, len(data) // 700)):
        try:
            image.probe(io.BytesIO(data[:end]))
            shown = image.decode(data[:end], 16, 16)[0]
        except DecodeError as error:
            assert error.reason == "broken"
            refused += 1
        else:
            # only what comes behind the pixels is missing
            assert np.array_equal(shown, whole), end
    assert refused >= len(range(1, len(data), max(1, len(data) // 700))) * 9 // 10


def test_missing_rows_of_a_png_are_found_in_every_kind_of_png() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        # all dark: as a missing row would be
        whole = saved(Image.new(mode, SIZE), "PNG", compress_level=0)
        image.decode(whole, 16, 16)
        for fewer in (1, 2, 100):
            parts = [
                chunk(name, zlib.compress(zlib.decompress(data)[:-fewer]) if name == b"IDAT" else data)
                for name, data in chunks(whole)
            ]
            # Pillow itself notices only where the compressed data have no end
            with pytest.raises(DecodeError, match="rows are missing|truncated"):
                image.decode(png(*parts), 16, 16)


def test_a_picture_of_many_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CORPUS if case.name == "jpeg/scans_2000.jpg")
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *args, **options: 1 / 0)
    with pytest.raises(DecodeError, match="20[0-9][0-9] scans"):
        image.decode(case.data, 16, 16)


def test_usual_pictures_have_few_scans() -> None:
    for options in ({}, {"progressive": True}, {"progressive": True, "quality": 100}, {"optimize": True}):
        data = saved(PICTURE, "JPEG", **options)
        assert 1 <= damage._num_scans(data) <= 12
        assert damage._has_one_scan(data) == ("progressive" not in options) == (damage._num_scans(data) == 1)
        assert damage._num_scans(data + b"\xff\xda\0\x0c" * 500) == damage._num_scans(data)


def test_every_reason_is_documented() -> None:
    table = (ROOT / "docs/format.md").read_text()
    assert [reason for reason in REASONS if f"| `{reason}` |" not in table] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("videos/samples_of_one_size.mp4", "50000000 samples in"),
        ("videos/samples_in_fragment.mp4", "samples in"),
        ("png/data_in_empty_chunks.png", "too many parts|chunks"),
        ("tiff/strips_many.tif", "strips or tiles"),
        ("tiff/tags_overlapping.tif", "overlap"),
    ],
)
def test_what_would_exhaust_memory_is_refused_for_that_and_not_by_luck(name: str, message: str) -> None:
    data = next(case.data for case in CORPUS if case.name == name)
    with pytest.raises(DecodeError, match=message):
        if name.startswith("videos"):
            timeline.probe(io.BytesIO(data), CONFIG.max_pixels)
        else:
            image.probe(io.BytesIO(data))
            image.decode(data, 16, 16)
