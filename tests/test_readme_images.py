"""The README's images are there, small, described, and of the commands that it shows."""

import re
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image
from support import readme_images

LARGEST_BYTES, LARGEST_TOTAL_BYTES = 200_000, 500_000
README = (ROOT / "README.md").read_text()
SHOWN = dict(re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README))
FILES = sorted(readme_images.IMAGES.iterdir())


def test_the_readme_shows_every_image_and_says_what_is_seen() -> None:
    assert sorted(SHOWN.values()) == [path.relative_to(ROOT).as_posix() for path in FILES]
    assert len(FILES) == 3
    for words in SHOWN:
        assert len(words.split()) > 20, words


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_image_opens_and_is_small_and_sharp(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width == readme_images.WIDTH * readme_images.SCALE
    assert path.stat().st_size <= LARGEST_BYTES


def test_all_images_are_small_together() -> None:
    assert sum(path.stat().st_size for path in FILES) <= LARGEST_TOTAL_BYTES


def test_the_commands_of_the_images_are_those_that_people_read() -> None:
    assert readme_images.FIRST_RUN in (ROOT / "run_pipeline.sh").read_text()
    for arguments in (readme_images.REPORT, readme_images.WHAT_IF):
        assert f"\n    ./run_pipeline.sh {arguments}\n" in README, arguments
    assert f"`{readme_images.COMMAND}`" in (ROOT / "CONTRIBUTING.md").read_text()
