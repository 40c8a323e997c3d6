"""How two datasets differ as one HTML page, `page.html` filled in: every figure of both side by side, with the report's own look.

Names come from the files of others: the template escapes everything, and <bdi> keeps right-to-left marks inside their cell.
"""

from importlib import resources

from patchpack.extras import MissingExtra
from patchpack.pipeline.comparison.text import NAMES_TITLES, TITLES, change, shown, verdict
from patchpack.pipeline.report import charts as report_charts
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
    try:
        import matplotlib  # noqa: F401
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name, "diff --html needs", "report") from error

    charts = []
    for name, title, axis, counted in _CHARTS:
        for side, distribution in (
            ("A", comparison["histograms"][name]["a"]),
            ("B", comparison["histograms"][name]["b"]),
        ):
            svg = report_charts.histogram(f"{side}-{name}".replace("_", "-"), distribution, axis, counted)
            charts.append({"title": f"{side}: {title}", "svg": Markup(svg)})  # noqa: S704 (our own SVG, whose words are escaped)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"shown": shown, "change": change, "line": lambda text: fitted(text, 1000)}
    css = resources.files("patchpack.pipeline.report").joinpath("page.css").read_text(encoding="utf-8")
    page = resources.files("patchpack.pipeline.comparison").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(page).render(
        c=comparison,
        charts=charts,
        titles=TITLES,
        names_titles=NAMES_TITLES,
        verdict=verdict(comparison),
        style=Markup(css),  # noqa: S704 (our own)
    )
