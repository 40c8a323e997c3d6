"""Where an input went: the sequences that hold it, and what is said of it if it was not packed. Reads names alone, never tokens."""

from typing import TextIO, TypedDict

import pyarrow.compute as pc

from patchpack.pipeline.report.text import WIDTH, fitted
from patchpack.schemas import Dataset, read_manifest
from patchpack.schemas.manifest import REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA, read_table


class Place(TypedDict):
    """A segment: number of its sequence in the dataset, and its own in that, both from 0."""

    sequence: int
    segment: int


class Fate(TypedDict):
    """What became of an input, or of an example of it.

    Attributes:
        name: the key or example id that was asked for.
        places: where it is packed, views and clips in their order.
        rejects: its rows of the table of rejects: stage, reason, and the decoder's words.
    """

    name: str
    places: list[Place]
    rejects: list[dict[str, str]]


def find(folder: str, name: str) -> Fate:
    """Returns what became of an input.

    Args:
        folder: of the dataset.
        name: its key, or an example's id.

    Raises:
        ValueError: the dataset knows nothing of it.
        FormatError: the dataset is broken.
    """
    layouts = range(len(read_manifest(folder).layouts))
    places = sorted(place for layout in layouts for place in Dataset(folder, layout=layout).find(name))
    table = read_table(folder, REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA)
    rejects = table.filter(pc.equal(table["key"], name)).to_pylist()
    if not places and not rejects:
        raise ValueError(
            f"{name}: neither packed nor rejected in {folder}; a key is the path below the input, prefixed by the input's last name; "
            "report shows some, rejects.parquet all that were rejected"
        )
    return {
        "name": name,
        "places": [{"sequence": sequence, "segment": segment} for sequence, segment in places],
        "rejects": rejects,
    }


def print_fate(fate: Fate, out: TextIO) -> None:
    """Prints what `find` returned: a line a place, and one a reject with its whole detail below."""
    lines = [fitted(fate["name"], WIDTH)]
    lines += [f"  sequence {place['sequence']}, segment {place['segment'] + 1}" for place in fate["places"]]
    for reject in fate["rejects"]:
        lines.append(f"  rejected at {reject['stage']}: {reject['reason']}")
        # the decoder's words whole, on one line, without what a terminal would obey
        lines.append(f"    {fitted(reject['detail'], len(reject['detail']) * 6 + 1)}")
    encoding = out.encoding or "utf-8"
    for line in lines:
        out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
