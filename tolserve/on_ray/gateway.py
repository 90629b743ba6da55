"""The endpoint as a Serve deployment: HTTP on a port of its own, links to the attention nodes.

HTTP does not come through Serve's proxy, where every chunk of a stream is a Ray object of its own: with 32 clients a
token took 0.9 ms of CPU in proxy and replica there and 0.05 ms here, the first one 90 ms longer.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from tolbuild.checkpoint import open_checkpoint
from tolbuild.table.errors import ToLError
from tolserve.app import App, AppConfig
from tolserve.http_server import HttpServer
from tolserve.link.fleet import Fleet
from tolserve.membership import Member, View
from tolserve.on_ray.directory import Membership, ask
from tolserve.serve_config import ServeConfig, model_info


class GatewayDeployment:
    """Binds the port when made. `nodes` are the other deployments, which Serve thereby keeps in one application."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: ServeConfig, directory: DeploymentHandle[Any], *nodes: DeploymentHandle[Any]
    ) -> None:
        self._config = config
        self._fleet: Fleet | None = None
        self._memory: list[Member] = []
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.to_thread(HttpServer, self._make_app, host=config.host, port=config.port)
        self._membership = Membership(directory, "gateway", self._server.address, on_view=self._see)

    async def check_health(self) -> None:
        """Called by Serve, which replaces this replica when it raises."""
        if not self._server.alive:
            raise RuntimeError(f"the HTTP server ended: {self._server.failure}")

    async def __del__(self) -> None:
        await self._membership.leave()
        await asyncio.to_thread(self._server.stop)

    async def _make_app(self) -> App:
        checkpoint = open_checkpoint(self._config.checkpoint)
        self._fleet = Fleet(deadline_s=self._config.deadline_s)
        limits = AppConfig(api_key=self._config.api_key, max_open=self._config.max_open)
        model = model_info(self._config, checkpoint.config)
        return App(self._fleet, model, checkpoint.tokenizer(), limits, memory=lambda: self._memory, admin=self)

    async def table_state(self) -> dict[str, Any]:
        """See `tolserve.table_admin.TableAdmin`."""
        return await self._ask("state")

    async def use_version(self, version: int | None) -> dict[str, Any]:
        """See `tolserve.table_admin.TableAdmin`."""
        return await self._ask("use_version", version)

    async def _ask(self, method: str, *args: Any) -> dict[str, Any]:
        """Ask the directory from the server's loop."""
        asked = asyncio.run_coroutine_threadsafe(ask(self._directory, method, *args), self._loop)
        try:
            answer: dict[str, Any] = await asyncio.wrap_future(asked)
        except RayTaskError as error:
            if isinstance(error.cause, ToLError):
                raise error.cause from error
            raise
        return answer

    def _see(self, view: View) -> None:
        self._memory = view.memory_members()
        asyncio.run_coroutine_threadsafe(self._follow(view), self._server.loop)

    async def _follow(self, view: View) -> None:
        """Give new requests what the plan says and tell what is in use; in the server's loop."""
        assert self._fleet is not None
        plan = view.plan
        if plan is not None:
            self._fleet.serve(plan.serving.key)
            used = self._fleet.in_use()
            editions = tuple(one for one in (plan.serving, plan.other) if one is not None and one.key in used)
            self._loop.call_soon_threadsafe(partial(self._membership.tell, plan=plan, editions=editions))
        await self._fleet.update(view.attention())
