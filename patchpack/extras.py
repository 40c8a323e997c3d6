"""What is installed only where it is asked for, and how every message says so; and what makes large imports cheaper."""

import contextlib
import gc
from collections.abc import Iterator


class MissingExtra(RuntimeError):
    """Something needs a package that is not installed; the message is one line and says how to get it."""

    def __init__(self, package: str | None, what: str, extra: str) -> None:
        super().__init__(f"{package}: not installed; {what} the extra {extra}; {install(extra)}")


def install(extra: str) -> str:
    """Returns the commands that install an extra: in a clone of the repository, and elsewhere."""
    return f"./run_pipeline.sh setup {extra}, or pip install 'patchpack[{extra}]'"


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Looks for no garbage meanwhile: imports leave little, and looking for it among all that they make is a quarter of their time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
