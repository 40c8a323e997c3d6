"""The libraries that decide the bytes of a shard."""

from importlib import metadata

# what decides the bytes of a shard, besides this project
_BYTE_LIBRARIES = ("numpy", "pyarrow", "pillow", "simplejpeg", "av", "ortools", "pillow-heif")


def library_versions(media_backend: str = "pillow") -> dict[str, str]:
    """Returns the versions here of the libraries that decide the bytes of a shard; "none" where one is missing."""
    libraries = (*_BYTE_LIBRARIES, "torch") if media_backend == "fast" else _BYTE_LIBRARIES
    return {name: _version(name) for name in libraries}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"
