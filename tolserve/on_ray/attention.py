"""An attention node as a Serve deployment: ready when loaded, replaced when its engine fails."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.serve.handle import DeploymentHandle

from tolserve.membership import View
from tolserve.on_ray.directory import Membership, ask, node_ip, wait_for_memory
from tolserve.on_ray.rows import RayTransport
from tolserve.replica import AttentionReplica
from tolserve.serve_config import ServeConfig


class AttentionDeployment:
    """A replica with an engine of its own; gateways connect to its link."""

    async def __init__(self, config: ServeConfig, directory: DeploymentHandle[Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        version = await ask(directory, "table_version")
        addresses = await wait_for_memory(directory, config.num_partitions)
        self._num_partitions = config.num_partitions
        transport = RayTransport() if config.transport == "ray" else None
        self._replica = await asyncio.to_thread(
            AttentionReplica, config, host=node_ip(), version=version, addresses=addresses, transport=transport
        )
        self._membership = Membership(directory, "attention", self._replica.address, on_view=self._see)

    async def check_health(self) -> None:
        """Called by Serve, which replaces this replica when it raises."""
        if self._replica.failure is not None:
            raise RuntimeError(f"the engine failed: {self._replica.failure}") from self._replica.failure

    async def __del__(self) -> None:
        await self._membership.leave()
        await asyncio.to_thread(self._replica.stop)

    def _see(self, view: View) -> None:
        addresses = view.memory(self._num_partitions)
        if view.complete or all(addresses):
            self._replica.update_addresses(addresses)
