"""Pictures as rows and members of tables and tars, and what a dataset made of them."""

import csv
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

OPTIONS = ("--workers", 1, "--sequence-length", 256, "--resolution", "side:32-96", "--media-backend", "pillow")


def picture(number: int, format: str = "PNG") -> bytes:
    slope = np.linspace((0, 9 * number % 250, 200), (250, 30, 10), 6000).reshape(60, 100, 3)
    data = io.BytesIO()
    Image.fromarray(slope.astype(np.uint8)).save(data, format)
    return data.getvalue()


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def segments(out: Path) -> dict[str, dict[str, Any]]:
    """Returns the segments of a dataset by key."""
    rows = [
        row for path in sorted((out / "sequences").iterdir()) for row in pq.read_table(path)["segments"].to_pylist()
    ]
    return {segment["source"]: segment for row in rows for segment in row}


def rejects(out: Path) -> list[tuple[str, str, str]]:
    """Returns key, stage and reason of the rejects of a dataset."""
    return [(row["key"], row["stage"], row["reason"]) for row in pq.read_table(out / "rejects.parquet").to_pylist()]
