"""The directory as a deployment, and a node's tie to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from tolserve.membership import HEARTBEAT_S, Directory, Kind, Member, View

_log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 5.0
_LEAVE_TIMEOUT_S = 0.5
_MEMORY_PATIENCE_S = 0.2


class DirectoryDeployment:
    """Knows who is there and which table version is served. The version is data (`user_config`), so that a new one
    restarts nobody.
    """

    def __init__(self) -> None:
        self._directory = Directory()
        self._version: int | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve with what the builder set."""
        self._version = user_config["table_version"]

    async def table_version(self) -> int | None:
        """The version that nodes load."""
        return self._version

    async def announce(self, member: Member) -> View:
        """See Directory."""
        return self._directory.announce(member)

    async def leave(self, name: str) -> None:
        """See Directory."""
        self._directory.leave(name)

    async def view(self) -> View:
        """See Directory."""
        return self._directory.view()


def node_ip() -> str:
    """The address that the cluster knows this node by, where its servers listen."""
    own = ray.get_runtime_context().get_node_id()
    return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == own)


async def ask(handle: DeploymentHandle[Any], method: str, *args: Any) -> Any:
    """One call of the directory; waits for it to come back where it is down.

    Raises:
        TimeoutError: it did not answer in time.
    """
    response = getattr(handle, method).remote(*args)
    return await asyncio.wait_for(response, _CALL_TIMEOUT_S)


async def wait_for_memory(handle: DeploymentHandle[Any], num_partitions: int) -> list[list[tuple[str, int]]]:
    """Addresses of the memory nodes, once every partition has one."""
    rounds = 0
    while True:
        addresses = (await ask(handle, "view")).memory(num_partitions)
        if all(addresses):
            return list(addresses)
        rounds += 1
        if rounds % 50 == 0:
            missing = [index for index, nodes in enumerate(addresses) if not nodes]
            _log.warning("waiting for memory nodes of the partitions %s", missing)
        await asyncio.sleep(_MEMORY_PATIENCE_S)


class Membership:
    """Announces one node for as long as this object is kept, and shows it what else is there."""

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        kind: Kind,
        address: tuple[str, int],
        *,
        partition: int = 0,
        identity: str = "",
        on_view: Callable[[View], None] | None = None,
        figures: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._handle = handle
        self._member = Member(
            name=f"{kind}-{partition}-{uuid.uuid4().hex[:8]}",
            kind=kind,
            address=address,
            partition=partition,
            identity=identity,
            pid=os.getpid(),
        )
        self._on_view = on_view
        self._figures = figures
        self._task = asyncio.get_running_loop().create_task(self._beat())

    async def leave(self) -> None:
        """Stop announcing and be forgotten, at once where the directory still is."""
        self._task.cancel()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._handle.leave.remote(self._member.name), _LEAVE_TIMEOUT_S)

    async def _beat(self) -> None:
        while True:
            try:
                view = await ask(self._handle, "announce", replace(self._member, figures=self._figures()))
                if self._on_view is not None:
                    self._on_view(view)
            except Exception as error:  # noqa: BLE001 - whatever happens to the directory, the node goes on
                _log.warning("the directory did not answer: %r", error)
            await asyncio.sleep(HEARTBEAT_S)
