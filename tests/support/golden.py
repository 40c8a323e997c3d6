"""Writes what a golden dataset holds, beside it, by pyarrow alone: run once, when it is made.

python tests/support/golden.py FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import xxhash


def content(folder: Path) -> list[dict[str, Any]]:
    """Returns of each sequence what no reader may ever give otherwise; tokens as they are stored."""
    found = []
    for entry in pq.read_table(folder / "shards.parquet").to_pylist():
        for row in pq.read_table(folder / entry["path"]).to_pylist():
            raw = {name: value for name, value in row.items() if isinstance(value, bytes)}
            found.append(
                {
                    "raw": {name: xxhash.xxh3_64_hexdigest(value) for name, value in raw.items()},
                    "num_tokens": row["num_tokens"],
                    "digest": row["digest"],
                    "segments": [
                        {
                            name: segment[name]
                            for name in ("example_id", "source", "labels", "start", "num_tokens", "grid_h")
                        }
                        for segment in row["segments"]
                    ],
                }
            )
    return found


if __name__ == "__main__":
    own = Path(sys.argv[1])
    (own / "expected.json").write_text(json.dumps(content(own), indent=1) + "\n")
