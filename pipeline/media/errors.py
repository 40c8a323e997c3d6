"""The one error of the media path."""


class DecodeError(ValueError):
    """The content is at fault, not the storage: the input becomes a reject.

    Attributes:
        reason: one of `records.REASONS`.
    """

    def __init__(self, reason: str, detail: object) -> None:
        super().__init__(str(detail))
        self.reason = reason
