"""Probing: what each input becomes, and that no bad one raises, hangs or turns into an image."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import xxhash
from support.media_files import (
    SHARED_MEDIA,
    hostile_contents,
    photo,
    png_of_header,
    video,
    write_files,
    write_odd_entries,
    write_odd_names,
)

from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.video.clips import ClipRule
from patchpack.pipeline.media.video.decode import decode_clip
from patchpack.pipeline.stages.list import list_input, parse_input, source_path
from patchpack.pipeline.stages.probe import example_id, probe
from patchpack.pipeline.stages.records import REASONS, Example, Ignored, Reject, Source, reject
from patchpack.pipeline.storage import files
from patchpack.pipeline.storage.reading import read_input

MAX_PIXELS = 178_956_970

# the reasons that users meet most, by hostile file
EXPECTED_REASONS = {
    "empty.jpg": "empty",
    "text.jpg": "unknown_format",
    "page.jpg": "unknown_format",
    "page.mp4": "unknown_format",
    "pointer.png": "lfs_pointer",
    "vector.png": "unknown_format",
    "playlist.mp4": "unknown_format",
    "concat.mp4": "unknown_format",
    "zeros.jpg": "unknown_format",
    "ones.mp4": "unknown_format",
    "no_frames.mp4": "no_frames",
    "cut_in_header.jpg": "broken",
    "huge.png": "too_large",
    "sound.mp4": "no_video",
    "sound.mkv": "no_video",
    "cut_in_middle.mp4": "broken",
}


def probed(path: Path, num_clips: int = 1, max_pixels: int = MAX_PIXELS) -> list[Example | Reject | Ignored]:
    """Returns what one file becomes."""
    source = Source(f"photos/{path.name}", 0, path.name, path.stat().st_size if path.is_file() else 0)
    try:
        return read_input(str(path.parent), probe, source, str(path), ClipRule(num_clips), max_pixels)
    except DecodeError as error:
        return [reject(source.key, "probe", error.reason, error)]


def rejected(path: Path, **options: Any) -> Reject:
    """Returns the one reject that a file becomes, checked."""
    # nothing else below the root would look like a disk that is gone
    (path.parent if path.parent.is_dir() else path.parent.parent).joinpath("other").touch()
    (outcome,) = probed(path, **options)
    assert isinstance(outcome, Reject), path.name
    assert outcome.stage == "probe" and outcome.reason in REASONS
    assert outcome.detail and "\n" not in outcome.detail
    return outcome


def test_an_image_is_one_example_of_its_oriented_size(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": photo((40, 64), orientation=6)})
    (example,) = probed(tmp_path / "a.jpg")
    assert isinstance(example, Example)
    assert (example.source_height, example.source_width) == (64, 40)
    assert example.clip == 0 and example.frame_pts == ()


def test_each_clip_of_a_video_is_an_example(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.mp4": video((48, 64), num_frames=80, rate=20, rotation=90)})
    examples = probed(tmp_path / "a.mp4", num_clips=3)
    assert [example.clip for example in examples] == [0, 1, 2]
    assert len({example.example_id for example in examples}) == 3
    for example in examples:
        assert (example.source_height, example.source_width) == (64, 48)
        assert len(example.frame_pts) >= 10
    assert examples[0].frame_pts[0] < examples[1].frame_pts[0] < examples[2].frame_pts[0]


def test_an_example_id_is_the_documented_hash_of_key_and_clip() -> None:
    assert example_id("photos/ü.jpg", 3) == xxhash.xxh3_128_hexdigest("photos/ü.jpg\0003".encode())
    assert len(example_id("a", 0)) == 32
    assert example_id("a", 0) != example_id("a", 1) != example_id("a\0", 1)


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.mp4": photo((40, 64), "PNG"), "b.jpg": video((48, 64), "matroska"), "c.gif": photo()})
    for name, size in (("a.mp4", (40, 64)), ("b.jpg", (48, 64)), ("c.gif", (48, 72))):
        (example,) = probed(tmp_path / name)
        assert isinstance(example, Example)
        assert (example.source_height, example.source_width) == size


def test_every_hostile_content_ends_as_a_reject_before_or_at_decoding(tmp_path: Path) -> None:
    contents = hostile_contents()
    write_files(tmp_path, contents)
    for name, data in contents.items():
        outcome, *marks = probed(tmp_path / name)
        # a video that breaks off keeps what is whole
        assert [mark.reason for mark in marks] == (["partial"] if name == "cut_in_middle.avi" else []), name
        if marks:
            continue
        if isinstance(outcome, Example):
            # the header is fine: decoding finds out
            with pytest.raises(DecodeError) as caught:
                if outcome.frame_pts:
                    with (tmp_path / name).open("rb") as file:
                        decode_clip(file, outcome.frame_pts, 16, 16)
                else:
                    image.decode(data, 16, 16)
            assert caught.value.reason in REASONS, name
            assert name not in EXPECTED_REASONS
        else:
            assert rejected(tmp_path / name).reason == EXPECTED_REASONS.get(name, "broken"), name


def test_odd_entries_become_rejects_without_blocking(tmp_path: Path) -> None:
    write_odd_entries(tmp_path)
    reasons = {
        "folder.jpg": "not_a_file",
        "dangling.jpg": "not_found",
        "itself.jpg": "unreadable",
        # a pipe has no end: reading one would wait for ever
        "pipe.jpg": "not_a_file",
    }
    for name, reason in reasons.items():
        assert rejected(tmp_path / name).reason == reason, name


def test_listing_and_probing_account_for_every_odd_name(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    names = write_odd_names(folder, photo())
    given = parse_input(0, str(folder))
    sources = list(list_input(given, ()))
    assert len(sources) == len({source.key for source in sources}) == len(names)
    for source in sources:
        assert isinstance(source, Source)
        source.key.encode()
        (outcome,) = probe(source, source_path(source, [given.root]), ClipRule(), MAX_PIXELS)
        assert isinstance(outcome, Example), source.key


def test_a_file_that_is_gone_is_not_found(tmp_path: Path) -> None:
    assert rejected(tmp_path / "gone.jpg").reason == "not_found"


def test_a_file_that_may_not_be_read_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"a.jpg": photo()})

    def refuse(path: str, first_bytes: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(files, "open_read", refuse)
    assert rejected(tmp_path / "a.jpg").reason == "unreadable"


def test_errors_of_the_storage_are_raised_not_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is one file or the storage is for `reading` to say."""
    write_files(tmp_path, {"a.jpg": photo()})
    for number in (errno.EIO, errno.ETIMEDOUT, errno.ESTALE):

        def fail(path: str, first_bytes: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number), path)

        monkeypatch.setattr(files, "open_read", fail)
        with pytest.raises(OSError) as caught:
            probe(Source("a.jpg", 0, "a.jpg", 1), str(tmp_path / "a.jpg"), ClipRule(), MAX_PIXELS)
        assert caught.value.errno == number


def test_the_size_is_judged_by_the_header(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": png_of_header(100, 101), "v.mp4": video((48, 64))})
    assert isinstance(probed(tmp_path / "a.png", max_pixels=10_100)[0], Example)
    reject = rejected(tmp_path / "a.png", max_pixels=10_099)
    assert reject.reason == "too_large"
    assert "100x101" in reject.detail and "10099" in reject.detail
    assert rejected(tmp_path / "v.mp4", max_pixels=3_000).reason == "too_large"


@pytest.mark.skipif(not SHARED_MEDIA.is_dir(), reason=f"{SHARED_MEDIA} is not there")
def test_every_shared_file_has_examples_or_a_reason() -> None:
    paths = sorted(path for path in SHARED_MEDIA.glob("*/*") if path.is_file())
    outcomes = {path.name: probed(path)[0] for path in paths}
    assert len(outcomes) == 72
    assert {name: outcome for name, outcome in outcomes.items() if not isinstance(outcome, Example)} == {}
