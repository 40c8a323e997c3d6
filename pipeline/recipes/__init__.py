"""Recipes: small TOML files of options, the field's methods shipped (docs/recipes.md).

A key is an option's name as it is typed, without the dashes; `name` is what reports call it. Options that are typed win.
"""

import dataclasses
import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from patchpack.options import flag
from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.storage import files
from patchpack.schemas.manifest import Manifest

# options that may name a file, with what they are otherwise: a manifest says of it what it is, and not where
_FILES = {"labels": ("none", "folder"), "captions": ("none", "bytes")}


def names() -> list[str]:
    """Returns the names of the recipes that are shipped."""
    shipped = resources.files(__name__).iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in shipped if entry.name.endswith(".toml"))


def with_recipe(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options with those of their recipe in its place, where they have one and do not say otherwise.

    Raises:
        ValueError: there is no such recipe, or it has an option that is none.
    """
    given = options.get("recipe")
    if given is None:
        return dict(options)
    return read_recipe(given) | {name: value for name, value in options.items() if name != "recipe"}


def read_recipe(given: str) -> dict[str, Any]:
    """Returns the options of a recipe by field name, the recipe's own name among them.

    Args:
        given: the name of one that is shipped, or a path or URI of a TOML file.

    Raises:
        ValueError: there is no such recipe, it is no TOML, or it has an option that is none.
    """
    where = f"--recipe {given}"
    shipped = names()
    if given in shipped:
        text = (resources.files(__name__) / f"{given}.toml").read_text(encoding="utf-8")
    else:
        try:
            text = files.read(given).decode()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            near = difflib.get_close_matches(given, shipped, n=1)
            way = f"the nearest is {near[0]}" if near else "check the name"
            raise ValueError(
                f"{where}: {why}; it is a TOML file of options, or one of {', '.join(shipped)}; {way}"
            ) from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where}: no TOML ({error}); it holds lines such as sequence-length = 1024") from error
    known = {
        field.name: field for field in dataclasses.fields(PlanConfig) if field.metadata.get("affects_output", False)
    }
    options: dict[str, Any] = {"recipe_name": os.path.basename(given).removesuffix(".toml")}
    for key, value in table.items():
        name = key.replace("-", "_")
        if key == "name":
            options["recipe_name"] = str(value)
        elif name not in known:
            raise ValueError(
                f"{where}: {key} is no option of what is written; build --help-all lists them; remove or correct it"
            )
        else:
            options[name] = value
    return options


def recipe_of(manifest: Manifest) -> str:
    """Returns the recipe that a dataset was built by, as TOML: every option that decides its bytes.

    `build --recipe` of it, on the same inputs, gives the same bytes.
    """
    lines = [f"name = {_toml(manifest.recipe or 'dataset ' + manifest.dataset_digest)}"]
    for name, value in manifest.config.items():
        if value is not None:
            if name in _FILES and value not in _FILES[name]:
                lines.append(f"# a file; say where it is with {flag(name)} FILE, which wins over this")
            lines.append(f"{flag(name).removeprefix('--')} = {_toml(value)}")
    if manifest.classes is not None:
        lines.insert(0, "# a split takes the classes of this dataset with --classes; here they are the inputs' own")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # texts, numbers, booleans and lists of them are written alike in both; but for DEL
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
