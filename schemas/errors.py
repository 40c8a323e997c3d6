"""The one error of the format, and what no message says."""

import re

_SECRET = re.compile(r"(?<=://)[^/\s@:]+:[^/\s@]+@")


class FormatError(ValueError):
    """A file of a dataset is broken, foreign, unfinished or too new: the message says which, and what to do.

    The message is one line, whatever a library's own message inside it was.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(" ".join(message.splitlines())))


def without_secrets(text: str) -> str:
    """Returns a text with the user and password of its URIs left out."""
    return _SECRET.sub("", text)
