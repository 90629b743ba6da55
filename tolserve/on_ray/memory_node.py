"""A memory node as a Serve deployment: ready when loaded, replaced when it fails. Its process does without torch."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from ray.serve.handle import DeploymentHandle

from tolserve.followers import memory_follows, versions_of
from tolserve.membership import View
from tolserve.memory.node import MemoryNode
from tolserve.on_ray.directory import Membership, ask, node_ip
from tolserve.on_ray.rows import RayMemoryNode
from tolserve.rollout import Edition, Plan
from tolserve.row_tiers import node_config
from tolserve.serve_config import ServeConfig


class MemoryNodeDeployment:
    """A replica of one partition: its row server runs in a thread of this process, on a free port.

    With `transport: ray` the rows are in an actor beside this process instead, which ends with it.
    """

    async def __init__(self, config: ServeConfig, partition: int, directory: DeploymentHandle[Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._count = config.num_partitions
        self._following: asyncio.Task[None] | None = None
        node = node_config(config, partition=partition, version=None, host=node_ip())
        plan: Plan = (await ask(directory, "view")).plan
        versions = versions_of(plan, self._count)
        self._node: MemoryNode | RayMemoryNode
        if config.transport == "ray":
            self._node = await asyncio.to_thread(RayMemoryNode, node, versions)
        else:
            node = replace(node, transport=config.transport, security=config.security)
            self._node = (await asyncio.to_thread(MemoryNode, node, versions)).start()
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
        if isinstance(self._node, RayMemoryNode):
            await self._node.check()
        elif not self._node.alive:
            raise RuntimeError(f"the row server at {self._node.address} ended; the log has the reason")

    async def __del__(self) -> None:
        if hasattr(self, "_membership"):  # it is there once everything else is
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
