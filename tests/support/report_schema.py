"""docs/report.schema.json and docs/report.md out of schemas/report.py: `python tests/support/report_schema.py` writes both.

TypedDicts become JSON Schema (draft 2020-12): text beside a type is the description, `Within` its least and greatest value.
A key that is added there with its text needs nothing here; a test holds the files to the types.
"""

import inspect
import json
import sys
from collections import Counter
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from patchpack.pipeline.report.scan import REPORT_VERSION
from patchpack.schemas.figures import Within
from patchpack.schemas.report import Report

Schema = dict[str, Any]

DOCS = Path(__file__).parent.parent.parent / "docs"
COMMAND = "python tests/support/report_schema.py"
TYPES = {NoneType: "null", bool: "boolean", int: "integer", float: "number", str: "string"}

PAGE = """# report.json, version {version}

Made by `tests/support/report_schema.py` from `schemas/report.py`, as is [report.schema.json](report.schema.json), the JSON Schema
(draft 2020-12) that every report is valid against. `report --json` prints the same keys. Fractions are of 1, never percent; null stands where
there is nothing to divide by or nothing to count. `a.b` is key b of the object a, and `a[].b` that of each object of the list a.
Readers ignore keys that they do not know: a key more is not a new `report_version`, another meaning of one is.
"""


def report_schema() -> Schema:
    """Returns the content of docs/report.schema.json."""
    records = record_schemas(Report)
    report = records.pop(Report.__name__)
    report["properties"]["report_version"]["const"] = REPORT_VERSION
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:patchpack:report:{REPORT_VERSION}",
        "title": f"report.json of patchpack, version {REPORT_VERSION}",
        **report,
        "$defs": dict(sorted(records.items())),
    }


def record_schemas(kind: Any) -> dict[str, Schema]:
    """Returns the schemas of a record and of all those inside it, by name.

    Raises:
        ValueError: a key has no text.
    """
    records: dict[str, Schema] = {}
    _of_type(kind, records)
    return records


def _of_type(kind: Any, records: dict[str, Schema]) -> Schema:
    """Returns the schema of a type; those of the records it refers to are added to `records`."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        if kind.__name__ not in records:
            records[kind.__name__] = {}
            records[kind.__name__] |= _of_record(kind, records)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin is NotRequired:
        return _of_type(inner[0], records)
    if origin is Annotated:
        schema = _of_type(inner[0], records)
        for note in inner[1:]:
            limits = isinstance(note, Within)
            schema |= {"minimum": note.least, "maximum": note.most} if limits else {"description": note}
        return schema
    if origin in (Union, UnionType):
        return _of_union([_of_type(choice, records) for choice in inner])
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is list:
        return {"type": "array", "items": _of_type(inner[0], records)}
    if origin is dict:
        names = {} if inner[0] is str else {"propertyNames": _of_type(inner[0], records)}
        return {"type": "object", "additionalProperties": _of_type(inner[1], records), **names}
    return {} if kind is object else {"type": TYPES[kind]}


def _of_record(kind: Any, records: dict[str, Schema]) -> Schema:
    hints = get_type_hints(kind, include_extras=True)
    properties = {name: _of_type(hint, records) for name, hint in hints.items()}
    for name, value in properties.items():
        if not value.get("description"):
            raise ValueError(
                f"{kind.__name__}.{name}: no text; every key says what it counts and its unit; Annotated[..., 'text']"
            )
    return {
        "description": inspect.getdoc(kind),
        "type": "object",
        "properties": properties,
        "required": [name for name in hints if name in kind.__required_keys__],
        "additionalProperties": True,
    }


def _of_union(choices: list[Schema]) -> Schema:
    """Returns one schema of several: plain ones share theirs, as no rule for one type touches another."""
    if not all("type" in choice for choice in choices):
        return {"anyOf": choices}
    merged = {key: value for choice in choices for key, value in choice.items()}
    types = dict.fromkeys(choice["type"] for choice in choices)
    if "number" in types:
        types.pop("integer", None)
    return merged | {"type": [*types] if len(types) > 1 else next(iter(types))}


def report_page() -> str:
    """Returns the content of docs/report.md: every key once, those of records that several keys have in a table of their own."""
    schema = report_schema()
    uses = Counter(_references(schema))
    shared = {name for name, count in uses.items() if count > 1}
    lines = [PAGE.format(version=REPORT_VERSION), *_table("", schema, schema["$defs"], shared)]
    for name in sorted(shared):
        record = schema["$defs"][name]
        lines += ["", f"## {name}", "", record["description"], "", *_table("", record, schema["$defs"], shared)]
    return "\n".join([*lines, ""])


def _table(path: str, record: Schema, records: dict[str, Schema], shared: set[str]) -> list[str]:
    """Returns the rows of a record and of those inside it, plain keys first; with its head where it stands alone."""
    rows = [] if path else ["| key | type | unit and meaning |", "| --- | --- | --- |"]
    for name, value in sorted(record["properties"].items(), key=lambda item: bool([*_references(item[1])])):
        words, [*inner] = _words(value, shared), _references(value)
        optional = "" if name in record["required"] else ", may be missing"
        description = value["description"].replace("|", "\\|")
        rows.append(f"| `{path}{name}` | {words}{optional} | {description} |")
        for other in inner:
            if other not in shared:
                rows += _table(f"{path}{name}{'[]' if 'items' in value else ''}.", records[other], records, shared)
    return rows


def _words(schema: Schema, shared: set[str]) -> str:
    """Returns a type as people say it."""
    if "$ref" in schema:
        [name] = _references(schema)
        return f"[{name}](#{name.lower()})" if name in shared else "object"
    if "anyOf" in schema:
        return " or ".join(_words(choice, shared) for choice in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{choice}`" for choice in schema["enum"])
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words = {"array": f"list of {_words(schema['items'], shared)}"} if "array" in types else {}
    if "object" in types:
        words["object"] = f"{_words(schema['additionalProperties'], shared)} by name"
    if "minimum" in schema:
        words["number"] = f"number, {schema['minimum']} to {schema['maximum']},"
    text = " or ".join(words.get(name, name) for name in types)
    return text.removesuffix(",")


def _references(schema: Any) -> list[str]:
    """Returns the names of the records that a schema refers to, as often as it does."""
    if isinstance(schema, list):
        return [name for value in schema for name in _references(value)]
    if not isinstance(schema, dict):
        return []
    own = [schema["$ref"].rpartition("/")[2]] if "$ref" in schema else []
    return own + [name for value in schema.values() for name in _references(value)]


def documents() -> dict[str, str]:
    """Returns the content of each file in docs/ that is made here."""
    return {"report.schema.json": json.dumps(report_schema(), indent=2) + "\n", "report.md": report_page()}


if __name__ == "__main__":
    for file_name, content in documents().items():
        (DOCS / file_name).write_text(content)
        print(f"docs/{file_name}", file=sys.stderr)
