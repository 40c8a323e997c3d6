"""The drawn sample media: as varied as the first run promises, and the same everywhere."""

import io
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from patchpack.pipeline import demo
from patchpack.pipeline.demo import draw_media
from patchpack.pipeline.media import kind_of
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.video import clips, timeline
from patchpack.pipeline.media.video import decode as video

ROOT = str(Path(__file__).parent.parent)
CLASSES = ["checks", "circles", "stripes", "triangles"]


def image_paths(folder: Path) -> list[Path]:
    """Returns the images below a folder."""
    return [path for path in sorted(folder.glob("*/*")) if kind_of(path.read_bytes()[:1024]) == "image"]


def video_paths(folder: Path) -> list[Path]:
    """Returns the videos below a folder."""
    return [path for path in sorted(folder.glob("*/*")) if kind_of(path.read_bytes()[:1024]) == "video"]


def test_there_are_enough_files_and_they_are_small(media: Path) -> None:
    assert len(image_paths(media)) >= 40
    assert len(video_paths(media)) == 4
    assert sorted(os.listdir(media)) == CLASSES
    assert draw_media(str(media)) == len(image_paths(media)) + len(video_paths(media))
    assert sum(path.stat().st_size for path in media.glob("*/*")) < 6_000_000


def test_every_class_has_many_pictures_and_a_video(media: Path) -> None:
    for name in CLASSES:
        folders = [path.parent.name for path in image_paths(media)]
        assert folders.count(name) >= 10
        assert [path.parent.name for path in video_paths(media)].count(name) == 1


def test_aspect_ratios_reach_from_one_to_six_to_six_to_one(media: Path) -> None:
    sizes = []
    for path in image_paths(media):
        with path.open("rb") as file:
            sizes.append(image.probe(file))
    ratios = {Fraction(height, width) for height, width in sizes}
    assert min(ratios) == Fraction(1, 6) and max(ratios) == 6
    assert len(ratios) >= 15
    assert len(set(sizes)) >= 40


def test_formats_modes_and_orientations_are_mixed(media: Path) -> None:
    formats, modes, orientations = set(), set(), set()
    for path in image_paths(media):
        with Image.open(path) as picture:
            formats.add(picture.format)
            modes.add(picture.mode)
            orientations.add(picture.getexif().get(0x0112, 1))
            # names say the upright aspect
            rows, columns = map(int, path.stem.partition("_")[2].split("x"))
            upright = ImageOps.exif_transpose(picture)
            assert upright.height * columns == upright.width * rows, path.name
    assert formats == {"JPEG", "PNG", "WEBP"}
    assert modes >= {"RGB", "RGBA", "L", "P"}
    assert orientations == set(range(1, 9))


def test_videos_differ_in_rate_container_and_aspect(media: Path) -> None:
    rates, containers, ratios = set(), set(), set()
    for path in video_paths(media):
        with path.open("rb") as file:
            header = timeline.probe(file)
        with av.open(str(path)) as container:
            containers.add(container.format.name)
            rates.add(container.streams.video[0].average_rate)
        ratios.add(Fraction(header.height, header.width))
        seconds = (header.end_pts - header.pts[0]) * Fraction(*header.time_base)
        assert 2 <= seconds <= 4
    assert len(rates) == len(ratios) == 4
    assert {10, 24, 30} <= rates
    assert len(containers) >= 2


def test_every_file_decodes_and_moving_pictures_move(media: Path) -> None:
    for path in image_paths(media):
        frames_THWC, _ = image.decode(path.read_bytes(), 64, 64)
        assert frames_THWC.std() > 10, path.name
    for path in video_paths(media):
        data = path.read_bytes()
        header = timeline.probe(io.BytesIO(data))
        pts = clips.clip_times(header, 0, 1, 16, 8.0)
        frames_THWC, _ = video.decode_clip(io.BytesIO(data), pts, 64, 64)
        assert len(frames_THWC) == 16
        assert np.abs(np.diff(frames_THWC.astype(int), axis=0)).mean() > 1, path.name


@pytest.mark.slow
def test_the_same_files_are_drawn_every_time_and_missing_ones_again(media: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    draw_media(str(again))
    first = {path.relative_to(media): path.read_bytes() for path in media.glob("*/*")}
    assert {path.relative_to(again): path.read_bytes() for path in again.glob("*/*")} == first
    lost = sorted(again.glob("*/*"))[3]
    times = {path: path.stat().st_mtime_ns for path in again.glob("*/*")}
    lost.unlink()
    draw_media(str(again))
    assert lost.read_bytes() == first[lost.relative_to(again)]
    assert [path for path in again.glob("*/*") if path.stat().st_mtime_ns != times[path]] == [lost]


def test_a_second_call_draws_nothing(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_drawn", lambda *args, **kwargs: pytest.fail("drew"))
    assert draw_media(str(media)) == 48


def test_the_command_draws_and_says_so_in_one_line(tmp_path: Path, media: Path) -> None:
    command = [sys.executable, "-m", "patchpack.pipeline.demo"]
    done = subprocess.run([*command, str(media)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{media}: 48 files\n", "")
    (tmp_path / "file").write_bytes(b"x")
    done = subprocess.run([*command, str(tmp_path / "file")], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{tmp_path / 'file'}: ")
    assert subprocess.run(command, capture_output=True).returncode == 2
