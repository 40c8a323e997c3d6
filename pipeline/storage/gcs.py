"""The client of gs://: the JSON API of Google's storage by a session of google-auth, one of them a process.

https://cloud.google.com/storage/docs/json_api/v1. Google's own library over it says no sizes with ranges, and finishes an
upload that is only dropped. `STORAGE_EMULATOR_HOST` names another server, as for that library.
"""

import functools
import os
from typing import Any
from urllib.parse import quote

from patchpack.pipeline.storage import stores
from patchpack.pipeline.storage.stores import Page, StoredObject, split

_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_RESUME_INCOMPLETE = 308
# of an upload that is not complete the server keeps multiples of this
_KEPT_UNIT = 2**18


def client() -> "Gcs":
    """Returns the client of this process.

    Raises:
        ImportError: google-auth is not installed.
    """
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

    options = (FileSystems._pipeline_options or PipelineOptions([])).view_as(GoogleCloudOptions)
    return _client(os.environ.get("STORAGE_EMULATOR_HOST"), options.impersonate_service_account)


@functools.lru_cache(maxsize=4)
def _client(emulator: str | None, impersonated: str | None) -> "Gcs":
    from google.auth.transport.requests import AuthorizedSession
    from requests.adapters import HTTPAdapter

    session = AuthorizedSession(_credentials(emulator, impersonated))
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=stores.MAX_CONNECTIONS))
    host = emulator or "https://storage.googleapis.com"
    return Gcs(session, (host if "://" in host else f"http://{host}").rstrip("/"))


def _credentials(emulator: str | None, impersonated: str | None) -> Any:
    import google.auth
    from google.auth import credentials, impersonated_credentials
    from google.auth.exceptions import DefaultCredentialsError

    if emulator:
        return credentials.AnonymousCredentials()
    try:
        found, _ = google.auth.default(scopes=_SCOPES)
    except DefaultCredentialsError:
        # enough for public buckets; others answer 401
        return credentials.AnonymousCredentials()
    if not impersonated:
        return found
    *delegates, target = impersonated.split(",")
    return impersonated_credentials.Credentials(found, target, _SCOPES, delegates=delegates)


class Gcs:
    """Calls of the JSON API, see `stores.Client`."""

    patient = False

    def __init__(self, session: Any, host: str) -> None:
        self._session, self._host = session, host

    def page(self, folder: str, flat: bool, token: str | None, most: int | None = None, after: str = "") -> Page:
        bucket, prefix = split(folder)
        asked = {
            "prefix": prefix,
            "fields": "items(name,size,etag),prefixes,nextPageToken",
            "maxResults": most or stores.PAGE_OBJECTS,
        }
        asked |= {
            "delimiter": None if flat else "/",
            "pageToken": token,
            "startOffset": prefix + after if after else None,
        }
        found = self._ask("GET", f"storage/v1/b/{bucket}/o", params=asked).json()
        root = f"gs://{bucket}/"
        return Page(
            [StoredObject(root + each["name"], int(each["size"]), each.get("etag", "")) for each in found.get("items", [])],
            [root + prefix for prefix in found.get("prefixes", [])],
            found.get("nextPageToken"),
        )  # fmt: skip

    def get(self, path: str, start: int, stop: int) -> tuple[bytes, int]:
        # as it is stored, however it is encoded: ranges are of that
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "gzip"}
        fine = (200, 206) if start else (200, 206, 416)
        with self._ask("GET", f"download/{_object(path)}?alt=media", fine, headers=headers, stream=True) as answer:
            if answer.status_code == 416:
                # no range lies in an empty object
                return b"", 0
            data: bytes = answer.raw.read(decode_content=False)
        size = stores.stated_size(answer.headers.get("Content-Range"))
        # a server that knows no ranges sends all
        return (data[start:stop], len(data)) if size is None else (data, size)

    def size(self, path: str) -> int:
        return int(self._ask("GET", _object(path), params={"fields": "size"}).json()["size"])

    def put(self, path: str, data: bytes) -> None:
        bucket, name = split(path)
        asked = {"uploadType": "media", "name": name}
        headers = {"Content-Type": "application/octet-stream"}
        self._ask("POST", f"upload/storage/v1/b/{bucket}/o", params=asked, headers=headers, data=data)

    def begin(self, path: str) -> "GcsUpload":
        bucket, name = split(path)
        asked = {"uploadType": "resumable", "name": name}
        answer = self._ask("POST", f"upload/storage/v1/b/{bucket}/o", params=asked)
        return GcsUpload(self, answer.headers["Location"])

    def delete(self, path: str) -> None:
        self._ask("DELETE", _object(path), (200, 204, 404))

    def sweep(self, folder: str) -> None:
        """Leaves it to Google, which forgets an upload after a week."""

    def request(self, method: str, url: str, fine: tuple[int, ...], **more: Any) -> Any:
        """Returns the answer of the server to one request; raises requests.HTTPError for another status than these."""
        from requests import HTTPError

        timeout = stores.CONNECT_S, stores.ANSWER_S
        answer = self._session.request(method, url, timeout=timeout, allow_redirects=False, **more)
        if answer.status_code not in fine:
            text = " ".join(answer.text.split())[:200]
            raise HTTPError(f"{answer.status_code} {answer.reason} {text}".strip(), response=answer)
        return answer

    def _ask(self, method: str, place: str, fine: tuple[int, ...] = (200,), **more: Any) -> Any:
        return self.request(method, f"{self._host}/{place}", fine, **more)


class GcsUpload:
    """A resumable upload, which is asked what it has after a part whose answer was lost."""

    repeatable = True

    def __init__(self, gcs: Gcs, url: str) -> None:
        self._gcs, self._url, self._offset, self._lost = gcs, url, 0, False

    def send(self, data: bytes, last: bool) -> None:
        end = self._offset + len(data)
        kept = self._put(b"", "bytes */*", end) if self._lost else self._offset
        self._lost = True
        # a server may keep less than it was sent
        while kept < end:
            before, total = kept, end if last else "*"
            kept = self._put(data[kept - self._offset :], f"bytes {kept}-{end - 1}/{total}", end)
            if kept <= before:
                raise OSError(f"{kept} bytes are kept of {end} that were sent")
        self._offset, self._lost = end, False

    def abort(self) -> None:
        # 499: cancelled
        self._gcs.request("DELETE", self._url, (200, 204, 404, 499))

    def _put(self, data: bytes, content_range: str, end: int) -> int:
        """Returns how many bytes of the object the server has, `end` if the object is there."""
        fine = (200, 201, _RESUME_INCOMPLETE)
        answer = self._gcs.request("PUT", self._url, fine, headers={"Content-Range": content_range}, data=data)
        if answer.status_code != _RESUME_INCOMPLETE:
            return end
        kept = int(answer.headers.get("Range", "-0").rpartition("-")[2]) + 1
        return kept - kept % _KEPT_UNIT


def _object(path: str) -> str:
    bucket, name = split(path)
    return f"storage/v1/b/{bucket}/o/{quote(name, safe='')}"
