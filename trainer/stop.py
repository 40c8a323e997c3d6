"""Ctrl-C and SIGTERM while training: the step is finished and saved first. A second signal ends at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """A signal ended the training; the message says what was saved.

    Attributes:
        status: what a shell expects as exit status, 128 and the signal's number.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


class Stop:
    """Attributes: number, of the signal that has come, or None."""

    number: int | None = None


@contextmanager
def noted_signals() -> Iterator[Stop]:
    """Yields what notes the first SIGINT or SIGTERM; the next one does what it did before."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        # only the main thread may change what signals do
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        stop.number = number
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
