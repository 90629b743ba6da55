"""S3 and what speaks its protocol, through obstore: retries with backoff, parts of large objects side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.errors import ObjectNotFoundError, StoreError, ToLError
from tolbuild.table.fsspec_store import COALESCE_BYTES
from tolbuild.table.s3_faults import is_unanswered, translated
from tolbuild.table.store import Credentials, ObjectInfo, Offsets

DEFAULT_REGION = "us-east-1"
"""What S3-compatible servers expect where the user named no region."""

PART_BYTES = 8 << 20
"""A larger object goes up in parts of this size, each retried alone."""

PARTS_AT_ONCE = 4
"""Parts of one object on their way at a time: what bounds the memory of an upload."""

_WHOLE_READ_S = 900.0
"""Time for one whole answer, which is long where a range is; a stalled one is given up on long before."""

_SMALL_BYTES = 1 << 20
"""A body of up to this is sent within any line's time of silence."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a store is waited for; after that comes a StoreError.

    connect_s: for a connection. silence_s: for the next byte of an answer. upload_s: for one part of an upload, sending
    included. retry_s: time since its first try in which a request is tried again, with growing pauses, after a 5xx, a
    slow-down, a timeout or a lost connection. So a server that accepts connections and never answers is given up on
    after at most silence_s + retry_s, in a large upload upload_s + retry_s.

    Raises:
        ValueError: a time that is not positive.
    """

    connect_s: float = 10.0
    silence_s: float = 30.0
    upload_s: float = 180.0
    retry_s: float = 120.0

    def __post_init__(self) -> None:
        for name in ("connect_s", "silence_s", "upload_s", "retry_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")


class S3Store:
    """Objects under s3://bucket/prefix.

    Raises:
        ValueError: the URL names no bucket.
        StoreError: obstore is not installed.
    """

    def __init__(self, url: str, credentials: Credentials, patience: Patience | None = None) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not urlsplit(url).netloc:
            raise ValueError(f"{url!r} names no bucket; write s3://bucket/prefix")
        self.url = url.rstrip("/")
        self._credentials = credentials
        self._bucket, self._prefix = bucket, prefix.strip("/")
        self._patience = patience or Patience()
        self._obstore = _import_obstore()
        self._client = self._open(answer_s=self._patience.silence_s)
        self._uploads = self._open(answer_s=self._patience.upload_s)

    def read(self, key: str) -> bytes:
        """The whole object; see Store."""
        with self._faults(key):
            return bytes(self._obstore.get(self._client, self._path(key)).bytes())

    def read_scattered(self, key: str, starts: Offsets, outs: Sequence[NDArray[np.uint8]]) -> None:
        """Concurrent range requests, near ones as one; see Store."""
        wanted = [place for place, out in enumerate(outs) if out.size]
        if not wanted:
            return
        starts, outs = starts[wanted], [outs[place] for place in wanted]
        lengths = [out.size for out in outs]
        with self._faults(key):
            parts = self._obstore.get_ranges(
                self._client, self._path(key), starts=starts.tolist(), lengths=lengths, coalesce=COALESCE_BYTES
            )
        for start, out, part in zip(starts.tolist(), outs, parts, strict=True):
            data = np.frombuffer(part, np.uint8)
            if data.size != out.size:
                raise StoreError(
                    f"{self.url}/{key}: {data.size} of {out.size} bytes from {start} on: the object is too short"
                )
            out.reshape(-1)[:] = data

    def write(self, key: str, *parts: bytes | NDArray[np.uint8]) -> None:
        """In one request, or a large object in parts that are joined by the last one; see Store."""
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        total = sum(map(len, views))
        with self._faults(key):
            if total <= PART_BYTES:
                client = self._client if total <= _SMALL_BYTES else self._uploads
                self._obstore.put(client, self._path(key), b"".join(views), use_multipart=False)
                return
            pieces = (view[start : start + PART_BYTES] for view in views for start in range(0, len(view), PART_BYTES))
            self._obstore.put(
                self._uploads, self._path(key), pieces, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )

    def create(self, key: str, data: bytes) -> None:
        """A conditional put, never repeated after a lost answer; see Store."""
        with self._faults(key):
            self._obstore.put(self._client, self._path(key), data, mode="create")

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """See Store."""
        skip = len(self._prefix) + 1 if self._prefix else 0
        with self._faults(prefix):
            pages = self._obstore.list(self._client, self._path(prefix) or None)
            found = [
                ObjectInfo(item["path"][skip:], item["size"], item["last_modified"].timestamp())
                for page in pages
                for item in page
            ]
        return sorted((info for info in found if info.key), key=lambda info: info.key)

    def delete(self, key: str) -> None:
        """Repeated once where no answer came, since that harms nothing; see Store."""
        for again in (True, False):
            try:
                with self._faults(key):
                    self._obstore.delete(self._client, self._path(key))
                return
            except ObjectNotFoundError:
                return
            except StoreError as error:
                if not again or error.__cause__ is None or not is_unanswered(error.__cause__):
                    raise

    def size(self, key: str) -> int:
        """See Store."""
        with self._faults(key):
            return int(self._obstore.head(self._client, self._path(key))["size"])

    def local_path(self, key: str) -> Path | None:
        """None; see Store."""
        return None

    def close(self) -> None:
        """Nothing is held that would not go by itself; see Store."""

    def _path(self, key: str) -> str:
        return "/".join(part for part in (self._prefix, key) if part)

    def _open(self, *, answer_s: float) -> Any:
        given, patience = self._credentials, self._patience
        options: dict[str, Any] = {"region": given.region or DEFAULT_REGION}
        if given.endpoint_url:
            options |= {"endpoint": given.endpoint_url, "virtual_hosted_style_request": False}
        if given.access_key:
            options["credential_provider"] = lambda: {  # beside plain keys, the environment's token would be sent too
                "access_key_id": given.access_key,
                "secret_access_key": given.secret_key,
                "token": given.session_token or None,
                "expires_at": None,
            }
        client = {
            "allow_http": given.endpoint_url.startswith("http://"),
            "connect_timeout": timedelta(seconds=patience.connect_s),
            "read_timeout": timedelta(seconds=answer_s),
            "timeout": timedelta(seconds=max(patience.upload_s, _WHOLE_READ_S)),
        }
        retry = {"retry_timeout": timedelta(seconds=patience.retry_s)}
        return self._obstore.store.S3Store(self._bucket, client_options=client, retry_config=retry, **options)

    @contextmanager
    def _faults(self, key: str) -> Iterator[None]:
        """Turn what obstore raises into this package's errors, naming the object."""
        try:
            yield
        except ToLError:
            raise
        except Exception as error:  # obstore's classes and FileNotFoundError have no narrower base
            raise self._translated(error, key) from error

    def _translated(self, error: Exception, key: str) -> ToLError:
        """The error to raise. The answer to a HEAD has no body, so what refused it is learnt from a listing."""
        if isinstance(error, FileNotFoundError | self._obstore.exceptions.BaseError) and "performing HEAD" in str(
            error
        ):
            try:
                next(iter(self._obstore.list(self._client, self._path(key), chunk_size=1)), None)
            except self._obstore.exceptions.BaseError as reason:
                error = reason
        return translated(error, url=self.url, bucket=self._bucket, key=key, credentials=self._credentials)


def _import_obstore() -> Any:
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise StoreError(f"s3:// needs the package obstore: {error}") from error
    return obstore
