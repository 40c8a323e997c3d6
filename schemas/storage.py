"""Reading the files of a dataset, local or remote, through pyarrow's own filesystems.

Both sides read their sets through here, so neither the trainer nor the report needs Beam.
"""

import os

import pyarrow as pa
import pyarrow.fs

from patchpack.schemas.errors import FormatError


def join(folder: str, name: str) -> str:
    """Returns the path of a file inside a dataset's folder, which is a local path or a URI."""
    return f"{folder.rstrip('/')}/{name}" if "://" in folder else os.path.join(folder, name)


def open_file(path: str) -> pa.NativeFile:
    """Returns a random-access file: `read_at` may be called from several threads.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: there is no such store.
        OSError: it cannot be read.
    """
    if "://" in path:
        try:
            filesystem, inner = pyarrow.fs.FileSystem.from_uri(path)
        except pa.ArrowInvalid as error:
            raise FormatError(
                f"{path}: cannot be opened ({error}); sets lie in folders, gs://, s3:// or hdfs://; check the URI"
            ) from error
        return filesystem.open_input_file(inner)
    return pa.OSFile(path)


def read_bytes(path: str) -> bytes:
    """Returns the whole content of a file; raises as `open_file` does."""
    with open_file(path) as file:
        data: bytes = file.read()
        return data
