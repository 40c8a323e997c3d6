"""Batches read ahead: on a few threads into memory that is used again, and one step ahead onto the device."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import TypeAlias, TypedDict, TypeVar

import numpy as np
import torch

from patchpack.schemas import Layout
from patchpack.schemas.dataset import Shapes
from patchpack.trainer.ready import Ready
from patchpack.trainer.slots import Batch, Slot, Slots

Job = TypeVar("Job")
Item = TypeVar("Item")
# one slot, or what went wrong
Answer: TypeAlias = "SimpleQueue[Slot | BaseException]"

# how often idle threads look whether the program has ended
LOOK_S = 0.2


class ReaderOptions(TypedDict, total=False):
    """How batches are read, by every loader.

    Attributes:
        num_threads: batches made at a time; one thread reads 3-4 GB/s from memory, so more are for slow storage.
        prefetch: most batches made ahead and not yet taken.
        pin_memory: page-locked batches, for copies to CUDA that overlap with work.
        device: where batches are when they are handed out; on CUDA the next one is copied meanwhile, from page-locked memory.
        also: names of `trainer.ready`, to be added to each batch.
        dtype: of `pixels` among them.
        check: called with each batch before it is copied to the device; what it raises is raised at this batch.
    """

    num_threads: int
    prefetch: int
    pin_memory: bool
    device: torch.device | str | None
    also: Sequence[str]
    dtype: torch.dtype
    check: Callable[[Batch], None] | None


class Reader:
    """Makes batches of one shape, for as many iterations as there are, out of memory that is used again."""

    def __init__(
        self,
        shapes: Shapes,
        layout: Layout,
        *,
        num_threads: int = 1,
        prefetch: int = 4,
        pin_memory: bool = False,
        device: torch.device | str | None = None,
        also: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        check: Callable[[Batch], None] | None = None,
    ) -> None:
        """Takes the shapes of a batch, and `ReaderOptions`.

        Raises:
            ValueError: a number is too small, or there is nothing of a name in `also`.
        """
        check_counts({"num_threads": num_threads, "prefetch": prefetch})
        self._num_threads, self._prefetch, self._check = num_threads, prefetch, check
        self._device = torch.device("cpu" if device is None else device)
        self._ready = Ready(also, layout, self._device, dtype)
        self._slots = Slots(shapes, pin_memory=pin_memory or self._device.type == "cuda")

    def read(
        self, jobs: Iterable[Job], fill: Callable[[Job, Mapping[str, np.ndarray]], None]
    ) -> Generator[tuple[Job, Batch]]:
        """Yields each job and its batch, in order, where and as it was asked for; closing it ends its threads.

        Args:
            jobs: what to read.
            fill: writes what a job reads into the memory of a batch; called on the threads.
        """
        read = read_ahead(jobs, fill, self._slots, num_threads=self._num_threads, prefetch=self._prefetch)
        ready = on_device(read, self._device, self._check, self._ready)
        try:
            yield from ready
        finally:
            ready.close()
            read.close()


def check_counts(counts: Mapping[str, int]) -> None:
    """Checks numbers that are at least 1; raises ValueError where one is not."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} {value}: too small; the least is 1; give 1 or more")


def read_ahead(
    jobs: Iterable[Job],
    fill: Callable[[Job, Mapping[str, np.ndarray]], None],
    slots: Slots,
    *,
    num_threads: int,
    prefetch: int,
) -> Generator[tuple[Job, Batch]]:
    """Yields each job and its batch, in order; an error of a thread is raised at the job it belongs to.

    Args:
        jobs: what to read.
        fill: writes what a job reads into the memory of a batch; called on the threads.
        slots: gives the memory, and has it back when nobody holds the batch.
        num_threads: batches made at a time.
        prefetch: most batches made ahead and not yet taken.
    """
    owner, upcoming = os.getpid(), iter(jobs)
    waiting: deque[tuple[Job, Answer]] = deque()
    todo: SimpleQueue[tuple[Job, Answer] | None] = SimpleQueue()
    threads = [
        threading.Thread(target=_read_jobs, args=(todo, fill, slots), name=f"PackedShards_{number}")
        for number in range(num_threads)
    ]
    for thread in threads:
        thread.start()
    try:
        while True:
            if os.getpid() != owner:
                raise RuntimeError(
                    "an iteration in a process that was forked from its own: its threads stayed there; each process has its loader; make one "
                    "here, with its rank and world_size"
                )
            while len(waiting) < prefetch and (due := next(upcoming, None)) is not None:
                waiting.append((due, SimpleQueue()))
                todo.put(waiting[-1])
            if not waiting:
                return
            job, answer = waiting.popleft()
            slot = answer.get()
            if isinstance(slot, BaseException):
                raise slot
            batch = slot.lend()
            slots.give(slot)
            yield job, batch
            slot.note_copies()
            # what is lent is held by who has it
            del batch
    finally:
        _empty(todo)
        for _ in threads:
            todo.put(None)
        for thread in threads:
            thread.join()
        for _, answer in waiting:
            for slot in _empty(answer):
                if isinstance(slot, Slot):
                    slots.give(slot)


def _read_jobs(
    todo: "SimpleQueue[tuple[Job, Answer] | None]", fill: Callable[[Job, Mapping[str, np.ndarray]], None], slots: Slots
) -> None:
    """Answers each job with the slot it was read into, or its error, until there is None in its place."""
    while True:
        try:
            due = todo.get(timeout=LOOK_S)
        except Empty:
            # an iteration that was left open does not keep the interpreter
            if not threading.main_thread().is_alive():
                return
            continue
        if due is None:
            return
        job, answer = due
        slot = None
        try:
            # not before its turn: fewer slots are in use where batches are taken at once, and those stay in the processor's cache
            slot = slots.take()
            fill(job, slot.arrays)
        except BaseException as error:  # noqa: BLE001 (raised where the batch is asked for)
            if slot is not None:
                slots.give(slot)
            answer.put(error)
        else:
            answer.put(slot)
        # nothing of a batch is held while the next job is waited for
        del due, job, answer, slot


def _empty(queue: "SimpleQueue[Item]") -> list[Item]:
    """Returns what is in a queue, and leaves it empty."""
    found = []
    while True:
        try:
            found.append(queue.get_nowait())
        except Empty:
            return found


def on_device(
    batches: Iterator[tuple[Job, Batch]],
    device: torch.device,
    check: Callable[[Batch], None] | None,
    prepare: Callable[[Batch], Batch],
) -> Generator[tuple[Job, Batch]]:
    """Yields the batches on a device, prepared there; on CUDA the next one is copied while this one is worked on.

    Args:
        batches: in page-locked memory, where the device is CUDA.
        device: where to.
        check: called with each batch before it is copied.
        prepare: adds what is asked for to a batch of the device.
    """
    check = check or _nothing
    if device.type != "cuda":
        for job, batch in batches:
            check(batch)
            yield (
                job,
                prepare(batch if device.type == "cpu" else {name: tensor.to(device) for name, tensor in batch.items()}),
            )
            del batch
        return
    side = torch.cuda.Stream(device)

    def copied() -> tuple[Job, Batch, torch.cuda.Event] | Exception | None:
        # whoever lent the last batch notes, in here, what is queued on this stream
        with torch.cuda.stream(side):
            try:
                found = next(batches, None)
                if found is None:
                    return None
                check(found[1])
            except Exception as error:  # noqa: BLE001 (belongs to the next batch: raised when that is asked for)
                return error
            moved = prepare({name: tensor.to(device, non_blocking=True) for name, tensor in found[1].items()})
            return found[0], moved, side.record_event()

    upcoming = copied()
    while upcoming is not None:
        if isinstance(upcoming, Exception):
            raise upcoming
        job, batch, done = upcoming
        upcoming = copied()
        work = torch.cuda.current_stream(device)
        work.wait_event(done)
        for tensor in batch.values():
            # its memory is not given away on the side stream before the work on it is done
            tensor.record_stream(work)
        yield job, batch
        del batch


def _nothing(batch: Batch) -> None:
    """Checks nothing."""
