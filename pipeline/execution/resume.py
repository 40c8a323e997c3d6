"""What a build that goes on takes over: the options and the plan of the build before; and what it does not see.

Options that are typed may repeat the kept ones, and change only those that decide no byte. The plan is not made anew
because files were added: they are counted in a warning, and left out.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash

from patchpack.options import flag, output_affecting, shown
from patchpack.pipeline.config import BuildConfig
from patchpack.pipeline.execution.folder import copy_plan, plan_home, run_record, write_record
from patchpack.pipeline.execution.progress import bar
from patchpack.pipeline.execution.stock import planning_home
from patchpack.pipeline.names import PLAN_NAME
from patchpack.pipeline.stages import saved
from patchpack.pipeline.stages.generations import Grown, following
from patchpack.pipeline.stages.list import BEYOND_LIMIT, Input, is_guess, list_all
from patchpack.pipeline.stages.records import Ignored, Source
from patchpack.pipeline.storage import files
from patchpack.pipeline.storage.files import described
from patchpack.schemas.errors import is_redacted, without_secrets
from patchpack.schemas.manifest import canonical_json, read_manifest


def resumed(typed: dict[str, Any], folder: str) -> BuildConfig:
    """Returns the options of a build that goes on: those typed now, then those of the build before, then the defaults.

    Raises:
        ValueError: one typed now would change what is written.
    """
    known = {field.name for field in dataclasses.fields(BuildConfig)}
    kept: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in run_record(typed.get("from_plan") or folder).get("options", {}).items()
        if name in known
    }
    for name, value in kept.items():
        if name not in typed and isinstance(value, str) and is_redacted(value):
            raise ValueError(
                f"{flag(name)} {value}: begun with credentials in it, which no record keeps; --resume goes on with the same; type it again"
            )
    config = BuildConfig(**kept | typed)
    if config.media_backend == "auto" and kept:
        # the record says what it stood for
        config = dataclasses.replace(config, media_backend=kept["media_backend"])
    before = _recorded(BuildConfig(**kept))
    for name, value in _recorded(config).items():
        if name in kept and value != before[name]:
            raise _changed(name, value, before[name], folder)
    return config


def plan_is_kept(folder: str, config: BuildConfig, inputs: list[Input]) -> bool:
    """Returns whether a complete plan is there to go on from.

    Raises:
        ValueError: it is the plan of other options or inputs, or another build was begun there.
    """
    home = plan_home(folder)
    path = files.join(home, PLAN_NAME)
    if not files.exists(path):
        _check_inputs(run_record(folder).get("names"), inputs, folder)
        return False
    kept = saved.read_plan_record(home)
    now = _recorded(config)
    for name, value in kept["config"].items():
        if now.get(name) != value:
            raise _changed(name, now.get(name), value, folder)
    if config.classes is not None:
        old = saved.read_classes(home, len(kept["earlier"]))
        if old != config.classes:
            raise ValueError(
                f"--classes: {len(config.classes)} names now, others than the {len(old)} in the saved plan of {folder}; "
                "--resume goes on with the same; leave it out, or --overwrite"
            )
    _check_inputs(kept["inputs"], inputs, folder)
    return True


def growth(folder: str) -> Grown:
    """Returns what inputs that are added to a dataset are planned as.

    Raises:
        ValueError: it is no dataset that inputs can be added to.
        FormatError: it is unfinished, or its plan was damaged.
    """
    manifest = read_manifest(folder)
    if not files.exists(files.join(folder, PLAN_NAME)):
        raise ValueError(
            f"{folder}: no {PLAN_NAME}; --append looks there for what is packed, and only build leaves one; build anew, with --overwrite"
        )
    if len(saved.read_plan_record(folder)["earlier"]) > len(manifest.earlier) or plan_home(folder) != folder:
        raise ValueError(
            f"{folder}: inputs are being added to it already; one generation follows the other; go on with build --output {folder} --resume"
        )
    return following(folder)


def fetch_plan(source: str, inputs: list[Input], folder: str, config: BuildConfig) -> None:
    """Copies the plan of --from-plan to where this build's would be made; plan.json, which makes it whole, comes last.

    Raises:
        ValueError: there is no plan, or it is of other inputs.
    """
    if not files.exists(files.join(source, PLAN_NAME)):
        raise ValueError(
            f"--from-plan {source}: no {PLAN_NAME} in it; it takes what plan --output saved; check the path"
        )
    record = saved.read_plan_record(source)
    if record["earlier"]:
        raise ValueError(
            f"--from-plan {source}: a dataset that has grown {len(record['earlier'])} times; it takes one plan; make one of all inputs with "
            "plan --output"
        )
    named = [without_secrets(given.relative) for given in inputs]
    if named != record["inputs"]:
        raise ValueError(
            f"--from-plan {source}: made of {', '.join(record['inputs'])}, given {', '.join(named)}; inputs are those of the plan in their "
            "order, wherever they lie; leave them out, or plan these"
        )
    home = planning_home(folder, config)
    copy_plan(source, home)
    write_record(home, inputs, config, 0)
    files.write(files.join(home, PLAN_NAME), files.read(files.join(source, PLAN_NAME)))


def warn_of_new_inputs(folder: str, inputs: list[Input], config: BuildConfig) -> str:
    """Returns a warning about inputs that are there and not in the saved plan, or nothing.

    Lists the inputs once more, one at a time; memory: 8 bytes a planned input. With --limit only their number is
    compared: which ones are beyond it is not kept.
    """
    planned = np.sort(np.fromiter(_planned_keys(folder), np.uint64))
    num_new, first, num_now = 0, "", 0
    with bar("looking for new inputs", None, "inputs") as advance:
        try:
            for listed in list_all(inputs, config):
                # a plan keeps no keys of what it ignored, by content neither
                if isinstance(listed, Ignored) or (isinstance(listed, Source) and is_guess(listed)):
                    continue
                num_now += 1
                index = np.searchsorted(planned, _hash(listed.key))
                if index == len(planned) or planned[index] != _hash(listed.key):
                    num_new, first = num_new + 1, min(first or listed.key, listed.key)
                advance(num_now)
        except OSError as error:
            return f"{described(error)}: inputs cannot be listed; new ones are not looked for"
    rule = "--resume goes on with the plan that is there; --overwrite plans anew"
    if config.limit is None:
        message = f"{num_new} inputs are new since {folder} was planned (first: {first}), and are not packed"
        return f"{message}; {rule}" if num_new else ""
    totals = saved.read_plan_record(folder)["totals"]
    before = totals["num_inputs"] + totals["ignored"].get(BEYOND_LIMIT, 0)
    message = f"{num_now} inputs now, {before} when {folder} was planned; new ones are not packed"
    return f"{message}; {rule}" if num_now > before else ""


def _recorded(config: BuildConfig) -> dict[str, Any]:
    """Returns what a plan's record has of the options that decide bytes."""
    found: dict[str, Any] = json.loads(without_secrets(canonical_json(output_affecting(config)).decode()))
    return found


def _check_inputs(before: list[str] | None, inputs: list[Input], folder: str) -> None:
    named = [without_secrets(given.relative) for given in inputs]
    if before is not None and before != named:
        raise ValueError(
            f"{folder}: begun with {', '.join(before)}, resumed with {', '.join(named)}; "
            "--resume goes on with the same inputs in the same order; leave them out, or use --overwrite"
        )


def _planned_keys(folder: str) -> Iterator[int]:
    for reject in saved.read_rejects(folder):
        yield _hash(reject.key)
    for name in saved.plan_names(folder):
        with files.open_read(files.join(folder, name)) as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=["key"]):
                yield from map(_hash, batch["key"].to_pylist())


def _hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode())


def _changed(name: str, now: object, before: object, folder: str) -> ValueError:
    return ValueError(
        f"{flag(name)}: {shown(now)} now, {shown(before)} when {folder} was begun; what goes on or grows has the same "
        "options; leave it out, or use --overwrite"
    )
