"""Versions: manifests put in place last, if their number is free, so that a reader sees a whole build or none."""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from datetime import UTC, datetime

from tolbuild.table.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    TableConflictError,
    TableCorruptError,
    TableNotFoundError,
)
from tolbuild.table.manifest import Manifest, manifest_key
from tolbuild.table.store import Store

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
    manifest = Manifest.from_bytes(data, key)
    if manifest.version != number:
        raise TableCorruptError(f"{key} holds version {manifest.version}", [key])
    return manifest


def publish(store: Store, manifest: Manifest) -> Manifest:
    """Put a manifest in place under its version number, as the very last write of a build.

    A conditional put can succeed while its answer is lost; the client's own retry then meets its own object. So a taken
    number is looked at before it is called a conflict: the write id tells.

    Returns:
        The manifest as published, with write id and time.

    Raises:
        TableConflictError: another writer took the number.
        StoreError: the store failed, or ignores the condition.
    """
    probe_conditional_put(store)
    mine = replace(
        manifest,
        write_id=secrets.token_hex(16),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        store.create(mine.key, mine.to_bytes())
    except ObjectExistsError as error:
        if store.read(mine.key) != mine.to_bytes():
            raise TableConflictError(
                f"version {mine.version} of {store.url} was published by another writer meanwhile; "
                "run again to see what stands there now"
            ) from error
    return mine


def probe_conditional_put(store: Store) -> None:
    """Make sure that put-if-absent is one: some proxies in front of a store drop the condition without a word.

    Raises:
        StoreError: a second put of one name went through.
    """
    if store.local_path("") is not None:
        return
    key = f"_build/probe-{secrets.token_hex(8)}"
    try:
        for attempt in range(2):
            try:
                store.create(key, b"")
            except ObjectExistsError:
                return
            if attempt:
                raise StoreError(
                    f"{store.url} ignores the condition of a conditional put (If-None-Match), so two writers could "
                    "both publish; write to the store itself rather than through this proxy"
                )
    finally:
        store.delete(key)
