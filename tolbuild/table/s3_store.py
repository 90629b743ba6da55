"""S3 and what speaks its protocol: s3fs writes and lists, obstore reads ranges (many in flight with less work)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.errors import ObjectExistsError, ObjectNotFoundError, StoreError
from tolbuild.table.fsspec_store import COALESCE_BYTES, FsspecStore
from tolbuild.table.store import Credentials, ObjectInfo, Offsets

DEFAULT_REGION = "us-east-1"
"""What S3-compatible servers expect where the user named no region."""


class S3Store:
    """Objects under s3://bucket/prefix.

    Raises:
        ValueError: the URL names no bucket.
        StoreError: s3fs or obstore is not installed.
    """

    def __init__(self, url: str, credentials: Credentials) -> None:
        parts = urlsplit(url)
        if not parts.netloc:
            raise ValueError(f"{url!r} names no bucket; write s3://bucket/prefix")
        self.url = url.rstrip("/")
        self._credentials = credentials
        self._bucket, self._prefix = parts.netloc, self.url[len(f"s3://{parts.netloc}") :].strip("/")
        self._files = FsspecStore(self.url, **_s3fs_options(credentials))
        self._ranges: Any = None

    def read(self, key: str) -> bytes:
        """The whole object; see Store."""
        with self._faults(key):
            return self._files.read(key)

    def _range_store(self) -> Any:
        if self._ranges is None:
            self._ranges = _obstore(self._bucket, self._credentials)
        return self._ranges

    def read_scattered(self, key: str, starts: Offsets, outs: Sequence[NDArray[np.uint8]]) -> None:
        """Concurrent range requests, near ones as one; see Store."""
        wanted = [place for place, out in enumerate(outs) if out.size]
        if not wanted:
            return
        path = f"{self._prefix}/{key}" if self._prefix else key
        starts, outs = starts[wanted], [outs[place] for place in wanted]
        lengths = [out.size for out in outs]
        with self._faults(key):
            parts = self._range_store().get_ranges(
                path, starts=starts.tolist(), lengths=lengths, coalesce=COALESCE_BYTES
            )
        for start, out, part in zip(starts.tolist(), outs, parts, strict=True):
            data = np.frombuffer(part, np.uint8)
            if data.size != out.size:
                raise StoreError(
                    f"{self.url}/{key}: {data.size} of {out.size} bytes from {start} on: the object is too short"
                )
            out.reshape(-1)[:] = data

    def write(self, key: str, *parts: bytes | NDArray[np.uint8]) -> None:
        """See Store."""
        with self._faults(key):
            self._files.write(key, *parts)

    def create(self, key: str, data: bytes) -> None:
        """A conditional put; see Store."""
        with self._faults(key):
            try:
                self._files.fs.pipe_file(self._files.path(key), data, mode="create")
            except FileExistsError:
                raise ObjectExistsError(f"{self.url}/{key} exists") from None

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """See Store."""
        with self._faults(prefix):
            found = self._files.list(prefix)
            if not found and not self._files.fs.exists(self._bucket):
                raise StoreError(f"no such bucket: {self._bucket} (of {self.url}); make it first")
            return found

    def delete(self, key: str) -> None:
        """See Store."""
        with self._faults(key):
            self._files.delete(key)

    def size(self, key: str) -> int:
        """See Store."""
        with self._faults(key):
            return self._files.size(key)

    def local_path(self, key: str) -> Path | None:
        """None; see Store."""
        return None

    def close(self) -> None:
        """Drop the range client; see Store."""
        self._ranges = None

    @contextmanager
    def _faults(self, key: str) -> Iterator[None]:
        """What the two S3 clients raise beside OSErrors: missing credentials, refused connections, HTTP errors."""
        with self._files.faults(key):
            try:
                yield
            except (OSError, StoreError, ObjectExistsError):
                raise
            except Exception as error:  # botocore, aiohttp and obstore share no base class
                name, text = type(error).__name__, str(error).splitlines()[0] if str(error) else ""
                if name == "NotFoundError" or "NoSuchKey" in text:
                    raise ObjectNotFoundError(f"no such object: {self.url}/{key}") from error
                if name in ("PermissionDeniedError", "UnauthenticatedError"):
                    raise StoreError(f"no permission for {self.url}/{key}") from error
                endpoint = self._credentials.endpoint_url or "AWS"
                raise StoreError(f"{self.url}/{key} at {endpoint}: {name}: {text}") from error


def _s3fs_options(credentials: Credentials) -> dict[str, Any]:
    options: dict[str, Any] = {"client_kwargs": {"region_name": credentials.region or DEFAULT_REGION}}
    if credentials.endpoint_url:
        options["endpoint_url"] = credentials.endpoint_url
    if credentials.access_key:
        options |= {"key": credentials.access_key, "secret": credentials.secret_key}
        if credentials.session_token:
            options["token"] = credentials.session_token
    return options


def _obstore(bucket: str, credentials: Credentials) -> Any:
    try:
        from obstore.store import S3Store as ObstoreS3
    except ImportError as error:
        raise StoreError(f"reading ranges from s3:// needs the package obstore: {error}") from error
    options: dict[str, Any] = {"region": credentials.region or DEFAULT_REGION}
    if credentials.endpoint_url:
        options |= {"endpoint": credentials.endpoint_url, "virtual_hosted_style_request": False}
    if credentials.access_key:
        options |= {"access_key_id": credentials.access_key, "secret_access_key": credentials.secret_key}
        if credentials.session_token:
            options["session_token"] = credentials.session_token
    plain = credentials.endpoint_url.startswith("http://")
    retry: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
    return ObstoreS3(bucket, client_options={"allow_http": plain}, retry_config=retry, **options)
