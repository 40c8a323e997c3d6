"""How two datasets differ, as plain text for a terminal of 80 columns: counts and fullness always, of the rest what differs.

Keys and class names come from the files of others: control characters are escaped.
"""

import json
import textwrap
from typing import TextIO

from patchpack.pipeline.report.text import WIDTH, fitted
from patchpack.schemas.comparison import Comparison, NamesName, Row, SectionName

TITLES: dict[SectionName, str] = {
    "counts": "Counts",
    "efficiency": "Efficiency",
    "config": "Configuration",
    "distributions": "Distributions",
    "arrangement": "Cost and mixing",
    "sizes": "Made to fit",
    "rejects": "Rejects",
    "layouts": "Layouts",
    "classes": "Classes",
}
NAMES_TITLES: dict[NamesName, str] = {"inputs": "Inputs", "rejected": "Rejected inputs", "class_names": "Class names"}
_ALWAYS = ("counts", "efficiency")
_NAME_WIDTH, _VALUE_WIDTH = 38, 13


def print_comparison(comparison: Comparison, out: TextIO) -> None:
    """Prints what `differences.compare` returned, in lines of at most 80 columns."""
    lines = textwrap.wrap(verdict(comparison), WIDTH)
    for letter, side in (("A", comparison["a"]), ("B", comparison["b"])):
        lines += [f"  {letter}  {fitted(side['dataset'], WIDTH - 5)}", f"     dataset {side['dataset_digest']}"]
    for name, title in TITLES.items():
        rows = [row for row in comparison["sections"][name] if name in _ALWAYS or row["a"] != row["b"]]
        if rows and not comparison["equal"]:
            lines += ["", _columns(title, "A", "B", "change"), *(line for row in rows for line in _row_lines(row))]
    for key, title in NAMES_TITLES.items():
        for letter, names in (("A", comparison["only_in"][key]["a"]), ("B", comparison["only_in"][key]["b"])):
            left = names["num"] - len(names["first"])
            if names["num"]:
                lines += ["", f"{title} only in {letter}: {names['num']:,}"]
                lines += [f"  {fitted(one, WIDTH - 2)}" for one in names["first"]] + [f"  and {left:,} more"] * (
                    left > 0
                )
    encoding = out.encoding or "utf-8"
    for line in lines:
        out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def verdict(comparison: Comparison) -> str:
    """Returns in one sentence whether two datasets are equal, and if not, in what they differ."""
    titles = TITLES | NAMES_TITLES
    what = ", ".join(title.lower() for name, title in titles.items() if name in comparison["differing"])
    if comparison["equal"]:
        return "equal: the same to the byte, by their dataset digests"
    if comparison["equal_digests"]:
        return f"sequences the same to the byte, by their dataset digests; different: {what}"
    return f"different: {what or 'bytes of the sequences alone; every figure, setting and input is equal'}"


def shown(value: object) -> str:
    """Returns a value as a table has it: numbers with their thousands set apart, four digits of what is small."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def change(row: Row) -> str:
    """Returns what changed from A to B: a signed number, or a word where there is none."""
    if row["a"] == row["b"]:
        return "="
    if row["change"] is None:
        return "other"
    text = shown(row["change"])
    # what four digits do not show has an exponent
    text = text if text.strip("-0.") else f"{row['change']:.1e}"
    return text if text.startswith("-") else f"+{text}"


def _row_lines(row: Row) -> list[str]:
    """Returns a row on one line; a name that is longer than its column has one of its own, and so have values."""
    name, a, b = (fitted(text, WIDTH - 7) for text in (row["name"], shown(row["a"]), shown(row["b"])))
    if max(len(a), len(b)) >= _VALUE_WIDTH or not f"{a}{b}".isascii():
        return [f"  {name}", f"    A  {a}", f"    B  {b}"]
    if len(name) > _NAME_WIDTH or not name.isascii():
        return [f"  {name}", _columns("", a, b, change(row))]
    return [_columns(f"  {name}", a, b, change(row))]


def _columns(name: str, a: str, b: str, change: str) -> str:
    return f"{name:<{_NAME_WIDTH + 2}}{a:>{_VALUE_WIDTH}}{b:>{_VALUE_WIDTH}}{change:>{_VALUE_WIDTH}}"
