"""What stands at a table's place and belongs to nothing: no version names it, no running build owns it."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tolbuild.drive.owner import claimed, owners
from tolbuild.table.local_store import SCRATCH, writer_lives
from tolbuild.table.publish import PROBES, list_versions, read_manifest
from tolbuild.table.receipts import in_parallel
from tolbuild.table.store import ObjectInfo, Store

_OF_A_PLAN = re.compile(r"(receipts|arrays|_build)/([^/]+)/.+")
_PARTS = ("receipts", "arrays", "_build")
"""In the order in which they go, so that a removal that is cut short leaves no receipt of a shard that has gone."""


@dataclass(frozen=True, kw_only=True)
class Heap:
    """Objects that no version names and that stay or go together.

    name: of the plan, or of what else they are. plan_hash: of the plan, else empty. kept: why they have to stay; empty
    where they may go.
    """

    name: str
    plan_hash: str = ""
    objects: tuple[ObjectInfo, ...]
    kept: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(info.size for info in self.objects)


def find_garbage(store: Store, *, older_than_s: float) -> list[Heap]:
    """Everything of a table or a build that no version names, a heap for each plan, probes and unfinished writes apart.

    A plan's heap stays as a whole while a build owns it, or while its youngest object is not older than `older_than_s`.
    Objects that no program of this project writes are none of ours and in no heap.

    Raises:
        TableCorruptError, FormatError: a manifest cannot be read, so that what it names is not known.
        StoreError: the place cannot be reached.
    """
    listed = store.list()
    named = _named(store)  # after the listing: what is published meanwhile is named by then
    plans = [_judged(store, heap, older_than_s) for heap in _of_plans(listed, named)]
    return [*plans, *_passing(listed, older_than_s)]


def remove(store: Store, heap: Heap, *, task: str, older_than_s: float) -> Heap:
    """Remove a heap; returns what of it has gone, or the whole of it with the reason why it stays after all.

    A plan is owned meanwhile, so that a build of it that starts now waits, and it is looked at again under that.
    """
    if not heap.plan_hash:
        in_parallel(store.delete, [info.key for info in heap.objects])
        return heap
    with claimed(store, heap.plan_hash, task=task, say=None) as claim:
        if claim is None:
            return replace(heap, kept="a build of it has just begun")
        listed = [info for info in store.list() if info.key in {found.key for found in heap.objects}]
        again = next(iter(_of_plans(listed, _named(store))), replace(heap, objects=()))
        again = _kept_if_young(again, older_than_s)
        if again.kept:
            return again
        for part in _PARTS:
            in_parallel(store.delete, [i.key for i in again.objects if i.key.startswith(part + "/")])
        claim.check()
        return again


def _named(store: Store) -> set[str]:
    """Keys of all objects that a version consists of."""
    manifests = in_parallel(lambda number: read_manifest(store, number), list_versions(store))
    return {item.key for manifest in manifests for item in manifest.objects}


def _of_plans(listed: Iterable[ObjectInfo], named: set[str]) -> list[Heap]:
    plans: dict[str, list[ObjectInfo]] = defaultdict(list)
    for info in listed:
        found = None if _is_passing(info.key) or info.key in named else _OF_A_PLAN.fullmatch(info.key)
        if found:
            plans[found[2]].append(info)
    return [Heap(name=f"plan {name}", plan_hash=name, objects=tuple(infos)) for name, infos in plans.items()]


def _passing(listed: Iterable[ObjectInfo], older_than_s: float) -> list[Heap]:
    """Unfinished writes and probes, which belong to no plan: each object for itself, those of one fate together."""
    heaps: dict[tuple[str, str], list[ObjectInfo]] = defaultdict(list)
    for info in listed:
        if _is_passing(info.key):
            name = "unfinished writes" if info.key.startswith(SCRATCH) else "probes"
            young = time.time() - info.modified < older_than_s
            kept = "in work on this machine" if writer_lives(info.key) else "too young" if young else ""
            heaps[name, kept].append(info)
    return [Heap(name=name, objects=tuple(infos), kept=kept) for (name, kept), infos in heaps.items()]


def _is_passing(key: str) -> bool:
    return key.startswith((SCRATCH + "/", PROBES + "/"))


def _judged(store: Store, heap: Heap, older_than_s: float) -> Heap:
    running = sorted(mark.owner for mark in owners(store, heap.plan_hash))
    return replace(heap, kept=f"in work by {', '.join(running)}") if running else _kept_if_young(heap, older_than_s)


def _kept_if_young(heap: Heap, older_than_s: float) -> Heap:
    youngest = max((info.modified for info in heap.objects if "/owner-" not in info.key), default=0.0)
    age_s = time.time() - youngest
    if any(not info.modified for info in heap.objects):
        return replace(heap, kept="the store does not say how old they are")
    if age_s < older_than_s:
        return replace(heap, kept=f"written {age_s:,.0f} s ago, less than {older_than_s:,.0f} s")
    return heap
