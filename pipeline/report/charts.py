"""The charts of report.html as inline SVG: plain bars whose colours are the page's own, so that dark mode works.

matplotlib is imported when a chart is drawn: `verify`, `inspect` and the workers do without it. Equal reports
give equal bytes for a pinned matplotlib: ids are salted by name, there is no date, text stays text.
"""

import io
import re
from typing import TYPE_CHECKING, Any

from patchpack.schemas.figures import Distribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib knows no CSS variables: it draws in these colours, and each becomes a variable of the page
_BAR, _INK, _LINE, _MARK = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {_BAR: "var(--bar)", _INK: "var(--soft)", _LINE: "var(--line)", _MARK: "var(--ink)"}

# what matplotlib declares for its 300 parameters is wider than this
_STYLE: dict[Any, object] = {
    "svg.fonttype": "none",
    # shipped with matplotlib: the same metrics, so the same layout, on every machine
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "ytick.major.size": 0,
}
_WIDTH_IN, _HEIGHT_IN = 5.0, 2.5
# left, bottom, width, height of the axes, as fractions: reckoning them from the words takes as long as drawing
_HISTOGRAM_AREA = (0.13, 0.19, 0.82, 0.7)
_BARS_AREA = (0.21, 0.32, 0.77, 0.65)


def histogram(name: str, distribution: Distribution, x_label: str, y_label: str) -> str:
    """Returns a histogram as SVG, with a dashed line at the median.

    Args:
        name: of the chart, unique in its page.
        distribution: one of the report.
        x_label: what is counted, with its unit.
        y_label: what the counts count.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    edges, counts = distribution["edges"], distribution["counts"]
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN))
        axes = figure.add_axes(_HISTOGRAM_AREA)
        # the bar of a single whole number stands over it, not to its right
        single = edges[1] - edges[0] == 1
        edges = [edge - 0.5 for edge in edges] if single else edges
        axes.stairs(counts, edges, fill=True, color=_BAR, linewidth=0)
        if distribution["median"] is not None:
            axes.axvline(distribution["median"], color=_MARK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(xlabel=x_label, xlim=(edges[0], edges[-1]), ylim=(0, max(counts) * 1.05 or 1))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        millions = max(counts) >= 1_000_000
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value / 1e6:,g} M" if millions and value else f"{value:,.0f}")
        )
        if edges[-1] >= 1000:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if single:
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        # above the axis, where ticks of any length leave it alone
        axes.set_title(y_label, loc="left", color=_INK, fontsize=_STYLE["font.size"])
        axes.grid(axis="y")
        return _svg(figure, name)


def fractions(name: str, values: dict[str, float | None], x_label: str) -> str:
    """Returns horizontal bars from 0 to 1, one a name, with each value written behind its bar."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = {label: value for label, value in reversed(values.items()) if value is not None}
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH_IN, 1.4))
        axes = figure.add_axes(_BARS_AREA)
        bars = axes.barh(list(shown), list(shown.values()), height=0.62, color=_BAR)
        axes.bar_label(bars, [f"{value:.4f}" for value in shown.values()], padding=4, color=_MARK)
        # room for the number behind a full bar
        axes.set(xlabel=x_label, xlim=(0, 1.12), xticks=[n / 5 for n in range(6)])
        axes.grid(axis="x")
        return _svg(figure, name)


def _svg(figure: "Figure", name: str) -> str:
    """Returns a figure as an <svg> element that can stand in a page beside others."""
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    # its one rule is for every element of the page, and names of namespaces mean nothing in HTML
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    # ids are the same in every chart that matplotlib draws
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text
