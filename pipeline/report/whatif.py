"""What `plan --compare` found, as a table for a terminal: settings by letter, then a row for each of them and packer."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TextIO

from patchpack.pipeline.report.text import WIDTH, fitted
from patchpack.schemas.whatif import ComparedRow, WhatIf

BASE, BEST = ">", "*"


class _Column(NamedTuple):
    """A column: title, value of a row, how it is shown, and whether the least is marked as the best."""

    title: str
    value: Callable[[ComparedRow], float | None]
    form: str
    has_best: bool = True


COLUMNS = (
    _Column("sequences", lambda row: row["num_sequences"], "{:,}", has_best=False),
    _Column("padding", lambda row: row["padding_fraction"], "{:.4f}"),
    _Column("ex/seq", lambda row: row["examples_per_sequence"], "{:.1f}", has_best=False),
    _Column("n^2 sum", lambda row: row["attention_cost"], "{:.3g}"),
    _Column("x base", lambda row: row["relative_attention_cost"], "{:.2f}", has_best=False),
    _Column("of 8", lambda row: row["max_over_mean"]["8"], "{:.3f}"),
    _Column("of 64", lambda row: row["max_over_mean"]["64"], "{:.3f}"),
    _Column("stored", lambda row: row["balanced_max_over_mean"], "{:.3f}"),
    _Column("GB", lambda row: row["predicted_bytes"] / 1e9, "{:,.3g}"),
    _Column("decode h", lambda row: row["decode_core_hours"], "{:,.3g}"),
    _Column("GPU h", lambda row: row["gpu_hours"], "{:,.3g}"),
)


def print_whatif(made: WhatIf, out: TextIO) -> None:
    """Prints the record of a comparison."""
    encoding = out.encoding or "utf-8"
    for line in _lines(made):
        out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


class Cell(NamedTuple):
    """A figure of a row: as shown, as a number to sort by, and whether it is the least of its column."""

    text: str
    value: float | None
    is_best: bool


def columns_of(made: WhatIf) -> list[tuple[str, list[Cell]]]:
    """Returns the columns of the table that have a figure: title, and a cell a row."""
    found = []
    for column in COLUMNS:
        values = [column.value(row) for row in made["rows"]]
        # a setting under which nothing is left is best at nothing
        known = [
            value for value, row in zip(values, made["rows"], strict=True) if value is not None and row["num_sequences"]
        ]
        best = min(known) if column.has_best and len(set(known)) > 1 else None
        cells = [
            Cell("-", None, False)
            if value is None
            else Cell(column.form.format(value), value, value == best and row["num_sequences"] > 0)
            for value, row in zip(values, made["rows"], strict=True)
        ]
        if any(value is not None for value in values):
            found.append((column.title, cells))
    return found


def setting_names(made: WhatIf) -> list[tuple[str, str]]:
    """Returns letter and options of each setting."""
    return [(_letter(number), setting["options"] or "base") for number, setting in enumerate(made["settings"])]


def explained(made: WhatIf) -> list[str]:
    """Returns what the columns mean, and the models behind the predicted ones."""
    model = made["cost_model"]
    return [
        "of 8, of 64: cost of a step of so many sequences at random, max / mean;",
        f"stored: of the steps of --balance-step; GB before a codec; decode h: of one core, {made['decoded_px_per_s'] / 1e6:.0f} Mpx/s;",
        f"GPU h: an epoch of {model['model']}, {model['device']} of {model['peak_flops'] / 1e12:.0f} TFLOPS at MFU {model['mfu']}; "
        "other packers take sizes as sampled",
    ]


def _lines(made: WhatIf) -> Iterator[str]:
    yield (
        f"{made['num_inputs']:,} inputs ({made['num_rejected_inputs']:,} rejected), {made['num_examples']:,} examples"
    )
    if made["num_left_out"]:
        yield (
            f"{made['num_left_out']:,} more were over a limit of the saved plan, which keeps no sizes of them: no setting "
            "sees them; plan their inputs to compare them, too"
        )
    yield ""
    for letter, options in setting_names(made):
        yield f"  {letter:<3}{fitted(options, WIDTH - 5)}"
    yield ""
    # each cell with room for the mark of the best
    table = [
        [f"{title} ", *(f"{cell.text}{BEST if cell.is_best else ' '}" for cell in cells)]
        for title, cells in columns_of(made)
    ]
    widths = [max(map(len, cells)) for cells in table]
    names = [f"{_letter(row['setting']):<3}{row['packer']}" for row in made["rows"]]
    first = max(map(len, names))
    for at, name in enumerate(["", *names]):
        cells = "  ".join(f"{cells[at]:>{width}}" for cells, width in zip(table, widths, strict=True))
        yield f"{BASE if at == 1 else ' '} {name:<{first}}  {cells}".rstrip()
    yield ""
    first_line, *others = explained(made)
    yield f"{BASE} base, {BEST} least of a column; {first_line}"
    yield from others


def _letter(number: int) -> str:
    """Returns A to Z, then A1, B1 and on."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")
