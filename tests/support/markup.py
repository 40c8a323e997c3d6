"""Pages of the product, without the scripts that they end with."""

import json
from pathlib import Path

import vl_convert

OWN_SCRIPT = Path(__file__).parent.parent.parent / "pipeline" / "report" / "page.js"
_DATA = '<script type="application/json" id="charts">'


def plain(page: str) -> str:
    """Returns a page without its scripts, after a check that they are ours: the charts' numbers, Vega's code and `page.js`."""
    before, rest = page.split(_DATA)
    data, rest = rest.split("</script>", 1)
    assert json.loads(data)
    assert "<" not in data
    own = OWN_SCRIPT.read_text(encoding="utf-8")
    assert rest == f"\n<script>{vl_convert.javascript_bundle()}</script>\n<script>{own}</script>\n</body>\n</html>"
    return f"{before}</body>\n</html>"
