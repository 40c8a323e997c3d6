"""Labels: the name of the folder that an input lies in, and the classes that names are numbered by.

Without `--classes` the classes are the sorted names of all listed inputs; with it they and their order are given, so
that a split has the numbers of the dataset that a model was trained on.
"""

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

from patchpack.pipeline.storage import files
from patchpack.schemas.manifest import MANIFEST_NAME, read_manifest

# names shown in an error
_SHOWN = 3


def label_of(key: str) -> str | None:
    """Returns the name of the folder a key lies in, or None if it lies in none."""
    parts = key.split("/")
    return parts[-2] if len(parts) > 1 else None


def label_gaps(keys: Iterable[str], classes: tuple[str, ...]) -> dict[str, Any]:
    """Returns which of a group's planned inputs have no label, for the group's summary.

    `num_bare` of `num_keys` lie in no folder, the first of them being `first_bare`; `strange` counts those in folders
    that are no class.
    """
    labels = {key: label_of(key) for key in set(keys)}
    bare = sorted(key for key, label in labels.items() if label is None)
    known = frozenset(classes)
    strange = Counter(label for label in labels.values() if label is not None and label not in known)
    return {
        "num_keys": len(labels),
        "num_bare": len(bare),
        "first_bare": bare[0] if bare else "",
        "strange": dict(sorted(strange.items())),
    }


def check_labels(gaps: list[dict[str, Any]]) -> str:
    """Returns a warning about inputs without a label, or nothing where every input has one.

    Args:
        gaps: of every group, as `label_gaps` gave them.

    Raises:
        ValueError: no input has a label, or a folder is no class of --classes.
    """
    strange: Counter[str] = Counter()
    for gap in gaps:
        strange.update(gap["strange"])
    if strange:
        first = ", ".join(sorted(strange)[:_SHOWN]) + (", ..." if len(strange) > _SHOWN else "")
        raise ValueError(
            f"--classes: {sum(strange.values())} inputs lie in folders that are none of them ({first}); every folder is a "
            "class; add the names, or leave those inputs out with --exclude"
        )
    num_bare = sum(gap["num_bare"] for gap in gaps)
    if not num_bare:
        return ""
    first, num_keys = min(gap["first_bare"] for gap in gaps if gap["num_bare"]), sum(gap["num_keys"] for gap in gaps)
    rule = "a file named by itself, or by a glob that the shell has spelled out, has no folder in its key"
    if num_bare == num_keys:
        raise ValueError(
            f"--labels folder: none of {num_keys} inputs lies in a folder (first: {first}); {rule}; name the folder, or put "
            "the glob in quotes"
        )
    return (
        f"--labels folder: {num_bare} of {num_keys} inputs lie in no folder and have no label (first: {first}); {rule}; name "
        "the folder, or put the glob in quotes"
    )


def read_class_names(place: str) -> tuple[str, ...]:
    """Returns the class names, in order, of a text file of one name a line or of a dataset.

    Raises:
        ValueError: there is no such file or set, or it has no names, or one of them twice.
    """
    if os.path.isdir(place) or files.exists(files.join(place, MANIFEST_NAME)):
        names = read_manifest(place).classes or ()
    else:
        try:
            names = tuple(filter(None, map(str.strip, files.read(place).decode("utf-8-sig").splitlines())))
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
