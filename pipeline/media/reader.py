"""What stands between the storage and the decoders, so that each is blamed for its own errors."""

import io
from typing import IO


class Reader:
    """A file as decoders read it. The first error of the storage ends the reading, and is kept.

    Decoders take a failed read for the end of the file in many places: FFmpeg would make a short video of it, and
    Pillow passes over it in TIFFs. Whoever opened the file raises the kept error instead of theirs.

    Attributes:
        error: what the storage raised, if it did.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._beyond = False
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        """Returns up to `size` bytes; none at the end, and none once the storage has failed."""
        if self._beyond or self.error is not None:
            return b""
        try:
            return self._file.read(size)
        except Exception as error:  # whatever the storage raises
            self.error = error
            return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Returns the new place. A place where no file can be, as broken content names them, is past the end."""
        try:
            place = self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            # nothing was read, so this is not the storage's fault
            self._beyond = True
            return offset
        self._beyond = False
        return place

    def tell(self) -> int:
        """Returns the place of the next read."""
        return self._file.tell()
