"""A local worker process: Beam's own, made quiet. What goes wrong travels to the launcher as an exception.

Its arguments are the launcher's process, which must not be asked for here, where it may be gone already, and the folder
for its counts, or an empty name.
"""

import logging
import os
import shutil
import sys
import threading
import time


def end_with(launcher: int, folder: str) -> None:
    """Ends this process when its launcher is gone: Beam's own would wait a minute for it, and then complain."""
    while os.getppid() == launcher:
        time.sleep(1.0)
    # nobody else takes away what the launcher would have
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(sys.argv[1]), sys.argv[2]), daemon=True).start()
    # before Beam is imported, which logs at import
    logging.disable(logging.CRITICAL)
    import grpc
    from apache_beam.runners.worker import sdk_worker_main

    from patchpack.pipeline.execution import counts

    if sys.argv[2]:
        counts.leave_in(sys.argv[2])
    # when the launcher is gone, Beam's threads each print a traceback about it
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
    try:
        sdk_worker_main.main([])
    except grpc.RpcError:
        sys.exit(1)
    except BaseException:
        sys.stderr = sys.__stderr__
        raise
