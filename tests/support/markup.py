"""Pages of the product, without the scripts that they end with."""

import json
import re
from pathlib import Path

import vl_convert

OWN_SCRIPT = Path(__file__).parent.parent.parent / "pipeline" / "report" / "page.js"
_DATA = '<script type="application/json" class="specs">'


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
    assert rest == f"\n<script>{vl_convert.javascript_bundle()}</script>\n<script>{own}</script>\n</body>\n</html>"
    return f"{before}</body>\n</html>"


def timeless(page: str) -> str:
    """Returns a page without the section of times, in which alone equal datasets differ."""
    return re.sub(r'<section id="time">.*?</section>', "", page, flags=re.DOTALL)
