"""What every benchmark does: read its arguments, say where it runs, and take times that a busy machine does not spoil."""

import argparse
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from patchpack.pipeline.versions import library_versions

Result = TypeVar("Result")
Name = TypeVar("Name")

ROOT = Path(__file__).resolve().parents[1]
# beside the checkout
SHARED = ROOT.parent / "shared"


def read(document: str, flags: dict[str, object] | None = None, **positional: object) -> argparse.Namespace:
    """Returns what was typed, by name.

    Args:
        document: of the benchmark, which --help shows.
        flags: options and their defaults, whose type reads them; False makes a flag.
        positional: likewise, in order; each may be left out.
    """
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in positional.items():
        parser.add_argument(name, nargs="?", type=type(default), default=default, help=f"default {default}")
    for name, default in (flags or {}).items():
        if default is False:
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default {default}")
    return parser.parse_args()


def say_where(*more: str) -> None:
    """Prints the machine and the versions that the figures belong to; `more` are further packages."""
    versions = library_versions("pillow") | {name: importlib.metadata.version(name) for name in more}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}; {listed}", flush=True)


def cpu(work: Callable[[], Result]) -> tuple[Result, float]:
    """Returns what a call gives and its CPU seconds, those of all threads."""
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


def medians(ways: dict[Name, Callable[[], object]], rounds: int) -> dict[Name, float]:
    """Returns the median CPU seconds of each way; they take turns, so that all meet the same neighbours."""
    seconds: dict[Name, list[float]] = {name: [] for name in ways}
    # short calls are repeated until they take ten milliseconds
    repeats = {name: max(1, int(0.01 / max(1e-6, cpu(way)[1]))) for name, way in ways.items()}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.process_time()
            for _ in range(repeats[name]):
                way()
            seconds[name].append((time.process_time() - started) / repeats[name])
    return {name: statistics.median(values) for name, values in seconds.items()}
