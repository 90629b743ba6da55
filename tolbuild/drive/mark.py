"""The mark of a process that owns a plan: which one it is, and whether it lives."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tolbuild.table import documents
from tolbuild.table.errors import FormatError, TableCorruptError
from tolbuild.table.plain import from_plain, to_plain
from tolbuild.table.process import machine_name, start_ticks

_KEY = re.compile(r"_build/[^/]+/owner-(\d{5})")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A process at one moment.

    run: a name that no other claim has. machine: boot and process namespace, in which `pid` means something; empty
    where the system does not say. started: the process's start in ticks since boot. beside: it publishes its plan
    beside others (`--new-version`), so that those need not mind it. seen: ISO time of the last refreshing.
    """

    run: str
    task: str
    beside: bool
    host: str
    machine: str
    pid: int
    started: int
    count: int
    seen: str

    @property
    def owner(self) -> str:
        """The process in words."""
        return f"{self.task} on {self.host}, process {self.pid}"

    @property
    def is_near(self) -> bool:
        """Whether the process would be one of this machine."""
        return bool(self.machine) and self.machine == machine_name()

    @property
    def age_s(self) -> float:
        """Seconds since the last refreshing, by this machine's clock."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.seen)).total_seconds()

    def is_left_behind(self, max_age_s: float) -> bool:
        """Whether the process is known to be gone, or, on another machine, has not been heard of for so long."""
        return start_ticks(self.pid) != self.started if self.is_near else self.age_s > max_age_s

    def refreshed(self) -> Mark:
        """The same process now."""
        return replace(self, count=self.count + 1, seen=_now())

    def to_bytes(self) -> bytes:
        """The document."""
        return documents.encode(to_plain(self))

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> Mark:
        """The mark of a document.

        Raises:
            TableCorruptError: the bytes are not what was written.
        """
        try:
            return from_plain(cls, documents.decode(data, key), key)
        except FormatError as error:
            raise TableCorruptError(str(error), [key]) from error


def process_mark(run: str, task: str, *, beside: bool) -> Mark:
    """The first mark of this process for one claim."""
    pid = os.getpid()
    return Mark(
        run=run,
        task=task,
        beside=beside,
        host=socket.gethostname(),
        machine=machine_name(),
        pid=pid,
        started=start_ticks(pid),
        count=0,
        seen=_now(),
    )


def marks_prefix(plan_hash: str) -> str:
    """Folder of a plan's marks."""
    return f"_build/{plan_hash}"


def mark_key(plan_hash: str, number: int) -> str:
    """Key of a plan's mark; the highest number is valid."""
    return f"{marks_prefix(plan_hash)}/owner-{number:05d}"


def number_of(key: str) -> int:
    """Number of a mark's key; 0 for other keys."""
    found = _KEY.fullmatch(key)
    return int(found[1]) if found else 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
