"""Thumbnails of rejected images: of each stage and reason the first that decodes, read from where the build found it.

A file that was rejected may be one that breaks decoders: it is decoded in a sandbox, in at most LIMIT_S. Where files are no longer there,
are parts of tars or tables, or do not decode, there is none.
"""

import numpy as np

from patchpack.pipeline.execution.sandbox import Limits, Sandbox
from patchpack.pipeline.media.errors import DecodeError
from patchpack.pipeline.media.image.decode import decode, probe
from patchpack.pipeline.report.gallery import THUMBNAIL_PX, Frame, thumbnail
from patchpack.pipeline.report.times import read_record
from patchpack.pipeline.storage import files
from patchpack.schemas.report import RejectCount

LIMIT_S = 2.0
# more is left to `inspect --reject`, which says the decoder's words
_MAX_PIXELS = 100_000_000
_MAX_BYTES = 100_000_000


def reject_thumbnails(folder: str, rejects: list[RejectCount]) -> dict[str, Frame]:
    """Returns thumbnails by key, at most one for each stage and reason.

    Args:
        folder: where the dataset lies, with the record of its build.
        rejects: of its report.
    """
    if not rejects:
        return {}
    try:
        record = read_record(folder)
        places = list(zip(record["names"], record["roots"], strict=False))
    except (KeyError, OSError, TypeError, ValueError):
        # a dataset is whole without it
        return {}
    found: dict[str, Frame] = {}
    sandbox = Sandbox(Limits(LIMIT_S, 2**30 + 24 * _MAX_PIXELS))
    try:
        for entry in rejects:
            key = entry["sample_keys"][0]
            for place in _places(key, places):
                try:
                    found[key] = thumbnail(sandbox.call(small, place)[0], THUMBNAIL_PX)
                    break
                except (DecodeError, OSError, RuntimeError):
                    # gone, no image, or broken: that is why it was rejected
                    continue
    finally:
        sandbox.close()
    return found


def small(path: str) -> np.ndarray:
    """Returns an image at the size of a thumbnail, (1, H, W, 3) uint8.

    Raises:
        DecodeError: it does not decode.
        OSError: it cannot be read.
    """
    with files.open_read(path) as file:
        height, width = probe(file, _MAX_PIXELS)
        file.seek(0)
        data = file.read(_MAX_BYTES)
    scale = THUMBNAIL_PX / max(height, width, THUMBNAIL_PX)
    shown, _ = decode(data, max(1, round(height * scale)), max(1, round(width * scale)), max_pixels=_MAX_PIXELS)
    return shown


def _places(key: str, places: list[tuple[str, str]]) -> list[str]:
    """Returns where the input of a key may be: below the folder of its first name, or the file itself."""
    found = []
    for name, root in places:
        if key.startswith(f"{name}/"):
            found.append(files.join(root, key.removeprefix(f"{name}/")))
        elif key == name:
            found.append(files.join(root, name))
    return found
