"""A memory node as a Serve deployment: ready when loaded, replaced when it fails. Its process does without torch."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.serve.handle import DeploymentHandle

from tolserve.followers import memory_follows, versions_of
from tolserve.membership import View
from tolserve.memory.node import MemoryNode, NodeConfig
from tolserve.memory.partition import Partition
from tolserve.on_ray.directory import Membership, ask, node_ip
from tolserve.rollout import Edition, Plan
from tolserve.serve_config import ServeConfig
from tolserve.transport.server import ServerConfig


class MemoryNodeDeployment:
    """A replica of one partition: its row server runs in a thread of this process, on a free port."""

    async def __init__(self, config: ServeConfig, partition: int, directory: DeploymentHandle[Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        assert config.table is not None
        self._count = config.num_partitions
        self._following: asyncio.Task[None] | None = None
        node = NodeConfig(
            table=config.table,
            partition=Partition(index=partition, count=self._count),
            keep=config.keep,
            server=ServerConfig(host=node_ip()),
        )
        plan: Plan = (await ask(directory, "view")).plan
        self._node = (await asyncio.to_thread(MemoryNode, node, versions_of(plan, self._count))).start()
        self._membership = Membership(
            directory,
            "memory",
            self._node.address,
            partition=partition,
            num_partitions=self._count,
            editions=self._editions(),
            on_view=self._see,
            figures=self._node.figures,
        )

    async def check_health(self) -> None:
        """Called by Serve, which replaces this replica when it raises."""
        if not self._node.alive:
            raise RuntimeError(f"the row server at {self._node.address} ended; the log has the reason")

    async def __del__(self) -> None:
        await self._membership.leave()
        self._node.stop()

    def _see(self, view: View) -> None:
        if view.plan is not None and (self._following is None or self._following.done()):
            self._following = asyncio.get_running_loop().create_task(self._follow(view.plan))

    async def _follow(self, plan: Plan) -> None:
        fault = await asyncio.to_thread(memory_follows, self._node, self._count, plan)
        self._membership.tell(plan=plan, editions=self._editions(), fault=fault)

    def _editions(self) -> tuple[Edition, ...]:
        return tuple(Edition(version=version, num_partitions=self._count) for version in self._node.versions)


class MemoryNodesDeployment:
    """Keeps the memory nodes of one more layout in one application of their own."""

    def __init__(self, *nodes: DeploymentHandle[Any]) -> None:
        self._nodes = nodes
