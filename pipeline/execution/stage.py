"""One graph of a build: runs it, shows how far it is, and says in one line why it failed."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import apache_beam as beam
from apache_beam.runners.runner import PipelineResult

from patchpack.pipeline.config import BuildConfig, PlanConfig
from patchpack.pipeline.errors import BuildFailed
from patchpack.pipeline.execution import folder as output
from patchpack.pipeline.execution import runner, workers
from patchpack.pipeline.execution.progress import Amount, shown, warn
from patchpack.pipeline.names import NEXT_FOLDER, PLAN_NAME
from patchpack.pipeline.stages.saved import PlanRecord, read_plan_record
from patchpack.pipeline.storage import files, listing
from patchpack.schemas.manifest import RUN_NAME, SEQUENCES_FOLDER

# asking workers of this machine costs nothing
EVERY_S = 0.5
# a service is asked for its counters, and an object store charges for listing the output
REMOTE_EVERY_S = 30.0


def run_graph(
    folder: str,
    add_graph: Callable[[beam.Pipeline], object],
    config: BuildConfig,
    amount: Callable[[Counter[str]], Amount],
    counts: Counter[str] | None = None,
) -> None:
    """Runs a graph on this machine to its end and shows how far it is.

    Where a worker crashes it is run once more, and every file decoded in a process of its own: the one that is at fault
    becomes a reject. What is there of the first try is kept.

    Args:
        folder: the output, whose record keeps the traceback of a bug.
        add_graph: adds the transforms.
        config: of the build.
        amount: returns how far it is, by what was counted.
        counts: becomes what was counted, also where it fails.

    Raises:
        BuildFailed: it did not finish.
    """
    started = workers.started(config.workers, config.media_backend)
    with _shown(folder, amount, counts) as (tick, counted), started:
        try:
            counted(runner.run_here(add_graph, config.workers, tick, EVERY_S))
        except runner.WorkerCrashed as error:
            if config.decode_isolation != "none":
                raise
            warn(f"{str(error).partition(';')[0]}; going on with each file decoded in a process of its own")
            output.sweep(folder)
            with workers.of_build() as processes:
                processes.isolate()
                counted(runner.run_here(add_graph, config.workers, tick, EVERY_S))


def run_job(
    folder: str,
    start: Callable[[], PipelineResult],
    submitted: Callable[[PipelineResult], bool],
    amount: Callable[[Counter[str]], Amount],
    counts: Counter[str] | None = None,
) -> None:
    """Runs a job of another runner, likewise; `start` and `submitted` are those of `runner.run_there`."""
    with _shown(folder, amount, counts) as (tick, counted):
        counted(runner.run_there(start, submitted, tick, REMOTE_EVERY_S))


@contextmanager
def _shown(
    folder: str, amount: Callable[[Counter[str]], Amount], counts: Counter[str] | None
) -> Iterator[tuple[Callable[[Counter[str]], None], Callable[[Counter[str]], None]]]:
    """Yields what takes counts while a graph runs, and what takes the last ones."""
    counts = Counter() if counts is None else counts

    def counted(now: Counter[str]) -> None:
        # of a runner that did not answer this time, the last answer holds
        counts.update(now - counts)

    with shown() as progress:

        def tick(now: Counter[str]) -> None:
            counted(now)
            progress.show(amount(counts))

        # from now on it takes time
        progress.show(amount(counts))
        try:
            yield tick, counted
        except runner.PipelineFailed as error:
            if error.traceback:
                raise bug(folder, str(error), error.traceback) from error
            raise BuildFailed(str(error)) from error


def planning(counts: Counter[str], config: PlanConfig) -> Amount:
    """Returns how far planning is, stage by stage: each begins when the one before has ended for all inputs."""
    num_rejects = counts["num_rejects"]
    if not counts:
        # yet, or by this runner
        return Amount("planning", "inputs", 0)
    if counts["num_groups"]:
        done, total = counts["num_planned"], counts["num_sampled"]
        return Amount("planning (packing)", "examples", done, total, num_rejects=num_rejects)
    if counts["num_sampled"]:
        # how many there will be is known when all are
        return Amount("planning (sampling)", "examples", counts["num_sampled"], num_rejects=num_rejects)
    if counts["num_probed"]:
        # inputs of other splits are listed, too, and not probed
        total_inputs = counts["num_inputs"] if config.split_name is None else None
        return Amount("planning (probing)", "inputs", counts["num_probed"], total_inputs, num_rejects=num_rejects)
    return Amount("planning (listing)", "inputs", counts["num_inputs"], num_rejects=num_rejects)


class Writing:
    """How far writing is: by what workers count, and where another runner does not say, by the shards that are there.

    Shards of an earlier run are done when a worker has looked at them, and say nothing of how fast it goes.
    """

    def __init__(self, folder: str, plan: PlanRecord, *, lists: bool) -> None:
        """Reads nothing.

        Args:
            folder: the output.
            plan: that is written.
            lists: whether to look how many shards are there.
        """
        self._folder, self._lists, totals = files.join(folder, SEQUENCES_FOLDER), lists, plan["totals"]
        self._num_before = plan["earlier"][-1]["num_shards"] if plan["earlier"] else 0
        self._total, self._num_shards = totals["planned"]["num_segments"], totals["planned"]["num_shards"]
        self._num_rejects = totals["num_rejects"]

    def amount(self, counts: Counter[str]) -> Amount:
        """Returns how far it is, by what was counted."""
        if counts["num_counted_shards"]:
            return Amount("finishing", "shards", counts["num_counted_shards"], self._num_before + self._num_shards)
        before = counts["num_kept_examples"] + counts["num_kept_rejects"]
        # a shard that is tried again counts again
        done = min(self._total, before + counts["num_examples"] + counts["num_rejects"])
        return Amount(
            "writing shards",
            "examples",
            max(done, self._listed()) if self._lists else done,
            self._total,
            before,
            counts["num_token_bytes"],
            self._num_rejects + counts["num_rejects"] + counts["num_kept_rejects"],
        )

    def _listed(self) -> int:
        there = sum(name.endswith(".parquet") for name in listing.names(self._folder)) - self._num_before
        listed: int = self._total * there // max(1, self._num_shards)
        return listed


class Building:
    """How far one job is that plans and writes: by what is counted, and by what lies in the output."""

    def __init__(self, folder: str, config: BuildConfig) -> None:
        """Reads nothing.

        Args:
            folder: the output.
            config: of the build.
        """
        self._folder, self._config = folder, config
        self._writing: Writing | None = None

    def amount(self, counts: Counter[str]) -> Amount:
        """Returns how far it is, by what was counted."""
        # the plan of a dataset that is to be replaced or added to says nothing of this build
        is_own = not files.exists(files.join(self._folder, f"{NEXT_FOLDER}/{RUN_NAME}"))
        if self._writing is None and is_own and files.exists(files.join(self._folder, PLAN_NAME)):
            self._writing = Writing(self._folder, read_plan_record(self._folder), lists=True)
        return planning(counts, self._config) if self._writing is None else self._writing.amount(counts)


def bug(folder: str, text: str, traceback: str) -> BuildFailed:
    """Returns the error of a bug of ours, whose traceback is kept in the record of the build."""
    output.note(folder, traceback=traceback)
    lines = re.findall(r'File "[^"]*?((?:pipeline|schemas)/[^"]+)", line (\d+)', traceback)
    where = f" ({lines[-1][0]} line {lines[-1][1]})" if lines else ""
    return BuildFailed(
        f"bug in patchpack: {text}{where}; this is no fault of the data; please report it with the traceback, which --debug "
        f"shows and {files.join(folder, RUN_NAME)} keeps"
    )
