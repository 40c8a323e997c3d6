"""Labels: names that a folder, a column of a table or a file of keys and labels gives, and the classes that number them.

Without `--classes` the classes are the sorted names of all listed inputs, by value where all are whole numbers; with it
they and their order are given, so that a split has the numbers of the dataset that a model was trained on.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from patchpack.pipeline.inputs import table
from patchpack.pipeline.inputs.facts import BadRow, text_of
from patchpack.pipeline.stages.records import LabelRow, Reject, Source, reject
from patchpack.pipeline.stages.summary import LabelGaps
from patchpack.pipeline.storage import files
from patchpack.schemas.manifest import MANIFEST_NAME, read_manifest

# names shown in an error
_SHOWN = 3


def label_of(key: str) -> str | None:
    """Returns the name of the folder a key lies in, or None if it lies in none."""
    parts = key.split("/")
    return parts[-2] if len(parts) > 1 else None


def with_folder_label(source: Source) -> Source:
    """Returns a source whose label is the name of its folder."""
    label = label_of(source.key)
    return source._replace(facts=source.facts._replace(labels=() if label is None else (label,)))


def read_label_file(path: str) -> Iterator[LabelRow | Reject]:
    """Yields each row of a CSV file of two columns, key and label; several rows of a key are several labels.

    Raises:
        OSError: it cannot be read.
    """
    name = os.path.basename(path)
    for number, row in table.csv_rows(path):
        try:
            if isinstance(row, BadRow):
                raise row
            if len(row) < 2:
                raise BadRow("one column; a row is a key and a label")
            (key_name, key), (label_name, label), *_ = row.items()
            yield LabelRow(text_of(key, key_name), number, text_of(label, label_name))
        except BadRow as error:
            yield reject(f"{name}#{number}", "list", "bad_row", error)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns class names sorted; by value where all are whole numbers."""
    distinct = sorted(set(names))
    return tuple(sorted(distinct, key=int) if all(map(_is_number, distinct)) else distinct)


def _is_number(name: str) -> bool:
    return name.isdecimal() and str(int(name)) == name


def label_gaps(labels: Mapping[str, Sequence[str]], classes: tuple[str, ...] | None) -> LabelGaps:
    """Returns which planned inputs have no label, or one that is no class.

    Args:
        labels: of each input, by its key.
        classes: those given, or None where every label is one.
    """
    without = sorted(key for key, names in labels.items() if not names)
    known = frozenset(classes or ())
    unknown = Counter(name for names in labels.values() for name in names if name not in known)
    return LabelGaps(
        len(labels),
        len(without),
        without[0] if without else "",
        {} if classes is None else dict(sorted(unknown.items())),
    )


def check_labels(gaps: LabelGaps, option: str) -> str:
    """Returns a warning about inputs without a label, or nothing where every input has one.

    Args:
        gaps: of all inputs.
        option: where labels come from, as it was typed.

    Raises:
        ValueError: no input has a label, or a label is no class of --classes.
    """
    unknown = gaps.unknown_labels
    of_folder = option == "--labels folder"
    if unknown:
        names = ", ".join(sorted(unknown)[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
        what = "lie in folders" if of_folder else "have labels"
        every = "every folder" if of_folder else "every label"
        raise ValueError(
            f"--classes: {sum(unknown.values())} inputs {what} that are none of them ({names}); {every} is a "
            "class; add the names, or leave those inputs out with --exclude"
        )
    num_without, first, num_inputs = gaps.num_without_label, gaps.first_without_label, gaps.num_inputs
    if not num_without:
        return ""
    if of_folder:
        rule = "a file named by itself, or by a glob that the shell has spelled out, has no folder in its key"
        way, lies, lie = (
            "name the folder, or put the glob in quotes",
            "lies in a folder",
            "lie in no folder and have no label",
        )
    else:
        rule, way = "keys and labels must fit each other", "check it against a key"
        lies, lie = "has a label", "have no label"
    if num_without == num_inputs:
        raise ValueError(f"{option}: none of {num_inputs} inputs {lies} (first: {first}); {rule}; {way}")
    return f"{option}: {num_without} of {num_inputs} inputs {lie} (first: {first}); {rule}; {way}"


def read_class_names(source: str) -> tuple[str, ...]:
    """Returns the class names, in order, of a text file of one name a line or of a dataset.

    Raises:
        ValueError: there is no such file or set, or it has no names, or one of them twice.
    """
    if os.path.isdir(source) or files.exists(files.join(source, MANIFEST_NAME)):
        names = read_manifest(source).classes or ()
    else:
        try:
            names = tuple(filter(None, map(str.strip, files.read(source).decode("utf-8-sig").splitlines())))
        except OSError as error:
            raise ValueError(f"it is a file of one name a line, or a dataset: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ValueError("it is no text in UTF-8; it holds one name a line") from error
    if not names:
        raise ValueError("it has no class; name a dataset that was built with labels, or a file of one name a line")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{twice[0]} stands there twice; a class has one number")
    return names
