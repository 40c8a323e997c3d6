"""Turns a frozen dataclass into a command's options, so that each option is written down once.

A field made with `option` carries its help, its reader and whether it affects the output; argparse
does the rest. Options that are not typed are absent from what argparse returns, so that a build that goes on can
take over those of the build before.
"""

import argparse
import dataclasses
import difflib
import numbers
import re
import types
import typing
from collections.abc import Callable
from typing import Any, NoReturn

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgt])(i?))?(?:b|p|px)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def option(
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] = str,
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
    repeat: bool = False,
    affects_output: bool = True,
    lasting: bool = True,
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
        lasting: whether a build that goes on takes it over.
    """
    metadata = {
        "help": help,
        "parse": parse,
        "metavar": metavar,
        "choices": choices,
        "repeat": repeat,
        "affects_output": affects_output,
        "lasting": lasting,
    }
    return dataclasses.field(default=default, metadata=metadata)


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and without abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Ends with exit 2 and one line."""
        self.exit(2, f"{message}; see {self.prog} --help\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Returns what was typed; ends with exit 2 and the nearest option where one is not known."""
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.refuse(unknown)
        return values

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuses what is none of the choices of an action, and names the nearest."""
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), names, n=1)
        way = f"the nearest is {near[0]}" if near else f"it takes {', '.join(names)}"
        raise argparse.ArgumentError(action, f"{value}: no such choice; {way}")

    def refuse(self, unknown: list[str]) -> NoReturn:
        """Ends with exit 2 over arguments that `parse_known_args` did not know."""
        typed = next((text.partition("=")[0] for text in unknown if text.startswith("--")), None)
        if typed is None:
            self.error(f"{unknown[0]}: one argument too many")
        names = [name.removeprefix("--") for name in self._option_string_actions]
        near = difflib.get_close_matches(typed.removeprefix("--"), names, n=1)
        self.error(f"{typed}: no such option" + (f"; the nearest is --{near[0]}" if near else ""))


def amount(text: str) -> int:
    """Returns the whole number that `300000`, `256MB`, `1.5 GiB` or `120MP` stands for.

    k, M, G and T are powers of 1,000, and with an i behind them of 1,024; the unit itself may be left out.

    Raises:
        ValueError: it is no such number.
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError("it is a number with a unit or without, such as 256MB, 1.5GiB or 300000")
    value = float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[(match[2] or "").lower()]
    if value != int(value):
        raise ValueError("it is no whole number")
    return int(value)


def flag(name: str) -> str:
    """Returns the option's name as typed."""
    return "--" + name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser, config: type) -> None:
    """Adds every `option` field of a dataclass to a parser; what is not typed is absent from its result."""
    for field in dataclasses.fields(config):
        if "help" not in field.metadata:
            continue
        metadata = field.metadata
        if field.default is False:
            parser.add_argument(flag(field.name), action="store_true", default=argparse.SUPPRESS, help=metadata["help"])
            continue
        shown = "" if field.default in (None, ()) else f" (default {_shown(field.default)})"
        parser.add_argument(
            flag(field.name),
            default=argparse.SUPPRESS,
            # choices first: argparse would show the parsed value
            type=str if metadata["choices"] else _reader(field.name, metadata["parse"]),
            choices=metadata["choices"],
            metavar=metadata["metavar"],
            action="append" if metadata["repeat"] else "store",
            help=(metadata["help"] + shown).replace("%", "%%"),
        )


def settle(config: Any) -> None:
    """Gives every option of a frozen dataclass that is being made the type it has.

    Texts are read as if they were typed, lists become tuples.

    Raises:
        ValueError: a value is of another type, cannot be read, or is none of the choices.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        if "help" not in field.metadata:
            continue
        value, hint = getattr(config, field.name), hints[field.name]
        if isinstance(value, str) and not _accepts(hint, value):
            try:
                value = (value,) if field.metadata["repeat"] else field.metadata["parse"](value)
            except ValueError as error:
                raise ValueError(f"{flag(field.name)} {value!r}: not valid ({error})") from error
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, numbers.Integral) and not isinstance(value, bool):
            # numpy's, too: the record of the options is JSON
            value = int(value)
        if not _accepts(hint, value):
            raise ValueError(f"{flag(field.name)} {value!r}: {type(value).__name__}; it takes {_described(hint)}")
        choices = field.metadata["choices"]
        if choices and value not in choices:
            raise ValueError(f"{flag(field.name)} {value}: no such choice; it takes {', '.join(choices)}")
        object.__setattr__(config, field.name, value)


def _accepts(hint: Any, value: Any) -> bool:
    """Returns whether a value is of an annotated type, as far as options have them."""
    parts = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_accepts(part, value) for part in parts)
    if typing.get_origin(hint) is tuple:
        if parts[-1] is Ellipsis:
            parts = parts[:1] * len(value) if isinstance(value, tuple) else ()
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_accepts, parts, value))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _described(hint: Any) -> str:
    return str(hint) if typing.get_args(hint) else hint.__name__


def typed_options(config: type, values: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of a dataclass that were typed, by field name."""
    typed = {}
    for field in dataclasses.fields(config):
        if "help" in field.metadata and hasattr(values, field.name):
            value = getattr(values, field.name)
            default: Any = field.default
            typed[field.name] = (*default, *value) if field.metadata["repeat"] else value
    return typed


def output_affecting(config: Any) -> dict[str, Any]:
    """Returns the options that decide what is written, as JSON values; equal builds have them equal."""
    return {
        field.name: jsonable(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.metadata.get("affects_output")
    }


def recorded(config: Any) -> dict[str, Any]:
    """Returns the options that a build that goes on takes over, as JSON values.

    Those that decide what is written, and the others where they are not the default.
    """
    return {
        field.name: jsonable(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.metadata.get("affects_output")
        or (field.metadata.get("lasting") and getattr(config, field.name) != field.default)
    }


def jsonable(value: Any) -> Any:
    """Returns an option's value as JSON gives it back."""
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
