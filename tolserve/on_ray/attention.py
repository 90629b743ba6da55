"""An attention node as a Serve deployment: ready when loaded, replaced when its engine fails."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.serve.handle import DeploymentHandle

from tolserve.attention_node import AttentionReplica
from tolserve.followers import attention_follows
from tolserve.membership import View
from tolserve.on_ray.directory import Membership, node_ip, wait_for_edition
from tolserve.on_ray.rows import RayTransport
from tolserve.serve_config import ServeConfig

_LOOK_S = 0.1
_QUIET_S = 1.0
"""A node that ends has had nothing to do for so long: what was on its way to it has come."""


class AttentionDeployment:
    """A replica with an engine of its own; gateways connect to its link."""

    async def __init__(self, config: ServeConfig, directory: DeploymentHandle[Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        plan, addresses = await wait_for_edition(directory)
        self._following: asyncio.Task[None] | None = None
        self._replica = await asyncio.to_thread(
            AttentionReplica,
            config,
            host=node_ip(),
            edition=plan.serving,
            addresses=addresses,
            transport=RayTransport() if config.transport == "ray" else None,
        )
        self._membership = Membership(
            directory,
            "attention",
            self._replica.address,
            on_view=self._see,
            editions=self._replica.editions,
        )

    async def check_health(self) -> None:
        """Called by Serve, which replaces this replica when it raises."""
        if self._replica.failure is not None:
            raise RuntimeError(f"the engine failed: {self._replica.failure}") from self._replica.failure

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve, for `tolserve.on_ray.scaling`."""
        return {"num_open": float(self._replica.num_open)}

    async def __del__(self) -> None:
        """Called by Serve, which then waits: what runs here ends first, and nothing more is sent here."""
        self._replica.drain()
        quiet_s = 0.0
        while quiet_s < _QUIET_S and self._replica.failure is None:
            await asyncio.sleep(_LOOK_S)
            quiet_s = 0.0 if self._replica.num_open else quiet_s + _LOOK_S
        await self._membership.leave()
        if self._following is not None:
            await self._following
        await asyncio.to_thread(self._replica.stop)

    def _see(self, view: View) -> None:
        for edition in self._replica.editions:
            addresses = view.holders(edition)
            if view.complete or all(addresses):
                self._replica.update_addresses(edition, addresses)
        if view.plan is not None and (self._following is None or self._following.done()):
            self._following = asyncio.get_running_loop().create_task(self._follow(view))

    async def _follow(self, view: View) -> None:
        fault = await asyncio.to_thread(attention_follows, self._replica, view)
        self._membership.tell(plan=view.plan, editions=self._replica.editions, fault=fault)
