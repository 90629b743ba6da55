"""The directory as a deployment, and a node's tie to it; see `tolserve.conductor`."""

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

from tolbuild.table.errors import ToLError
from tolserve.conductor import Conductor, TableRules
from tolserve.membership import HEARTBEAT_S, Kind, Member, View
from tolserve.rollout import ChangeRefusedError, Edition, Plan
from tolserve.serve_config import ServeConfig

_log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 5.0
_LEAVE_TIMEOUT_S = 0.5
_MEMORY_PATIENCE_S = 0.2


class DirectoryDeployment:
    """Knows who is there, and leads from one edition to another. The version is data (`user_config`, and what the
    admin asks for), so that a new one restarts nobody.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._rules = TableRules(url=config.table, pinned_bands=config.pinned_bands) if config.table else None
        self._conductor: Conductor | None = None
        self._following: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve with what the builder set; another version than before is gone over to."""
        version = user_config["table_version"]
        if self._conductor is None:
            edition = Edition(version=version, num_partitions=self._config.num_partitions)
            plan = Plan(deployed=user_config["deployed"], serving=edition, newest=version or 0)
            self._conductor = Conductor(plan)
        elif version is not None:
            await self.use_version(version)
        if self._config.follow_versions and self._following is None:
            self._following = asyncio.create_task(self._follow(self._config.follow_versions))

    async def announce(self, member: Member) -> View:
        """See Conductor."""
        return self._leading.announce(member)

    async def leave(self, name: str) -> None:
        """See Conductor."""
        self._leading.leave(name)

    async def view(self) -> View:
        """See Conductor."""
        return self._leading.view()

    async def config(self) -> ServeConfig:
        """What was deployed."""
        return self._config

    async def state(self) -> dict[str, Any]:
        """See `Conductor.state`; with the table's URL and the versions published there."""
        published = await asyncio.to_thread(self._rules.versions) if self._rules else []
        return {"table": self._config.table, "published": published, **self._leading.state()}

    async def use_version(self, version: int | None) -> dict[str, Any]:
        """Begin to go to a version of the table (None: the latest); the state then.

        Raises:
            ToLError: there is no table, the version does not fit, or there are two editions already.
        """
        serving = self._leading.plan.serving.version
        if self._rules is None or serving is None:
            raise ChangeRefusedError("the endpoint serves no table (--table), so that it has no versions")
        number = await asyncio.to_thread(self._rules.check, serving, version)
        self._leading.change(version=number)
        return await self.state()

    async def use_layout(self, num_partitions: int) -> None:
        """Begin to go to the memory nodes that are there with so many partitions.

        Raises:
            ToLError: they are not there, or there are two editions already.
        """
        nodes = [one for one in self._leading.view().memory_members() if one.num_partitions == num_partitions]
        missing = sorted(set(range(num_partitions)) - {one.partition for one in nodes})
        if missing:
            raise ChangeRefusedError(f"of {num_partitions} partitions {missing} have no memory node yet")
        self._leading.change(num_partitions=num_partitions)

    @property
    def _leading(self) -> Conductor:
        assert self._conductor is not None, "Serve calls reconfigure first"
        return self._conductor

    async def _follow(self, period_s: float) -> None:
        """Go to every version that is newer than any before, once."""
        assert self._rules is not None
        while True:
            await asyncio.sleep(period_s)
            plan = self._leading.plan
            try:
                latest = max(await asyncio.to_thread(self._rules.versions), default=0)
                if plan.other is None and latest > plan.newest:
                    await self.use_version(latest)
            except ToLError as error:
                _log.warning("version %d of %s is not followed: %s", latest, self._rules.url, error)


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


async def wait_for_edition(handle: DeploymentHandle[Any]) -> tuple[Plan, list[list[tuple[str, int]]]]:
    """The plan, and the addresses of the memory nodes that hold what serves, once every partition has one."""
    rounds = 0
    while True:
        view = await ask(handle, "view")
        addresses = view.holders(view.plan.serving)
        if all(addresses):
            return view.plan, addresses
        rounds += 1
        if rounds % 50 == 0:
            missing = [index for index, nodes in enumerate(addresses) if not nodes]
            _log.warning("waiting for memory nodes of the partitions %s", missing)
        await asyncio.sleep(_MEMORY_PATIENCE_S)


class Membership:
    """Announces one node for as long as this object is kept, and shows it what else is there.

    Args:
        on_view: called in the loop with every view.
        more: further fields of the node's `Member`.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        kind: Kind,
        address: tuple[str, int],
        *,
        on_view: Callable[[View], None] | None = None,
        figures: Callable[[], dict[str, Any]] = dict,
        **more: Any,
    ) -> None:
        self._handle = handle
        name = f"{kind}-{more.get('partition', 0)}-{uuid.uuid4().hex[:8]}"
        self._member = Member(name=name, kind=kind, address=address, pid=os.getpid(), **more)
        self._on_view = on_view
        self._figures = figures
        self._changed = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._beat())

    def tell(self, **changes: Any) -> None:
        """Announce other fields of the `Member` from now on, soon where they differ. Called in the loop."""
        changed = replace(self._member, **changes)
        if changed != self._member:
            self._member = changed
            self._changed.set()

    async def leave(self) -> None:
        """Stop announcing and be forgotten, at once where the directory still is."""
        self._task.cancel()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._handle.leave.remote(self._member.name), _LEAVE_TIMEOUT_S)

    async def _beat(self) -> None:
        while True:
            self._changed.clear()
            try:
                view = await ask(self._handle, "announce", replace(self._member, figures=self._figures()))
                if self._on_view is not None:
                    self._on_view(view)
            except Exception as error:  # noqa: BLE001 - whatever happens to the directory, the node goes on
                _log.warning("the directory did not answer: %r", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), HEARTBEAT_S)
