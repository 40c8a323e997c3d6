"""Reads one input, and separates a file that cannot be read from storage that is gone.

A file that cannot be read, retries included, is a reject like any other bad file, and the rest goes on. But a mount
that drops or a store that is down would make a reject of every file behind it, each after seconds of waiting: so
where nothing is left below the file's root, or where many files in a row fail in this process, it is the storage that
failed, and what was being done is to be done again.
"""

import errno
from collections.abc import Callable
from typing import TypeVar

from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.storage import files

Result = TypeVar("Result")

# files in a row that fail and are still files; each has been tried for some seconds
MOST_IN_A_ROW = 20

_in_a_row = 0


class StorageGone(OSError):
    """Storage as a whole fails; the message is one line."""


def read_input(root: str, call: Callable[..., Result], *args: object) -> Result:
    """Returns call(*args), which reads a file below a root; tried again while it fails with errors that may pass.

    Raises:
        DecodeError: the content is at fault, or this one file is not there ("not_found"), is none ("not_a_file"), or
            cannot be read ("unreadable").
        StorageGone: it is not this one file.
        OSError: the machine is short of something: files, memory, space.
    """
    global _in_a_row
    try:
        result = files.retried(call, *args)
    except OSError as error:
        if error.errno in files.NEVER_RETRIED:
            raise
        if not files.is_there(root):
            gone = "gone, or an empty folder; the inputs lie there; mount it again and go on with --resume"
            raise StorageGone(error.errno or errno.EIO, gone, root) from error
        reason = files.lasting(error)
        if reason is None:
            _in_a_row += 1
            if _in_a_row >= MOST_IN_A_ROW:
                many = (
                    f"{_in_a_row} files in a row cannot be read ({files.described(error)}); one such file is a reject, so many are "
                    "the storage; see to it and go on with --resume"
                )
                raise StorageGone(errno.EIO, many, root) from error
        detail = "not there" if reason == "not_found" else error.strerror or error
        raise DecodeError(reason or "unreadable", detail) from error
    except DecodeError:
        # it was read, whatever is in it
        _in_a_row = 0
        raise
    _in_a_row = 0
    return result
