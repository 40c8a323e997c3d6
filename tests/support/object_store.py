"""An object store of S3's kind on this machine, which counts what it is asked for and fails as it is bidden.

pyarrow's own client of S3 talks to it, retries and all.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

# what is done to a body before it is sent: (body) -> body; None closes the connection in the middle
Spoil = Callable[[bytes], bytes | None]


class ObjectStore:
    """A running store.

    Attributes:
        objects: content by key ("bucket/name").
        spoils: by key, what is done to the next bodies, first to last; then they are sent as they are.
        errors: by key, how many requests are answered with 503.
        refused: every request is answered with 403.
        latency_s: before each answer.
        requests: how often each (method, key) was asked for.
        gate: bodies wait for it; set unless a test clears it.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.spoils: dict[str, list[Spoil]] = {}
        self.errors: Counter[str] = Counter()
        self.refused = False
        self.latency_s = 0.0
        self.requests: Counter[tuple[str, str]] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()
        self.port = 0

    def uri(self, key: str) -> str:
        """Returns the URI of an object or folder."""
        return f"s3://key:secret@{key}?scheme=http&endpoint_override=127.0.0.1%3A{self.port}"

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the context lasts no body is sent."""
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()

    def downloads(self, key: str) -> int:
        """Returns how often the body of an object was asked for."""
        return self.requests["GET", key]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # or a body waits 40 ms for the acknowledgement of its headers
    disable_nagle_algorithm = True
    store: ObjectStore

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""

    def _answer(self) -> None:
        store, url = self.store, urlsplit(self.path)
        key = unquote(url.path).strip("/")
        time.sleep(store.latency_s)
        with store.lock:
            store.requests[self.command, key] += 1
            failing = store.errors[key] > 0
            store.errors[key] -= failing
        options = parse_qs(url.query)
        if store.refused or failing:
            self._send(403 if store.refused else 503, b"")
        elif "list-type" in options:
            self._send(200, _listing(store, key, options.get("prefix", [""])[0]))
        elif key not in store.objects:
            self._send(404, b"")
        else:
            self._send_object(key)

    def _send_object(self, key: str) -> None:
        store, headers = self.store, {"ETag": '"0"', "Last-Modified": "Mon, 02 Mar 2026 00:00:00 GMT"}
        body, status = store.objects[key], 200
        if wanted := self.headers.get("Range"):
            first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {first}-{min(last, len(body) - 1)}/{len(body)}"
            body, status = body[first : last + 1], 206
        if self.command == "GET":
            store.gate.wait()
            with store.lock:
                spoils = store.spoils.get(key)
                spoil = spoils.pop(0) if spoils else None
            if spoil is not None:
                spoiled = spoil(body)
                if spoiled is None:
                    self._send(status, body, headers, cut=len(body) // 2)
                    self.close_connection = True
                    return
                body = spoiled
        self._send(status, body, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])


def _listing(store: ObjectStore, bucket: str, prefix: str) -> bytes:
    """Returns the answer to ListObjectsV2 with the delimiter "/"."""
    below = [key.removeprefix(f"{bucket}/") for key in sorted(store.objects) if key.startswith(f"{bucket}/{prefix}")]
    files = [name for name in below if "/" not in name[len(prefix) :]]
    folders = sorted({prefix + name[len(prefix) :].partition("/")[0] for name in below} - set(files))
    entries = "".join(
        f"<Contents><Key>{name}</Key><Size>{len(store.objects[f'{bucket}/{name}'])}</Size>"
        "<LastModified>2026-03-02T00:00:00.000Z</LastModified></Contents>"
        for name in files
    ) + "".join(f"<CommonPrefixes><Prefix>{name}/</Prefix></CommonPrefixes>" for name in folders)
    count = len(files) + len(folders)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>{bucket}</Name><Prefix>{prefix}</Prefix>'
        f"<KeyCount>{count}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
    ).encode()


@contextmanager
def serving() -> Iterator[ObjectStore]:
    """An empty store while the context lasts."""
    store = ObjectStore()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    server.daemon_threads = True
    store.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield store
    finally:
        store.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
