"""How two datasets differ as one HTML page, `page.html` filled in: every figure of both side by side, with the report's own look.

Names come from the files of others: the template escapes everything, and <bdi> keeps right-to-left marks inside their cell.
"""

from pathlib import Path

from patchpack.pipeline.comparison.text import NAMES_TITLES, TITLES, change, shown, verdict
from patchpack.pipeline.report.charts import histogram
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
    titles, charts = {}, {}
    for name, title, axis, counted in _CHARTS:
        histograms = comparison["histograms"][name]
        for side, distribution in (("a", histograms["a"]), ("b", histograms["b"])):
            place = f"{side}-{name}".replace("_", "-")
            titles[place], charts[place] = f"{side.upper()}: {title}", histogram(distribution, axis, counted)
    environment.filters |= {"shown": shown, "change": change, "line": lambda text: fitted(text, 1000)}
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return environment.from_string(page).render(
        c=comparison,
        chart_titles=titles,
        charts=charts,
        titles=TITLES,
        names_titles=NAMES_TITLES,
        verdict=verdict(comparison),
    )
