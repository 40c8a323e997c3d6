"""What a build is refused for, or fails of, once its plan or its shards are there; said the same in the launcher and in a worker."""

from collections.abc import Iterable
from typing import NamedTuple

from patchpack.pipeline.config import BuildConfig
from patchpack.pipeline.errors import BuildFailed, NothingNew, TooManyRejects
from patchpack.pipeline.execution import folder as output
from patchpack.pipeline.execution.stage import bug
from patchpack.pipeline.names import NEXT_FOLDER, PLAN_FOLDER
from patchpack.pipeline.report.counted import Scan
from patchpack.pipeline.stages import finish, saved
from patchpack.pipeline.stages.generations import CHANGED_SINCE, KNOWN
from patchpack.pipeline.stages.labels import check_labels
from patchpack.pipeline.stages.list import EXCLUDED, NO_SUFFIX, Input
from patchpack.pipeline.stages.records import PARTIAL_VIDEO, Reject
from patchpack.pipeline.stages.rejects import RejectedInputs
from patchpack.pipeline.stages.summary import Listing
from patchpack.pipeline.storage import files
from patchpack.schemas.manifest import REJECT_TABLE_NAME
from patchpack.schemas.report import Report, Totals

# the reject fraction of fewer inputs says little
MIN_INPUTS_FOR_REJECT_FRACTION = 100


class Failure(NamedTuple):
    """Why a shard was not written; with a traceback where that is a bug of ours."""

    path: str
    reason: str
    traceback: str = ""


def check_plan(listing: Listing, inputs: list[Input], config: BuildConfig) -> list[str]:
    """Returns warnings about a plan.

    Raises:
        ValueError: keys conflict, nothing was found, or what labels were asked for is not there.
    """
    warnings = check_listing(listing, inputs, config)
    if listing.label_gaps is not None and listing.label_gaps.num_inputs:
        warnings += filter(None, [check_labels(listing.label_gaps, config.labels_shown)])
    if changed := listing.ignored.get(CHANGED_SINCE):
        warnings.append(
            f"{changed} inputs have another size than when they were packed; --append leaves what is packed as it is; --overwrite packs anew"
        )
    return warnings


def check_listing(listing: Listing, inputs: list[Input], config: BuildConfig) -> list[str]:
    """Returns warnings about what was listed; raises ValueError where keys conflict or nothing was found."""
    if listing.key_conflict:
        key, (one, two) = listing.key_conflict
        raise ValueError(
            f"{key}: two inputs of this key, {one} and {two}; keys are unique; name each input once, or their common folder"
        )
    if not listing.num_inputs:
        ignored = ", ".join(f"{count} {why}" for why, count in listing.ignored.items())
        by_suffix = any(why == NO_SUFFIX or why.startswith(".") for why in listing.ignored)
        raise ValueError(
            f"{', '.join(given.named for given in inputs)}: no media found{f' (ignored: {ignored})' if ignored else ''}; "
            "at least one image or video is needed; check the path"
            + (", or add --any-suffix to try files whatever their suffix" if by_suffix else "")
        )
    return [
        f"--exclude {pattern}: leaves out nothing; it is matched with whole keys, such as photos/cat/1.jpg; check it"
        for pattern in config.exclude
        if EXCLUDED.format(pattern) not in listing.ignored
    ]


def check_not_all_known(folder: str, listing: Listing) -> None:
    """Ends a build that has nothing to add.

    Raises:
        NothingNew: every input was packed or rejected before.
    """
    num_known = sum(listing.ignored.get(why, 0) for why in KNOWN)
    if not listing.num_inputs and num_known:
        raise NothingNew(f"{folder}: nothing to add; all {num_known} inputs were packed or rejected before")


class Rejected:
    """The inputs that were rejected while planning, counted one by one."""

    def __init__(self, rejects: Iterable[Reject]) -> None:
        """Counts them; those of an input come one after the other."""
        self.all, self.unreadable, self.bad = RejectedInputs(), RejectedInputs(), RejectedInputs()
        for row in rejects:
            self.all.add(row)
            if row.reason in ("unreadable", "not_found"):
                self.unreadable.add(row)
            if row.reason != "duplicate" and (row.stage, row.reason) != PARTIAL_VIDEO:
                self.bad.add(row)


def check_not_all_rejected(folder: str, totals: Totals, rejected: Rejected) -> None:
    """Fails where nothing is left to write."""
    first = rejected.all.first
    if totals["planned"]["num_shards"] or first is None:
        return
    raise BuildFailed(
        f"{folder}: nothing to write, all {rejected.all.number} inputs were rejected (first: {first.key}: {first.reason}, {first.detail}); "
        f"at least one must be readable; see {PLAN_FOLDER}/rejects-*.parquet"
    )


def check_readable(folder: str, totals: Totals, rejected: Rejected, config: BuildConfig) -> None:
    """Keeps no plan that was made while storage failed: it would leave out for ever what could not be read then."""
    first = rejected.unreadable.first
    if first is not None and _are_too_many(rejected.unreadable, totals, config):
        raise BuildFailed(
            f"{folder}: {rejected.unreadable.number} of {totals['num_inputs']} inputs cannot be read (first: {first.key}: {first.detail}); "
            f"--max-reject-fraction is {config.max_reject_fraction}, so the plan is not kept; see to the storage and go on with "
            "--resume, or raise it"
        )


def check_mostly_good(folder: str, totals: Totals, rejected: Rejected, config: BuildConfig) -> None:
    """Adds nothing to a dataset where too much of it was rejected: it would have no manifest in the end."""
    first = rejected.bad.first
    if first is not None and _are_too_many(rejected.bad, totals, config):
        raise BuildFailed(
            f"{folder}: {rejected.bad.number} of {totals['num_inputs']} new inputs rejected (first: {first.key}: {first.reason}); "
            f"--max-reject-fraction is {config.max_reject_fraction}, so nothing was added; see {NEXT_FOLDER}/{PLAN_FOLDER}/rejects-*.parquet; "
            f"to accept them: build --output {folder} --resume --max-reject-fraction X"
        )


def _are_too_many(inputs: RejectedInputs, totals: Totals, config: BuildConfig) -> bool:
    num_inputs = totals["num_inputs"]
    return num_inputs >= MIN_INPUTS_FOR_REJECT_FRACTION and inputs.number > config.max_reject_fraction * num_inputs


def finish_dataset(folder: str, config: BuildConfig, scan: Scan, num_failed: int, first: Failure | None) -> None:
    """Finishes a dataset whose shards are all there.

    Args:
        folder: the output.
        config: of the build.
        scan: of all shards.
        num_failed: shards that were not written.
        first: of them.

    Raises:
        BuildFailed: shards were not written, or too many inputs were rejected (`TooManyRejects`).
    """
    if first is not None:
        if first.traceback:
            raise bug(folder, f"{first.reason}, writing {first.path}", first.traceback) from RuntimeError(
                first.traceback
            )
        num_shards = sum(1 for _ in saved.planned_shards(folder))
        raise BuildFailed(
            f"{files.join(folder, first.path)}: not written ({first.reason}); {num_failed} of {num_shards} shards failed, "
            "so the dataset has no manifest; run the same command with --resume"
        )
    report = finish.finish(folder, config, scan, lambda report: not _too_many_rejects(report, config))
    output.note(folder, finished=output.now())
    _check_rejects(report, config, folder)


def _check_rejects(report: Report, config: BuildConfig, folder: str) -> None:
    """Fails a build that has everything but a manifest, for its many rejects."""
    if rejects := _too_many_rejects(report, config):
        raise TooManyRejects(
            f"{folder}: {rejects} of {report['totals']['num_inputs']} inputs rejected; --max-reject-fraction is "
            f"{config.max_reject_fraction}, so no manifest was written; see {REJECT_TABLE_NAME}; to accept them: build --output "
            f"{folder} --resume --max-reject-fraction X",
            report,
        )


def _too_many_rejects(report: Report, config: BuildConfig) -> int:
    """Returns how many inputs were rejected if that is too many, otherwise 0; duplicates were asked for, and do not count."""
    duplicates = sum(row["num_rejects"] for row in report["rejects"] if row["reason"] == "duplicate")
    inputs, rejects = report["totals"]["num_inputs"], report["totals"]["num_rejected_inputs"] - duplicates
    too_many = inputs >= MIN_INPUTS_FOR_REJECT_FRACTION and rejects > config.max_reject_fraction * inputs
    return rejects if too_many else 0
