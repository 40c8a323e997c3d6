"""A cluster on this machine: Beam's job server, hosts with worker pools, and one address for all of them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from support.hosts import Host, Hosts

HOSTS = 3
# Beam's job server, which otherwise runs every job with a single worker, --direct_num_workers or not
SERVER = f"""
import sys
from apache_beam.runners.portability import local_job_service_main
from apache_beam.runners.portability.fn_api_runner import fn_runner

made = fn_runner.FnApiRunner.__init__


def with_workers(runner, *arguments, **more):
    made(runner, *arguments, **more)
    runner._num_workers = {HOSTS}


fn_runner.FnApiRunner.__init__ = with_workers
local_job_service_main.run(sys.argv[1:])
"""
# what may differ between equal datasets
OWN = {"_run.json", "_plan", "_results", "report.html"}


def listening(address: str, port: int) -> bool:
    """Returns whether anything listens at a port of a host."""
    with socket.socket() as tried:
        return tried.connect_ex((address, port)) == 0


def free_port() -> int:
    """Returns a port that nothing listens at."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return int(taken.getsockname()[1])


class Balancer(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Has each new worker started by the next of some hosts, as the address of a set of worker pools does; dead ones are left out.

    Call by call: whoever asks for workers asks through one connection, which is all that a balancer of connections would see.
    """

    def __init__(self, hosts: list[tuple[str, int]]) -> None:
        self._pools = [
            beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(grpc.insecure_channel(f"{address}:{port}"))
            for address, port in hosts
        ]
        self._turn, self._lock = 0, threading.Lock()
        self._of: dict[str, beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub] = {}
        self._server = grpc.server(ThreadPoolExecutor())
        beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("localhost:0")
        self._server.start()

    def StartWorker(  # noqa: N802 (Beam's)
        self, request: beam_fn_api_pb2.StartWorkerRequest, context: object
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        for _ in self._pools:
            with self._lock:
                pool = self._pools[self._turn % len(self._pools)]
                self._turn += 1
            with contextlib.suppress(grpc.RpcError):
                answer = pool.StartWorker(request)
                self._of[request.worker_id] = pool
                return answer
        return beam_fn_api_pb2.StartWorkerResponse(error="no host is left")

    def StopWorker(  # noqa: N802 (Beam's)
        self, request: beam_fn_api_pb2.StopWorkerRequest, context: object
    ) -> beam_fn_api_pb2.StopWorkerResponse:
        with contextlib.suppress(grpc.RpcError):
            return self._of[request.worker_id].StopWorker(request)
        return beam_fn_api_pb2.StopWorkerResponse()

    def close(self) -> None:
        """Ends it."""
        self._server.stop(None).wait()


class Cluster:
    """A job server, and hosts with a worker pool each, in folders of their own."""

    def __init__(self, folder: Path, hosts: Hosts | None = None) -> None:
        self._balancer: Balancer | None = None
        launcher, others, _ = hosts or Hosts(Host("localhost"), [Host("localhost")] * HOSTS, apart=False)
        path = os.pathsep.join(os.path.abspath(each) for each in sys.path if each)
        environment = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        port, *ports = [free_port() for _ in range(1 + len(others))]
        self.endpoint = f"localhost:{port}"
        self.folders = [folder / str(number) for number in range(len(others))]
        server = [*launcher.within, sys.executable, "-c", SERVER]
        self._server, self._pools = self._started([*server, "--port", str(port)], environment), []
        for host, own, at in zip(others, self.folders, ports, strict=True):
            (own / "tmp").mkdir(parents=True)
            command = [*host.within, sys.executable, "-m", "patchpack", "worker-pool", "--port", str(at)]
            self._pools.append(self._started(command, environment | {"TMPDIR": str(own / "tmp")}, own))
        pools = [(host.address, at) for host, at in zip(others, ports, strict=True)]
        while not all(listening(*each) for each in (("localhost", port), *pools)):
            if any(process.poll() is not None for process in (self._server, *self._pools)):
                self.close()
                raise OSError("a server ended before it listened")
            time.sleep(0.1)
        self._balancer = Balancer(pools)

    @staticmethod
    def _started(
        command: list[str], environment: dict[str, str], folder: Path | None = None
    ) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, env=environment, cwd=folder, stderr=quiet, start_new_session=True)

    @property
    def options(self) -> list[str]:
        """What goes behind `--`."""
        return [
            "--runner=PortableRunner",
            f"--job_endpoint={self.endpoint}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{self._balancer.port if self._balancer else 0}",
        ]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Lets no worker start meanwhile, so that jobs run and get nowhere."""
        for pool in self._pools:
            os.killpg(pool.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pool in self._pools:
                os.killpg(pool.pid, signal.SIGCONT)

    def kill_host(self, number: int) -> None:
        """Kills a host's pool and the workers that it has started."""
        os.killpg(self._pools[number].pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends everything."""
        if self._balancer is not None:
            self._balancer.close()
        for process in (self._server, *self._pools):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def contents(folder: Path) -> dict[str, bytes]:
    """Returns what equal datasets share, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in OWN
    }
