"""Storage: whole or not at all, local and through Beam's filesystems, and errors that say whose fault they are."""

import errno
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apache_beam.io.filesystem import CompressionTypes, FileMetadata, FileSystem
from apache_beam.utils import retry
from support.media_files import photo, video

from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.video import timeline as video_media
from patchpack.pipeline.stages.list import list_input, parse_input
from patchpack.pipeline.storage import files, listing

ROOT = str(Path(__file__).parent.parent)


class MemoryFileSystem(FileSystem):
    """An object store in a dictionary: no folders, prefixes only."""

    objects: dict[str, bytes] = {}
    # what reading an object raises, by its path
    failures: dict[str, Exception] = {}

    @classmethod
    def scheme(cls) -> str:
        return "mem"

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def mkdirs(self, path: str) -> None:
        raise AssertionError("object stores have no folders")

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for path, data in self.objects.items():
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(data))

    def create(
        self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO
    ) -> io.BufferedIOBase:
        objects = self.objects

        class Upload(io.BytesIO):
            def close(self) -> None:
                if not self.closed:
                    objects[path] = self.getvalue()
                super().close()

        return Upload()

    def open(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO) -> io.BufferedIOBase:
        failures = self.failures

        class Download(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if path in failures and self.tell() >= 100:
                    raise failures[path]
                return super().read(min(size or 0, 100) if path in failures else size)

        return Download(self.objects[path])

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, destination in zip(source_file_names, destination_file_names, strict=True):
            self.objects[destination] = self.objects[source]

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        self.copy(source_file_names, destination_file_names)
        self.delete(source_file_names)

    def exists(self, path: str) -> bool:
        return path in self.objects

    def size(self, path: str) -> int:
        return len(self.objects[path])

    def last_updated(self, path: str) -> float:
        return 0.0

    def checksum(self, path: str) -> str:
        return str(hash(self.objects[path]))

    def metadata(self, path: str) -> FileMetadata:
        return FileMetadata(path, len(self.objects[path]))

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            self.objects.pop(path, None)


@pytest.fixture
def store() -> Iterator[dict[str, bytes]]:
    """The objects of mem://, empty."""
    MemoryFileSystem.objects.clear()
    MemoryFileSystem.failures.clear()
    yield MemoryFileSystem.objects
    MemoryFileSystem.objects.clear()
    MemoryFileSystem.failures.clear()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once."""
    monkeypatch.setattr(retry.Clock, "sleep", lambda self, seconds: None)


@pytest.fixture(params=["local", "uri"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, store: dict[str, bytes]) -> str:
    """An empty place to write to, of either kind."""
    return str(tmp_path) if request.param == "local" else "mem://bucket/out"


def test_what_is_written_is_read_back(folder: str) -> None:
    path = files.join(folder, "a.bin")
    assert not files.exists(path)
    files.write(path, b"one")
    files.write(path, b"two")
    assert files.read(path) == b"two"
    assert files.exists(path)
    assert listing.names(folder) == ["a.bin"]


def test_a_write_that_fails_leaves_neither_file_nor_temporary(folder: str) -> None:
    for error in (ValueError("stop"), KeyboardInterrupt()):
        with pytest.raises(type(error)), files.writing(files.join(folder, "a.bin")) as file:
            file.write(b"half")
            raise error
        assert listing.names(folder) == []


def test_a_write_that_fails_keeps_what_was_there(folder: str) -> None:
    path = files.join(folder, "a.bin")
    files.write(path, b"old")
    with pytest.raises(ValueError), files.writing(path) as file:
        file.write(b"new")
        raise ValueError("stop")
    assert files.read(path) == b"old"
    assert listing.names(folder) == ["a.bin"]


def test_nothing_is_there_under_the_name_before_the_write_ends(folder: str) -> None:
    path = files.join(folder, "a.bin")
    with files.writing(path) as file:
        file.write(b"data")
        assert not files.exists(path)
    assert files.read(path) == b"data"


def test_a_write_beside_the_working_folder_needs_no_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files.write("a.bin", b"x")
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_write_that_is_killed_is_swept_and_nothing_else_is(tmp_path: Path) -> None:
    files.write(str(tmp_path / "kept.parquet"), b"x")
    files.write(str(tmp_path / ".hidden"), b"x")
    files.write(str(tmp_path / "notes.tmp"), b"x")
    script = (
        "import os, sys; from patchpack.pipeline.storage import files, listing\n"
        f"with files.writing({str(tmp_path / 'part.parquet')!r}) as file:\n"
        "    file.write(b'half'); file.flush(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    assert len(os.listdir(tmp_path)) == 4
    files.sweep(str(tmp_path))
    assert listing.names(str(tmp_path)) == [".hidden", "kept.parquet", "notes.tmp"]
    files.sweep(str(tmp_path / "not there"))


def test_removing_is_quiet_about_what_is_not_there(folder: str) -> None:
    path = files.join(folder, "a.bin")
    files.remove(path)
    files.write(path, b"x")
    files.remove(path)
    assert listing.names(folder) == []


def test_a_missing_file_is_file_not_found(folder: str) -> None:
    with pytest.raises(FileNotFoundError):
        files.read(files.join(folder, "a.bin"))


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    script = (
        "import sys; from patchpack.pipeline.storage import files, listing\n"
        f"with files.locked({str(tmp_path)!r}) as mine:\n"
        "    print(mine, flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "True\n"
        with files.locked(str(tmp_path)) as mine:
            assert mine is False
        other.kill()
        other.wait()
    # the lock ended with its process, and left nothing behind
    with files.locked(str(tmp_path)) as mine:
        assert mine is True
    assert os.listdir(tmp_path) == []


def test_errors_that_may_pass_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retry.Clock, "sleep", lambda self, seconds: waits.append(seconds))
    calls: list[str] = []

    def flaky(name: str) -> str:
        calls.append(name)
        if len(calls) < 4:
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
        return f"{name} at last"

    assert files.retried(flaky, "a") == "a at last"
    assert len(calls) == 4 and len(waits) == 3
    assert waits == sorted(waits)


def test_errors_that_stay_end_the_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry.Clock, "sleep", lambda self, seconds: None)
    calls: list[int] = []

    def broken() -> None:
        calls.append(1)
        raise OSError(errno.EIO, "the disk is on fire")

    with pytest.raises(OSError, match="on fire"):
        files.retried(broken)
    assert len(calls) == 5


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(),
        PermissionError(),
        IsADirectoryError(),
        NotADirectoryError(),
        files.NotRegularError(),
        ValueError(),
    ],
)
def test_lasting_errors_and_errors_of_content_are_not_tried_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry.Clock, "sleep", lambda self, seconds: pytest.fail("waited"))
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        files.retried(fail)
    assert len(calls) == 1


def test_opening_a_pipe_or_device_raises_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    caught: list[Exception] = []

    def look() -> None:
        for path in (str(tmp_path / "pipe"), "/dev/null"):
            try:
                files.open_read(path)
            except OSError as error:
                caught.append(error)

    # a thread of its own: should it block, the test fails instead of hanging
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert [type(error) for error in caught] == [files.NotRegularError] * 2
    with pytest.raises(IsADirectoryError):
        files.open_read(str(tmp_path))


def test_walking_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(listing.walk(str(tmp_path / "not there")))


OBJECTS = ["raw/a.jpg", "raw/sub/b.jpg", "raw/sub/deep/c.png", "raw/notes.txt", "raw/.hidden.jpg", "rawer/d.jpg"]


def fill(store: dict[str, bytes]) -> None:
    """Puts objects of some sizes under mem://bucket."""
    store.update({f"mem://bucket/{name}": bytes(number + 1) for number, name in enumerate(OBJECTS)})
    # what some tools leave to show a folder
    store["mem://bucket/raw/sub/"] = b""


def uri_keys(text: str) -> list[str]:
    """Returns the keys of the sources that a URI gives."""
    found = list_input(parse_input(0, text), ())
    return sorted(source.key for source in found if hasattr(source, "size_bytes"))


def test_uris_are_listed_as_local_folders_are(store: dict[str, bytes]) -> None:
    fill(store)
    everything = ["raw/a.jpg", "raw/sub/b.jpg", "raw/sub/deep/c.png"]
    assert uri_keys("mem://bucket/raw") == uri_keys("mem://bucket/raw/") == everything
    # a glob takes what it matches
    assert (
        uri_keys("mem://bucket/raw/**") == uri_keys("mem://bucket/raw/**/*") == sorted([*everything, "raw/notes.txt"])
    )
    assert uri_keys("mem://bucket/raw/*.jpg") == ["raw/a.jpg"]
    # `**/` may stand for no folder, which Beam's own patterns do not allow
    assert uri_keys("mem://bucket/raw/**/*.jpg") == ["raw/a.jpg", "raw/sub/b.jpg"]
    assert uri_keys("mem://bucket/raw/sub/b.jpg") == ["b.jpg"]
    assert uri_keys("mem://bucket/nothing/*.jpg") == []


def test_found_objects_have_their_size_and_can_be_opened(store: dict[str, bytes]) -> None:
    fill(store)
    found = {entry.relative: entry.size_bytes for entry in listing.walk("mem://bucket/raw")}
    assert found == {"a.jpg": 1, "sub/b.jpg": 2, "sub/deep/c.png": 3, "notes.txt": 4, ".hidden.jpg": 5}
    for relative, size in found.items():
        assert len(files.read(files.join("mem://bucket/raw", relative))) == size
    assert listing.names("mem://bucket") == ["raw", "rawer"]


def test_objects_are_read_in_ranges(store: dict[str, bytes]) -> None:
    store["mem://bucket/a"] = bytes(range(256)) * 2000
    with files.open_read("mem://bucket/a") as file:
        assert file.seek(0, io.SEEK_END) == 512_000
        assert file.seek(300_000) == 300_000
        assert file.read(4) == bytes((300_000 + place) % 256 for place in range(4))
        assert file.tell() == 300_004
        file.seek(511_998)
        assert file.read() == bytes([254, 255])


def test_media_are_read_from_uris(store: dict[str, bytes]) -> None:
    store |= {"mem://bucket/a.jpg": photo((40, 64)), "mem://bucket/v.mp4": video((48, 64))}
    with files.open_read("mem://bucket/a.jpg") as file:
        assert image.probe(file) == (40, 64)
    with files.open_read("mem://bucket/v.mp4") as file:
        assert video_media.probe(file)[:2] == (48, 64)


@pytest.mark.parametrize("error", [RuntimeError("503 backend"), OSError("reset by peer"), ValueError("bad gateway")])
def test_errors_of_a_store_are_os_errors_never_bad_content(store: dict[str, bytes], error: Exception) -> None:
    for path, data, probe in (
        ("mem://bucket/a.jpg", photo((400, 640)), image.probe),
        ("mem://bucket/v.mp4", video((48, 64)), video_media.probe),
    ):
        store[path] = data
        MemoryFileSystem.failures[path] = error
        with pytest.raises(OSError, match=str(error)) as caught, files.open_read(path) as file:
            probe(file)
        assert caught.value.errno == errno.EIO
        assert path in str(caught.value)


def test_local_tools_start_without_beam(tmp_path: Path) -> None:
    script = (
        "import sys, json; from patchpack.pipeline.storage import files, listing; from patchpack.pipeline.stages import list as source\n"
        f"files.write({str(tmp_path / 'a.jpg')!r}, b'x')\n"
        f"list(source.list_input(source.parse_input(0, {str(tmp_path)!r}), ()))\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('apache_beam')]))"
    )
    done: Any = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert json.loads(done.stdout) == [], done.stderr
