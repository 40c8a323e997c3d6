"""What a row or a sidecar file says of an example besides its pixels: labels, captions, weight, boxes, values to keep."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# how the four numbers of a box stand in the input; stored are always x0, y0, x1, y1
BOX_FORMATS = ("xyxy", "xywh", "cxcywh")


class Facts(NamedTuple):
    """What is known of an input before it is opened; all of it optional.

    `labels` are class names, or numbers as text. `boxes` are (x0, y0, x1, y1), in px of the stored image or fractions
    of it where no number is over 1. `extra` is JSON.
    """

    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    weight: float = 1.0
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    extra: str = ""
    split: str = ""


@dataclass(frozen=True)
class Columns:
    """Which columns of tables, and members of a tar's samples, say what.

    Attributes:
        path: of the file that a row names; None: found by its usual names.
        image: that holds the file itself; None: found.
        id: of the key; None: the path.
        label: of the class, a text, a number or a list of them.
        captions: of texts.
        weight: of a number.
        boxes: of a list of four numbers each.
        box_format: one of BOX_FORMATS.
        keep: of values that are kept as JSON.
        split: that decides the split of a row; None: the key.
    """

    path: str | None = None
    image: str | None = None
    id: str | None = None
    label: str | None = None
    captions: tuple[str, ...] = ()
    weight: str | None = None
    boxes: str | None = None
    box_format: str = "xyxy"
    keep: tuple[str, ...] = ()
    split: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """Columns that the user named, by what they were named for, which must be there."""
        single = {"path": self.path, "image": self.image, "id": self.id, "label": self.label}
        single |= {"weight": self.weight, "box": self.boxes, "split": self.split}
        found = {f"--{what}-column": name for what, name in single.items() if name is not None}
        for what, names in (("caption", self.captions), ("keep", self.keep)):
            found |= {f"--{what}-column {name}": name for name in names}
        return found

    @property
    def facts(self) -> tuple[str, ...]:
        """Names of the columns that say something besides where the file is."""
        single = (self.label, self.weight, self.boxes, self.split)
        return tuple(name for name in (*single, *self.captions, *self.keep) if name is not None)


class BadRow(ValueError):
    """A row that cannot be used; the message says why, in one line."""


def read_facts(row: Mapping[str, object], columns: Columns) -> Facts:
    """Returns what a row says.

    Raises:
        BadRow: a value is of another kind than its column holds.
    """
    return Facts(
        labels=tuple(_names(row.get(columns.label), columns.label)) if columns.label else (),
        captions=tuple(text for name in columns.captions for text in _texts(row.get(name), name)),
        weight=_weight(row.get(columns.weight), columns.weight) if columns.weight else 1.0,
        boxes=_boxes(row.get(columns.boxes), columns) if columns.boxes else (),
        extra=_extra(row, columns.keep),
        split=text_of(row.get(columns.split), columns.split) if columns.split else "",
    )


def text_of(value: object, column: str | None) -> str:
    """Returns a value that is to be a text, which is Unicode and is there.

    Raises:
        BadRow: it is not.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise BadRow(f"column {column}: not UTF-8 ({error.reason})") from error
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow(f"column {column}: {_shown(value)}, no text")
    text = str(value)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise BadRow(f"column {column}: not UTF-8")
    return text


def _names(value: object, column: str | None) -> list[str]:
    """Returns class names: none where the value is empty, several of a list."""
    if value is None or value == "":
        return []
    if isinstance(value, list | tuple):
        return [name for part in value for name in _names(part, column)]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return [text_of(value, column)]


def _texts(value: object, column: str) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, list | tuple):
        return [text for part in value for text in _texts(part, column)]
    return [text_of(value, column)]


def _weight(value: object, column: str) -> float:
    if value is None or value == "":
        return 1.0
    number = _number(value, column)
    if number < 0:
        raise BadRow(f"column {column}: {number}, no weight; weights are 0 or more")
    return number


def _number(value: object, column: str | None) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, str | bytes | int | float):
            raise ValueError
        number = float(value)
    except ValueError as error:
        raise BadRow(f"column {column}: {_shown(value)}, no number") from error
    if not math.isfinite(number):
        raise BadRow(f"column {column}: {number}, no number that can be used")
    return number


def _boxes(value: object, columns: Columns) -> tuple[tuple[float, float, float, float], ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRow(f"column {columns.boxes}: {_shown(value)}, no JSON list of boxes") from error
    if not isinstance(value, Sequence):
        raise BadRow(f"column {columns.boxes}: {_shown(value)}, no list of boxes")
    if value and not isinstance(value[0], Sequence):
        value = [value]
    return tuple(_box(box, columns) for box in value)


def _box(value: object, columns: Columns) -> tuple[float, float, float, float]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) != 4:
        raise BadRow(f"column {columns.boxes}: {_shown(value)}, no box of four numbers")
    a, b, c, d = (_number(number, columns.boxes) for number in value)
    if columns.box_format == "xywh":
        c, d = a + c, b + d
    elif columns.box_format == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    if c < a or d < b:
        raise BadRow(f"column {columns.boxes}: {_shown(value)}, a box that ends before it begins; see --box-format")
    return a, b, c, d


def _extra(row: Mapping[str, object], names: tuple[str, ...]) -> str:
    if not names:
        return ""
    kept = {name: row.get(name) for name in names}
    try:
        return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_plain)
    except (TypeError, ValueError) as error:
        raise BadRow(f"columns {', '.join(names)}: no JSON ({error})") from error


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        raise TypeError("bytes")
    # dates, times and decimals of Parquet
    return str(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
