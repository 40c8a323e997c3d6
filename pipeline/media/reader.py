"""What stands between the storage and the decoders, so that each is blamed for its own errors, and none reads on for ever."""

import io
from typing import IO

from patchpack.pipeline.media.errors import DecodeError

# Reads that a file of any size may take, and one more for so many of its bytes. An animated GIF takes one for 128 bytes,
# FFmpeg one for 32 KiB; headers of millions of tiny parts, which cost a decoder minutes and gigabytes, many more
SPARE_READS = 2**18
BYTES_A_READ = 64


class Reader:
    """A file as decoders read it. The first error of the storage ends the reading, and is kept.

    Decoders take a failed read for the end of the file in many places: FFmpeg would make a short video of it, and
    Pillow passes over it in TIFFs. Whoever opened the file raises the kept error instead of theirs.

    Attributes:
        error: what the storage raised, if it did, or a DecodeError where the content asks for too many reads.
    """

    def __init__(self, file: IO[bytes], max_bytes: int | None = None) -> None:
        """Stands before a file.

        Args:
            file: to read.
            max_bytes: most bytes of all reads together, if they are limited.
        """
        self._file = file
        self._beyond = False
        position = file.tell()
        self._reads_left = SPARE_READS + file.seek(0, io.SEEK_END) // BYTES_A_READ
        file.seek(position)
        self._bytes_left = max_bytes
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        """Returns up to `size` bytes; none at the end, and none once the storage has failed."""
        if self._beyond or self.error is not None:
            return b""
        self._reads_left -= 1
        if self._reads_left < 0:
            self.error = DecodeError("broken", "too many parts for its size")
            return b""
        try:
            data = self._file.read(size)
        except Exception as error:  # noqa: BLE001 (whatever the storage raises)
            self.error = error
            return b""
        if self._bytes_left is not None:
            self._bytes_left -= len(data)
            if self._bytes_left < 0:
                self.error = DecodeError("broken", "parts that overlap, and would be copied again and again")
                return b""
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Returns the new place. A place where no file can be, as broken content names them, is past the end."""
        try:
            position = self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            # nothing was read, so this is not the storage's fault
            self._beyond = True
            return offset
        self._beyond = False
        return position

    def tell(self) -> int:
        """Returns the place of the next read."""
        return self._file.tell()
