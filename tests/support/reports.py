"""Reports of datasets, as another manifest or other rejects would make them, and as a terminal shows them."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import pyarrow as pa

from patchpack.pipeline.report.counted import scan_shards
from patchpack.pipeline.report.rejects import RejectCounts
from patchpack.pipeline.report.scan import make_report
from patchpack.pipeline.report.text import print_report
from patchpack.schemas import read_manifest, read_shard_table
from patchpack.schemas.manifest import REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA, read_table


def report_of(folder: Path, rejects: list[dict[str, str]] | None = None, **manifest: Any) -> dict[str, Any]:
    """Returns the report of a dataset, as another manifest or reject table would make it."""
    table = read_table(str(folder), REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA)
    if rejects is not None:
        # sorted, as files have them
        table = pa.Table.from_pylist(sorted(rejects, key=lambda row: tuple(row.values())), schema=REJECT_TABLE_SCHEMA)
    changed = dataclasses.replace(read_manifest(str(folder)), **manifest)
    scan = scan_shards(str(folder), read_shard_table(str(folder)).to_pylist(), changed.balance_step)
    return make_report(changed, scan, RejectCounts.of(table))


def printed(report: dict[str, Any]) -> str:
    """Returns the report as a terminal would show it."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    print_report(report, out)
    out.seek(0)
    return out.read()


def rejected(key: str) -> list[dict[str, str]]:
    """Returns a reject table of one row."""
    return [{"key": key, "stage": "probe", "reason": "broken", "detail": "bad"}]
