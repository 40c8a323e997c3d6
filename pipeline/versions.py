"""The libraries that decide the bytes of a shard."""

from functools import cache
from importlib import metadata

from packaging.requirements import Requirement

# what decides the bytes of a shard, besides this project
HEIC_READER = "pillow-heif"
_PLANNER = "ortools"
_BYTE_LIBRARIES = ("numpy", "pyarrow", "pillow", "simplejpeg", "av", _PLANNER, HEIC_READER)


def library_versions(media_backend: str = "pillow") -> dict[str, str]:
    """Returns the versions here of the libraries that decide the bytes of a shard; "none" where one is missing."""
    libraries = (*_BYTE_LIBRARIES, "torch") if media_backend == "fast" else _BYTE_LIBRARIES
    return {name: _version(name) for name in libraries}


def other_versions(launcher: dict[str, str], media_backend: str) -> dict[str, str]:
    """Returns what to say of each library that is another one here than the launcher's, by name, if it decides what is written.

    What decides the plan has done so before.
    """
    here = library_versions(media_backend)
    differing = (name for name in here if name != _PLANNER and here[name] != launcher[name])
    return {name: f"{name} {here[name]} (launcher: {launcher[name]})" for name in differing}


def check_planner(launcher: str) -> None:
    """Checks the version of what decides the plan, where a worker makes it.

    Args:
        launcher: what `planner_version` says there.

    Raises:
        RuntimeError: it is another one.
    """
    if (here := planner_version()) != launcher:
        raise RuntimeError(
            f"worker: {_PLANNER} {here} (launcher: {launcher}); workers and launcher run the same versions; install constraints.txt on both"
        )


def planner_version() -> str:
    """Returns the version here of the library that decides the plan; "none" where it is missing."""
    return _version(_PLANNER)


def pins() -> list[str]:
    """Returns the requirements that give another machine the libraries of this one: what a worker needs, and what else is here.

    That is HEIC, and what writes the page of the report.
    """
    needed = {"pillow-heif", "jinja2", "vl-convert-python"}
    for text in metadata.requires("patchpack") or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed.add(requirement.name)
    return [f"{name}=={_version(name)}" for name in sorted(needed) if _version(name) != "none"]


@cache
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"
