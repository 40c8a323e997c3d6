"""Labels: the name of the folder that an input lies in, and the classes that names are numbered by.

Without `--classes` the classes are the sorted names of all listed inputs; with it they and their order are given, so
that a split has the numbers of the dataset that a model was trained on.
"""

import os
from collections import Counter
from collections.abc import Iterable

from patchpack.pipeline.stages.summary import LabelGaps
from patchpack.pipeline.storage import files
from patchpack.schemas.manifest import MANIFEST_NAME, read_manifest

# names shown in an error
_SHOWN = 3


def label_of(key: str) -> str | None:
    """Returns the name of the folder a key lies in, or None if it lies in none."""
    parts = key.split("/")
    return parts[-2] if len(parts) > 1 else None


def label_gaps(keys: Iterable[str], classes: tuple[str, ...]) -> LabelGaps:
    """Returns which of a group's planned inputs have no label."""
    labels = {key: label_of(key) for key in set(keys)}
    without = sorted(key for key, label in labels.items() if label is None)
    known = frozenset(classes)
    unknown = Counter(label for label in labels.values() if label is not None and label not in known)
    return LabelGaps(len(labels), len(without), without[0] if without else "", dict(sorted(unknown.items())))


def check_labels(gaps: list[LabelGaps]) -> str:
    """Returns a warning about inputs without a label, or nothing where every input has one.

    Args:
        gaps: of every group, as `label_gaps` gave them.

    Raises:
        ValueError: no input has a label, or a folder is no class of --classes.
    """
    unknown: Counter[str] = Counter()
    for gap in gaps:
        unknown.update(gap.unknown_folders)
    if unknown:
        first = ", ".join(sorted(unknown)[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
        raise ValueError(
            f"--classes: {sum(unknown.values())} inputs lie in folders that are none of them ({first}); every folder is a "
            "class; add the names, or leave those inputs out with --exclude"
        )
    num_without = sum(gap.num_without_folder for gap in gaps)
    if not num_without:
        return ""
    first = min(gap.first_without_folder for gap in gaps if gap.num_without_folder)
    num_inputs = sum(gap.num_inputs for gap in gaps)
    rule = "a file named by itself, or by a glob that the shell has spelled out, has no folder in its key"
    if num_without == num_inputs:
        raise ValueError(
            f"--labels folder: none of {num_inputs} inputs lies in a folder (first: {first}); {rule}; name the folder, or put "
            "the glob in quotes"
        )
    return (
        f"--labels folder: {num_without} of {num_inputs} inputs lie in no folder and have no label (first: {first}); {rule}; name "
        "the folder, or put the glob in quotes"
    )


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
        raise ValueError(
            "it has no class; name a dataset that was built with --labels folder, or a file of one name a line"
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{twice[0]} stands there twice; a class has one number")
    return names
