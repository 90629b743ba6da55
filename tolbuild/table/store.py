"""Objects under a URL: one interface, and the one place that turns a URL and credentials into something that has it.

Writable: file paths and file://, s3:// and memory://. Anything else that fsspec opens (https://, ...) is read-only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.int64]


_WRITABLE = ("", "file", "s3", "memory")
"""Schemes of places that can be written."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Where an S3-compatible service is and who asks; an empty field leaves the choice to the client library."""

    endpoint_url: str = ""
    access_key: str = ""
    secret_key: str = ""
    session_token: str = ""
    region: str = ""

    @classmethod
    def from_environment(cls) -> Credentials:
        """The AWS_* variables as they stand now; AWS_ENDPOINT_URL_S3 goes before AWS_ENDPOINT_URL."""
        get = os.environ.get
        return cls(
            endpoint_url=get("AWS_ENDPOINT_URL_S3") or get("AWS_ENDPOINT_URL", ""),
            access_key=get("AWS_ACCESS_KEY_ID", ""),
            secret_key=get("AWS_SECRET_ACCESS_KEY", ""),
            session_token=get("AWS_SESSION_TOKEN", ""),
            region=get("AWS_REGION") or get("AWS_DEFAULT_REGION", ""),
        )

    def __repr__(self) -> str:
        return f"Credentials(endpoint_url={self.endpoint_url!r}, region={self.region!r}, keys hidden)"


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing: its key under the store's URL, its size in bytes, and when it was last written.

    modified: Unix time by the store's clock; 0 where the store does not say. It plays no part in comparisons.
    """

    key: str
    size: int
    modified: float = field(default=0.0, compare=False)


class Store(Protocol):
    """Objects by key under one URL. Keys are relative, parts divided by `/`.

    Every method raises StoreError where the place cannot be reached or refuses, and ObjectNotFoundError for a key that
    is not there.
    """

    url: str

    def read(self, key: str) -> bytes:
        """The whole object."""

    def read_scattered(self, key: str, starts: Offsets, outs: Sequence[NDArray[np.uint8]]) -> None:
        """A byte range of one object into each of `outs` (contiguous uint8), from byte `starts[i]` into `outs[i]`.

        Raises:
            StoreError: the object ends before a range does.
        """

    def write(self, key: str, *parts: bytes | NDArray[np.uint8]) -> None:
        """Put a whole object, its parts one after another, in place at once, over an old one too; durable on return."""

    def create(self, key: str, data: bytes) -> None:
        """Put an object if its key is free.

        Where no answer comes, it may have been put all the same, and ObjectExistsError may tell of our own first try:
        whoever has to know looks at what stands there.

        Raises:
            ObjectExistsError: it is not; of many concurrent creators exactly one succeeds.
        """

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Every object whose key starts with the folder `prefix`, sorted by key."""

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""

    def size(self, key: str) -> int:
        """Bytes of an object."""

    def local_path(self, key: str) -> Path | None:
        """The object's file where the store is a folder of this machine, else None."""

    def close(self) -> None:
        """Give back descriptors and connections."""


def open_store(url: str | Path, credentials: Credentials | None = None, *, wait_s: float | None = None) -> Store:
    """The store of a URL; nothing is read or made yet.

    Args:
        url: a path, file://, s3://bucket/prefix, memory://name, or what else fsspec reads.
        credentials: for s3://; None takes them from the environment.
        wait_s: how long a remote store is waited for before a read is tried again, and how long it is tried; None
            leaves that to the store. A caller that waits no longer itself is rid of its reads soon after.

    Raises:
        ValueError: the URL is empty or its scheme is unknown.
        StoreError: the package for the scheme is not installed.
    """
    text = str(url)
    if not text:
        raise ValueError("the URL is empty; give a path, file://, s3:// or memory://")
    parts = urlsplit(text)
    if parts.scheme in ("", "file"):
        from tolbuild.table.local_store import LocalStore

        if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
            raise ValueError(f"{text!r} names the host {parts.netloc!r}; file:// is of this machine: file:///folder")
        if parts.scheme == "file" and (parts.query or parts.fragment or text.endswith(("?", "#"))):
            raise ValueError(f"{text!r} holds a ? or #, which end a URL's path; write %3F or %23, or a plain path")
        path = unquote(parts.path) if parts.scheme == "file" else text
        return LocalStore(Path(path).absolute())
    if parts.scheme == "s3":
        from tolbuild.table.s3_store import Patience, S3Store

        patience = None if wait_s is None else Patience(connect_s=wait_s, silence_s=wait_s, retry_s=wait_s)
        return S3Store(text, credentials or Credentials.from_environment(), patience)
    from tolbuild.table.fsspec_store import FsspecStore, http_timeout

    if parts.scheme in ("http", "https") and wait_s is not None:
        return FsspecStore(text, **http_timeout(wait_s))
    return FsspecStore(text)


def check_writable(url: str) -> None:
    """Make sure that a URL is of a kind that can be written; the place itself is not looked at.

    Raises:
        ValueError: it cannot, or its scheme is unknown.
        StoreError: the package for the scheme is not installed.
    """
    open_store(url).close()
    scheme = urlsplit(url).scheme
    if scheme not in _WRITABLE:
        raise ValueError(f"{url} is read-only here; write to a path, file://, s3:// or memory://")


@dataclass(frozen=True)
class Merged:
    """One range to ask a remote store for, and which of the wanted ranges lie in it."""

    start: int
    stop: int
    members: tuple[int, ...]


def merge_ranges(starts: Offsets, lengths: Offsets, *, gap: int) -> list[Merged]:
    """Fewer, longer ranges that hold all wanted ones: those at most `gap` bytes apart are read as one."""
    merged: list[Merged] = []
    members: list[int] = []
    first = last = 0
    for place in np.argsort(starts, kind="stable").tolist():
        start, stop = int(starts[place]), int(starts[place] + lengths[place])
        if members and start <= last + gap:
            members.append(place)
            last = max(last, stop)
            continue
        if members:
            merged.append(Merged(first, last, tuple(members)))
        first, last, members = start, stop, [place]
    return [*merged, Merged(first, last, tuple(members))] if members else merged
