"""A local worker process: Beam's own, without its log lines. What goes wrong travels to the launcher as an exception."""

import logging
import signal
import sys

if __name__ == "__main__":
    # before Beam is imported, which logs at import
    logging.disable(logging.ERROR)
    # Ctrl-C reaches every process of a terminal; the launcher answers it, and its workers end with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import grpc
    from apache_beam.runners.worker import sdk_worker_main

    try:
        sdk_worker_main.main([])
    except grpc.RpcError:
        sys.exit("a worker lost its launcher")
