"""The report as plain text for a terminal of 80 columns.

Keys and class names come from the files of others: control characters are escaped, and wide ones counted as two.
"""

import json
import re
import textwrap
import unicodedata
from collections.abc import Callable
from typing import Literal, TextIO

from patchpack.pipeline.report import words
from patchpack.pipeline.report.sizes import size_facts
from patchpack.schemas.errors import without_secrets
from patchpack.schemas.geometry import LayoutRecord
from patchpack.schemas.report import Arranged, CountName, DistributionName, Prediction, Report, ReportedBound

WIDTH = 80
BAR_WIDTH = 40
MAX_IGNORED = 20
_LABEL_WIDTH = 26
_BEYOND_ASCII = re.compile(r"[^\n -~]")
# beside a digest
_RECIPE_WIDTH = 31


def print_report(report: Report, out: TextIO) -> None:
    """Prints what `report.make_report` returned, in lines of at most 80 columns."""
    sections = (_advice, _packing, _stored, _sizes, _tokens, _inputs, _class_table)
    recipe = f", recipe {fitted(report['recipe'], _RECIPE_WIDTH)}" if report["recipe"] else ""
    lines = [f"dataset {report['dataset_digest']}{recipe}", *words.growth(report)]
    for section in sections:
        lines += section(report)
    # a terminal without UTF-8 gets '#' and escapes instead of an error
    encoding = out.encoding or "utf-8"
    for line in lines:
        if not _encodable("█…", encoding):
            line = line.replace("█", "#").replace("…", "~")
        out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def print_reports(reports: dict[str, Report], out: TextIO) -> None:
    """Prints the reports of several splits, each under its name."""
    for number, (name, report) in enumerate(reports.items()):
        out.write(("\n" if number else "") + f"split {name}\n")
        print_report(report, out)


def fraction(value: float | None) -> str:
    """Returns a fraction with four digits; 'none' where there is nothing to divide by."""
    return "none" if value is None else f"{value:.4f}"


def number(value: float | None) -> str:
    """Returns a count with its thousands set apart, or a mean with one digit."""
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def size(num_bytes: int) -> str:
    """Returns a number of bytes in the unit that people use for it."""
    value, unit = float(num_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{num_bytes} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"


def verdict(entry: ReportedBound) -> str:
    """Returns how one (view, layout) stands against its bound, in words."""
    if entry["proven_optimal"]:
        return "proven optimal"
    return f"at most {entry['gap']:,} over the least possible ({fraction(entry['gap_fraction'])})"


def fitted(text: str, width: int) -> str:
    """Returns the text on one line of at most `width` columns; what is left out shows as an ellipsis in the middle."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    if _columns(text) <= width:
        return text
    # the end of a key (its file name) says more than its beginning
    tail = width * 2 // 3
    while _columns(text[-tail:]) > width * 2 // 3:
        tail -= 1
    head = width - 1 - _columns(text[-tail:])
    while _columns(text[:head]) > width - 1 - _columns(text[-tail:]):
        head -= 1
    return f"{text[:head]}…{text[-tail:]}"


def to_json(value: object) -> str:
    """Returns JSON as people read it; what a terminal or a reader would obey stands in it as an escape, which means the same.

    Passwords and signatures of URIs are left out.
    """
    text = without_secrets(json.dumps(value, indent=2, ensure_ascii=False))
    return _BEYOND_ASCII.sub(lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)


def first_ignored(report: Report) -> tuple[list[tuple[str, int]], int]:
    """Returns why files were ignored, those with the most, and how many more suffixes there are: files can have as many as there are."""
    ignored = list(report["totals"]["ignored"].items())
    return ignored[:MAX_IGNORED], len(ignored[MAX_IGNORED:])


def tubelet(layout: LayoutRecord) -> str:
    """Returns what one token of a layout is, in pixels."""
    return "x".join(map(str, layout["tubelet"]))


def _advice(report: Report) -> list[str]:
    """Returns the verdict, and what would help: what to type, why, and what it is predicted to give."""
    lines = ["", *textwrap.wrap(words.summary(report), WIDTH)]
    if report["advice"] is None and report["totals"]["stored"]["num_sequences"]:
        lines.append("No advice: this dataset has no saved plan that could be planned anew.")
    for one in report["advice"] or []:
        said = f"{words.reason(one)}: {', '.join(words.effects(one))}"
        lines += [
            f"  {one['options']}",
            *textwrap.wrap(said, WIDTH - 4, initial_indent=" " * 4, subsequent_indent=" " * 4),
        ]
    return lines


def _packing(report: Report) -> list[str]:
    figures = report["efficiency"]
    lines = [
        "",
        "Packing",
        _pair("efficiency", f"{fraction(figures['efficiency'])}  real tokens / (sequences x sequence length)"),
        _pair("padding fraction", fraction(figures["padding_fraction"])),
        _pair(
            "efficiency as planned", f"{fraction(figures['planned_efficiency'])}  before files that failed afterwards"
        ),
        _pair("efficiency at the bound", f"{fraction(figures['efficiency_at_bound'])}  no packing can be fuller"),
    ]
    for entry in report["bounds"]:
        name = f"view {entry['view']}, layout {entry['layout']}"
        if len(report["layouts"]) > 1:
            name += f": {tubelet(report['layouts'][entry['layout']])}"
        lines.append(_pair(name, f"{entry['num_sequences']:,} sequences, the bound is {entry['bound']:,}"))
        lines.append(_pair("", verdict(entry)))
        lines.append(
            _pair("", f"{entry['num_chunks_optimal']:,} of {entry['num_chunks']:,} chunks proven optimal alone")
        )
        if entry["num_moved"]:
            have = "example has" if entry["num_moved"] == 1 else "examples have"
            moved = f"{entry['num_moved']:,} {have} other tokens than drawn, so that sequences are fewer or fuller"
            lines += [_pair("", line) for line in textwrap.wrap(moved, WIDTH - _LABEL_WIDTH - 2)]
    cost = report["attention_cost_per_sequence"]
    lines.append(_pair("attention cost / sequence", f"mean {number(cost['mean'])}, max {number(cost['max'])} pairs"))
    if cost["mean"]:
        lines.append(_pair("", f"max / mean {cost['max_over_mean']:.2f}, {fraction(cost['fraction_of_full'])} of full"))
    lines += [_pair(name, value) for name, value in arrangement_lines(report)]
    return lines


def arrangement_lines(report: Arranged) -> list[tuple[str, str]]:
    """Returns what a report or a plan says of the balance of steps and of mixing, as names and values."""
    steps, mixing = report["step_balance"], report["mixing"]
    size, random_order = steps["num_sequences"], f"{fraction(steps['random_max_over_mean'])} in random order"
    if steps["balance_step"] is None:
        lines = [("step cost, max / mean", f"{random_order}, {size} sequences a step")]
    elif not steps["num_steps"]:
        lines = [("step cost, max / mean", f"none: fewer than {size} sequences a group of inputs")]
    else:
        figures = f"mean {fraction(steps['mean_max_over_mean'])}, worst {fraction(steps['worst_max_over_mean'])}"
        lines = [
            ("step cost, max / mean", f"{figures}; {random_order}"),
            ("", f"{steps['num_steps']:,} steps of {size}, {fraction(steps['fraction_within_limit'])} within 1.02"),
        ]
    correlation = fraction(mixing["length_correlation"])
    lines.append(("length correlation", f"{correlation}  0 as at random, 1: one length a sequence"))
    span = f"{fraction(mixing['source_span'])}  of the listing, by key; "
    lines.append(("source span", f"{span}{fraction(mixing['random_source_span'])} at random"))
    return lines


def size_lines(report: Report | Prediction, width: int) -> list[tuple[str, str]]:
    """Returns what a report or a plan says of shrunk, enlarged and cut examples, as names and values of at most `width`."""
    lines: list[tuple[str, str]] = []
    for name, count, said in size_facts(report["sizes"], report["config"]) if report["sizes"] else []:
        # what is short stands on one line
        texts = [f"{count}: {said[0]}"] if said and len(count) + len(said[0]) + 2 <= width else [count, *said[:1]]
        values = [line for text in texts + said[1:] for line in textwrap.wrap(text, width, break_on_hyphens=False)]
        lines += zip([name, *[""] * len(values)], values, strict=False)
    return lines


def _stored(report: Report) -> list[str]:
    planned, stored, frames = report["totals"]["planned"], report["totals"]["stored"], report["frames"]
    rows = [("", "planned", "stored")]
    counted: list[tuple[str, CountName]] = [
        ("sequences", "num_sequences"),
        ("examples", "num_segments"),
        ("tokens", "num_tokens"),
    ]
    for name, key in counted:
        rows.append((name, number(planned[key]), number(stored[key])))
    lines = ["", "Stored", *(f"  {name:<{_LABEL_WIDTH}}{one:>16}{other:>16}" for name, one, other in rows)]
    lines.append(_pair("shards", f"{stored['num_shards']:,} ({size(stored['bytes'])})"))
    lines.append(_pair("images", number(frames["num_images"])))
    if frames["num_clips"]:
        clips = f"{frames['num_clips']:,} of {frames['num_clip_frames']:,} frames"
        lines.append(_pair("clips", f"{clips}, {frames['num_repeated_clip_frames']:,} of them repeated"))
    warned = report["decoder_warnings"]
    if warned["num_examples"]:
        lines.append(_pair("decoder warnings kept", f"{warned['num_examples']:,} examples"))
        lines += [f"    {count:>9,}  {fitted(text, WIDTH - 15)}" for text, count in warned["texts"].items()]
    lines.append(_pair("full sequences", number(stored["num_full_sequences"])))
    if stored["num_empty_sequences"]:
        lines.append(_pair("empty sequences", f"{stored['num_empty_sequences']:,}  every example failed"))
    return lines


def drops_tokens(report: Report) -> bool:
    """Returns whether any example lacks tokens."""
    least = report["kept_fraction"]["min"]
    return least is not None and least < 1


def _sizes(report: Report) -> list[str]:
    rows: list[tuple[str, DistributionName, Callable[[float | None], str]]] = [
        ("tokens / example", "tokens_per_example", number),
        ("examples / sequence", "examples_per_sequence", number),
        ("sequence fill", "sequence_fill", fraction),
        ("effective side, px", "effective_side_px", number),
        ("aspect error", "aspect_error", fraction),
        ("side change", "side_change", fraction),
        ("scale from source", "scale", fraction),
    ]
    if drops_tokens(report):
        rows.append(("kept tokens", "kept_fraction", fraction))
    names: tuple[Literal["mean", "min", "p5", "median", "p95", "max"], ...] = (
        *("mean", "min", "p5"),
        *("median", "p95", "max"),
    )
    lines = ["", "Distributions", "  " + " " * 22 + "".join(f"{name:>9}" for name in names)]
    for title, key, show in rows:
        lines.append(f"  {title:<22}" + "".join(f"{show(report[key][name]):>9}" for name in names))
    return lines + [_pair(name, value) for name, value in size_lines(report, WIDTH - _LABEL_WIDTH - 2)]


def _tokens(report: Report) -> list[str]:
    figures = report["tokens_per_example"]
    most = max(figures["counts"])
    if not most:
        return []
    lines = ["", "Tokens an example"]
    for low, high, count in zip(figures["edges"], figures["edges"][1:], figures["counts"], strict=False):
        # a bin with anything in it shows at least one block
        bar = "█" * -(-count * BAR_WIDTH // most)
        lines.append(f"  {f'{low:,}-{high - 1:,}' if high - low > 1 else f'{low:,}':>15} {count:>11,} {bar}".rstrip())
    return lines


def _inputs(report: Report) -> list[str]:
    totals = report["totals"]
    lines = ["", "Inputs", _pair("inputs", number(totals["num_inputs"]))]
    lines.append(_pair("rejected", number(totals["num_rejected_inputs"])))
    for entry in report["rejects"]:
        cause = fitted(f"{entry['stage']}: {entry['reason']}", WIDTH // 2)
        lines.append(_pair(f"  {cause}", number(entry["num_rejects"])))
        lines += [f"      {fitted(key, WIDTH - 6)}" for key in entry["sample_keys"]]
    lines.append(_pair("ignored", number(totals["num_ignored"])))
    shown, num_more = first_ignored(report)
    lines += [_pair("  " + fitted(why, _LABEL_WIDTH - 3), number(count)) for why, count in shown]
    return [*lines, f"    {num_more:,} other suffixes"] if num_more else lines


def _class_table(report: Report) -> list[str]:
    classes = report["classes"]
    if classes is None:
        return []
    lines = ["", f"Classes: {classes['num_classes']:,}, {classes['num_labelled']:,} examples labelled"]
    for entry in classes["largest"]:
        name = fitted(entry["name"], 50)
        lines.append(f"  {name}{' ' * (50 - _columns(name))}{entry['num_examples']:>14,}")
    rest = classes["rest"]
    if rest["num_classes"]:
        others = f"{rest['num_classes']:,} more"
        lines.append(f"  {others:<50}{rest['num_examples']:>14,}")
    if classes["num_empty_classes"]:
        lines.append(f"  {classes['num_empty_classes']:,} classes without an example")
    return lines


def _pair(name: str, value: str) -> str:
    return f"  {name:<{_LABEL_WIDTH}}{value}".rstrip()


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _encodable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
