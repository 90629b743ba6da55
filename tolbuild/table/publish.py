"""Versions: manifests put in place last, if their number is free, so that a reader sees a whole build or none."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from dataclasses import replace
from datetime import UTC, datetime

from tolbuild.table.errors import (
    FormatError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    TableConflictError,
    TableCorruptError,
    TableNotFoundError,
)
from tolbuild.table.manifest import Manifest, manifest_key
from tolbuild.table.store import Store

PROBES = "_probe"
"""Folder of the objects that show whether a store keeps the condition of a put; each lives for a moment."""

_PUT_TRIES = 4
_PUT_PAUSE_S = 0.3
"""Tries of a conditional put that gets no answer, and the time between two: its client does not repeat it."""

_NAME = re.compile(r"manifests/(\d{8})\.json")


def list_versions(store: Store) -> list[int]:
    """Numbers of the published versions, ascending; empty where nothing is.

    Raises:
        StoreError: the store cannot be reached.
    """
    names = (_NAME.fullmatch(info.key) for info in store.list("manifests"))
    return sorted(int(name[1]) for name in names if name)


def latest_version(store: Store) -> int:
    """The highest number.

    Raises:
        TableNotFoundError: nothing is published at the place.
    """
    versions = list_versions(store)
    if not versions:
        begun = any(info.key.startswith(("arrays/", "receipts/", "_build/")) for info in store.list())
        more = "a build of one has begun there; run it again to finish it" if begun else "check the URL"
        raise TableNotFoundError(f"no table at {store.url}: no version is published; {more}")
    return versions[-1]


def read_manifest(store: Store, version: int | None = None) -> Manifest:
    """A version's manifest; None is the latest.

    Raises:
        TableNotFoundError: there is no table, or not that version.
        TableCorruptError: the document is damaged.
        FormatError: another format.
    """
    number = latest_version(store) if version is None else version
    key = manifest_key(number)
    try:
        data = store.read(key)
    except ObjectNotFoundError as error:
        raise TableNotFoundError(f"no version {number} at {store.url}") from error
    try:
        manifest = Manifest.from_bytes(data, key)
    except TableCorruptError as error:
        raise TableCorruptError(f"{store.url}: the manifest of version {number} is damaged: {error}", [key]) from error
    except FormatError as error:
        raise FormatError(f"{store.url}: {error}") from error
    if manifest.version != number:
        raise TableCorruptError(f"{key} holds version {manifest.version}", [key])
    return manifest


def publish(store: Store, manifest: Manifest, *, single_writer: bool = False) -> Manifest:
    """Put a manifest in place under its version number, as the very last write of a build.

    Args:
        single_writer: the caller vouches that nobody else writes there, so a store without conditional puts will do.

    Returns:
        The manifest as published, with write id and time.

    Raises:
        TableConflictError: another writer took the number.
        StoreError: the store failed, or ignores the condition.
    """
    mine = replace(
        manifest,
        write_id=secrets.token_hex(16),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    data = mine.to_bytes()
    if single_writer:
        if ours := not _stands(store, mine.key):
            store.write(mine.key, data)
    else:
        probe_conditional_put(store)
        ours = put_if_absent(store, mine.key, data)
    if not ours:
        raise TableConflictError(
            f"version {mine.version} of {store.url} was published by another writer meanwhile; "
            "run again to see what stands there now"
        )
    return mine


def put_if_absent(store: Store, key: str, data: bytes) -> bool:
    """Put an object if its key is free; whether what stands there now is ours.

    A conditional put can succeed while its answer is lost, and a try after that meets the first one's object. So `data`
    must name its writer (a write id), and a taken key is looked at before it is called another's.

    Raises:
        StoreError: the store failed, several times.
    """
    for left in reversed(range(_PUT_TRIES)):
        try:
            store.create(key, data)
        except ObjectExistsError:
            with contextlib.suppress(ObjectNotFoundError):  # it has gone meanwhile, so the key is free again
                return store.read(key) == data
        except StoreError:
            if not left:
                raise
            time.sleep(_PUT_PAUSE_S)
        else:
            return True
    raise StoreError(f"{store.url}/{key} appears and disappears; another process writes and removes it")


def probe_conditional_put(store: Store) -> None:
    """Make sure that put-if-absent is one: some stores and proxies drop the condition without a word.

    Two puts under one name below `_probe/`, which is removed again. Folders of this machine need no proof.

    Raises:
        StoreError: the second put went through, or the store failed.
    """
    if store.local_path("") is not None:
        return
    name = secrets.token_hex(8)
    key = f"{PROBES}/{name}"
    try:
        put_if_absent(store, key, f"{name} first".encode())
        if put_if_absent(store, key, f"{name} second".encode()):
            raise StoreError(
                f"{store.url} ignores the condition of a conditional put (If-None-Match), so two writers could both "
                "publish one version; write to a store that keeps it, or past the proxy that drops it; where this is "
                "the only writer, add --single-writer"
            )
    finally:
        store.delete(key)


def _stands(store: Store, key: str) -> bool:
    try:
        store.size(key)
    except ObjectNotFoundError:
        return False
    return True
