"""Object stores: one request for each thing, listings page by page, objects whole or not at all, and faults that pass or do not."""

import errno
import os
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apache_beam.utils import retry
from support.stores import FAULTS, Proxy, serving

from patchpack.pipeline.storage import files, gcs, listing, remote, s3, stores

# sizes that are quick to send; S3 takes no smaller parts
PART, BLOCK, WHOLE = 5 * 2**20, 2**21, 2**22
# three parts, six blocks, of which the last is short
LARGE = bytes(range(256)) * (11 * 2**12 + 3)
# what a request that fails for ever costs
TRIES = 5


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before further tries, which are not made."""
    made: list[float] = []
    monkeypatch.setattr(retry.Clock, "sleep", lambda self, seconds: made.append(seconds))
    return made


@pytest.fixture(scope="module", params=["s3", "gs"])
def served(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    with serving(request.param) as proxy:
        yield proxy


@pytest.fixture
def store(request: pytest.FixtureRequest, served: Proxy, monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> Proxy:
    """An empty store."""
    monkeypatch.setattr(stores, "ANSWER_S", 1.0 if "silence" in request.node.name else 20.0)
    monkeypatch.setattr(remote, "PART_BYTES", PART)
    monkeypatch.setattr(remote, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(files, "WHOLE_BYTES", WHOLE)
    served.clear()
    return served


def asked(store: Proxy) -> Counter[str]:
    """Returns how many requests of each kind there were since this was asked last."""
    counted = Counter(kind for kind, _ in store.requests)
    store.requests.clear()
    return counted


def faulty(store: Proxy, fault: str, kind: str, times: int) -> None:
    """Makes the next requests of a kind fail."""
    left = [times]

    def due(of: str, name: str) -> str | None:
        if of != kind or not left[0]:
            return None
        left[0] -= 1
        return fault

    store.fault = due


@pytest.mark.parametrize("name", ["a.bin", "of ä 100%/a+b #1?.bin", "deep/er/a"])
def test_a_small_object_is_one_request_to_write_and_one_to_read(store: Proxy, name: str) -> None:
    files.write(store.uri(name), b"content")
    assert asked(store) == {"put": 1}
    assert files.read(store.uri(name)) == b"content"
    with files.open_read(store.uri(name), 7) as file:
        assert (file.seek(0, os.SEEK_END), file.seek(3), file.read()) == (7, 3, b"tent")
    assert files.read_part(store.uri(name), 1, 3) == b"ont"
    assert asked(store) == {"get": 3}


def test_a_large_object_is_sent_in_parts_and_read_in_blocks(store: Proxy) -> None:
    path = store.uri("large")
    with files.writing(path) as file:
        for start in range(0, len(LARGE), 10**6 + 7):
            file.write(LARGE[start : start + 10**6 + 7])
        assert not files.exists(path)
    assert asked(store) == {"size": 1, "begin": 1, "part": 3 if store.scheme == "s3" else 2, "finish": 1}
    assert files.read(path) == LARGE
    # two blocks at once, and four
    assert asked(store) == {"get": 5}


def test_what_is_read_to_and_fro_in_a_large_object_is_asked_for_once(store: Proxy) -> None:
    files.write(store.uri("large"), LARGE)
    asked(store)
    with files.open_read(store.uri("large")) as file:
        for at in (len(LARGE) - 9, 0, 2**18, len(LARGE) - 2**19, 2**18 + 5, 100, len(LARGE) - 1):
            file.seek(at)
            assert file.read(5) == LARGE[at : at + 5]
    # the first piece, the block it lies in, and the last one
    assert asked(store) == {"get": 3}


def test_an_empty_object_is_read(store: Proxy) -> None:
    if store.scheme == "gs":
        pytest.skip("the emulator takes no empty objects")
    files.write(store.uri("empty"), b"")
    assert files.read(store.uri("empty")) == b""
    assert files.read_part(store.uri("empty"), 0, 0) == b""


def test_what_is_not_there_is_said_by_one_request(store: Proxy) -> None:
    for call in (files.read, files.open_read):
        with pytest.raises(FileNotFoundError):
            call(store.uri("nothing"))
    assert asked(store) == {"get": 2}
    assert not files.exists(store.uri("nothing"))
    files.remove(store.uri("nothing"))
    assert asked(store) == {"size": 1, "delete": 1}


KINDS = ("get", "put", "list", "size", "begin", "part", "finish", "delete")
PASSING = [
    pytest.param(fault, kind, marks=[pytest.mark.slow] if fault == "silence" or kind not in KINDS[:3] else [])
    for fault in FAULTS
    for kind in KINDS
    # an answer without a body cannot be short
    if fault != "short" or kind in ("get", "list")
]


@pytest.mark.parametrize(("fault", "kind"), PASSING)
@pytest.mark.slow_beyond(8)
def test_a_fault_that_passes_changes_nothing(store: Proxy, fault: str, kind: str, pauses: list[float]) -> None:
    if (store.scheme, fault, kind) == ("gs", "lost", "finish"):
        pytest.skip("the emulator forgets an upload that is complete, and Google does not")
    data = LARGE if kind in ("begin", "part", "finish") else b"content"
    path = store.uri("below/a")
    files.write(store.uri("below/other"), b"x")
    faulty(store, fault, kind, 2)
    files.write(path, data)
    assert files.read(path) == data
    assert files.exists(path)
    assert [file.relative for file in listing.walk(store.uri("below"))] == ["a", "other"]
    files.remove(path)
    assert asked(store)[kind] >= 3
    assert len(pauses) == 2 and pauses == sorted(pauses)
    assert listing.names(store.uri("below")) == ["other"]


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.slow] if fault == "silence" else []) for fault in FAULTS]
)
def test_a_fault_that_stays_is_an_error_of_the_storage_after_five_tries(
    store: Proxy, fault: str, pauses: list[float]
) -> None:
    files.write(store.uri("a"), b"content" * 100)
    asked(store)
    faulty(store, fault, "get", 10**9)
    with pytest.raises(OSError) as caught:
        # whoever reads an input tries again, too, but not what has been tried
        files.retried(files.read, store.uri("a"))
    assert caught.value.errno == errno.EIO and files.lasting(caught.value) is None
    assert caught.value.filename == store.uri("a") and "\n" not in files.described(caught.value)
    assert asked(store) == {"get": TRIES}
    assert pauses == sorted(pauses) and len(pauses) == TRIES - 1
    assert pauses[-1] > 4 * pauses[0]


def is_clean(store: Proxy) -> bool:
    """Returns whether no upload is left half done."""
    asked(store)
    files.sweep(store.uri("out"))
    return asked(store)["abort"] == 0


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("data", [b"new", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("how", ["stopped", "interrupted", "503"])
@pytest.mark.slow_beyond(6)
def test_a_write_that_fails_in_the_middle_leaves_what_was_there(
    store: Proxy, before: bytes | None, data: bytes, how: str
) -> None:
    path = store.uri("out/a")
    if before:
        files.write(path, before)
    if how == "503":
        faulty(store, "503", "put" if len(data) < 10 else "finish", TRIES)
    error = {"stopped": ValueError, "interrupted": KeyboardInterrupt, "503": OSError}[how]
    with pytest.raises(error), files.writing(path) as file:
        file.write(data)
        if how != "503":
            raise error
    assert listing.names(store.uri("out")) == ([] if before is None else ["a"])
    assert before is None or files.read(path) == before
    assert is_clean(store)


def test_an_upload_that_was_killed_is_swept(store: Proxy) -> None:
    if store.scheme == "s3":
        remote._client(store.uri("")).begin(store.uri("out/a")).send(LARGE[:PART], last=False)
        other = remote._client(store.uri("")).begin(store.uri("elsewhere/a"))
        files.write(store.uri("out/b"), b"x")
        assert not is_clean(store)
        assert is_clean(store)
        # of another folder, and so none of ours
        other.send(LARGE[:PART], last=True)
        assert files.read(store.uri("elsewhere/a")) == LARGE[:PART]


TREE = ["a.jpg", "b/c.jpg", "b/d/e.png", "b/d/f.jpg", "b/.hidden.jpg", "b c/ä.jpg", "z/1.jpg", "z/2/3/4.jpg"]


@pytest.fixture(params=["here", "there"])
def root(request: pytest.FixtureRequest, store: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with the files of TREE, here or in a store whose listing comes in pages of three."""
    if request.param == "here":
        for name in TREE:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(name.encode())
        return str(tmp_path)
    monkeypatch.setattr(stores, "PAGE_OBJECTS", 3)
    for name in TREE:
        files.write(store.uri(f"raw/{name}"), name.encode())
    files.write(store.uri("rawer/x.jpg"), b"x")
    return store.uri("raw")


def split_listing(root: str, pattern: str) -> list[Any]:
    """Returns what is listed of a root folder by folder, one after another."""
    found: list[Any] = []
    for child in listing.split(root, pattern):
        found += listing.match(root, pattern, child.relative) if isinstance(child, listing.Folder) else [child]
    return found


@pytest.mark.parametrize("pattern", ["**", "**/*.jpg", "b/*.jpg", "*/*.jpg", "b/d/*", "*/d/**", "*.jpg", "z/**/*.jpg"])
@pytest.mark.slow_beyond(6)
def test_a_listing_that_is_split_by_folders_is_the_whole(root: str, pattern: str) -> None:
    whole = list(listing.match(root, pattern))
    assert sorted(split_listing(root, pattern)) == sorted(whole)
    if pattern == "**":
        assert {entry.relative: entry.size_bytes for entry in whole} == {name: len(name.encode()) for name in TREE}
        assert sorted(listing.walk(root)) == sorted(whole)


def test_children_are_files_and_folders_directly_below(root: str) -> None:
    found = sorted((type(child).__name__, child.relative) for child in listing.split(root))
    assert found == [("Folder", "b"), ("Folder", "b c"), ("Folder", "z"), ("ListedFile", "a.jpg")]
    below = sorted(child.relative for child in listing.split(files.join(root, "b")))
    assert below == [".hidden.jpg", "c.jpg", "d"]
    etags = {entry.etag for entry in listing.walk(root)}
    assert etags == {""} if not files.is_uri(root) else len(etags) == len(TREE) and "" not in etags


def test_links_that_lead_back_are_no_more_followed_in_a_split_listing(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/x.jpg").touch()
    for at, to in (("a/b/up", "a"), ("a/top", "."), ("self", "."), ("aside", "a")):
        (tmp_path / at).symlink_to(tmp_path / to)
    whole = sorted(entry.relative for entry in listing.walk(str(tmp_path)))
    assert sorted(entry.relative for entry in split_listing(str(tmp_path), "**")) == whole
    assert whole == ["a/b/x.jpg", "aside/b/x.jpg"]


class ManyPages:
    """A client whose listing has many pages, as S3's and Google's have them."""

    def __init__(self, pages: int) -> None:
        self.pages, self.asked = pages, 0

    def page(self, token: str | None) -> tuple[list[dict[str, Any]], str | None]:
        number = int(token or 0)
        self.asked += 1
        entries = [
            {"Key": f"raw/{number:06}/{place:04}.jpg", "Size": place, "ETag": '"0123456789abcdef0123456789abcdef"'}
            for place in range(1000)
        ]
        return entries, str(number + 1) if number + 1 < self.pages else None

    def list_objects_v2(self, **options: Any) -> dict[str, Any]:
        contents, following = self.page(options.get("ContinuationToken"))
        return {"Contents": contents} | ({"NextContinuationToken": following} if following else {})

    def request(self, method: str, url: str, **options: Any) -> Any:
        contents, following = self.page(options["params"]["pageToken"])
        items = [{"name": each["Key"], "size": str(each["Size"]), "etag": each["ETag"]} for each in contents]
        found = {"items": items} | ({"nextPageToken": following} if following else {})
        return type("Answer", (), {"status_code": 200, "json": lambda self: found})()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.slow_beyond(1)
def test_a_listing_is_held_page_by_page(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    many = ManyPages(pages=30)
    client: Any = s3.S3(many) if scheme == "s3" else gcs.Gcs(many, "http://nowhere")
    monkeypatch.setattr(remote, "_client", lambda path: client)
    files.is_there(f"{scheme}://b/raw")
    tracemalloc.start()
    found = listing.match(f"{scheme}://b/raw", "**/*.jpg")
    first = next(found)
    assert many.asked == 2
    assert first.relative == "000000/0000.jpg"
    count = 1 + sum(1 for _ in found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (count, many.asked) == (30_000, 31)
    # two pages of a thousand; the thirty are 12 MB
    assert peak < 3 * 2**20


@pytest.mark.parametrize("kept", [0, 3, 9])
def test_an_answer_that_lacks_bytes_is_never_content(
    kept: int, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Short:
        patient = False

        def get(self, path: str, start: int, stop: int) -> tuple[bytes, int]:
            return b"0123456789"[start:stop][:kept], 10

    monkeypatch.setattr(remote, "_client", lambda path: Short())
    for call in (files.read, lambda path: files.read_part(path, 0, 10)):
        with pytest.raises(OSError, match=f"the stream ended at byte {kept} of 10"):
            call("s3://b/a")
    assert len(pauses) == 2 * (TRIES - 1)


@pytest.mark.parametrize("status", [401, 403])
def test_a_store_that_refuses_says_how_to_log_in(
    status: int, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (client_error(status), http_error(status)):
        raised = remote._as_os_error(error, "s3://b/a")
        assert isinstance(raised, PermissionError) and raised.errno == errno.EACCES
        assert "not allowed" in str(raised) and "a store must know who asks; aws configure" in str(raised)
    for error in (client_error(404), http_error(404)):
        assert isinstance(remote._as_os_error(error, "s3://b/a"), FileNotFoundError)


def test_a_store_that_was_asked_too_often_is_asked_again() -> None:
    error = http_error(403)
    error.args = ('403 Forbidden {"error": {"errors": [{"reason": "rateLimitExceeded"}]}}',)
    raised = remote._as_os_error(error, "gs://b/a")
    assert isinstance(raised, OSError) and files.lasting(raised) is None


def client_error(status: int) -> Exception:
    from botocore.exceptions import ClientError

    return ClientError(
        {"Error": {"Code": str(status), "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject"
    )


def http_error(status: int) -> Exception:
    import requests

    answer = requests.Response()
    answer.status_code = status
    return requests.HTTPError(f"{status} no", response=answer)


def test_options_of_beam_reach_the_client_of_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    options = PipelineOptions(
        ["--s3_endpoint_url", "http://elsewhere:9000", "--s3_access_key_id", "a", "--s3_secret_access_key", "b"]
    )
    monkeypatch.setattr(FileSystems, "_pipeline_options", options)
    ours = s3.client()
    assert ours._boto.meta.endpoint_url == "http://elsewhere:9000"
    assert s3.client() is ours
    monkeypatch.setattr(FileSystems, "_pipeline_options", None)
    assert s3.client() is not ours
