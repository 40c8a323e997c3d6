"""A local worker process: Beam's own, made quiet. What goes wrong travels to the launcher as an exception.

Its only argument is the launcher's process: which it is must not be asked for here, where it may be gone already.
"""

import logging
import os
import sys
import threading
import time


def end_with(launcher: int) -> None:
    """Ends this process when its launcher is gone: Beam's own would wait a minute for it, and then complain."""
    while os.getppid() == launcher:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(sys.argv[1]),), daemon=True).start()
    # before Beam is imported, which logs at import
    logging.disable(logging.CRITICAL)
    import grpc
    from apache_beam.runners.worker import sdk_worker_main

    # when the launcher is gone, Beam's threads each print a traceback about it
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
    try:
        sdk_worker_main.main([])
    except grpc.RpcError:
        sys.exit(1)
    except BaseException:
        sys.stderr = sys.__stderr__
        raise
