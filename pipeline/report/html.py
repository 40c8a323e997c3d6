"""The report as one HTML page, `page.html` filled in: charts inline, no network, no script; readable in light, dark and on paper.

Keys and class names come from the files of others: the template escapes everything, and <bdi> keeps
right-to-left marks inside their cell.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from patchpack.extras import MissingExtra
from patchpack.pipeline.inspection.image import colour, text_colour
from patchpack.pipeline.report import charts as report_charts
from patchpack.pipeline.report.gallery import Gallery
from patchpack.pipeline.report.sizes import size_facts
from patchpack.pipeline.report.text import drops_tokens, fraction, number, size, verdict
from patchpack.schemas.figures import Distribution
from patchpack.schemas.report import DistributionName, Report

if TYPE_CHECKING:
    from jinja2 import Environment

_UNITS = {"tokens_per_example": "tokens", "effective_side_px": "px"}

# name in the report, title, axis, what is counted
_CHARTS: tuple[tuple[DistributionName, str, str, str], ...] = (
    ("tokens_per_example", "Tokens an example", "tokens an example", "examples"),
    ("examples_per_sequence", "Examples a sequence", "examples a sequence", "sequences"),
    ("sequence_fill", "Sequence fill", "real tokens / sequence length (fraction)", "sequences"),
    ("effective_side_px", "Resolution", "effective side, √(height × width) (px)", "examples"),
    ("aspect_error", "Aspect error", "larger aspect / smaller aspect − 1 (fraction)", "examples"),
    ("side_change", "Side change", "|effective side / requested side − 1| (fraction)", "examples"),
    ("scale", "Scale", "effective side / source's effective side (fraction)", "examples"),
    ("kept_fraction", "Kept tokens", "tokens / all tokens of the grid (fraction)", "examples"),
)
_FRACTIONS = ("sequence_fill", "aspect_error", "side_change", "scale", "kept_fraction")


def render_html(report: Report, gallery: Gallery | None = None) -> str:
    """Returns the page for what `report.make_report` and `read_gallery` returned; equal ones give equal pages.

    Raises:
        MissingExtra: what draws it is not installed.
    """
    environment = new_environment("report.html needs")
    # not needed by those who only verify, and not by workers
    from markupsafe import Markup

    environment.filters |= {"fraction": fraction, "number": number, "size": size, "json": _compact}
    environment.filters |= {
        "fill": lambda number: _hex(colour(number)),
        "ink": lambda number: _hex(text_colour(number)),
    }
    charts = [
        {
            "title": title,
            "svg": Markup(report_charts.histogram(name.replace("_", "-"), report[name], axis, counted)),  # noqa: S704 (our own SVG, whose words are escaped)
            "caption": _caption(report[name], name, counted),
        }
        for name, title, axis, counted in _CHARTS
        if name != "kept_fraction" or drops_tokens(report)
    ]
    figures = report["efficiency"]
    bars = {
        "stored": figures["efficiency"],
        "as planned": figures["planned_efficiency"],
        "at the bound": figures["efficiency_at_bound"],
    }
    against = report_charts.fractions("efficiency", bars, "efficiency: real tokens / (sequences × sequence length)")
    template = environment.from_string(_beside("page.html"))
    facts = size_facts(report["sizes"], report["config"]) if report["sizes"] else []
    values = {"charts": charts, "against": Markup(against), "facts": facts, "verdict": verdict}  # noqa: S704 (our own SVG, whose words are escaped)
    values["gallery_style"] = Markup(_beside("gallery.css") if gallery else "")  # noqa: S704 (our own)
    return template.render(r=report, gallery=gallery, **values)


def new_environment(needed_by: str) -> "Environment":
    """Returns what fills in pages: it escapes everything, and gives them `style`, the look of the report.

    Raises:
        MissingExtra: what draws pages is not installed; `needed_by` begins its message.
    """
    try:
        import matplotlib  # noqa: F401
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name, needed_by, "report") from error

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # parts that pages include
        loader=FileSystemLoader(Path(__file__).parent),
    )
    environment.globals["style"] = Markup(_beside("page.css"))  # noqa: S704 (our own)
    return environment


def _beside(name: str) -> str:
    """Returns the text of a file of this package."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hex(levels: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*levels)


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _caption(figures: Distribution, name: str, counted: str) -> str:
    """Returns the numbers behind a chart in one sentence."""
    if not figures["num"]:
        return "Nothing was stored."
    show = fraction if name in _FRACTIONS else number
    unit = f" {_UNITS[name]}" if name in _UNITS else ""
    text = (
        f"Mean {show(figures['mean'])}, median {show(figures['median'])} (dashed), "
        f"5th to 95th percentile {show(figures['p5'])} to {show(figures['p95'])}, "
        f"all {show(figures['min'])} to {show(figures['max'])}{unit}."
    )
    return text + (f" {figures['num_above']:,} {counted} lie beyond the axis." if figures["num_above"] else "")
