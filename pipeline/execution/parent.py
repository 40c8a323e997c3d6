"""Processes that end with the one that started them, whatever ends that.

On Linux the kernel is asked to (PR_SET_PDEATHSIG), which also ends a process that a library keeps busy; it goes by the
thread that started the process, so only what may end with that thread asks for it. Elsewhere, and where a thread is not
what matters, a thread looks once a second whether the parent is still there. Costs nothing that can be measured.
"""

import ctypes
import os
import signal
import sys
import threading

LOOK_EVERY_S = 1.0

_PR_SET_PDEATHSIG = 1


def end_with(parent: int, *, and_its_thread: bool) -> threading.Event:
    """Ends this process, without a word, soon after its parent.

    Args:
        parent: the process that must be there; it may be gone already.
        and_its_thread: also, at once and on Linux, when the thread ends that started this process.

    Returns:
        What ends the looking when it is set: a process that forks does without threads.
    """
    if and_its_thread and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    enough = threading.Event()

    def look() -> None:
        while os.getppid() == parent:
            if enough.wait(LOOK_EVERY_S):
                return
        os._exit(1)

    # before the kernel was asked, the parent may have gone
    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=look, name="parent", daemon=True).start()
    return enough
