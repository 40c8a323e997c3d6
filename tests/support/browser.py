"""Pages in headless Chromium: what the browser says of them, what they ask for, what axe-core finds, what colours they have.

The browser is the system's own and is offline; nothing is downloaded. What a page does wrong is collected while it is open
and fails the test when it is left, so that a test that clicks needs to check no more than what its click was for.
"""

import functools
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OpenPage = Callable[..., AbstractContextManager["Page"]]

# of the page itself; everything else would be a request to a host
_OWN = ("file:", "data:", "blob:", "about:")
_PATIENCE_MS = 20_000
# any colour of CSS as (red, green, blue, alpha), each 0 to 255; and the one that is seen behind an element
_COLOURS = """
const rgba = (colour) => {
  const one = new OffscreenCanvas(1, 1).getContext("2d");
  one.fillStyle = colour;
  one.fillRect(0, 0, 1, 1);
  return [...one.getImageData(0, 0, 1, 1).data];
};
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = rgba(getComputedStyle(at).backgroundColor);
    if (colour[3]) return colour;
  }
  return rgba("Canvas");
};
"""


@contextmanager
def started_browser() -> Iterator["Browser"]:
    """Yields the system's Chromium and ends it; skips the test where it or what drives it is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        # in a container root has no sandbox, and others often have none either
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=False)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: "Browser",
    path: Path,
    *,
    width: int = 1100,
    scale: float = 1,
    dark: bool = False,
    reduced: bool = False,
    print: bool = False,
    scripts: bool = True,
) -> Iterator["Page"]:
    """Yields a page of the disk, opened, and checks when it is left that nothing went wrong in it.

    Args:
        browser: as `started_browser` gave it.
        path: of the page.
        width: of the window in px.
        scale: pixels of a screenshot for each px of the page.
        dark: whether its reader prefers dark colours.
        reduced: whether its reader prefers less motion.
        print: whether it is laid out for paper.
        scripts: whether those of the page run.

    Raises:
        AssertionError: the console has an error or a warning, a script failed, a dialog opened or a host was asked.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        device_scale_factor=scale,
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce" if reduced else "no-preference",
        offline=True,
        java_script_enabled=scripts,
    )
    try:
        context.set_default_timeout(_PATIENCE_MS)
        page = context.new_page()
        if print:
            page.emulate_media(media="print")
        wrong = _watched(page)
        page.goto(path.absolute().as_uri(), wait_until="load")
        yield page
        # what a page does a moment later still belongs to it
        page.wait_for_timeout(50)
        assert not wrong, "\n".join(wrong)
    finally:
        context.close()


def _watched(page: "Page") -> list[str]:
    """Returns a list that grows by a line for everything that a report's page must not do."""
    wrong: list[str] = []

    def on_dialog(dialog: Any) -> None:
        wrong.append(f"{dialog.type} dialog: {dialog.message}")
        dialog.dismiss()

    def on_request(request: Any) -> None:
        if not request.url.startswith(_OWN):
            wrong.append(f"request: {request.url}")

    def on_console(message: Any) -> None:
        if message.type in ("error", "warning", "assert"):
            wrong.append(f"console {message.type}: {message.text}")

    page.on("dialog", on_dialog)
    page.on("console", on_console)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("popup", lambda popup: wrong.append(f"popup: {popup.url}"))
    page.on("websocket", lambda socket: wrong.append(f"request: {socket.url}"))
    page.on("crash", lambda _: wrong.append("the page crashed"))
    page.context.on("request", on_request)
    return wrong


def violations(page: "Page") -> list[str]:
    """Returns every violation of axe-core's rules, one line an element; empty where there is none."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    return [
        f"{violation['id']}: {' '.join(node['failureSummary'].split())}: {node['html'][:300]}"
        for violation in axe.Axe().run(page).response["violations"]
        for node in violation["nodes"]
    ]


def faint_chart_text(page: "Page", least: float = 4.5) -> list[str]:
    """Returns the words of SVG charts whose contrast to what is behind the chart is under the least that WCAG 2 AA allows.

    axe-core gives up at text in SVG. Text over a mark of the chart is compared with what is behind the chart all the same.
    """
    words: list[Any] = page.evaluate(f"""() => {{{_COLOURS}
      return [...document.querySelectorAll("svg text")]
        .filter((text) => text.checkVisibility() && text.textContent.trim())
        .map((text) => [text.textContent, rgba(getComputedStyle(text).fill), behind(text.closest("svg"))]);
    }}""")
    return [
        f"{text}: {ratio:.2f}, {fill} on {paper}"
        for text, fill, paper in words
        if (ratio := _contrast(fill, paper)) < least
    ]


def paper_luminance(page: "Page") -> float:
    """Returns the relative luminance (WCAG 2; 0 black, 1 white) of what is behind the page."""
    return _luminance(page.evaluate(f"() => {{{_COLOURS} return behind(document.body); }}"))


def _contrast(one: list[int], other: list[int]) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(rgba: list[int]) -> float:
    parts = [part / 255 for part in rgba[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def shown_text(page: "Page", selector: str = "body") -> list[str]:
    """Returns the text that elements show, each on one line with single spaces; what is folded is opened first."""
    page.evaluate("document.querySelectorAll('details').forEach((folded) => { folded.open = true; })")
    return [one_line(text) for text in page.locator(selector).all_inner_texts()]


def one_line(text: str) -> str:
    """Returns text with single spaces, and without the marks that set thousands apart."""
    return re.sub(r"(?<=\d)[,\u2009\u202f](?=\d{3}(?!\d))", "", " ".join(text.split()))


def has_number(text: str, value: float | None) -> bool:
    """Returns whether a number stands in a line of `shown_text`: a count, or a fraction with 3 digits or more or in percent."""
    if value is None:
        return bool(re.search(r"\bnone\b|–|—|\bn/a\b", text))
    forms = [str(value)] if isinstance(value, int) else [f"{value:.4f}", f"{value:.3f}"]
    if isinstance(value, float):
        forms += [rf"{100 * value:.{digits}f}\s?%" for digits in (1, 2, 3)]
    patterns = (form.replace(".", r"\.") for form in forms)
    return any(re.search(rf"(?<![\d.,]){pattern}(?![\d]|[.,]\d)", text) for pattern in patterns)


def page_opener(browser: "Browser") -> OpenPage:
    """Returns `opened` in that browser."""
    return functools.partial(opened, browser)
