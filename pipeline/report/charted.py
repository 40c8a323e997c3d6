"""Which charts a report and the time of its build have: by name, as the page has places for them and `figures` writes them."""

from patchpack.pipeline.report.charts import (
    Mark,
    Spec,
    aspect_plane,
    balance,
    classes,
    durations,
    fractions,
    histogram,
    overlaid,
    storage,
    trade_off,
)
from patchpack.pipeline.report.text import drops_tokens
from patchpack.pipeline.report.times import Times
from patchpack.schemas.report import Report


def times_charts(times: Times) -> dict[str, Spec]:
    """Returns the charts of a build's time, those of which it has the numbers."""
    charts = {"time-by-stage": durations(times["wall_s"])}
    if times["worker_s"]:
        charts["time-by-work"] = durations(times["worker_s"])
    return charts


def charts_of(report: Report) -> dict[str, Spec]:
    """Returns the charts of a report by name, those of which it has the numbers."""
    figures, config, clips = report["efficiency"], report["config"], report["clips"]
    bars = {
        "stored": figures["efficiency"],
        "as planned": figures["planned_efficiency"],
        "at the bound": figures["efficiency_at_bound"],
    }
    limit = [Mark("max_segments", most) for most in {layout["max_segments"] for layout in report["layouts"]}]
    charts = {
        "efficiency": fractions(bars, "real tokens / (sequences × sequence length)"),
        "sequence-fill": histogram(report["sequence_fill"], "real tokens / sequence length (fraction)", "sequences"),
        "examples-per-sequence": histogram(
            report["examples_per_sequence"],
            "examples a sequence",
            "sequences",
            tuple(mark for mark in limit if report["segment_limit"]["num_at_limit"]),
        ),
        "tokens-per-example": histogram(report["tokens_per_example"], "tokens an example", "examples"),
        "resolution": overlaid(
            report["effective_side_px"],
            report["requested_side_px"],
            "effective side, √(height × width) (px)",
            "examples",
        ),
        "scale": histogram(
            report["scale"], "effective side / source's (ratio)", "examples", (Mark("source's size", 1.0),)
        ),
        "side-change": histogram(report["side_change"], "|effective side / requested side − 1| (fraction)", "examples"),
        "aspect-plane": aspect_plane(report["aspect_plane"]),
        "aspect-error": histogram(report["aspect_error"], "larger aspect / smaller aspect − 1 (fraction)", "examples"),
        "step-balance": balance(report["step_balance"]),
        "storage": storage(report["storage"]),
    }
    if drops_tokens(report):
        charts["kept-tokens"] = histogram(
            report["kept_fraction"], "tokens / all tokens of the grid (fraction)", "examples"
        )
    if report["what_if"] is not None:
        charts["what-if"] = trade_off(report["what_if"])
    if clips is not None:
        charts["clip-fps"] = histogram(clips["fps"], "frames a second (1/s)", "clips", (Mark("--fps", config["fps"]),))
        charts["clip-duration"] = histogram(clips["duration_s"], "span of a clip (s)", "clips")
    if report["classes"] is not None and report["classes"]["largest"]:
        charts["classes"] = classes(report["classes"]["largest"])
    return charts
