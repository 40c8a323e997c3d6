"""docs/cli.md out of the parsers: `python tests/support/cli_doc.py > docs/cli.md`; a test holds the one to the other."""

import argparse
import re

from patchpack import command
from patchpack.trainer.config import make_parser as make_train_parser

HEAD = """# Commands and options

Made by `tests/support/cli_doc.py` from what `--help-all` shows. `./run_pipeline.sh COMMAND` in the repository and
`patchpack COMMAND` where it is installed are the same. As arguments of `patchpack.build` and `patchpack.plan` options have
underscores: `--sequence-length 2048` is `sequence_length=2048`. Amounts may have a unit: `256MB`, `1.5GiB`, `120MP`.
"""


def document() -> str:
    """Returns the content of docs/cli.md."""
    main = command.make_parser()
    [commands] = [action for action in main._actions if isinstance(action, argparse._SubParsersAction)]
    parsers = dict(commands.choices) | {"train": make_train_parser()}
    return "\n".join([HEAD, *(chapter(name, parser) for name, parser in parsers.items())])


def chapter(name: str, parser: argparse.ArgumentParser) -> str:
    """Returns what there is to say about one command."""
    if hasattr(parser, "show_all"):
        parser.show_all()
    lines = [f"## {name}", "", " ".join((parser.description or "").split())]
    lines += ["", f"    patchpack {name} {(parser.usage or '').replace('%(prog)s ', '')}"]
    for group in parser._action_groups:
        rows = [action for action in group._group_actions if not {"--help", "--help-all"} & set(action.option_strings)]
        if rows:
            lines += ["", f"| {group.title} | |", "| --- | --- |", *map(row, rows)]
    examples = re.findall(r"^  \S+ (.*)$", parser.epilog or "", re.M)
    lines += ["", *(f"    patchpack {example}" for example in examples), ""]
    return "\n".join(lines)


def row(action: argparse.Action) -> str:
    """Returns the line of one option."""
    names = ", ".join(action.option_strings) or str(action.metavar)
    value = action.metavar if action.metavar and action.option_strings else ""
    if action.choices is not None:
        value = "|".join(map(str, action.choices))
    name = f"`{f'{names} {value}'.strip()}`".replace("|", "\\|")
    help = (action.help or "").replace("%%", "%").replace("|", "\\|")
    return f"| {name} | {help} |"


if __name__ == "__main__":
    print(document(), end="")
