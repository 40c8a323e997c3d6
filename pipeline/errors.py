"""How a build ends that does not give a dataset."""

from patchpack.schemas.report import Report


class BuildFailed(RuntimeError):
    """A build or plan did not reach its end; the message is one line."""


class NothingNew(Exception):
    """A build that adds inputs to a dataset found none that it has not; the dataset is as it was."""


class TooManyRejects(BuildFailed):
    """Everything was written but the manifest: more than `max_reject_fraction` of the inputs were rejected.

    Attributes:
        report: what report.json holds.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report
