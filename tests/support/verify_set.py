"""A small set to damage, and what `verify` must say of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from patchpack.pipeline.verification.dataset import verify
from patchpack.schemas import read_shard_table
from support.small_set import CONFIG

Rows = list[dict[str, Any]]


def damaged_shard(packed: Path) -> str:
    """Returns a shard to damage: two rows with segments; in the second, an image is second and padding last."""

    def suits(rows: Rows) -> bool:
        images = [not segment["timestamps_s"] for row in rows[1:] for segment in row["segments"]]
        full = CONFIG.sequence_length
        return len(rows) == 2 and rows[0]["num_segments"] > 0 and images[1:2] == [True] and rows[1]["num_tokens"] < full

    return next(row["path"] for row in table_of(packed) if suits(pq.read_table(packed / row["path"]).to_pylist()))


def shard_of_another_group(packed: Path, shard: str) -> str:
    """Returns a shard of another group whose second row has a segment."""
    table = table_of(packed)
    group = next(row["group"] for row in table if row["path"] == shard)
    counts = {row["path"]: pq.read_table(packed / row["path"])["num_segments"].to_pylist() for row in table}
    return next(row["path"] for row in table if row["group"] != group and any(counts[row["path"]][1:2]))


def table_of(folder: Path) -> Rows:
    """Returns the shard table as rows."""
    return read_shard_table(str(folder)).to_pylist()


def edit_file(folder: Path, name: str, change: Callable[[bytearray], Any]) -> None:
    """Changes a file's bytes in place."""
    content = bytearray((folder / name).read_bytes())
    change(content)
    (folder / name).write_bytes(content)


def check(folder: Path, *expected: tuple[str, ...]) -> None:
    """Checks that there are exactly the expected problems: each given by words that its line holds, in any order."""
    found = verify(str(folder))
    for words in expected:
        assert [line for line in found if all(word in line for word in words)], f"{words} in {found}"
    assert len(found) == len(expected), found
    for line in found:
        assert "\n" not in line
        # what is wrong; the rule; what to do
        assert line.startswith(str(folder))
        assert line.count("; ") >= 2, line
