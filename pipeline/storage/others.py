"""The client of all other stores (hdfs://, ...): Beam's filesystems, with their options behind `--`.

They list a folder at once, and a file is there under its name as soon as it is begun: so it is written under another one,
and renamed.
"""

import contextlib
import errno
import io
import uuid
from typing import IO, TYPE_CHECKING

from patchpack.pipeline.storage.stores import Page, StoredObject

if TYPE_CHECKING:
    from apache_beam.io.filesystems import FileSystems


class Others:
    """Calls of Beam's filesystems, see `stores.Client`."""

    patient = True

    def __init__(self, beam: "type[FileSystems]") -> None:
        self._beam = beam

    def page(self, folder: str, flat: bool, token: str | None, most: int | None = None, after: str = "") -> Page:
        results = self._beam.match([f"{folder}**"], None if most is None else [most])
        found = [StoredObject(each.path, each.size_in_bytes) for result in results for each in result.metadata_list]
        if flat:
            return Page(found, [], None)
        names = [each.path.removeprefix(folder).partition("/") for each in found]
        direct = [each for each, (_, slash, _) in zip(found, names, strict=True) if not slash]
        return Page(direct, sorted({f"{folder}{name}/" for name, slash, _ in names if slash}), None)

    def get(self, path: str, start: int, stop: int) -> tuple[bytes, int]:
        from apache_beam.io.filesystem import CompressionTypes

        try:
            with self._beam.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
                size = file.seek(0, io.SEEK_END) or file.tell()
                file.seek(start)
                pieces: list[bytes] = []
                left = min(stop, size) - start
                while left > 0 and (piece := file.read(left)):
                    pieces.append(piece)
                    left -= len(piece)
                return b"".join(pieces), size
        except Exception as error:
            # each store has its own; only "not there" means something to us
            if not isinstance(error, ValueError) and not self._beam.exists(path):
                raise FileNotFoundError(errno.ENOENT, "no such object", path) from error
            raise

    def size(self, path: str) -> int:
        for result in self._beam.match([path]):
            for found in result.metadata_list:
                size: int = found.size_in_bytes
                return size
        raise FileNotFoundError(errno.ENOENT, "no such object", path)

    def put(self, path: str, data: bytes) -> None:
        upload = self.begin(path)
        try:
            upload.send(data, last=True)
        except BaseException:
            with contextlib.suppress(Exception):
                upload.abort()
            raise

    def begin(self, path: str) -> "Renamed":
        return Renamed(self._beam, path)

    def delete(self, path: str) -> None:
        if self._beam.exists(path):
            self._beam.delete([path])

    def sweep(self, folder: str) -> None:
        for each in self.page(folder, False, None).objects:
            name = each.path.removeprefix(folder)
            if name.startswith(".") and name.endswith(".tmp"):
                self.delete(each.path)


class Renamed:
    """A file that is written under a temporary name."""

    repeatable = False

    def __init__(self, beam: "type[FileSystems]", path: str) -> None:
        folder, _, name = path.rpartition("/")
        self._beam, self._path, self._temporary = beam, path, f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
        self._file: IO[bytes] = beam.create(self._temporary)

    def send(self, data: bytes, last: bool) -> None:
        self._file.write(data)
        if last:
            self._file.close()
            self._rename()

    def abort(self) -> None:
        # half a file, which is deleted: what closing it says does not matter
        with contextlib.suppress(Exception):
            self._file.close()
        self._beam.delete([self._temporary])

    def _rename(self) -> None:
        try:
            self._beam.rename([self._temporary], [self._path])
        except (
            Exception
        ) as error:  # each filesystem has errors of its own; `remote` makes an OSError of what goes on from here
            # done, and the answer was lost?
            if self._beam.exists(self._temporary) or not self._beam.exists(self._path):
                raise error
