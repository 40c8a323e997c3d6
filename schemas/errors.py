"""The one error of the format."""


class FormatError(ValueError):
    """A file of a dataset is broken, foreign, unfinished or too new: the message says which, and what to do.

    The message is one line, whatever a library's own message inside it was.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))
