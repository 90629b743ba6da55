"""Who works on a plan at a place: a mark in the store that its owner keeps fresh, so that two never do at a time.

The mark is `_build/<plan hash>/owner-00001`, put if absent, written anew every REFRESH_S by a thread of the process
that owns the plan, and removed when it ends. It holds the process's name and the time of the last refreshing.

Whose process is gone owns nothing: on the same machine that is seen at once. A mark of another machine counts as left
behind once it is MAX_AGE_S old, or once it has stayed the same for SILENT_S under the eyes of a build that wants the
plan. That build puts a mark with the next number, and an owner that meets a higher number than its own stops.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tolbuild.drive.mark import Mark, mark_key, marks_prefix, number_of, process_mark
from tolbuild.table.errors import ObjectNotFoundError, StoreError, TableConflictError, TableCorruptError
from tolbuild.table.publish import put_if_absent
from tolbuild.table.store import Store

REFRESH_S = 10.0
"""Time between two writings of a mark."""

SILENT_S = 60.0
"""A mark of another machine that does not change for so long while it is watched was left behind."""

MAX_AGE_S = 900.0
"""So was one whose last refreshing is so long ago by the clocks, which may differ by several minutes."""

POLL_S = 1.0
"""Time between two looks at another's mark."""

Say = Callable[[str], None]

_held: set[str] = set()
"""Runs of this process that own a plan or try to: a mark that it could not remove is known by not being among them."""


class Claim:
    """A plan owned by this process; `claimed` makes one."""

    def __init__(self, store: Store, plan_hash: str, number: int, mark: Mark) -> None:
        self._store, self._plan_hash, self._number = store, plan_hash, number
        self._mark = mark
        self._ended, self._lost = threading.Event(), ""
        self._thread = threading.Thread(target=self._keep_fresh, name="owner", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the plan is still ours, as far as the last refreshing saw.

        Raises:
            TableConflictError: another process took it over.
        """
        if self._lost:
            raise TableConflictError(
                f"this build was silent for so long that another took plan {self._plan_hash} over: {self._lost}; "
                "what was finished stays, and that one goes on with it"
            )

    def confirm(self) -> None:
        """Look again, then `check`.

        Raises:
            TableConflictError: another process took the plan over.
            StoreError: the store failed.
        """
        self._look()
        self.check()

    def release(self) -> None:
        """Own it no longer; a mark that cannot be removed now counts as left behind soon."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(StoreError):
            self._store.delete(mark_key(self._plan_hash, self._number))

    def _keep_fresh(self) -> None:
        while not self._ended.wait(REFRESH_S) and not self._lost:
            with contextlib.suppress(StoreError):  # an outage; if it lasts, another takes over, and `_look` finds that
                self._look()
                if not self._lost:
                    self._mark = self._mark.refreshed()
                    self._store.write(mark_key(self._plan_hash, self._number), self._mark.to_bytes())

    def _look(self) -> None:
        marks = read_marks(self._store, self._plan_hash)
        taken = marks.get(max(marks, default=0)) if max(marks, default=0) > self._number else None
        if taken is not None:
            self._lost = taken.owner


def read_marks(store: Store, plan_hash: str) -> dict[int, Mark | None]:
    """The marks of a plan by number; None for one that is damaged or has just gone: that of nobody.

    Raises:
        StoreError: the store failed.
    """

    def read(number: int) -> Mark | None:
        key = mark_key(plan_hash, number)
        with contextlib.suppress(ObjectNotFoundError, TableCorruptError):
            return Mark.from_bytes(store.read(key), key)
        return None

    numbers = [number_of(info.key) for info in store.list(marks_prefix(plan_hash))]
    return {number: read(number) for number in numbers if number}


def owners(store: Store, plan_hash: str) -> frozenset[Mark]:
    """Marks of whoever owns a plan, or may own it as far as one look can tell; empty where it is nobody's.

    Raises:
        StoreError: the store failed.
    """
    return _living(read_marks(store, plan_hash))


@contextmanager
def claimed(
    store: Store, plan_hash: str, *, task: str, say: Say | None, beside: bool = False
) -> Iterator[Claim | None]:
    """Own a plan while the block runs.

    Args:
        task: what the owner does, for the others to read.
        beside: see Mark.
        say: told whom it waits for while another owns the plan; None does not wait, and gives None then.

    Raises:
        StoreError: the store failed.
    """
    mark = process_mark(secrets.token_hex(8), task, beside=beside)
    _held.add(mark.run)
    claim = None
    try:
        claim = _try(store, plan_hash, mark)
        if claim is None and say is not None:
            claim = _wait(store, plan_hash, mark, say)
        yield claim
    finally:
        _held.discard(mark.run)
        if claim is not None:
            claim.release()


def _living(marks: dict[int, Mark | None]) -> frozenset[Mark]:
    return frozenset(
        mark
        for mark in marks.values()
        if mark is not None
        and not mark.is_left_behind(MAX_AGE_S)
        and (mark.run in _held or not (mark.is_near and mark.pid == os.getpid()))
    )


def _try(store: Store, plan_hash: str, mark: Mark, silent: frozenset[Mark] = frozenset()) -> Claim | None:
    """Put the next mark if no living one is there but those that were found `silent`.

    Two may put one each, where an owner ends between their looks; so each looks again, and who finds a mark that it did
    not know steps back.
    """
    before = read_marks(store, plan_hash)
    if _living(before) - silent:
        return None
    number, mark = max(before, default=0) + 1, mark.refreshed()
    key = mark_key(plan_hash, number)
    if not put_if_absent(store, key, mark.to_bytes()):
        return None
    after = read_marks(store, plan_hash)
    if after.keys() - before.keys() != {number}:
        store.delete(key)
        return None
    for old in before:
        store.delete(mark_key(plan_hash, old))
    return Claim(store, plan_hash, number, mark)


def _wait(store: Store, plan_hash: str, mark: Mark, say: Say) -> Claim:
    """Try until nobody else owns the plan."""
    watched, since, told = frozenset[Mark](), time.monotonic(), ""
    while True:
        found = owners(store, plan_hash)
        if found != watched:
            watched, since = found, time.monotonic()
        names = ", ".join(sorted(other.owner for other in found))
        if names and names != told:
            told = names
            say(f"plan {plan_hash} is in work by {names}; waiting for its end")
        is_silent = time.monotonic() - since > SILENT_S and not any(other.is_near for other in found)
        claim = _try(store, plan_hash, mark, found) if is_silent or not found else None
        if claim is not None:
            return claim
        time.sleep(POLL_S * random.uniform(0.5, 1))
