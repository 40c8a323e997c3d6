"""A local worker process: Beam's own, made quiet. What goes wrong travels to the launcher as an exception."""

import logging
import os
import signal
import sys

if __name__ == "__main__":
    # before Beam is imported, which logs at import
    logging.disable(logging.CRITICAL)
    # Ctrl-C reaches every process of a terminal; the launcher answers it, and its workers end with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
