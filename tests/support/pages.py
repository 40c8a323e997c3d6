"""Datasets whose pages must hold whatever is in them: hostile names, nothing at all, rejects alone, layouts and views."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import patchpack
from patchpack.schemas.manifest import REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA, table_bytes
from support.media_files import photo, video, write_files
from support.small_set import build_small_set

# any byte but a slash and zero can be in the name of a file
HOSTILE_NAMES = (
    "<img src=x onerror=alert(1)>.jpg",
    "\u202egpj.exe.jpg",
    "\x1b[2J\x1b[31mred\x07\n.jpg",
    # 240 bytes
    "n" * 236 + ".jpg",
    "'\"&lt;&#x27;{{7*7}}`${1}.jpg",
)
HOSTILE_CLASSES = (
    "</script><script>alert(1)</script>",
    "\"' onmouseover=alert(1) x='",
    "]]></style><!--",
    "\u202eevil",
    "${alert(1)}{{constructor.constructor('alert(1)')()}}",
)
SMALL: dict[str, Any] = {"workers": 1, "sequence_length": 64, "resolution": "side:32-64"}


def _empty(folder: Path) -> Path:
    """Makes a dataset of nothing."""
    with patchpack.ShardWriter(folder / "set", patchpack.Layout(64, 8, (1, 16, 16), channels=3)):
        pass
    return folder / "set"


def _rejects_only(folder: Path) -> Path:
    """Makes a dataset of nothing, all of whose inputs were rejected."""
    rows = [{"key": f"{n}.jpg", "stage": "probe", "reason": "broken", "detail": "no image"} for n in range(1234)]
    rows.append({"key": "late.jpg", "stage": "write", "reason": "changed", "detail": "another file"})
    (_empty(folder) / REJECT_TABLE_NAME).write_bytes(table_bytes(rows, REJECT_TABLE_SCHEMA))
    return folder / "set"


def _many(folder: Path) -> Path:
    """Makes a dataset whose counts are large and differ, so that each is found on a page by itself alone."""
    layout = patchpack.Layout(64, 8, (1, 1, 1), channels=1)
    with patchpack.ShardWriter(folder / "set", layout, group_size=256, shard_bytes=30_000) as writer:
        for number in range(2345):
            length = number % 29 + 7
            writer.add(np.zeros((length, 1), np.uint8), (1, 1, length), key=f"{number}.jpg")
    return folder / "set"


def _one_example(folder: Path) -> Path:
    write_files(folder / "media", {"only.jpg": photo()})
    return _built(folder)


def _layouts(folder: Path) -> Path:
    """Makes a dataset of images and a clip in three views and two patch sizes, of which tokens are dropped."""
    images = {f"{n:02}.png": photo((40 + 9 * n, 130 - 7 * n), "PNG") for n in range(12)}
    write_files(folder / "media", images | {"clip.mp4": video()})
    return _built(folder, views=3, patch_sizes=(8, 16), drop_tokens="constant:0.3", clip_frames=4)


def _hostile(folder: Path) -> Path:
    """Makes a dataset whose inputs have the hostile names, once packed and once rejected, and the hostile classes."""
    sound = {f"sound/{name}": photo() for name in HOSTILE_NAMES}
    # of two reasons, because only the first few keys of each are shown
    bad = {f"bad/{name}": b"" if number < 3 else b"text" for number, name in enumerate(HOSTILE_NAMES)}
    write_files(folder / "media", sound | bad)
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("key", "label"))
        rows.writerows((f"media/{name}", label) for name, label in zip(sound, HOSTILE_CLASSES, strict=True))
    return _built(folder, labels=str(folder / "labels.csv"))


def _built(folder: Path, **options: Any) -> Path:
    patchpack.build(folder / "media", folder / "set", **SMALL, **options)
    return folder / "set"


# each makes a dataset below an empty folder and returns its own folder
DATASETS: dict[str, Callable[[Path], Path]] = {
    # images, a clip, two classes, rejects of two stages
    "mixed": build_small_set,
    "empty": _empty,
    "rejects only": _rejects_only,
    "one example": _one_example,
    "many": _many,
    "layouts": _layouts,
    "hostile": _hostile,
}
