"""What is installed only where it is asked for, and how every message says so."""


class MissingExtra(RuntimeError):
    """Something needs a package that is not installed; the message is one line and says how to get it."""

    def __init__(self, package: str | None, what: str, extra: str) -> None:
        super().__init__(f"{package}: not installed; {what} the extra {extra}; {install(extra)}")


def install(extra: str) -> str:
    """Returns the commands that install an extra: in a clone of the repository, and elsewhere."""
    return f"./run_pipeline.sh setup {extra}, or pip install 'patchpack[{extra}]'"
