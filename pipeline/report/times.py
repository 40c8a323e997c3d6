"""The time that a build took, by stage and by kind of work: of all its runs, from `_run.json`. Differs between equal datasets."""

import json
from collections import defaultdict
from datetime import UTC, datetime
from typing import TypedDict

from patchpack.schemas import storage
from patchpack.schemas.manifest import RUN_NAME
from patchpack.schemas.run import WORK, RunRecord, StageName

_STAGES: tuple[StageName, ...] = ("plan", "write", "build")


class Times(TypedDict):
    """Sums over the runs of a build.

    Attributes:
        num_runs: of them; more than one where the build went on.
        num_unknown: stages whose process was killed, and whose time nobody knows.
        wall_s: of each stage that was there, in s.
        worker_s: of each kind of work, over all workers, in s.
    """

    num_runs: int
    num_unknown: int
    wall_s: dict[str, float]
    worker_s: dict[str, float]


def read_record(folder: str) -> RunRecord:
    """Returns the record of a dataset's build, by what reads datasets.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is none.
    """
    record: RunRecord = json.loads(storage.read_bytes(storage.join(folder, RUN_NAME)))
    return record


def read_times(folder: str) -> Times | None:
    """Returns the times of the build of a dataset, or None where it kept none.

    A dataset is whole without them: what cannot be read is not there.
    """
    try:
        record = read_record(folder)
        stages = record.get("stages", [])
        wall: dict[str, float] = defaultdict(float)
        work: dict[str, float] = defaultdict(float)
        for stage in stages:
            wall[stage["stage"]] += stage["wall_s"] or 0.0
            for kind, seconds in stage["worker_s"].items():
                work[kind] += seconds
        if stages and stages[-1]["wall_s"] is None and "finished" not in record:
            # this page ends it
            last = datetime.now(UTC) - datetime.fromisoformat(stages[-1]["started"])
            wall[stages[-1]["stage"]] += max(0.0, last.total_seconds())
        unknown = sum(stage["wall_s"] is None for stage in stages[:-1])
        num_runs = max((sum(one["stage"] == name for one in stages) for name in _STAGES), default=0)
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return None
    if not stages:
        return None
    return {
        "num_runs": num_runs,
        "num_unknown": unknown,
        "wall_s": {name: wall[name] for name in _STAGES if wall[name]},
        "worker_s": {name: work[name] for name in WORK if work[name]},
    }
