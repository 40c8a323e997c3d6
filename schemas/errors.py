"""The one error of the format."""


class FormatError(ValueError):
    """A file of a packed set is broken, foreign, unfinished or too new: the message says which, and what to do."""
