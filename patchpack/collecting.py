"""Python's collector of garbage, left out where much is made and none of it is garbage: it would walk through all of it time and again."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Looks for no garbage meanwhile: a quarter of the time of large imports, a fifth of planning examples held as records."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
