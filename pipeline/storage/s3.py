"""The client of s3://: boto3, one of them a process, with the options that Beam has for it (`--s3_endpoint_url`, ...).

Not pyarrow's, which readers have: it asks for the size before each read, and lists whole folders at once.
"""

import functools
import uuid
from typing import Any

from patchpack.pipeline.storage import stores
from patchpack.pipeline.storage.stores import Page, StoredObject, split

_OPTIONS = {
    "s3_access_key_id": "aws_access_key_id",
    "s3_secret_access_key": "aws_secret_access_key",
    "s3_session_token": "aws_session_token",
    "s3_endpoint_url": "endpoint_url",
    "s3_region_name": "region_name",
    "s3_api_version": "api_version",
    "s3_verify": "verify",
}


def client() -> "S3":
    """Returns the client of this process.

    Raises:
        ImportError: boto3 is not installed.
    """
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions, S3Options

    options = (FileSystems._pipeline_options or PipelineOptions([])).view_as(S3Options)
    settings = [(ours, getattr(options, theirs)) for theirs, ours in _OPTIONS.items()]
    return _client((("use_ssl", not options.s3_disable_ssl), *settings))


@functools.lru_cache(maxsize=4)
def _client(settings: tuple[tuple[str, Any], ...]) -> "S3":
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=stores.CONNECT_S,
        read_timeout=stores.ANSWER_S,
        retries={"total_max_attempts": 1},
        max_pool_connections=stores.MAX_CONNECTIONS,
        tcp_keepalive=True,
    )
    # of a session of its own: making clients of the shared one is not safe in threads
    return S3(boto3.session.Session().client("s3", config=config, **dict(settings)))


class S3:
    """Calls of boto3, see `stores.Client`."""

    patient = False

    def __init__(self, boto: Any) -> None:
        self._boto = boto

    def page(self, folder: str, flat: bool, token: str | None, most: int | None = None, after: str = "") -> Page:
        bucket, prefix = split(folder)
        more = {"ContinuationToken": token} if token else {}
        more |= {} if flat else {"Delimiter": "/"}
        more |= {"StartAfter": prefix + after} if after else {}
        found = self._boto.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=most or stores.PAGE_OBJECTS, **more)
        root = f"s3://{bucket}/"
        return Page(
            [StoredObject(root + each["Key"], each["Size"], each.get("ETag", "")) for each in found.get("Contents", [])],
            [root + each["Prefix"] for each in found.get("CommonPrefixes", [])],
            found.get("NextContinuationToken"),
        )  # fmt: skip

    def get(self, path: str, start: int, stop: int) -> tuple[bytes, int]:
        from botocore.exceptions import ClientError

        bucket, name = split(path)
        try:
            answer = self._boto.get_object(Bucket=bucket, Key=name, Range=f"bytes={start}-{stop - 1}")
        except ClientError as error:
            if error.response["ResponseMetadata"].get("HTTPStatusCode") == 416 and not start:
                # no range lies in an empty object
                return b"", 0
            raise
        with answer["Body"] as body:
            data: bytes = body.read()
        size = stores.stated_size(answer.get("ContentRange"))
        # a server that knows no ranges sends all
        return (data[start:stop], len(data)) if size is None else (data, size)

    def size(self, path: str) -> int:
        bucket, name = split(path)
        size: int = self._boto.head_object(Bucket=bucket, Key=name)["ContentLength"]
        return size

    def put(self, path: str, data: bytes) -> None:
        bucket, name = split(path)
        self._boto.put_object(Bucket=bucket, Key=name, Body=data)

    def begin(self, path: str) -> "S3Upload":
        return S3Upload(self._boto, path)

    def delete(self, path: str) -> None:
        bucket, name = split(path)
        self._boto.delete_object(Bucket=bucket, Key=name)

    def sweep(self, folder: str) -> None:
        bucket, prefix = split(folder)
        for page in self._boto.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            for each in page.get("Uploads", []):
                self._boto.abort_multipart_upload(Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"])


class S3Upload:
    """A multipart upload."""

    repeatable = True

    def __init__(self, boto: Any, path: str) -> None:
        self._boto, self._mark = boto, uuid.uuid4().hex
        bucket, name = split(path)
        self._object = {"Bucket": bucket, "Key": name}
        begun = boto.create_multipart_upload(**self._object, Metadata={"upload": self._mark})
        self._upload = {**self._object, "UploadId": begun["UploadId"]}
        self._parts: list[dict[str, object]] = []
        self._sent = False

    def send(self, data: bytes, last: bool) -> None:
        if not self._sent:
            number = len(self._parts) + 1
            tag = self._boto.upload_part(**self._upload, PartNumber=number, Body=data)["ETag"]
            self._parts.append({"PartNumber": number, "ETag": tag})
        # what fails from here on is only done again
        self._sent = last
        if last:
            self._complete()

    def abort(self) -> None:
        self._boto.abort_multipart_upload(**self._upload)

    def _complete(self) -> None:
        from botocore.exceptions import ClientError

        try:
            self._boto.complete_multipart_upload(**self._upload, MultipartUpload={"Parts": self._parts})
        except ClientError as error:
            if error.response["Error"].get("Code") != "NoSuchUpload":
                raise
            # completed before, and the answer was lost?
            if self._boto.head_object(**self._object)["Metadata"].get("upload") != self._mark:
                raise OSError("the upload was aborted by someone else") from error
