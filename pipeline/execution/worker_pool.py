"""`patchpack worker-pool`: what starts workers on a host, for runners whose environment is EXTERNAL.

Beam's own pool starts whatever `python` is first on the path, which seldom has this project; this one starts the Python that
it runs in. Whoever reaches the port can have code run here, as with Beam's: open it to the cluster alone.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

from patchpack.pipeline.execution.sandbox import module_search


def serve(port: int, started: Callable[[int], object]) -> None:
    """Starts workers whenever a runner asks for them, until it is interrupted or terminated; they end with it.

    Args:
        port: to listen at, on every address of this host; 0 takes a free one.
        started: called with the port.

    Raises:
        OSError: the port is taken.
    """
    # Beam calls it "python", and says so in a warning for each
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    os.environ.update(module_search())
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    try:
        address, server = BeamFnExternalWorkerPoolServicer.start(use_process=True, port=port)
    except RuntimeError as error:
        raise OSError(
            f"--port {port}: cannot be listened at ({error}); another program may have it; name another"
        ) from error
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    started(int(address.rpartition(":")[2]))
    ended.wait()
    server.stop(None).wait()
