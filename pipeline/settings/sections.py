"""The parts of --help, and how values of several numbers are read."""

from collections.abc import Callable

INPUT, SAMPLING, PATCHES, PACKING, OUTPUT, MEDIA, EXECUTION = SECTIONS = (
    "input",
    "sampling",
    "patches",
    "packing",
    "output",
    "media limits",
    "execution",
)


def integers(count: int | None = None) -> Callable[[str], tuple[int, ...]]:
    """Returns what reads so many whole numbers, separated by commas; any number of them if None."""
    return lambda text: tuple(map(int, _parts(text, count)))


def floats(count: int) -> Callable[[str], tuple[float, ...]]:
    """Returns what reads so many numbers, separated by commas."""
    return lambda text: tuple(map(float, _parts(text, count)))


def _parts(text: str, count: int | None) -> list[str]:
    parts = text.split(",")
    if count is not None and len(parts) != count:
        raise ValueError(f"{len(parts)} numbers; it takes {count}, separated by commas")
    return parts
