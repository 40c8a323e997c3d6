"""What `remote` asks of the client of a store, and writing in parts, which is the same for all of them.

A client makes one request a call and does not try again by itself, so that `remote` alone decides how often and how long
to try. Paths are whole URIs.
"""

from typing import NamedTuple, Protocol

# sent and held at once; S3 takes 10,000 parts of at least 5 MiB, so objects of up to 160 GB; Google multiples of 256 KiB
PART_BYTES = 2**24
# of a page of a listing, as many as the stores send
PAGE_OBJECTS = 1000
# to be connected, and then for each answer and between its pieces
CONNECT_S, ANSWER_S = 10.0, 30.0
# connections that are kept open, for as many threads
MAX_CONNECTIONS = 32


class StoredObject(NamedTuple):
    """An object as it is listed; `etag` changes with its content, and is empty where the store does not say it for free."""

    path: str
    size_bytes: int
    etag: str = ""


class Page(NamedTuple):
    """A part of a listing: objects, URIs of folders with a slash at their end, and what the next page is asked for with."""

    objects: list[StoredObject]
    folders: list[str]
    following: str | None


class Upload(Protocol):
    """An object that is sent in parts, and is there when the last one is."""

    # whether a part whose answer was lost may be sent again
    repeatable: bool

    def send(self, data: bytes, last: bool) -> None:
        """Sends the next part, of `PART_BYTES` unless it is the last."""

    def abort(self) -> None:
        """Forgets what was sent."""


class Client(Protocol):
    """What a store can do; errors are those of its library, or FileNotFoundError."""

    # whether its calls try again by themselves for long
    patient: bool

    def page(self, folder: str, flat: bool, token: str | None, most: int | None = None, after: str = "") -> Page:
        """Returns the next objects below a folder, which ends in a slash; not flat: those directly in it, and folders in it.

        Those behind the name `after` in the folder are asked for; others may come, too.
        """

    def get(self, path: str, start: int, stop: int) -> tuple[bytes, int]:
        """Returns bytes start to stop of an object, fewer where it ends before, and the size of the object."""

    def size(self, path: str) -> int:
        """Returns the size of an object."""

    def put(self, path: str, data: bytes) -> None:
        """Stores a whole object."""

    def begin(self, path: str) -> Upload:
        """Returns a new object to send in parts."""

    def delete(self, path: str) -> None:
        """Deletes an object if it is there."""

    def sweep(self, folder: str) -> None:
        """Forgets what uploads that were killed have left in a folder."""


def split(path: str) -> tuple[str, str]:
    """Returns bucket and name of a URI."""
    bucket, _, name = path.partition("://")[2].partition("/")
    return bucket, name


def stated_size(content_range: str | None) -> int | None:
    """Returns the size of an object that the header "bytes 0-99/1234" of a part of it states; None without one."""
    return int(content_range.rpartition("/")[2]) if content_range else None
