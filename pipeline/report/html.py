"""The report as one HTML page, `page.html` filled in: no network, readable in light, dark and on paper, by keyboard and screen reader.

Charts are drawn by Vega-Lite, whose code stands in the page; without script every number is still there. Keys and class names come
from the files of others: the template escapes everything, `line` shows what a terminal or a reader would obey, and <bdi> keeps
right-to-left names inside their cell.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import xxhash

from patchpack.extras import MissingExtra
from patchpack.options import flag, output_affecting
from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.inspection.image import colour, text_colour
from patchpack.pipeline.report import whatif, words
from patchpack.pipeline.report.charted import charts_of, times_charts
from patchpack.pipeline.report.charts import Spec, trade_off
from patchpack.pipeline.report.figures import renderer
from patchpack.pipeline.report.gallery import Frame, Gallery
from patchpack.pipeline.report.sizes import size_facts
from patchpack.pipeline.report.text import first_ignored, fitted, fraction, number, size, verdict
from patchpack.pipeline.report.times import Times
from patchpack.schemas.figures import Distribution
from patchpack.schemas.report import Report
from patchpack.schemas.whatif import WhatIf

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

# of page.html, where the section of times goes, which equal datasets do not share, and the digest of all else
_TIMES, _DIGEST = "<!-- times -->", "<!-- digest -->"
_NAME_COLUMNS = 1000


def render_html(
    report: Report,
    gallery: Gallery | None = None,
    stretched: Sequence[Frame] = (),
    rejected: Mapping[str, Frame] = MappingProxyType({}),
    times: Times | None = None,
) -> str:
    """Returns the page of a report; equal datasets have equal pages, but for the section of times, and equal digests in them.

    Args:
        report: as `make_report` returned it.
        gallery: as `read_gallery` returned it; None leaves it out.
        stretched: thumbnails of the most stretched examples, as `thumbnails` returned them, or none.
        rejected: thumbnails of rejected images by key, as `reject_thumbnails` returned them.
        times: of the build, as `read_times` returned them; None leaves them out.

    Raises:
        MissingExtra: what draws it is not installed.
    """
    environment = new_environment("report.html needs")
    environment.filters |= {
        "fraction": fraction,
        "size": size,
        "percent": words.percent,
        "caption": _caption,
        "flag": flag,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
        "fill": lambda number: _hex(colour(number)),
        "ink": lambda number: _hex(text_colour(number)),
    }
    ignored, num_more_ignored = first_ignored(report)
    page = environment.get_template("page.html").render(
        r=report,
        gallery=gallery,
        stretched=stretched,
        rejected=rejected,
        words=words,
        verdict=verdict,
        facts=size_facts(report["sizes"], report["config"]) if report["sizes"] else [],
        options=_options(report),
        ignored=ignored,
        num_more_ignored=num_more_ignored,
        whatif=whatif,
        charts=charts_of(report),
    )
    # no text of others can hold a mark: its first sign is escaped
    page = page.replace(_DIGEST, xxhash.xxh3_64_hexdigest(page.encode()))
    section = (
        "" if times is None else environment.get_template("times.html").render(times=times, charts=times_charts(times))
    )
    return page.replace(_TIMES, section)


def render_whatif(made: WhatIf) -> str:
    """Returns the page of a comparison: the chart and the table.

    Raises:
        MissingExtra: what draws it is not installed.
    """
    environment = new_environment("plan --html needs")
    return environment.get_template("whatif_page.html").render(
        made=made, whatif=whatif, charts={"what-if": trade_off(made)}
    )


@cache
def new_environment(needed_by: str) -> "Environment":
    """Returns what fills in pages, made once: it escapes everything, and gives them `style`, `script` and `library` of the report.

    Raises:
        MissingExtra: what draws pages is not installed; `needed_by` begins its message.
    """
    try:
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
    environment.filters |= {"drawn": _drawn, "number": number, "line": lambda text: fitted(text, _NAME_COLUMNS)}
    environment.globals["style"] = Markup(_beside("page.css") + _beside("gallery.css"))  # noqa: S704 (our own)
    environment.globals["script"] = Markup(_beside("page.js"))  # noqa: S704 (our own)
    environment.globals["library"] = Markup(_library(needed_by))  # noqa: S704 (Vega's)
    return environment


def _drawn(charts: dict[str, Spec]) -> "Markup":
    """Returns specifications as JSON that can stand in a script element."""
    from markupsafe import Markup

    text = json.dumps(charts, ensure_ascii=False, separators=(",", ":"))
    # no text can end the element
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 (no markup left)


@cache
def _library(needed_by: str) -> str:
    """Returns Vega, Vega-Lite and their embedding as one script."""
    script: str = renderer(needed_by).javascript_bundle()
    return script


def _beside(name: str) -> str:
    """Returns the text of a file of this package."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _options(report: Report) -> list[tuple[str, object, object]]:
    """Returns name, value and default of every option, those first that have another value; None where there is no such option now."""
    defaults = json.loads(json.dumps(output_affecting(PlanConfig())))
    rows = [(name, value, defaults.get(name)) for name, value in report["config"].items()]
    return sorted(rows, key=lambda row: row[1] == row[2])


def _hex(levels: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*levels)


def _caption(figures: Distribution, counted: str, unit: str = "") -> str:
    """Returns the numbers behind a histogram in one sentence; those of fractions have no unit."""
    if not figures["num"]:
        return "Nothing was stored."
    show = number if unit else fraction
    text = (
        f"Mean {show(figures['mean'])}, median {show(figures['median'])} (dashed), "
        f"5th to 95th percentile {show(figures['p5'])} to {show(figures['p95'])}, "
        f"all {show(figures['min'])} to {show(figures['max'])} {unit}".rstrip()
        + "."
    )
    return text + (f" {figures['num_above']:,} {counted} lie beyond the axis." if figures["num_above"] else "")
