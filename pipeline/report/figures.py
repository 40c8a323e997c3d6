"""Charts as files for a paper: SVG, PNG at 300 dots an inch, and the numbers behind them as CSV.

Drawn by Vega-Lite's own renderer (vl-convert) on white, in the colours that the page has in light mode.
"""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchpack.extras import MissingExtra
from patchpack.pipeline.report.charts import Spec

if TYPE_CHECKING:
    import types

WIDTH = 440
# one point a pixel of the specification: 300 dots an inch
_SCALE = 300 / 72
# what a spreadsheet takes for a formula
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

PAPER = {
    "--ink": "#1c2024",
    "--soft": "#5a6068",
    "--line": "#dfe1e6",
    "--bar": "#3b63c9",
    "--mark": "#b4530a",
    "--good": "#1f7a45",
    "--bar-1": "#d3ddf5",
    "--bar-2": "#a5b9ea",
    "--bar-3": "#6f8edb",
    "--bar-4": "#3b63c9",
    "--bar-5": "#223d85",
}


def write_figures(charts: dict[str, Spec], folder: str) -> None:
    """Writes each chart as NAME.svg, NAME.png and NAME.csv.

    Args:
        charts: by name.
        folder: where to; made if it is not there.

    Raises:
        MissingExtra: what draws them is not installed.
        OSError: the folder cannot be written to.
    """
    vl_convert = renderer("report --figures needs")
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    for name, spec in charts.items():
        drawn = on_paper(spec)
        files = {
            "svg": vl_convert.vegalite_to_svg(drawn).encode(),
            "png": vl_convert.vegalite_to_png(drawn, scale=_SCALE, ppi=72),
            "csv": to_csv(spec).encode(),
        }
        for kind, content in files.items():
            (where / f"{name}.{kind}").write_bytes(content)


def renderer(needed_by: str) -> "types.ModuleType":
    """Returns vl_convert.

    Raises:
        MissingExtra: it is not installed; `needed_by` begins its message.
    """
    try:
        import vl_convert
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name, needed_by, "report") from error
    return vl_convert


def on_paper(spec: Spec) -> Spec:
    """Returns a chart as a paper has it: of a fixed width, on white, its variables colours."""
    text = json.dumps(
        {**spec, "background": "white", "width": WIDTH if spec["width"] == "container" else spec["width"]}
    )
    for name, colour in PAPER.items():
        text = text.replace(f"var({name})", colour)
    drawn: Spec = json.loads(text)
    # a renderer without a browser's fonts
    drawn["config"]["font"] = "DejaVu Sans, Helvetica, Arial, sans-serif"
    return drawn


def to_csv(spec: Spec) -> str:
    """Returns the numbers of a chart, those of its first layer; a text that a spreadsheet would compute begins with an apostrophe."""
    layers = [spec, *spec["layer"]]
    rows: list[dict[str, Any]] = next((layer["data"]["values"] for layer in layers if "data" in layer), [])
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else ["value"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
