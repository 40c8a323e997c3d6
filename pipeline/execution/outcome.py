"""What became of a build that gave no dataset: saved where it ends, which may be far from whoever started it.

The launcher raises it again, if it is still there, and `patchpack status` says it.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Literal, TypedDict, cast

from patchpack.pipeline.errors import BuildFailed, NothingNew, TooManyRejects
from patchpack.pipeline.names import OUTCOME_NAME, PLAN_FOLDER, REPORT_NAME
from patchpack.pipeline.storage import files
from patchpack.schemas.errors import without_secrets
from patchpack.schemas.report import Report


class Outcome(TypedDict):
    """Why there is no dataset: wrong use, a failure (with a traceback where that is a bug of ours), too many rejects, or nothing new."""

    kind: Literal["usage", "failed", "rejects", "nothing"]
    message: str
    traceback: str


@contextlib.contextmanager
def saved(folder: str) -> Iterator[None]:
    """Saves below an output folder the failure that comes out of this, and lets nothing out of it but failures of storage."""
    try:
        yield
    except TooManyRejects as error:
        _save(folder, {"kind": "rejects", "message": str(error), "traceback": ""})
    except BuildFailed as error:
        _save(folder, {"kind": "failed", "message": str(error), "traceback": str(error.__cause__ or "")})
    except NothingNew as error:
        _save(folder, {"kind": "nothing", "message": str(error), "traceback": ""})
    except ValueError as error:
        _save(folder, {"kind": "usage", "message": str(error), "traceback": ""})


def read(folder: str) -> Outcome | None:
    """Returns what was saved, or None where nothing went wrong, so far."""
    path = files.join(folder, OUTCOME_NAME)
    return cast(Outcome, json.loads(files.read(path))) if files.exists(path) else None


def clear(folder: str) -> None:
    """Forgets what became of an earlier run."""
    path = files.join(folder, OUTCOME_NAME)
    if files.exists(path):
        files.remove(path)
        files.remove_empty(files.join(folder, PLAN_FOLDER))


def raise_saved(folder: str) -> None:
    """Raises what was saved, if anything was.

    Raises:
        ValueError: wrong use.
        BuildFailed: a failure, or too many rejects (`TooManyRejects`, with the report).
        NothingNew: there is nothing to add.
    """
    outcome = read(folder)
    if outcome is None:
        return
    if outcome["kind"] in ("usage", "nothing"):
        # nothing was begun, and nothing is left
        clear(folder)
        raise (ValueError if outcome["kind"] == "usage" else NothingNew)(outcome["message"])
    if outcome["kind"] == "rejects":
        raise TooManyRejects(outcome["message"], cast(Report, json.loads(files.read(files.join(folder, REPORT_NAME)))))
    cause = RuntimeError(outcome["traceback"]) if outcome["traceback"] else None
    raise BuildFailed(outcome["message"]) from cause


def _save(folder: str, outcome: Outcome) -> None:
    files.make_folder(files.join(folder, PLAN_FOLDER))
    files.write(files.join(folder, OUTCOME_NAME), without_secrets(json.dumps(outcome)).encode())
