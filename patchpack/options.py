"""Turns a frozen dataclass into a command's options, so that each option is written down once.

A field made with `option` carries its section, its help, its reader and what it decides; argparse does the rest. Options
that are not typed are absent from what argparse returns, so that a build or run that goes on can take over those of the
one before.
"""

import argparse
import dataclasses
import difflib
import numbers
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from patchpack.schemas.errors import without_secrets

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgt])(i?))?(?:b|p|px)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def option(
    default: object,
    help: str,
    *,
    section: str,
    common: bool = False,
    parse: Callable[[str], object] | None = None,
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
    repeat: bool = False,
    default_shown: str | None = None,
    affects_output: bool = True,
    lasting: bool = True,
    record: Callable[[Any], object] | None = None,
) -> Any:
    """Returns a dataclass field that is also a command-line option.

    Args:
        default: its default; False makes a flag, True one with a --no- form.
        help: one sentence for --help, with its unit; the default is added.
        section: of --help.
        common: whether --help shows it, and not --help-all alone.
        parse: text to value; a ValueError becomes the usage error. None: as the field's type says.
        metavar: how --help names the value; None: as the field's type says.
        choices: the values allowed, if they are few.
        repeat: may be given several times; the value is a tuple.
        default_shown: the default in words, where it is not the same everywhere.
        affects_output: whether equal shards need an equal value.
        lasting: whether a build or run that goes on takes it over.
        record: value to what the manifest says of it, where that is less.
    """
    metadata = {
        "help": help,
        "section": section,
        "common": common,
        "parse": parse,
        "metavar": metavar,
        "choices": choices,
        "repeat": repeat,
        "default_shown": default_shown,
        "affects_output": affects_output,
        "lasting": lasting,
        "record": record,
    }
    return dataclasses.field(default=default, metadata=metadata)


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, without abbreviations, and with options that only --help-all shows."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Formatter, **settings})
        self._rare: list[tuple[argparse.Action, str]] = []
        self._sections: dict[str, argparse._ArgumentGroup] = {}

    def error(self, message: str) -> NoReturn:
        """Ends with exit 2 and one line."""
        self.exit(2, without_secrets(f"{message}; see {self.prog} --help\n"))

    def read(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Returns what was typed; ends with exit 2 and the nearest option where one is not known."""
        values, unknown = self.parse_known_args(arguments)
        if unknown:
            self.refuse(unknown)
        return values

    def refuse(self, unknown: list[str]) -> NoReturn:
        """Ends with exit 2 over arguments that `parse_known_args` did not know."""
        typed = next((text.partition("=")[0] for text in unknown if text.startswith("--")), None)
        if typed is None:
            self.error(f"{unknown[0]}: one argument too many")
        names = [name.removeprefix("--") for name in self._option_string_actions]
        near = difflib.get_close_matches(typed.removeprefix("--"), names, n=1)
        self.error(f"{typed}: no such option" + (f"; the nearest is --{near[0]}" if near else ""))

    def section(self, title: str) -> argparse._ArgumentGroup:
        """Returns the part of --help of that title."""
        if title not in self._sections:
            self._sections[title] = self.add_argument_group(title)
        return self._sections[title]

    def add_options(self, config: type["DataclassInstance"]) -> None:
        """Adds every `option` field of a dataclass; what is not typed is absent from what `read` returns."""
        hints = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            if "help" in field.metadata:
                self._add_option(field, hints[field.name])
        if self._rare and self.add_help:
            self.add_argument(
                "--help-all",
                action=_HelpAll,
                nargs=0,
                default=argparse.SUPPRESS,
                help=f"show {len(self._rare)} options more, and exit",
            )

    def show_all(self) -> None:
        """Makes --help show every option."""
        for action, text in self._rare:
            action.help = text

    def _add_option(self, field: "dataclasses.Field[object]", hint: object) -> None:
        metadata, section = field.metadata, self.section(field.metadata["section"])
        text: str = metadata["help"]
        if field.default is not False and field.default not in (None, ()):
            text += f" (default {metadata['default_shown'] or shown(field.default)})"
        text = text.replace("%", "%%")
        help_text = text if metadata["common"] else argparse.SUPPRESS
        action: argparse.Action
        if isinstance(field.default, bool):
            kind = argparse.BooleanOptionalAction if field.default else "store_true"
            action = section.add_argument(flag(field.name), action=kind, default=argparse.SUPPRESS, help=help_text)
        else:
            plain = _plain_type(hint)
            action = section.add_argument(
                flag(field.name),
                default=argparse.SUPPRESS,
                type=_reader(field.name, _parser_of(metadata, hint)),
                choices=metadata["choices"],
                metavar=metadata["metavar"] or (None if metadata["choices"] else {int: "N", float: "X"}.get(plain)),
                action="append" if metadata["repeat"] else "store",
                help=help_text,
            )
        if not metadata["common"]:
            self._rare.append((action, text))

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Refuses what is none of the choices of an action, and names the nearest."""
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), names, n=1)
        way = f"the nearest is {near[0]}" if near else f"it takes {', '.join(names)}"
        raise argparse.ArgumentError(action, f"{value}: no such choice; {way}")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Examples as they are written, and names beside their help up to 30 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


class _HelpAll(argparse.Action):
    """--help-all."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> NoReturn:
        """Shows every option and ends."""
        if isinstance(parser, Parser):
            parser.show_all()
        parser.print_help()
        parser.exit()


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


def settle(config: "DataclassInstance") -> None:
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
            parse = _parser_of(field.metadata, hint)
            try:
                value = (value,) if field.metadata["repeat"] else parse(value)
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
        if choices and value is not None and value not in choices:
            raise ValueError(f"{flag(field.name)} {value}: no such choice; it takes {', '.join(choices)}")
        object.__setattr__(config, field.name, value)


def typed_options(config: type["DataclassInstance"], values: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of a dataclass that were typed, by field name."""
    typed = {}
    for field in dataclasses.fields(config):
        if "help" in field.metadata and hasattr(values, field.name):
            value = getattr(values, field.name)
            typed[field.name] = (*getattr(config, field.name), *value) if field.metadata["repeat"] else value
    return typed


def output_affecting(config: "DataclassInstance") -> dict[str, object]:
    """Returns the options that decide what is written, as JSON values; equal builds have them equal."""
    return {
        field.name: jsonable((field.metadata["record"] or _as_it_is)(getattr(config, field.name)))
        for field in dataclasses.fields(config)
        if field.metadata.get("affects_output")
    }


def recorded(config: "DataclassInstance") -> dict[str, object]:
    """Returns the options that a build that goes on takes over, as JSON values.

    Those that decide what is written, and the others where they are not the default.
    """
    return {
        field.name: jsonable(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.metadata.get("affects_output")
        or (field.metadata.get("lasting") and getattr(config, field.name) != field.default)
    }


def _as_it_is(value: object) -> object:
    return value


def jsonable(value: object) -> object:
    """Returns an option's value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def shown(value: object) -> str:
    """Returns an option's value as it is typed."""
    return ",".join(str(part) for part in value) if isinstance(value, tuple | list) else str(value)


def _accepts(hint: object, value: object) -> bool:
    """Returns whether a value is of an annotated type, as far as options have them."""
    parts = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_accepts(part, value) for part in parts)
    if typing.get_origin(hint) is tuple:
        if parts[-1] is Ellipsis:
            parts = parts[:1] * len(value) if isinstance(value, tuple) else ()
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_accepts, parts, value))
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def _described(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _parser_of(metadata: Mapping[str, Any], hint: object) -> Callable[[str], object]:
    """Returns what reads a text into an option's value."""
    parse: Callable[[str], object] = metadata["parse"] or _plain_type(hint)
    return parse


def _plain_type(hint: object) -> type:
    """Returns what reads a text into a value of an annotated type that is a number, a text, or None besides."""
    plain: type = next((part for part in (*typing.get_args(hint), hint) if part in (int, float)), str)
    return plain


def _reader(name: str, parse: Callable[[str], object]) -> Callable[[str], object]:
    def read(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not valid ({error})") from error

    read.__name__ = name
    return read
