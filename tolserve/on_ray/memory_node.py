"""A memory node as a Serve deployment: ready when loaded, replaced when it fails. Its process does without torch."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from ray.serve.handle import DeploymentHandle

from tolserve.memory.node import MemoryNode
from tolserve.on_ray.directory import Membership, ask, node_ip
from tolserve.on_ray.rows import RayMemoryNode
from tolserve.row_tiers import node_config
from tolserve.serve_config import ServeConfig


class MemoryNodeDeployment:
    """A replica of one partition: its row server runs in a thread of this process, on a free port.

    With `transport: ray` the rows are in an actor beside this process instead, which ends with it.
    """

    async def __init__(self, config: ServeConfig, partition: int, directory: DeploymentHandle[Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        version = await ask(directory, "table_version")
        node = node_config(config, partition=partition, version=version, host=node_ip())
        self._node: MemoryNode | RayMemoryNode
        if config.transport == "ray":
            self._node = await asyncio.to_thread(RayMemoryNode, node)
        else:
            node = replace(node, transport=config.transport, security=config.security)
            self._node = (await asyncio.to_thread(MemoryNode, node)).start()
        identity = self._node.identity.hex()
        self._membership = Membership(
            directory,
            "memory",
            self._node.address,
            partition=partition,
            identity=identity,
            figures=self._node.figures,
        )

    async def check_health(self) -> None:
        """Called by Serve, which replaces this replica when it raises."""
        if isinstance(self._node, RayMemoryNode):
            await self._node.check()
        elif not self._node.alive:
            raise RuntimeError(f"the row server at {self._node.address} ended; the log has the reason")

    async def __del__(self) -> None:
        await self._membership.leave()
        self._node.stop()
