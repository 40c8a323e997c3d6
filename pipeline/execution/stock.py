"""Between plan and shards: the plan is looked at, and refused or made whole; by the launcher, or, where one job does it all, by a worker."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.transforms import combiners

from patchpack.options import output_affecting
from patchpack.pipeline.config import BuildConfig
from patchpack.pipeline.errors import BuildFailed, NothingNew
from patchpack.pipeline.execution import folder as output
from patchpack.pipeline.execution import outcome
from patchpack.pipeline.execution.checks import (
    Rejected,
    check_mostly_good,
    check_not_all_known,
    check_not_all_rejected,
    check_plan,
    check_readable,
)
from patchpack.pipeline.execution.transform import Transform
from patchpack.pipeline.names import NEXT_FOLDER, PLAN_NAME
from patchpack.pipeline.stages import finish, saved
from patchpack.pipeline.stages.generations import Grown, earlier_of
from patchpack.pipeline.stages.list import Input
from patchpack.pipeline.stages.summary import GroupId
from patchpack.pipeline.storage import files
from patchpack.schemas.errors import without_secrets
from patchpack.schemas.manifest import read_manifest


@dataclass
class TakeStock(Transform[PCollection[None], PCollection[GroupId]]):
    """A saved plan to the groups that are to be written; to nothing where it is refused, and why is saved (`outcome`)."""

    folder: str
    inputs: list[Input]
    config: BuildConfig
    grown: Grown

    def expand(self, saved: PCollection[None]) -> PCollection[GroupId]:
        """Returns the groups, once every part of the plan is saved."""
        groups: PCollection[GroupId] = (
            saved | "all of it" >> combiners.Count.Globally() | "take" >> beam.FlatMap(lambda _: self._groups())
        )
        return groups

    def _groups(self) -> Iterable[GroupId]:
        with outcome.saved(self.folder), undone_if_refused(self.folder, self.config):
            warnings = take_stock(self.folder, self.inputs, self.config, self.grown)
            output.note(self.folder, warnings=warnings)
            return saved.planned_groups(self.folder, [self.grown.generation.number])
        return []


def take_stock(folder: str, inputs: list[Input], config: BuildConfig, grown: Grown) -> list[str]:
    """Makes a saved plan whole, puts it where the one before is that it replaces or is added to, and returns warnings.

    Args:
        folder: the output.
        inputs: of the build.
        config: of the build.
        grown: what the inputs are planned as.

    Raises:
        NothingNew: every input was packed or rejected before.
        ValueError: keys conflict, nothing was found, or what labels were asked for is not there.
        BuildFailed: nothing can be written, or too much could not be read.
    """
    home, planned = planning_home(folder, config), [grown.generation.number]
    listing = saved.read_listing(home, planned)
    check_not_all_known(folder, listing)
    warnings = check_plan(listing, inputs, config)
    totals = finish.Planned(saved.read_summaries(home, planned), config).totals(listing)
    rejected = Rejected(saved.read_rejects(home, planned))
    check_not_all_rejected(home, totals, rejected)
    check_readable(home, totals, rejected, config)
    if grown.generation.number:
        check_mostly_good(folder, totals, rejected, config)
    record: saved.PlanRecord = {
        "config": output_affecting(config),
        "inputs": [given.relative for given in inputs],
        "totals": totals,
        "earlier": earlier_of(folder, read_manifest(folder)) if grown.generation.number else [],
    }
    output.clear_probed(home)
    files.write(files.join(home, PLAN_NAME), without_secrets(json.dumps(record, indent=2)).encode() + b"\n")
    if home != folder:
        output.settle(folder)
    return warnings


@contextlib.contextmanager
def undone_if_refused(folder: str, config: BuildConfig) -> Iterator[None]:
    """Takes back what planning has written where it fails, so that the output is as it was or the build can go on."""
    try:
        yield
    except NothingNew:
        output.clear_next(folder)
        raise
    except (BuildFailed, ValueError, OSError, KeyboardInterrupt) as error:
        if config.append:
            if isinstance(error, ValueError):
                output.clear_next(folder)
            # what failed otherwise goes on with what was probed
            raise
        if config.overwrite:
            output.clear_next(folder)
            raise type(error)(f"{error}; {folder} is as it was".removeprefix("; ")) from error
        if isinstance(error, ValueError):
            # a build that goes on keeps its record: what is wrong may be mended
            (output.clear_plan if config.resume else output.delete_dataset)(folder)
        raise


def planning_home(folder: str, config: BuildConfig) -> str:
    """Returns where a plan is made: in the output, or beside the dataset that it is to replace or to be added to."""
    following: str = files.join(folder, NEXT_FOLDER)
    return following if config.overwrite or config.append else folder
