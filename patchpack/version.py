"""The version of patchpack, as installed."""

from importlib import metadata

try:
    __version__ = metadata.version("patchpack")
except metadata.PackageNotFoundError:
    # run from a copy of the source that nobody installed
    __version__ = "0+unknown"
