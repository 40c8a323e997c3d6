"""What `_run.json` holds of a build's time, key by key; a page reads it without Beam."""

from typing import Literal, TypedDict

# build: both, as one job of another runner
StageName = Literal["plan", "write", "build"]

# kinds of a worker's work, in the order that data passes: `worker_s` has those that there were
WORK = ("list", "probe", "sample", "pack", "decode", "patchify", "write", "finish")


class StageTime(TypedDict):
    """One stage of one run; the stages of a dataset are a list, by time, and a run that goes on appends to it.

    `started` is a time of ISO 8601 in UTC. `workers` are local processes, None on another runner. `wall_s` is None while the stage runs,
    and for ever where its process was killed; a stage that failed has its time. `worker_s` is the time that all workers
    together were at one kind of work of WORK, waiting for files included. `counts` are Beam's counters when the stage ended.
    """

    stage: StageName
    started: str
    workers: int | None
    wall_s: float | None
    worker_s: dict[str, float]
    counts: dict[str, int]


class RunRecord(TypedDict, total=False):
    """What _run.json holds: where and how a dataset was built, and of which inputs."""

    started: str
    finished: str
    host: str
    machine: str
    python: str
    versions: dict[str, str]
    # as they were named, what names them wherever they stand, and the folders that keys are relative to
    inputs: list[str]
    names: list[str]
    roots: list[str]
    options: dict[str, object]
    workers: int
    stages: list[StageTime]
    traceback: str
