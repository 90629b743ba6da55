"""A cluster for the length of a `with` block, and commands on it: all are gone at its end, however that comes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import head, processes, state
from cluster.head import REPOSITORY, ClusterOptions
from cluster.interrupts import Interrupts
from cluster.state import ClusterState


class StepError(RuntimeError):
    """A command failed; what it printed says why."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """A running cluster and the commands that belong to it."""

    cluster: ClusterState
    interrupts: Interrupts

    def run(self, *command: str, hide: str = "") -> None:
        """Show a command, run it to its end with its output here.

        Args:
            command: program of this environment, and arguments.
            hide: regular expression of lines to leave out, unless the command fails.

        Raises:
            StepError: it exits with something other than 0.
            Interrupted: a signal came; the block's end takes the command down.
        """
        print("$ " + shlex.join(command), flush=True)
        log = self._log() if hide else None
        child = self._spawn(command, log)
        follower = _Follower(log, re.compile(hide)) if log else None

        def is_done() -> bool:
            code = child.poll()
            if follower:
                follower.show()
            return code is not None

        self.interrupts.wait(is_done, timeout_s=float("inf"))
        if child.returncode:
            said = f"; all that it said:\n{log.read_text(errors='replace')}" if log else ""
            raise StepError(f"`{shlex.join(command[:3])} ...` failed (exit code {child.returncode}){said}")

    def serve(self, *command: str, ready: str, timeout_s: float) -> str:
        """Show a command, start it, and return the line in which it prints `ready`; it goes on running.

        Raises:
            StepError: it ended or did not say so in time, with the end of what it printed.
            Interrupted: a signal came.
        """
        print("$ " + shlex.join(command), flush=True)
        log = self._log()
        child = self._spawn(command, log)
        said: list[str] = []

        def is_ready() -> bool:
            said[:] = [line for line in log.read_text(errors="replace").splitlines() if ready in line]
            return bool(said) or child.poll() is not None

        self.interrupts.wait(is_ready, timeout_s=timeout_s)
        if not said:
            raise StepError(f"`{shlex.join(command[:3])} ...` did not come up:\n{head.tail(log)}")
        return said[0]

    def _log(self) -> Path:
        """A new file for what a command prints, in the cluster's folder."""
        descriptor, path = tempfile.mkstemp(prefix="said-", suffix=".log", dir=self.cluster.folder)
        os.close(descriptor)
        return Path(path)

    def _spawn(self, command: Sequence[str], log: Path | None) -> subprocess.Popen[bytes]:
        """`python` and `ray` are those of this environment; the mark makes the cluster's end the command's."""
        program = str(Path(sys.executable).with_name(command[0]))
        environment = head.client_environment(self.cluster)
        mark = self.cluster.mark
        return processes.spawn([program, *command[1:]], mark=mark, environment=environment, log=log, folder=REPOSITORY)


class _Follower:
    """Prints the whole lines that a growing file has got since the last time, but for some."""

    def __init__(self, log: Path, hide: re.Pattern[str]) -> None:
        self._log = log
        self._hide = hide
        self._num_bytes = 0

    def show(self) -> None:
        with self._log.open("rb") as file:
            file.seek(self._num_bytes)
            new, end, _ = file.read().rpartition(b"\n")
        self._num_bytes += len(new) + len(end)
        for line in new.decode(errors="replace").splitlines():
            if not self._hide.search(line):
                print(line, flush=True)


@contextmanager
def session(kind: str, options: ClusterOptions) -> Iterator[Session]:
    """A cluster of this process's own, beside any other.

    What an earlier one left whose process was killed is ended first. Signals are looked for while commands run and
    raise `Interrupted`; once the end has begun, nothing stops it.
    """
    with Interrupts() as interrupts:
        for left in state.load_all():
            if left.name.startswith(f"{kind}-") and left.is_stale:
                head.stop(left)
        cluster = head.start(f"{kind}-{os.getpid()}", options, interrupts, owned=True)
        try:
            yield Session(cluster=cluster, interrupts=interrupts)
        finally:
            sys.stdout.flush()
            head.stop(cluster)
