"""What reading an input from a store costs a build: requests by kind and CPU an input, by the clients that there are.

    python benchmarks/stores.py [OBJECTS] [KILOBYTES]
    python benchmarks/stores.py --only listing

moto answers as S3 in another process, behind a proxy that counts. Each object is read as a build reads a JPEG: its first 4 KiB to
plan, all of it to decode. Beam's filesystems are read as the pipeline did until November 2026,
opened, asked for their size and read through a buffer of 64 KiB; pyarrow's is the readers' client; the last line is the pipeline's own
(`pipeline/storage`). CPU is of this process, all threads.

The table of --only listing needs no store: a million objects in pages of a thousand, and the memory that listing them takes.
"""

import io
import multiprocessing
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from harness import ROOT, read, say_where

# the stores are the tests'
sys.path.append(str(ROOT / "tests"))

from support.stores import serving

from patchpack.pipeline.inputs.opened import open_source
from patchpack.pipeline.stages.records import Source
from patchpack.pipeline.storage import files, listing, remote, s3
from patchpack.schemas import storage

HEADER = 4096


def serve(ours: Connection) -> None:
    """Is a store until it is to end; answers with its environment, and then with the requests since the last time."""
    with serving("s3") as store:
        ours.send({name: value for name, value in os.environ.items() if name.startswith("AWS_")})
        while ours.recv():
            ours.send(Counter(kind for kind, _ in store.requests))
            store.requests.clear()


def by_beam(path: str, size: int) -> None:
    """Reads as the pipeline did through Beam's filesystems."""

    class Raw(io.RawIOBase):
        def __init__(self) -> None:
            self.file = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
            self.file.seek(0, io.SEEK_END)
            self.file.seek(0)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            data = self.file.read(len(buffer))
            buffer[: len(data)] = data
            return len(data)

    for count in (HEADER, -1):
        with io.BufferedReader(Raw(), 64 * 1024) as file:
            file.read(count)


def by_pyarrow(path: str, size: int) -> None:
    """Reads with the readers' client."""
    for count in (HEADER, size):
        with storage.open_file(path) as file:
            file.read_at(count, 0)


def by_files(path: str, size: int) -> None:
    """Reads as the pipeline does."""
    source = Source("a.jpg", 0, "a.jpg", size)
    for whole, count in ((False, HEADER), (True, -1)):
        with open_source(source, path, whole) as file:
            file.read(count)


def compare(objects: int, kilobytes: int) -> None:
    """Prints a line a client."""
    theirs, ours = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(ours,), daemon=True)
    process.start()
    os.environ.update(theirs.recv())
    FileSystems.set_options(PipelineOptions([]))
    data = np.random.default_rng(1).bytes(kilobytes * 1000)
    paths = [f"s3://bucket/raw/{number}.jpg" for number in range(objects)]
    for path in paths:
        files.write(path, data)

    def asked() -> Counter[str]:
        theirs.send(True)
        counted: Counter[str] = theirs.recv()
        return counted

    ways: dict[str, Callable[[str, int], None]] = {
        "Beam's filesystems": by_beam,
        "pyarrow": by_pyarrow,
        "pipeline": by_files,
    }
    print(f"{objects} objects of {kilobytes} kB, probed and decoded once\n")
    print(f"{'':24}{'requests an input':>20}{'CPU ms an input':>18}")
    for name, way in ways.items():
        way(paths[0], len(data))
        asked()
        began = time.process_time()
        for path in paths:
            way(path, len(data))
        each = (time.process_time() - began) * 1e3 / objects
        counted = asked()
        kinds = ", ".join(f"{kind} {count / objects:g}" for kind, count in sorted(counted.items()))
        print(f"{name:24}{counted.total() / objects:20g}{each:18.2f}   {kinds}", flush=True)
    theirs.send(False)
    process.join()


def print_listing(pages: int = 1000) -> None:
    """Prints the memory that listing takes."""

    class Boto:
        def list_objects_v2(self, **options: Any) -> dict[str, Any]:
            number = int(options.get("ContinuationToken", 0))
            found = [
                {"Key": f"raw/{number:06}/{place:04}.jpg", "Size": 100_000, "ETag": f'"{place:032x}"'}
                for place in range(1000)
            ]
            return {"Contents": found} | ({"NextContinuationToken": str(number + 1)} if number + 1 < pages else {})

    remote._client = lambda path: s3.S3(Boto())
    for name, count in (
        ("as a stream", lambda: sum(1 for _ in listing.walk("s3://b/raw"))),
        ("as a list", lambda: len(list(listing.walk("s3://b/raw")))),
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        number = count()
        each = (time.process_time() - began) * 1e6 / number
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"{number} objects {name:12}{more:8.1f} MB more at most, {each:5.1f} us an object", flush=True)


def main() -> None:
    """Measures what is asked for."""
    given = read(__doc__, {"only": ""}, objects=50, kilobytes=100)
    say_where("boto3", "pyarrow")
    if given.only == "listing":
        print_listing()
    else:
        compare(given.objects, given.kilobytes)


if __name__ == "__main__":
    main()
