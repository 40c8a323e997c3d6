"""How two datasets differ as one HTML page, `page.html` filled in: every figure of both side by side, with the report's own look.

Names come from the files of others: the template escapes everything, and <bdi> keeps right-to-left marks inside their cell.
"""

from pathlib import Path

from patchpack.pipeline.comparison.text import NAMES_TITLES, TITLES, change, shown, verdict
from patchpack.pipeline.report import charts as report_charts
from patchpack.pipeline.report.html import new_environment
from patchpack.pipeline.report.text import fitted
from patchpack.schemas.comparison import ChartName, Comparison

# name, title, axis, what is counted
_CHARTS: tuple[tuple[ChartName, str, str, str], ...] = (
    ("tokens_per_example", "Tokens an example", "tokens an example", "examples"),
    ("examples_per_sequence", "Examples a sequence", "examples a sequence", "sequences"),
    ("sequence_fill", "Sequence fill", "real tokens / sequence length (fraction)", "sequences"),
)


def render_html(comparison: Comparison) -> str:
    """Returns the page for what `differences.compare` returned.

    Raises:
        MissingExtra: what draws it is not installed.
    """
    environment = new_environment("diff --html needs")
    from markupsafe import Markup

    charts = []
    for name, title, axis, counted in _CHARTS:
        for side, distribution in (
            ("A", comparison["histograms"][name]["a"]),
            ("B", comparison["histograms"][name]["b"]),
        ):
            svg = report_charts.histogram(f"{side}-{name}".replace("_", "-"), distribution, axis, counted)
            charts.append({"title": f"{side}: {title}", "svg": Markup(svg)})  # noqa: S704 (our own SVG, whose words are escaped)
    environment.filters |= {"shown": shown, "change": change, "line": lambda text: fitted(text, 1000)}
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return environment.from_string(page).render(
        c=comparison,
        charts=charts,
        titles=TITLES,
        names_titles=NAMES_TITLES,
        verdict=verdict(comparison),
    )
