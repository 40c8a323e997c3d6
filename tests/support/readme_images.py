"""The images of the README, made of the demo's media: `PYTHONPATH=tests python -m support.readme_images` writes docs/images.

Runs the commands that the README shows beside them, opens the pages that they write in the system's Chromium, as the tests do,
and keeps a part of each page with at most 256 colours, in a third of the bytes. Fonts are those of the machine; all else is
the same at every run. Takes about a minute.
"""

import io
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from patchpack.pipeline import demo
from support.browser import opened, started_browser

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect, Locator, Page

IMAGES = Path(__file__).parent.parent.parent / "docs/images"
COMMAND = "PYTHONPATH=tests python -m support.readme_images"
# what `./run_pipeline.sh` runs, and then what the README shows
FIRST_RUN = "build demo/media --output demo/shards --labels folder"
REPORT = "build demo/media --output demo/navit --labels folder --recipe navit --sequence-length 512"
WHAT_IF = (
    "plan --from demo/navit --compare '--sequence-length 256' --compare '--sequence-length 1024' "
    "--compare '--upsample never' --html demo/what-if.html"
)
# of the window, in CSS px; an image has twice as many, as sharp screens do
WIDTH = 1080
SCALE = 2
MARGIN = 20


def main() -> None:
    """Writes every image."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, started_browser() as browser:
        demo.draw_media(f"{folder}/demo/media")
        for arguments in (FIRST_RUN, REPORT, WHAT_IF):
            command = [sys.executable, "-m", "patchpack", *shlex.split(arguments)]
            subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONSAFEPATH": "1"}, stdout=sys.stderr, check=True)
        with opened(browser, Path(folder, "demo/shards/report.html"), width=WIDTH, scale=SCALE) as page:
            page.locator("#grid-lines").check()
            # an image and a clip in one sequence, below strips of more
            with_clip = page.locator("details.packed", has_text="turning.mov").first
            with_clip.locator("summary").click()
            keep(page, "sequence.png", page.locator("details.packed").first, with_clip)
        with opened(browser, Path(folder, "demo/navit/report.html"), width=WIDTH, scale=SCALE) as page:
            keep(page, "report.png", page.locator("header"), page.locator("#fill .charts"))
        with opened(browser, Path(folder, "demo/what-if.html"), width=WIDTH, scale=SCALE) as page:
            keep(page, "what-if.png", page.locator("#what-if figure"), page.locator("#what-if table"))


def keep(page: "Page", name: str, first: "Locator", last: "Locator") -> None:
    """Writes the part of a page from one element to another, over its whole width."""
    page.wait_for_function("!document.querySelector('[aria-busy]')")
    # nothing is shown as it is under the pointer, and all images are loaded, not only those that were seen
    page.mouse.move(0, 0)
    page.evaluate("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager'; })")
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    edge = "(element, side) => Math.round(element.getBoundingClientRect()[side] + window.scrollY)"
    top, bottom = first.evaluate(edge, "top"), last.evaluate(edge, "bottom")
    clip: FloatRect = {"x": 0, "y": top, "width": WIDTH, "height": bottom - top}
    image = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))).convert("RGB")
    # above and below it white, not what the page has there
    framed = Image.new("RGB", (image.width, image.height + 2 * MARGIN * SCALE), "white")
    framed.paste(image, (0, MARGIN * SCALE))
    path = IMAGES / name
    framed.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(
        f"{path.relative_to(IMAGES.parent.parent)}: {framed.width} x {framed.height} px, {path.stat().st_size:,} bytes"
    )


if __name__ == "__main__":
    main()
