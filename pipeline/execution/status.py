"""Where a build stands, from what is on storage: `patchpack status`. Reads names and small files, never shards."""

from contextlib import suppress
from typing import Literal

from patchpack.pipeline.execution import folder as output
from patchpack.pipeline.execution import outcome
from patchpack.pipeline.names import PLAN_NAME
from patchpack.pipeline.stages.saved import PlanRecord, read_plan_record
from patchpack.pipeline.storage import files, listing
from patchpack.schemas.manifest import MANIFEST_NAME, SEQUENCES_FOLDER, read_manifest
from patchpack.schemas.run import JobRecord, Status


def read_status(folder: str) -> Status:
    """Returns where the build of an output stands.

    Raises:
        ValueError: none was begun there.
        OSError: the storage fails.
    """
    record = output.record_begun(folder)
    ended = outcome.read(folder)
    if not record and ended is None:
        raise ValueError(f"{folder}: no build was begun here; status takes the --output of one; check the path")
    home = output.plan_home(folder)
    is_growing = output.is_growing(folder)
    plan = None if is_growing or not files.exists(files.join(home, PLAN_NAME)) else read_plan_record(home)
    num_written = sum(name.endswith(".parquet") for name in listing.names(files.join(folder, SEQUENCES_FOLDER)))
    num_inputs = num_shards = None
    if plan is not None:
        num_inputs, num_shards = plan["totals"]["num_inputs"], plan["totals"]["planned"]["num_shards"]
        num_written -= plan["earlier"][-1]["num_shards"] if plan["earlier"] else 0
    is_finished = home == folder and not is_growing and _is_whole(folder, plan)
    if is_finished:
        # of all that was ever added
        totals = read_manifest(folder).totals
        num_inputs, num_shards, num_written = (
            totals["num_inputs"],
            totals["planned"]["num_shards"],
            totals["stored"]["num_shards"],
        )
    job = record.get("job")
    job_state = None if job is None or is_finished or ended else _job_state(job)
    state = _state(folder, is_finished, ended is not None, job, job_state)
    return {
        "output": folder,
        "state": state,
        "stage": "planning" if num_shards is None else "writing" if num_written < num_shards else "finishing",
        "num_inputs": num_inputs,
        "num_shards": num_shards,
        "num_written": num_written,
        "started": record.get("started"),
        "finished": record.get("finished") if is_finished else None,
        "job": job,
        "job_state": job_state,
        "message": None if ended is None else ended["message"],
        "what_next": _NEXT[state].format(folder=folder),
    }


_NEXT = {
    "running": "wait; this command says how far it is",
    "finished": "report {folder}, or train on it",
    "failed": "build --output {folder} --resume, once what the message says is seen to",
    "unfinished": "build --output {folder} --resume goes on",
    "unknown": "ask the service of the job; build --output {folder} --resume waits for it, or goes on behind it",
}


def _is_whole(folder: str, plan: PlanRecord | None) -> bool:
    """Returns whether the dataset is finished, with what was added to it last."""
    if not files.exists(files.join(folder, MANIFEST_NAME)):
        return False
    return plan is None or len(read_manifest(folder).earlier) == len(plan["earlier"])


def _job_state(job: JobRecord) -> str | None:
    from patchpack.pipeline.execution.job import met_again

    # without Google's client, or where the service is not reached from here
    with suppress(OSError, ImportError):
        met = met_again(job)
        return "GONE" if met is None else str(met.state)
    return None


def _state(
    folder: str, is_finished: bool, has_failed: bool, job: JobRecord | None, job_state: str | None
) -> Literal["running", "finished", "failed", "unfinished", "unknown"]:
    if is_finished:
        return "finished"
    if has_failed:
        return "failed"
    if job is not None:
        if job_state is None:
            return "unknown"
        from apache_beam.runners.runner import PipelineState

        return "unfinished" if job_state == "GONE" or PipelineState.is_terminal(job_state) else "running"
    with files.locked(folder) as is_free:
        return "unfinished" if is_free else "running"


def status_lines(status: Status) -> list[str]:
    """Returns a status as lines of text."""
    shards = "" if status["num_shards"] is None else f"{status['num_written']:,} of {status['num_shards']:,} written"
    job = status["job"]
    rows = {
        "output": status["output"],
        "state": status["state"] if status["state"] == "finished" else f"{status['state']} ({status['stage']})",
        "inputs": "" if status["num_inputs"] is None else f"{status['num_inputs']:,}",
        "shards": shards,
        "started": status["started"],
        "finished": status["finished"],
        "job": "" if job is None else " ".join(filter(None, [job["runner"], job["id"], status["job_state"]])),
        "message": status["message"],
        "next": status["what_next"],
    }
    return [f"{name:<10}{text}" for name, text in rows.items() if text]
