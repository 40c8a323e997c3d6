"""What a build must give whatever disturbed it: the bytes of an undisturbed one, and an end for every input."""

import json
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

OPTIONS = (
    *("--sequence-length", 128, "--group-size", 8, "--shard-bytes", 200_000, "--labels", "folder"),
    *("--max-reject-fraction", 1, "--media-backend", "pillow"),
)


class Undisturbed(NamedTuple):
    """A build with `OPTIONS` that nobody disturbed: its media, its files, and how long two workers took."""

    media: Path
    contents: dict[str, bytes]
    wall_s: float


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every file that equal builds have equal: all but the record of the run, and the page with its times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("_run.json", "report.html")
    }


def accounted(folder: Path) -> tuple[int, int, int]:
    """Returns how many inputs are in sequences, among the rejects and nowhere else, and ignored."""
    tables = [pq.read_table(path, columns=["segments"]) for path in folder.glob("sequences/part-*.parquet")]
    packed = {segment["source"] for table in tables for row in table["segments"].to_pylist() for segment in row}
    rejected = set(pq.read_table(folder / "rejects.parquet")["key"].to_pylist())
    return (
        len(packed),
        len(rejected - packed),
        sum(json.loads((folder / "manifest.json").read_text())["totals"]["ignored"].values()),
    )


def num_files(folder: Path) -> int:
    """Returns how many files lie below a folder: what `accounted` adds up to where the folder was built."""
    return sum(not path.is_dir() for path in folder.rglob("*"))


def leftovers(folder: Path) -> list[str]:
    """Returns the names of temporary files below a folder."""
    return [path.name for path in folder.rglob("*") if "tmp" in path.name.split(".")]
