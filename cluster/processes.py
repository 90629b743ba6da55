"""Starting processes that can be found again, and ending exactly those.

A process is known by its pid and its start time, so a pid that the system has given to another is never touched. Every
process started here carries a mark in its environment, which its descendants inherit: one that lost its parent, or that
was started in the instant before its starter died, is found by it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "MEMORYLLM_TOL_CLUSTER"
"""Environment variable that names the cluster a process belongs to."""

_POLL_S = 0.05


class SurvivorsError(RuntimeError):
    """Processes that SIGKILL did not end."""


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """One process of this machine: its pid, and when it started (seconds since 1970, as the system counts them)."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has this pid now. Raises psutil.NoSuchProcess."""
        return cls(pid=pid, started=psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The process if it is still there, alive and the same."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started) < 0.5 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


def spawn(
    command: Sequence[str], *, mark: str, environment: Mapping[str, str], log: Path | None = None, folder: Path
) -> subprocess.Popen[bytes]:
    """Start a marked process in a session of its own, out of reach of the terminal's Ctrl-C.

    Args:
        command: Program and arguments.
        mark: The cluster that it belongs to.
        environment: All of its environment, but for the mark.
        log: File that takes what it prints; it prints where this process does when left out.
        folder: Its working directory.
    """
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log else None
        return subprocess.Popen(
            list(command),
            env={**environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT if out else None,
            cwd=folder,
            start_new_session=True,
        )


def family(mark: str, known: Iterable[ProcessId] = ()) -> list[psutil.Process]:
    """Every live process of a cluster: those with its mark, the `known` ones, and all descendants of both."""
    found = {process.pid: process for process in _marked(mark)}
    found |= {process.pid: process for identity in known if (process := identity.find())}
    for process in list(found.values()):
        with contextlib.suppress(psutil.Error):
            found |= {child.pid: child for child in process.children(recursive=True)}
    found.pop(os.getpid(), None)
    return [process for process in found.values() if _alive(process)]


def end(mark: str, known: Sequence[ProcessId] = (), *, grace_s: float = 3.0, timeout_s: float = 20.0) -> int:
    """End every process of a cluster: SIGTERM to the `known` ones, then SIGKILL to what they leave behind.

    The known processes have `grace_s` to end their own children.

    Returns:
        How many processes there were.

    Raises:
        SurvivorsError: some are still there after `timeout_s`, with their pids and names.
    """
    seen = {process.pid: process for process in family(mark, known)}
    num_seen = len(seen)
    for identity in known:
        if process := identity.find():
            _send(process, "terminate")
    start = time.monotonic()
    while left := [process for process in seen.values() if _alive(process)] or family(mark, known):
        seen = {process.pid: process for process in [*left, *family(mark, known)]}
        elapsed = time.monotonic() - start
        if elapsed > timeout_s:
            raise SurvivorsError("these processes cannot be ended: " + ", ".join(map(_describe, left)))
        if elapsed > grace_s or not any(identity.find() for identity in known):
            for process in seen.values():
                _send(process, "kill")
        time.sleep(_POLL_S)
    return num_seen


def _marked(mark: str) -> list[psutil.Process]:
    """This user's processes whose environment, as they were started with it, has the mark."""
    found, user = [], os.getuid()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.uids().real == user and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def _alive(process: psutil.Process) -> bool:
    """Whether a process is there and no zombie; one of our own children is reaped on the way."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _send(process: psutil.Process, action: str) -> None:
    """Terminate or kill a process; psutil compares its start time first."""
    with contextlib.suppress(psutil.Error):
        getattr(process, action)()


def _describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.pid} ({process.name()})"
    return str(process.pid)
