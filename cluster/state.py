"""What a running cluster leaves on disk, so that another command can describe it and end it.

One small JSON file for a cluster, in the user's state folder, written before the first process is started.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.processes import ProcessId, family

DEFAULT_NAME = "local"
"""The cluster of `python -m cluster.local`."""


class ClusterExistsError(RuntimeError):
    """A cluster of this name is up, or on its way up or down."""


@dataclass(frozen=True, kw_only=True)
class ClusterState:
    """One cluster of this machine.

    `owner` is the process that will end the cluster itself: the one that starts it, until it is ready, and from then on
    None where it outlives the command that started it. Addresses are empty until `ready`.
    """

    name: str
    mark: str
    folder: str
    owner: ProcessId | None = None
    processes: tuple[ProcessId, ...] = ()
    ready: bool = False
    address: str = ""
    dashboard_url: str = ""
    s3_url: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_stale(self) -> bool:
        """Whether nobody will end it: its owner has gone, or the processes it was started as have."""
        if self.owner:
            return self.owner.find() is None
        return not all(process.find() for process in self.processes)

    def num_processes(self) -> int:
        """How many of its processes are alive."""
        return len(family(self.mark, self.processes))


def state_folder() -> Path:
    """Where the files are: memoryllm-tol in $XDG_STATE_HOME, which is ~/.local/state unless set."""
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "memoryllm-tol"


def claim(state: ClusterState) -> None:
    """Write the file of a new cluster.

    Raises:
        ClusterExistsError: there is one of this name.
    """
    part = _write_part(state)
    try:
        os.link(part, _path(state.name))
    except FileExistsError as error:
        raise ClusterExistsError(
            f"a cluster named {state.name!r} is up, or on its way up or down: {_path(state.name)}; "
            "`python -m cluster.local status` shows it, `python -m cluster.local down` ends it"
        ) from error
    finally:
        part.unlink()


def save(state: ClusterState) -> None:
    """Replace the file of a cluster."""
    os.replace(_write_part(state), _path(state.name))


def load(name: str) -> ClusterState | None:
    """The cluster of this name, or None."""
    try:
        values: dict[str, Any] = json.loads(_path(name).read_text())
    except FileNotFoundError:
        return None
    owner = values.pop("owner")
    processes = tuple(ProcessId(**process) for process in values.pop("processes"))
    return ClusterState(**values, owner=ProcessId(**owner) if owner else None, processes=processes)


def load_all() -> Iterator[ClusterState]:
    """Every cluster of this user, by name."""
    for path in sorted(state_folder().glob("*.json")):
        if state := load(path.stem):
            yield state


def forget(state: ClusterState) -> None:
    """Remove a cluster's temporary folder, its file, and the state folder with the last one."""
    shutil.rmtree(state.folder, ignore_errors=True)
    _path(state.name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        state_folder().rmdir()


def _path(name: str) -> Path:
    return state_folder() / f"{name}.json"


def _write_part(state: ClusterState) -> Path:
    state_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    part = state_folder() / f"{state.name}.{os.getpid()}.part"
    part.write_text(json.dumps(asdict(state), indent=1))
    return part
