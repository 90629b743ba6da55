"""`python -m tolbuild.gc URL`: what at a table's place belongs to nothing, and with --delete, its end.

Listed are objects that no version names: of builds that were given up, partial results of builds that were cut short
after their commit, unfinished writes and probes. An interrupted build is among them until its command is run again:
deleting it means that it starts from the beginning.

Never removed: what a version names; anything of a plan that a running build owns; anything of a plan of which an object
is younger than --older-than; objects that are not of this program. Nothing is removed where a manifest cannot be read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tolbuild.drive.garbage import Heap, find_garbage, remove
from tolbuild.drive.progress import size
from tolbuild.table.errors import ToLError
from tolbuild.table.publish import probe_conditional_put
from tolbuild.table.store import Store, open_store

TASK = "python -m tolbuild.gc"

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True)
class GcConfig:
    """What to clear away.

    Raises:
        ValueError: an age that is none.
    """

    url: str
    """Where the table is: a path, file:// or s3://bucket/prefix."""
    delete: bool = False
    """Remove what is listed as removable; without it nothing is changed."""
    older_than: str = "1d"
    """Least age of what may go, as in 90s, 30m, 12h or 7d; the youngest object of a plan counts for all of it."""
    single_writer: bool = False
    """No build runs at the place: remove on a store that ignores the condition of a conditional put, too."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+[smhd]", self.older_than):
            raise ValueError(f"--older-than is {self.older_than!r}; it must be a number and s, m, h or d, such as 12h")

    @property
    def older_than_s(self) -> int:
        """The age in seconds."""
        return int(self.older_than[:-1]) * _SECONDS[self.older_than[-1]]


def main(arguments: Sequence[str] | None = None) -> int:
    """List, or remove; 0, or 1 with the reason on standard error."""
    from tolbuild.cli import parse

    try:
        config = parse(GcConfig, positional=True, module="tolbuild.gc", doc=__doc__, arguments=arguments)
        store = open_store(config.url)
        try:
            _clear(store, config)
        finally:
            store.close()
    except (ValueError, ToLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _clear(store: Store, config: GcConfig) -> None:
    heaps = find_garbage(store, older_than_s=config.older_than_s)
    if config.delete and not config.single_writer and any(not heap.kept for heap in heaps):
        probe_conditional_put(store)
    total, num_objects = 0, 0
    for found in heaps:
        heap = found
        if config.delete and not heap.kept:
            heap = remove(store, heap, task=TASK, older_than_s=config.older_than_s)
        print(_line(heap, removed=config.delete))
        if not heap.kept:
            total, num_objects = total + heap.num_bytes, num_objects + len(heap.objects)
    verb = "removed" if config.delete else "removable"
    print(f"{store.url}: {num_objects:,} objects, {size(total)} {verb}")
    if num_objects and not config.delete:
        print("nothing has been changed; --delete removes them")


def _line(heap: Heap, *, removed: bool) -> str:
    state = f"kept: {heap.kept}" if heap.kept else "removed" if removed else "removable"
    return f"  {heap.name}: {len(heap.objects):,} objects, {size(heap.num_bytes)}, {state}"


if __name__ == "__main__":
    sys.exit(main())
