"""How to get what an extra brings, in the words of every message that says something is missing."""


def install(extra: str) -> str:
    """Returns the commands that install an extra: in a clone of the repository, and elsewhere."""
    return f"./run_pipeline.sh setup {extra}, or pip install 'patchpack[{extra}]'"
