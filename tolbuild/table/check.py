"""Every object under a table's URL against what manifests and receipts say of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tolbuild.table import crc32c
from tolbuild.table.arrays import ObjectSum
from tolbuild.table.errors import FormatError, StoreError, TableCorruptError
from tolbuild.table.layout import RowLayout
from tolbuild.table.manifest import Manifest, manifest_key
from tolbuild.table.publish import PROBES, list_versions, read_manifest
from tolbuild.table.reader import read_array
from tolbuild.table.receipts import ShardReceipt, in_parallel
from tolbuild.table.store import Store

_PIECE_BYTES = 8 << 20
"""Read at a time of a large object."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """An object that is not as it must be. crc32c: of the bytes that were found, where that is what is wrong."""

    key: str
    reason: str
    crc32c: int | None = None


@dataclass(kw_only=True)
class Findings:
    """What a check found. The table is sound if there is no fault; notes are of things that hurt nobody."""

    versions: list[Manifest] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_objects: int = 0
    num_bytes: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def fault(self, key: str, reason: str) -> None:
        """Add one, unless the object is named already."""
        if all(known.key != key for known in self.faults):
            self.faults.append(Fault(key=key, reason=reason))


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What an object must be. `sums` are of the rows of a shard, where it is one."""

    object: ObjectSum
    layout: RowLayout | None = None
    shard: int = 0
    sums: NDArray[np.uint32] | None = None


def check_table(store: Store) -> Findings:
    """Check all versions and every object, metadata and receipts included, reading each byte once.

    Raises:
        StoreError: the place cannot be reached or listed.
    """
    found = Findings()
    there = {info.key: info.size for info in store.list()}
    found.num_objects, found.num_bytes = len(there), sum(there.values())
    _read_versions(store, there, found)
    expected: dict[str, Expected] = {}
    for manifest in found.versions:
        _expect(store, manifest, expected, found)
    published = {manifest.plan_hash for manifest in found.versions}
    _sort_others(store, there, published, expected, found)
    for fault in in_parallel(lambda item: _check_object(store, there, item), expected.values()):
        if fault is not None:
            found.faults.append(fault)
    found.faults = sorted(_name_swaps(expected, found.faults), key=lambda fault: fault.key)
    return found


def _read_versions(store: Store, there: Mapping[str, int], found: Findings) -> None:
    numbers = list_versions(store)
    if not numbers:
        found.fault(manifest_key(1), f"missing: no version is published at {store.url}")
        return
    for number in range(1, numbers[-1] + 1):
        if number not in numbers:
            found.fault(manifest_key(number), f"missing: versions go up to {numbers[-1]}")
            continue
        try:
            found.versions.append(read_manifest(store, number))
        except (TableCorruptError, FormatError) as error:
            found.fault(manifest_key(number), f"damaged: {error}")


def _expect(store: Store, manifest: Manifest, expected: dict[str, Expected], found: Findings) -> None:
    """What one version says of its objects; versions that share arrays must say the same."""
    sums = None
    try:
        sums = read_array(store, manifest.array("row_crc32c"))
    except (TableCorruptError, StoreError) as error:
        found.notes.append(f"rows of version {manifest.version} are checked by object only: {error}")
    wanted = {item.key: Expected(object=item) for item in manifest.objects}
    for band in manifest.bands:
        layout = band.layout
        for shard in range(layout.num_shards):
            first, key = shard * layout.shard_rows, layout.shard_key(shard)
            own = None if sums is None else sums[first : first + layout.rows_in(shard), band.index]
            if key not in wanted:
                found.fault(manifest.key, f"does not name {key}, a shard of band {band.index}")
                continue
            wanted[key] = Expected(object=wanted[key].object, layout=layout, shard=shard, sums=own)
    for key, item in wanted.items():
        if key in expected and expected[key].object != item.object:
            found.fault(manifest.key, f"says of {key} what an earlier version does not")
        expected.setdefault(key, item)


def _sort_others(
    store: Store, there: Mapping[str, int], published: set[str], expected: dict[str, Expected], found: Findings
) -> None:
    """Objects that no manifest names: an unfinished build's, or such as do not belong here."""
    others = [key for key in there if key not in expected and not key.startswith("manifests/")]
    unfinished: dict[str, list[str]] = {}
    for key in [key for key in there if key.startswith("manifests/")]:
        if not (key[-5:] == ".json" and key[10:-5].isdigit() and key == manifest_key(int(key[10:-5]))):
            found.fault(key, "unexpected: no manifest of this format")
    for key in others:
        top, _, rest = key.partition("/")
        plan_hash = rest.partition("/")[0]
        if top in ("_build", PROBES):
            unfinished.setdefault(top, []).append(key)
        elif top not in ("arrays", "receipts") or "/" not in rest:
            found.fault(key, "unexpected: does not belong to a table")
        elif plan_hash in published:
            found.fault(key, f"unexpected: no manifest names it, though plan {plan_hash} is published")
        else:
            unfinished.setdefault(plan_hash, []).append(key)
    for name, keys in unfinished.items():
        size = sum(there[key] for key in keys)
        found.notes.append(f"{len(keys)} objects ({size:,} bytes) of a build that is not published: {name}")
        if name not in ("_build", PROBES):
            _expect_unpublished(store, name, keys, expected, found)


def _expect_unpublished(
    store: Store, plan_hash: str, keys: list[str], expected: dict[str, Expected], found: Findings
) -> None:
    """What the receipts of a build without manifest say of its shards; a finished one lacks its manifest."""
    damaged = any(fault.reason.startswith("damaged") for fault in found.faults)
    if f"arrays/{plan_hash}/zarr.json" in keys and not damaged:
        number = max((manifest.version for manifest in found.versions), default=0) + 1
        found.fault(
            manifest_key(number),
            f"missing: the arrays of plan {plan_hash} are complete and no manifest names them; run the build again",
        )
    for key in (key for key in keys if key.startswith("receipts/")):
        try:
            receipt = ShardReceipt.from_bytes(store.read(key), key)
        except (TableCorruptError, FormatError) as error:
            found.fault(key, f"damaged: {error}")
            continue
        expected[receipt.codes.key] = Expected(object=receipt.codes)


def _check_object(store: Store, there: Mapping[str, int], item: Expected) -> Fault | None:
    wanted = item.object
    if wanted.key not in there:
        return Fault(key=wanted.key, reason="missing")
    if there[wanted.key] != wanted.size:
        return Fault(key=wanted.key, reason=f"{there[wanted.key]:,} bytes; it must have {wanted.size:,}")
    try:
        return _check_bytes(store, item)
    except StoreError as error:
        return Fault(key=wanted.key, reason=f"cannot be read: {error}")


def _check_bytes(store: Store, item: Expected) -> Fault | None:
    if item.layout is None:
        total = 0
        for _, piece in _pieces(store, item.object.key, 0, item.object.size, 1):
            total = crc32c.joined(total, crc32c.value(piece), piece.size)
        return _damaged(item.object, total, [])
    return _check_shard(store, item, item.layout)


def _check_shard(store: Store, item: Expected, layout: RowLayout) -> Fault | None:
    key, start = item.object.key, layout.data_start(item.shard)
    behind = start + layout.data_bytes(item.shard)
    head, tail = np.empty(start, np.uint8), np.empty(item.object.size - behind, np.uint8)
    store.read_scattered(key, np.array([0, behind]), [head, tail])
    total, bad_rows = crc32c.value(head), list[int]()
    for first_byte, piece in _pieces(store, key, start, behind, layout.row_bytes):
        sums = crc32c.of_rows(piece.reshape(-1, layout.row_bytes))
        first = (first_byte - start) // layout.row_bytes
        if item.sums is not None:
            bad = np.flatnonzero(sums != item.sums[first : first + len(sums)])
            bad_rows += (bad + first + item.shard * layout.shard_rows).tolist()
        total = crc32c.joined(total, crc32c.of_joined(sums, layout.row_bytes), piece.size)
    damaged = _damaged(item.object, crc32c.joined(total, crc32c.value(tail), tail.size), bad_rows)
    if damaged is not None:
        return damaged
    if bad_rows:
        return Fault(key=key, reason=f"differs from the row checksums from token {bad_rows[0]} on")
    try:
        found = layout.start_by_frame(item.shard, head.tobytes(), tail.tobytes())
    except ValueError as error:
        return Fault(key=key, reason=str(error))
    return None if found == start else Fault(key=key, reason=f"its rows begin at byte {found}; {start} is stated")


def _damaged(wanted: ObjectSum, total: int, bad_rows: list[int]) -> Fault | None:
    if total == wanted.crc32c:
        return None
    rows = f"; rows of {len(bad_rows)} tokens, {bad_rows[0]} first" if bad_rows else ""
    reason = f"damaged: CRC-32C {total:08x}, must be {wanted.crc32c:08x}{rows}"
    return Fault(key=wanted.key, reason=reason, crc32c=total)


def _pieces(store: Store, key: str, start: int, stop: int, unit: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Bytes `start` to `stop` of an object in pieces of some 8 MiB, of whole units; with the first byte of each."""
    step = max(1, _PIECE_BYTES // unit) * unit
    for first in range(start, stop, step):
        piece = np.empty(min(step, stop - first), np.uint8)
        store.read_scattered(key, np.array([first]), [piece])
        yield first, piece


def _name_swaps(expected: Mapping[str, Expected], faults: list[Fault]) -> list[Fault]:
    """Say of a damaged object whose bytes it holds, where another one's sum fits."""
    owners = {(item.object.size, item.object.crc32c): key for key, item in expected.items()}

    def named(fault: Fault) -> Fault:
        if fault.crc32c is None:
            return fault
        owner = owners.get((expected[fault.key].object.size, fault.crc32c))
        return fault if owner is None else Fault(key=fault.key, reason=f"damaged: it holds the bytes of {owner}")

    return [named(fault) for fault in faults]
