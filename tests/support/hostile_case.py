"""One hostile file, as the makers of the corpus say it."""

from typing import NamedTuple

import numpy as np

PACKED = "packed"
# refused as broken, or packed with the frames alone that came before the damage
PARTIAL = "partial"


class Case(NamedTuple):
    """One hostile file.

    Attributes:
        name: of the file; may hold slashes.
        end: the reason of its reject, "packed" or "partial".
        data: the whole file.
        shows: what a packed image must look like, (H, W, 3) uint8, or None.
    """

    name: str
    end: str
    data: bytes
    shows: np.ndarray | None = None


def edited(data: bytes, at: int, new: bytes) -> bytes:
    """Returns data with some bytes replaced; a negative place counts from the end."""
    at %= len(data)
    return data[:at] + new + data[at + len(new) :]
