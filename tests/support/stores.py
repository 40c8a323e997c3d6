"""Whole object stores on this machine behind a proxy that counts requests and spoils the answers it is bidden to.

moto answers as S3, gcp-storage-emulator as Google's storage; neither knows of the client under test.
"""

import http.client
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"

# what becomes of an answer: "503" (or any other status); "silence": none comes; "short": half of its body; "reset": the connection ends before
# it; "lost": the request is carried out, and the connection ends before its answer
FAULTS = ("503", "silence", "short", "reset", "lost")


@dataclass
class Proxy:
    """Stands before a store.

    Attributes:
        scheme: "s3" or "gs".
        upstream: port of the store.
        wipe: deletes all objects.
        requests: (kind, name) of every request, in order; kinds are those of `kind_of`.
        clients: addresses of those who asked.
        fault: (kind, name) -> one of FAULTS, or None to pass the request on.
        hidden: names that are not listed.
        released: ends what is silent.
    """

    scheme: str
    upstream: int
    wipe: Callable[[], None]
    port: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    clients: set[str] = field(default_factory=set)
    fault: Callable[[str, str], str | None] = lambda kind, name: None
    hidden: Callable[[str], bool] = lambda name: False
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def clear(self) -> None:
        """Makes it an empty store without faults, of which no client knows."""
        self.wipe()
        self.requests.clear()
        self.clients.clear()
        self.fault = lambda kind, name: None
        self.hidden = lambda name: False
        self.released.set()
        self.released = threading.Event()
        _forget_clients()

    def uri(self, name: str) -> str:
        """Returns the URI of an object or folder."""
        return f"{self.scheme}://{BUCKET}/{name}"

    def count(self, *kinds: str, below: str = "") -> int:
        """Returns how many requests of these kinds were for names that begin so; of any kind without one."""
        return sum((not kinds or kind in kinds) and name.startswith(below) for kind, name in self.requests)


def kind_of(scheme: str, method: str, url: str, headers: Any) -> tuple[str, str]:
    """Returns what a request asks for ("get", "list", "size", "put", "begin", "part", "finish", "abort", "delete"), and of what."""
    parts = urlsplit(url)
    asked = parse_qs(parts.query, keep_blank_values=True)
    path = unquote(parts.path)
    if scheme == "s3":
        name = path.strip("/").partition("/")[2]
        if method == "GET":
            is_list = "list-type" in asked or "uploads" in asked
            return ("list", asked.get("prefix", [""])[0]) if is_list else ("get", name)
        if "uploadId" in asked or "uploads" in asked:
            return {"PUT": "part", "DELETE": "abort"}.get(method, "finish" if "uploadId" in asked else "begin"), name
        return {"HEAD": "size", "PUT": "put", "DELETE": "delete"}[method], name
    name = asked.get("name", [path.partition("/o/")[2]])[0]
    if path.endswith("/o") and method == "GET":
        return "list", asked.get("prefix", [""])[0]
    if "upload_id" in asked:
        is_last = not headers.get("Content-Range", "").endswith("*")
        return ("abort" if method == "DELETE" else "finish" if is_last else "part"), name
    if method == "POST":
        return ("begin" if asked.get("uploadType") == ["resumable"] else "put"), name
    media = asked.get("alt") == ["media"] or not path.startswith("/storage/v1")
    return {"GET": "get" if media else "size", "DELETE": "delete", "PUT": "put"}[method], name


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""

    def _pass_on(self) -> None:
        proxy = self.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind, name = kind_of(proxy.scheme, self.command, self.path, self.headers)
        with proxy.lock:
            proxy.requests.append((kind, name))
            proxy.clients.add(self.client_address[0])
            fault = proxy.fault(kind, name)
        if fault == "silence":
            proxy.released.wait(60)
        if fault in ("silence", "reset"):
            self.close_connection = True
            return
        if fault and fault.isdigit():
            self._send(int(fault), http.client.responses[int(fault)], [], b"")
            return
        upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream)
        # the body is here, so nobody has to say whether it may come
        passed = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        upstream.request(self.command, self.path, body, passed)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if fault == "lost":
            self.close_connection = True
            return
        headers = [pair for pair in answer.getheaders() if pair[0].lower() not in _OWN]
        if kind == "list" and answer.status == 200:
            data = _without(proxy, _google_page(data, self.path) if proxy.scheme == "gs" else data)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self._send(answer.status, answer.reason, headers, data, length, cut=fault == "short")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _send(
        self,
        status: int,
        reason: str,
        headers: list[tuple[str, str]],
        data: bytes,
        length: str | None = None,
        cut: bool = False,
    ) -> None:
        self.send_response_only(status, reason)
        for pair in headers:
            self.send_header(*pair)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


_OWN = ("content-length", "connection", "transfer-encoding", "date", "server")


def _google_page(listing: bytes, url: str) -> bytes:
    """Returns what Google sends of a whole listing: from an offset or token on, so many objects and folders in order.

    gcp-storage-emulator sends all, whatever it is asked for. https://cloud.google.com/storage/docs/json_api/v1/objects/list
    """
    asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    found = json.loads(listing)
    entries = [(each["name"], each, None) for each in found.get("items", [])]
    entries += [(prefix, None, prefix) for prefix in found.get("prefixes", [])]
    start, token, most = asked.get("startOffset", ""), asked.get("pageToken", ""), int(asked.get("maxResults", 1000))
    # a folder in which something lies that is not before the start
    left = [entry for entry in entries if entry[0] >= start or (entry[2] and start.startswith(entry[2]))]
    left = sorted((entry for entry in left if entry[0] > token), key=lambda entry: entry[0])
    found["items"] = [item for _, item, _ in left[:most] if item]
    found["prefixes"] = [prefix for _, _, prefix in left[:most] if prefix]
    if len(left) > most:
        found["nextPageToken"] = left[most - 1][0]
    return json.dumps(found).encode()


def _without(proxy: Proxy, listing: bytes) -> bytes:
    """Returns a listing without what is hidden."""
    if proxy.scheme == "gs":
        found = json.loads(listing)
        found["items"] = [each for each in found.get("items", []) if not proxy.hidden(each["name"])]
        return json.dumps(found).encode()

    def kept(entry: re.Match[bytes]) -> bytes:
        name = re.search(rb"<Key>(.*?)</Key>", entry[0])
        return b"" if name and proxy.hidden(name[1].decode()) else entry[0]

    return re.sub(rb"<Contents>.*?</Contents>", kept, listing, flags=re.DOTALL)


@contextmanager
def serving(scheme: str, address: str = "127.0.0.1") -> Iterator[Proxy]:
    """An empty store of a scheme while the context lasts, at an address of this machine; the environment says where it is."""
    with _s3() if scheme == "s3" else _gs() as (upstream, wipe):
        proxy = Proxy(scheme, upstream, wipe)
        server = ThreadingHTTPServer((address, 0), type("Handler", (_Handler,), {"proxy": proxy}))
        server.daemon_threads = True
        proxy.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        where = f"http://{address}:{proxy.port}"
        named = {
            "AWS_ENDPOINT_URL": where,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        with _quiet(), mock.patch.dict(os.environ, named if scheme == "s3" else {"STORAGE_EMULATOR_HOST": where}):
            proxy.clear()
            try:
                yield proxy
            finally:
                proxy.released.set()
                server.shutdown()
                server.server_close()
                thread.join()
        _forget_clients()


@contextmanager
def _quiet() -> Iterator[None]:
    """Stores say every request."""
    loggers = [logging.getLogger(name) for name in ("werkzeug", "gcp_storage_emulator", "api")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _forget_clients() -> None:
    from patchpack.pipeline.storage import gcs, s3
    from patchpack.schemas import storage

    s3._client.cache_clear()
    gcs._client.cache_clear()
    storage._native.cache_clear()
    storage._answered.clear()


@contextmanager
def _s3() -> Iterator[tuple[int, Callable[[], None]]]:
    import boto3
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]

    def wipe() -> None:
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].reset()
        boto = boto3.session.Session("key", "secret")
        boto.client("s3", "us-east-1", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket=BUCKET)

    try:
        yield port, wipe
    finally:
        server.stop()


@contextmanager
def _gs() -> Iterator[tuple[int, Callable[[], None]]]:
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    while server._api._httpd is None:
        time.sleep(0.01)
    try:
        yield server._api._httpd.server_address[1], lambda: server.wipe(keep_buckets=True)
    finally:
        server.stop()
