"""Pages of the product: what is in them, and what of them equal builds have equal."""

import json
import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import vl_convert

OWN_SCRIPT = Path(__file__).parent.parent.parent / "pipeline" / "report" / "page.js"
_DATA = '<script type="application/json" class="specs">'


class Page(HTMLParser):
    """Collects the tags, attributes, ids, references and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.references: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        for name, value in attrs:
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("src", "href", "xlink:href", "srcset", "data", "action") or name.startswith("on"):
                self.references.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words += data


def plain(page: str) -> str:
    """Returns a page without its scripts, after a check that they are ours: the charts' numbers, Vega's code and `page.js`."""
    before, *parts = page.split(_DATA)
    for part in parts:
        data, rest = part.split("</script>", 1)
        assert json.loads(data)
        assert "<" not in data
        # that of times stands in its section
        before += rest if part is not parts[-1] else ""
    own = OWN_SCRIPT.read_text(encoding="utf-8")
    assert rest == f"\n<script>{library()}</script>\n<script>{own}</script>\n</body>\n</html>"
    return f"{before}</body>\n</html>"


@cache
def library() -> str:
    """Returns Vega's script as its library makes it, which takes a second or two."""
    made: str = vl_convert.javascript_bundle()
    return made


def timeless(page: str) -> str:
    """Returns a page without the section of times, in which alone equal datasets differ."""
    return re.sub(r'<section id="time">.*?</section>', "", page, flags=re.DOTALL)


def equal_part(name: str, content: bytes) -> bytes:
    """Returns what equal builds have equal of a file of theirs."""
    return timeless(content.decode()).encode() if name == "report.html" else content
