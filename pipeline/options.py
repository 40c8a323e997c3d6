"""Turns a frozen dataclass into a command's options, so that each option is written down once.

A field made with `option` carries its help, its reader and whether it affects the output; argparse
does the rest.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn


def option(
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] = str,
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
    repeat: bool = False,
    affects_output: bool = True,
) -> Any:
    """Returns a dataclass field that is also a command-line option.

    Args:
        default: its default; False makes a flag.
        help: one sentence for --help; the default is added.
        parse: text to value; a ValueError becomes the usage error.
        metavar: how --help names the value.
        choices: the values allowed, if they are few.
        repeat: may be given several times; the value is a tuple.
        affects_output: whether equal shards need an equal value.
    """
    metadata = {
        "help": help,
        "parse": parse,
        "metavar": metavar,
        "choices": choices,
        "repeat": repeat,
        "affects_output": affects_output,
    }
    return dataclasses.field(default=default, metadata=metadata)


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and without abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Ends with exit 2 and one line."""
        self.exit(2, f"{message}; see {self.prog} --help\n")


def flag(name: str) -> str:
    """Returns the option's name as typed."""
    return "--" + name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser, config: type) -> None:
    """Adds every `option` field of a dataclass to a parser."""
    for field in dataclasses.fields(config):
        if "help" not in field.metadata:
            continue
        metadata = field.metadata
        if field.default is False:
            parser.add_argument(flag(field.name), action="store_true", help=metadata["help"])
            continue
        shown = "" if field.default in (None, ()) else f" (default {_shown(field.default)})"
        parser.add_argument(
            flag(field.name),
            # argparse appends to a copy of the default, which must be a list
            default=list(field.default) if metadata["repeat"] else field.default,
            # choices first: argparse would show the parsed value
            type=None if metadata["choices"] else _reader(field.name, metadata["parse"]),
            choices=metadata["choices"],
            metavar=metadata["metavar"],
            action="append" if metadata["repeat"] else "store",
            help=(metadata["help"] + shown).replace("%", "%%"),
        )


def from_namespace(config: type, values: argparse.Namespace, **more: Any) -> Any:
    """Returns the dataclass filled from parsed options; `more` are its fields that are no options."""
    given = {}
    for field in dataclasses.fields(config):
        if "help" in field.metadata:
            value = getattr(values, field.name)
            given[field.name] = tuple(value) if isinstance(value, list) else value
    return config(**given, **more)


def output_affecting(config: Any) -> dict[str, Any]:
    """Returns the options that decide what is written, as JSON values; equal builds have them equal."""
    return {
        field.name: _jsonable(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.metadata.get("affects_output")
    }


def _jsonable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return ",".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


def _reader(name: str, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not valid ({error})") from error

    read.__name__ = name
    return read
