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


class JobRecord(TypedDict):
    """What finds a job of another runner again: its id, and where it was submitted to; what does not apply is empty."""

    runner: str
    id: str
    endpoint: str
    project: str
    region: str


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
    # how many times inputs were added before
    generation: int
    traceback: str
    # of another runner, and what a plan made there is warned of
    job: JobRecord
    warnings: list[str]


class Status(TypedDict):
    """Where a build stands.

    Attributes:
        output: its folder.
        state: of the build; "unfinished" where nobody is at it any more, "unknown" where only the job's service could say.
        stage: what is being done, or was done last.
        num_inputs, num_shards: of the plan; None until there is one.
        num_written: shards that are there.
        started, finished: times, as _run.json has them.
        job: of another runner.
        job_state: as its service says; None where there is none, or it does not answer.
        message: why there is no dataset.
        what_next: the way on, one line.
    """

    output: str
    state: Literal["running", "finished", "failed", "unfinished", "unknown"]
    stage: Literal["planning", "writing", "finishing"]
    num_inputs: int | None
    num_shards: int | None
    num_written: int
    started: str | None
    finished: str | None
    job: JobRecord | None
    job_state: str | None
    message: str | None
    what_next: str
