"""Manifests that somebody has edited: without the digest of their content, as those of before."""

import json
from pathlib import Path
from typing import Any


def unsigned(folder: str | Path) -> dict[str, Any]:
    """Returns what a manifest holds, but its own digest."""
    data: dict[str, Any] = json.loads((Path(folder) / "manifest.json").read_text())
    data.pop("manifest_digest", None)
    return data


def write_unsigned(folder: str | Path, data: dict[str, Any]) -> None:
    """Writes a manifest as it is given."""
    (Path(folder) / "manifest.json").write_text(json.dumps(data))


def change_manifest(folder: str | Path, **values: Any) -> None:
    """Replaces entries of the manifest: its own by name, or those of its totals."""
    data = unsigned(folder)
    for name, value in values.items():
        (data["totals"] if name in data["totals"] else data)[name] = value
    write_unsigned(folder, data)
