"""The output folder: who may write there, the record of the run, and how --overwrite replaces a dataset.

State in it, in the order it appears: _run.json (options, times, host, roots: whatever may differ between equal
builds), _plan/ with plan.json last, shards, the tables and the report, manifest.json last. A run that dies leaves a
prefix of that, and `--resume` goes on behind it.

`--overwrite` plans in _plan-next/, a folder that begins as a dataset's own does. The old dataset stays whole until that plan
is complete; then its manifest goes, its shards, its tables, and the new plan takes its place, plan.json last. A
run that dies in between has left the complete plan, and `--resume` ends what was begun.

`--append` plans there, too. Its plan is put beside the one that is there, plan.json last, and the old dataset stays whole until
the new shards are and only the tables are to be replaced.
"""

import json
import os
import platform
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from typing import cast

from patchpack.options import recorded
from patchpack.pipeline.config import BuildConfig
from patchpack.pipeline.execution.shuffle import Shuffle
from patchpack.pipeline.names import (
    NEXT_FOLDER,
    PLAN_FOLDER,
    PLAN_NAME,
    PROBED_PREFIX,
    REPORT_NAME,
    REPORT_PAGE_NAME,
    RESULTS_FOLDER,
    SHUFFLE_FOLDER,
)
from patchpack.pipeline.stages import saved
from patchpack.pipeline.stages.list import Input, source_roots
from patchpack.pipeline.storage import files, listing
from patchpack.pipeline.versions import library_versions
from patchpack.schemas import FormatError
from patchpack.schemas.errors import without_secrets
from patchpack.schemas.manifest import (
    BOUND_TABLE_NAME,
    MANIFEST_NAME,
    REJECT_TABLE_NAME,
    RUN_NAME,
    SEQUENCES_FOLDER,
    SHARD_TABLE_NAME,
    read_manifest,
    read_shard_table,
)
from patchpack.schemas.run import WORK, RunRecord, StageName, StageTime


@contextmanager
def held(folder: str, config: BuildConfig) -> Iterator[None]:
    """Holds an output folder that this build may write to; takes back an empty one that it made for nothing.

    Raises:
        ValueError: it is a file, another build holds it, or it is not empty and nothing was said of that.
    """
    if not files.is_uri(folder) and os.path.lexists(folder) and not os.path.isdir(folder):
        raise ValueError(f"{folder}: a file; a dataset is a folder of files; name another --output")
    made = not files.is_uri(folder) and not os.path.isdir(folder)
    files.make_folder(folder)
    with files.locked(folder) as mine:
        if not mine:
            raise ValueError(
                f"{folder}: another build is writing here; one output has one build; wait for it, or choose another --output"
            )
        try:
            names = listing.names(folder)
            if names and not (config.resume or config.overwrite or config.append):
                raise ValueError(
                    f"{folder}: not empty ({len(names)} entries); a build starts in an empty output; "
                    "use --resume to go on, --append to add inputs, --overwrite to replace the dataset in it, or another --output"
                )
            _check_no_links(folder)
            yield
        finally:
            # by its holder alone: who found it held may have seen it empty
            if made and not listing.names(folder):
                os.rmdir(folder)


def _check_no_links(folder: str) -> None:
    """Checks that what a build writes and deletes in lies in the output: a folder that someone hands over may hold links."""
    for name in (SEQUENCES_FOLDER, RESULTS_FOLDER, PLAN_FOLDER, NEXT_FOLDER, f"{NEXT_FOLDER}/{PLAN_FOLDER}"):
        path = files.join(folder, name)
        if not files.is_uri(folder) and os.path.islink(path):
            raise ValueError(
                f"{path}: a link to {os.readlink(path)}; a build writes and deletes in its output only; remove the link, or link the "
                "whole output"
            )


def plan_home(folder: str) -> str:
    """Returns the folder whose plan and record hold: the output itself, or _plan-next/ where an overwrite got so far."""
    following = files.join(folder, NEXT_FOLDER)
    return following if files.exists(files.join(following, PLAN_NAME)) else folder


def begun_home(folder: str) -> str:
    """Returns where the record of the build lies that was begun last: the output, or _plan-next/ while an overwrite plans."""
    following = files.join(folder, NEXT_FOLDER)
    return following if files.exists(files.join(following, RUN_NAME)) else folder


def record_begun(folder: str) -> RunRecord:
    """Returns what _run.json holds of the build that was begun last; empty where there is none."""
    path = files.join(begun_home(folder), RUN_NAME)
    return cast(RunRecord, json.loads(files.read(path))) if files.exists(path) else {}


def is_growing(folder: str) -> bool:
    """Returns whether inputs are being added to this output, and their plan is not complete."""
    home = begun_home(folder)
    return home != folder and plan_home(folder) == folder and record_begun(folder).get("generation", 0) > 0


def is_of_before(folder: str, num_earlier: int) -> bool:
    """Returns whether a dataset is whole, and what was added to it last is not part of it yet."""
    try:
        return num_earlier > 0 and len(read_manifest(folder).earlier) < num_earlier
    except FormatError:
        # none, or a broken one
        return False


def run_record(folder: str) -> RunRecord:
    """Returns what _run.json holds of the build that `--resume` would go on with; empty where there is none."""
    home = begun_home(folder) if is_growing(folder) else plan_home(folder)
    path = files.join(home, RUN_NAME)
    return cast(RunRecord, json.loads(files.read(path))) if files.exists(path) else {}


def write_record(folder: str, inputs: list[Input], config: BuildConfig, generation: int) -> None:
    """Writes _run.json, before anything else is; a build that goes on keeps the stages of the runs before."""
    before = run_record(folder) if config.resume else {}
    record: RunRecord = {
        "started": now(),
        "host": platform.node(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": library_versions(config.media_backend) | {"apache-beam": metadata.version("apache-beam")},
        "inputs": [given.named for given in inputs],
        "names": [given.relative for given in inputs],
        "roots": source_roots(inputs, config),
        "options": recorded(config),
        "workers": config.workers,
        "stages": before.get("stages", []),
        "generation": generation,
    }
    files.make_folder(files.join(folder, PLAN_FOLDER))
    _put_record(folder, record)


def note(folder: str, **more: object) -> None:
    """Adds to _run.json; where the plan that it belongs to was put into the place of another meanwhile, to the one there."""
    if folder.endswith(NEXT_FOLDER) and not files.exists(files.join(folder, RUN_NAME)):
        folder = folder.removesuffix(NEXT_FOLDER).rstrip("/")
    _put_record(folder, json.loads(files.read(files.join(folder, RUN_NAME))) | more)


def _put_record(folder: str, record: Mapping[str, object]) -> None:
    """Writes _run.json, without what only the one who typed it should know."""
    files.write(files.join(folder, RUN_NAME), without_secrets(json.dumps(record, indent=2)).encode() + b"\n")


@contextmanager
def stage_noted(folder: str, name: StageName, workers: int | None) -> Iterator[Counter[str]]:
    """Notes a stage in _run.json when it begins, and when it ends or fails its time and counts: those put into what is yielded."""
    entry: StageTime = {
        "stage": name,
        "started": now(),
        "workers": workers,
        "wall_s": None,
        "worker_s": {},
        "counts": {},
    }
    stages = [*json.loads(files.read(files.join(folder, RUN_NAME))).get("stages", []), entry]
    note(folder, stages=stages)
    began, counts = time.perf_counter(), Counter[str]()
    try:
        yield counts
    finally:
        entry["wall_s"] = round(time.perf_counter() - began, 3)
        entry["worker_s"] = {work: round(counts[f"{work}_us"] / 1e6, 3) for work in WORK if f"{work}_us" in counts}
        entry["counts"] = {name: number for name, number in sorted(counts.items()) if name.startswith("num_")}
        # a full disk: the times are lost, and what went wrong is said by what went wrong
        with suppress(OSError):
            note(folder, stages=stages)


def now() -> str:
    """Returns the time for the record."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sweep(folder: str) -> None:
    """Deletes what killed writes have left."""
    for name in (PLAN_FOLDER, SEQUENCES_FOLDER, RESULTS_FOLDER):
        files.sweep(files.join(folder, name))
    files.sweep(folder)


def clear_plan(folder: str, *, keep_probed: bool = False) -> None:
    """Deletes the plan of a folder, if it has one; with `keep_probed` not what was probed for one that never became whole."""
    plan_folder = files.join(folder, PLAN_FOLDER)
    if not files.is_uri(folder):
        shutil.rmtree(files.join(folder, SHUFFLE_FOLDER), ignore_errors=True)
    for name in listing.names(plan_folder):
        if not (keep_probed and f"{PLAN_FOLDER}/{name}".startswith(PROBED_PREFIX)):
            files.remove(files.join(plan_folder, name))
    files.remove_empty(plan_folder)


def clear_probed(folder: str) -> None:
    """Deletes what was probed for a plan that is whole now."""
    for name in listing.names(files.join(folder, PLAN_FOLDER)):
        if f"{PLAN_FOLDER}/{name}".startswith(PROBED_PREFIX):
            files.remove(files.join(folder, f"{PLAN_FOLDER}/{name}"))


@contextmanager
def shuffling(folder: str, *, is_local: bool) -> Iterator[Shuffle]:
    """Yields how tables travel: on this machine through files below the output, which are gone afterwards."""
    if not is_local:
        yield Shuffle(None)
        return
    path = tempfile.mkdtemp(prefix="patchpack-shuffle-") if files.is_uri(folder) else files.join(folder, SHUFFLE_FOLDER)
    os.makedirs(path, exist_ok=True)
    try:
        yield Shuffle(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def clear_next(folder: str, *, keep_probed: bool = False) -> None:
    """Deletes what an overwrite or an append has planned; with `keep_probed` not what was probed for it."""
    following = files.join(folder, NEXT_FOLDER)
    # its mark of being complete first
    files.remove(files.join(following, PLAN_NAME))
    clear_plan(following, keep_probed=keep_probed)
    for name in listing.names(following):
        if name != PLAN_FOLDER:
            files.remove(files.join(following, name))
    files.remove_empty(following)


def settle(folder: str) -> None:
    """Ends what was begun beside a dataset: puts a complete _plan-next/ in its place or, of added inputs, beside its plan.

    Any other _plan-next/ is deleted. A run that dies here leaves what the next call ends.
    """
    following = files.join(folder, NEXT_FOLDER)
    if plan_home(folder) == folder:
        clear_next(folder)
        return
    if not saved.read_plan_record(following)["earlier"]:
        delete_dataset(folder)
    copy_plan(following, folder)
    files.write(files.join(folder, RUN_NAME), files.read(files.join(following, RUN_NAME)))
    files.write(files.join(folder, PLAN_NAME), files.read(files.join(following, PLAN_NAME)))
    clear_next(folder)


def copy_plan(source: str, folder: str) -> None:
    """Copies the files of the last generation of a plan but plan.json, which makes it whole."""
    generation = saved.read_generations(source)[-1]
    files.make_folder(files.join(folder, PLAN_FOLDER))
    for name in saved.generation_names(source, generation):
        files.write(files.join(folder, name), files.read(files.join(source, name)))


def delete_dataset(folder: str) -> None:
    """Deletes a dataset, finished or not: the shards its table or plan names, and the files this module names; nothing else."""
    shards = _shard_names(folder)
    files.remove(files.join(folder, MANIFEST_NAME))
    # the tables behind the shards: a run that dies here can still say which are left
    own = [
        REPORT_NAME,
        REPORT_PAGE_NAME,
        REJECT_TABLE_NAME,
        BOUND_TABLE_NAME,
        PLAN_NAME,
        SHARD_TABLE_NAME,
    ]
    for name in [*shards, *own]:
        files.remove(files.join(folder, name))
    sweep(folder)
    clear_plan(folder)
    for name in listing.names(files.join(folder, RESULTS_FOLDER)):
        files.remove(files.join(folder, f"{RESULTS_FOLDER}/{name}"))
    for name in (SEQUENCES_FOLDER, RESULTS_FOLDER):
        files.remove_empty(files.join(folder, name))
    files.remove(files.join(folder, RUN_NAME))


def _shard_names(folder: str) -> list[str]:
    if files.exists(files.join(folder, SHARD_TABLE_NAME)):
        try:
            return list(read_shard_table(folder)["path"].to_pylist())
        except FormatError:
            # broken: the plan it was made from names the same shards
            pass
    # no shard is written before its plan is whole, and none is left where it was deleted
    return [shard.name for shard in saved.planned_shards(folder)] if files.exists(files.join(folder, PLAN_NAME)) else []
