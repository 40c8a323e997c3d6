"""The charts of a report as Vega-Lite specifications: pure functions of its numbers; the page draws them, `figures` exports them.

Colours are the page's CSS variables, so that a chart follows light, dark and print without being drawn anew; nothing is scaled
between colours, which no variable allows. Texts that come from files stand in data alone, where Vega shows them as text.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from patchpack.pipeline.report.aspects import ROW, STEPS_PER_OCTAVE, WIDTH
from patchpack.pipeline.report.text import fitted
from patchpack.schemas.figures import AspectPlane, ClassCount, Distribution
from patchpack.schemas.report import StepBalance, Storage
from patchpack.schemas.whatif import WhatIf

Spec = dict[str, Any]

# shades of the bars' colour, from few to many
SHADES = ("var(--bar-1)", "var(--bar-2)", "var(--bar-3)", "var(--bar-4)", "var(--bar-5)")
_HEIGHT = 190
_ROW_HEIGHT = 22
# what is less is in the table
_LEAST_SHARE = 0.001

_CONFIG: Spec = {
    "background": None,
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "titleFontWeight": "normal",
        "labelFontSize": 11.5,
        "titleFontSize": 12,
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelOverlap": "greedy",
    },
    # its title above it, where it is read without turning the head
    "axisY": {
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
        "titleAngle": 0,
        "titleAlign": "left",
        "titleAnchor": "start",
        "titleBaseline": "bottom",
        "titleX": -34,
        "titleY": -8,
    },
    "axisX": {"grid": False},
    "legend": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "titleFontWeight": "normal",
        "orient": "top",
        "offset": 26,
        "labelFontSize": 11.5,
        "symbolStrokeWidth": 2,
    },
    "bar": {"color": "var(--bar)"},
    "rule": {"color": "var(--ink)"},
    "text": {"color": "var(--ink)", "fontSize": 12},
}


class Mark(NamedTuple):
    """A value to mark in a histogram, and its name."""

    name: str
    value: float


def histogram(distribution: Distribution, x_title: str, counted: str, marks: tuple[Mark, ...] = ()) -> Spec:
    """Returns bars over round bins, the median dashed, with other values marked.

    Args:
        distribution: one of the report.
        x_title: what is measured, with its unit.
        counted: what the counts count, plural.
        marks: of the same quantity.
    """
    found = [] if distribution["median"] is None else [Mark("median", distribution["median"])]
    lines = [mark._asdict() for mark in (*found, *marks)]
    bars = {
        "data": {"values": _bins(distribution)},
        "mark": {"type": "bar", "binSpacing": 1},
        "encoding": {
            "x": {**_range("from", x_title), "bin": "binned"},
            "x2": {"field": "to"},
            "y": _count(counted),
            "tooltip": _bin_tooltip(x_title, counted),
        },
    }
    return _chart(f"Histogram of {x_title}; the y axis counts {counted}.", _HEIGHT, [bars, *_rules(lines, x_title)])


def overlaid(shown: Distribution, asked: Distribution, x_title: str, counted: str) -> Spec:
    """Returns two histograms of the same bins: what was asked for as a line over what came out as bars."""
    spec = histogram(shown, x_title, counted)
    steps = _bins(asked)
    if steps:
        # a step ends where its bin does
        steps.append({**steps[-1], "from": steps[-1]["to"]})
    line = {
        "data": {"values": steps},
        "mark": {"type": "line", "interpolate": "step-after", "color": "var(--mark)", "strokeWidth": 2},
        "encoding": {
            "x": _range("from", x_title),
            "y": _count(counted),
            "tooltip": _bin_tooltip(f"{x_title}, asked", counted),
        },
    }
    spec["layer"].insert(1, line)
    # both are in the table of the figure
    for row, count in zip(spec["layer"][0]["data"]["values"], asked["counts"], strict=True):
        row["asked"] = count
    spec["description"] = (
        f"Histogram of {x_title}, as realised (bars) and as asked for (line); the y axis counts {counted}."
    )
    return spec


def fractions(values: dict[str, float | None], x_title: str) -> Spec:
    """Returns horizontal bars from 0 to 1, one a name, with each value behind its bar."""
    rows = [{"name": name, "value": value} for name, value in values.items() if value is not None]
    return _named_bars(rows, x_title, {"domain": [0, 1]}, ".4f")


def storage(stored: Storage) -> Spec:
    """Returns how many MB each column of the shards takes, those that show."""
    total = sum(stored["bytes_by_column"].values()) + stored["footer_bytes"]
    rows = [
        {"name": fitted(name, 40), "value": size / 1e6}
        for name, size in [*stored["bytes_by_column"].items(), ("footers", stored["footer_bytes"])]
        if size >= _LEAST_SHARE * total
    ]
    return _named_bars(rows, "MB", {}, ",.2f")


def durations(seconds: Mapping[str, float]) -> Spec:
    """Returns how long each of several things took."""
    return _named_bars([{"name": name, "value": spent} for name, spent in seconds.items()], "time (s)", {}, ",.1f")


def classes(largest: list[ClassCount]) -> Spec:
    """Returns how many examples each of the largest classes has."""
    rows = [{"name": fitted(f"{one['label']}: {one['name']}", 40), "value": one["num_examples"]} for one in largest]
    return _named_bars(rows, "examples", {}, ",")


def aspect_plane(plane: AspectPlane) -> Spec:
    """Returns the hexagons of the aspect plane; what lies on the line kept its aspect."""
    bins = [
        {**one, "source_aspect": _ratio(one["source"]), "realised_aspect": _ratio(one["realised"])}
        for one in plane["bins"]
    ]
    reach = max([1.0, *(abs(one[side]) + 0.25 for one in plane["bins"] for side in ("source", "realised"))])
    width = 340
    # of a hexagon, so that neighbours touch: as wide as the plane has room for one
    side = width / (2 * reach) * WIDTH / STEPS_PER_OCTAVE
    stretched = ROW / WIDTH / 0.866
    axis = {
        "values": [-4, -3, -2, -1, 0, 1, 2, 3, 4],
        "labelExpr": "datum.value < 0 ? '1:' + pow(2, -datum.value) : pow(2, datum.value) + ':1'",
        "grid": True,
    }
    scale = {"domain": [-reach, reach], "nice": False}
    most = max([1, *(one["num_examples"] for one in plane["bins"])])
    # powers of a constant: as many shades for few as for many
    steps = sorted({round(most ** (n / len(SHADES))) for n in range(1, len(SHADES))} - {0, 1} | {2})
    shade = {
        "field": "num_examples",
        "type": "quantitative",
        "scale": {"type": "threshold", "domain": steps[: len(SHADES) - 1], "range": SHADES[: len(steps) + 1]},
        "legend": {"title": "examples", "format": ","},
    }
    hexagons = {
        "data": {"values": bins},
        "mark": {
            "type": "point",
            "filled": True,
            "opacity": 1,
            "strokeWidth": 0,
            "shape": f"M0,{-stretched / 1.732:.4f}L0.5,{-stretched / 3.464:.4f}L0.5,{stretched / 3.464:.4f}"
            f"L0,{stretched / 1.732:.4f}L-0.5,{stretched / 3.464:.4f}L-0.5,{-stretched / 3.464:.4f}Z",
            "size": (2 * side) ** 2,
        },
        "encoding": {
            "x": {
                "field": "source",
                "type": "quantitative",
                "title": "source, width : height",
                "scale": scale,
                "axis": axis,
            },
            "y": {
                "field": "realised",
                "type": "quantitative",
                "title": "as stored, width : height",
                "scale": scale,
                "axis": axis,
            },
            "color": shade,
            "tooltip": [
                {"field": "source_aspect", "title": "source"},
                {"field": "realised_aspect", "title": "as stored"},
                {"field": "num_examples", "title": "examples", "format": ","},
            ],
        },
    }
    line = {
        "data": {"values": [{"a": -reach}, {"a": reach}]},
        "mark": {"type": "line", "color": "var(--ink)", "strokeWidth": 1, "strokeDash": [4, 3]},
        "encoding": {"x": {"field": "a", "type": "quantitative"}, "y": {"field": "a", "type": "quantitative"}},
    }
    words = "Hexagonal bins of aspect ratios, of sources against stored examples; darker ones hold more; on the dashed line both are equal."
    # as high as wide, on any screen: both axes have one scale
    return {**_chart(words, width, [hexagons, line]), "width": width, "autosize": "pad"}


def balance(steps: StepBalance) -> Spec:
    """Returns how much longer than the mean a step lasts, for several numbers of ranks, in random order and as stored."""
    rows = [
        {"name": f"{ranks} ranks, random", "value": ratio}
        for ranks, ratio in steps["random_by_ranks"].items()
        if ratio is not None
    ]
    if steps["mean_max_over_mean"] is not None:
        rows.append({"name": f"{steps['num_sequences']} ranks, as stored", "value": steps["mean_max_over_mean"]})
    return _named_bars(rows, "most expensive sequence of a step / mean (ratio)", {"domainMin": 0}, ".3f")


def trade_off(made: WhatIf) -> Spec:
    """Returns padding against attention cost of every setting and packer compared; what is there is marked."""
    rows = [
        {
            "setting": fitted(made["settings"][row["setting"]]["options"], 60) or "base",
            "packer": row["packer"],
            "padding": row["padding_fraction"],
            "attention": row["relative_attention_cost"],
            "sequences": row["num_sequences"],
            "is_chosen": number == 0,
        }
        for number, row in enumerate(made["rows"])
        if row["padding_fraction"] is not None and row["relative_attention_cost"] is not None
    ]
    encoding = {
        "x": {
            "field": "attention",
            "type": "quantitative",
            "title": "attention cost, × what is there",
            # a logarithmic scale of nothing has no ends
            "scale": {"type": "log", "nice": False, "padding": 24} if rows else {},
            "axis": {"grid": True, "format": "~g"},
        },
        "y": {"field": "padding", "type": "quantitative", "title": "padding (fraction)", "axis": {"format": "~g"}},
        "tooltip": [
            {"field": "setting"},
            {"field": "packer"},
            {"field": "padding", "format": ".4f"},
            {"field": "attention", "title": "attention cost, ×", "format": ".3f"},
            {"field": "sequences", "format": ","},
        ],
    }
    packers = list(dict.fromkeys(row["packer"] for row in rows))
    points = {
        # where packers agree the first is seen: what is drawn last lies on top
        "transform": [{"window": [{"op": "row_number", "as": "rank"}]}],
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
        "encoding": {
            **encoding,
            "order": {"field": "rank", "type": "quantitative", "sort": "descending"},
            "shape": {
                "field": "packer",
                "type": "nominal",
                "scale": {"domain": packers, "range": ["circle", "square", "triangle-up", "diamond"][: len(packers)]},
                "legend": {"title": None, "columns": 2},
            },
            "color": {
                "field": "packer",
                "type": "nominal",
                "scale": {
                    "domain": packers,
                    "range": ["var(--bar)", "var(--mark)", "var(--soft)", "var(--good)"][: len(packers)],
                },
            },
        },
    }
    chosen = {
        "transform": [{"filter": "datum.is_chosen"}],
        "mark": {
            "type": "point",
            "shape": "circle",
            "size": 340,
            "strokeWidth": 2,
            "color": "var(--ink)",
            "filled": False,
        },
        "encoding": encoding,
    }
    words = "Padding against attention cost of other options and packers; a ring marks what is there."
    return {**_chart(words, 240, [points, chosen]), "data": {"values": rows}}


def _chart(description: str, height: int, layers: list[Spec]) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": _CONFIG,
        "layer": layers,
    }


def _named_bars(rows: list[dict[str, object]], x_title: str, scale: Spec, form: str) -> Spec:
    """Returns horizontal bars in the order given, each value written behind its bar."""
    # a scale of nothing has no end
    rows = rows or [{"name": "none", "value": 0}]
    names = {"field": "name", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 170}}
    values = {
        "field": "value",
        "type": "quantitative",
        "title": x_title,
        "stack": None,
        "scale": scale,
        "axis": {"grid": True, "tickCount": 5},
    }
    tooltip = [{"field": "name", "title": "what"}, {"field": "value", "title": x_title, "format": form}]
    bars = {
        "mark": {"type": "bar", "height": {"band": 0.72}},
        "encoding": {"y": names, "x": values, "tooltip": tooltip},
    }
    labels = {
        "mark": {"type": "text", "align": "left", "dx": 5},
        "encoding": {"y": names, "x": values, "text": {"field": "value", "format": form}},
    }
    listed = ", ".join(str(row["name"]) for row in rows[:6])
    spec = _chart(f"Bars of {x_title}: {listed}.", _ROW_HEIGHT * max(1, len(rows)), [bars, labels])
    return {**spec, "data": {"values": rows}}


def _bins(distribution: Distribution) -> list[dict[str, float]]:
    """Returns the bins of a histogram; one whole number wide they stand over their number, not to its right."""
    edges = distribution["edges"]
    shift = 0.5 if edges[1] - edges[0] == 1 and isinstance(edges[0], int) else 0
    return [
        {"from": low - shift, "to": high - shift, "count": count}
        for low, high, count in zip(edges, edges[1:], distribution["counts"], strict=False)
    ]


def _rules(marks: list[dict[str, Any]], x_title: str) -> list[Spec]:
    """Returns a dashed line for each marked value, named at its top."""
    if not marks:
        return []
    at = {"field": "value", "type": "quantitative"}
    tooltip = [{"field": "name", "title": "mark"}, {"field": "value", "title": x_title, "format": ",.4~f"}]
    lines = {
        "data": {"values": marks},
        "mark": {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1.2},
        "encoding": {"x": at, "tooltip": tooltip},
    }
    return [lines]


def _range(field: str, title: str) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False, "nice": False}}


def _count(counted: str) -> Spec:
    return {"field": "count", "type": "quantitative", "title": counted, "axis": {"tickCount": 4}}


def _bin_tooltip(x_title: str, counted: str) -> list[Spec]:
    return [
        {"field": "from", "title": f"{x_title}, from", "format": ",.4~f"},
        {"field": "to", "title": "to", "format": ",.4~f"},
        {"field": "count", "title": counted, "format": ","},
    ]


def _ratio(octaves: float) -> str:
    """Returns an aspect as people write it: 1.5:1, or 1:1.5."""
    ratio = f"{2 ** abs(octaves):.2f}".rstrip("0").rstrip(".")
    return f"{ratio}:1" if octaves >= 0 else f"1:{ratio}"
