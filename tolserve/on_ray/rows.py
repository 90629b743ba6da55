"""Rows by Ray actor calls: an actor that answers the row protocol, and links whose requests are calls of it.

An answer comes whole, as the value of its call: through the object store where it is large. Whoever may join the
cluster may ask; Ray has its own TLS for that (RAY_USE_TLS).
"""

from __future__ import annotations

import uuid
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tolserve.memory.holdings import Holdings
from tolserve.memory.node_config import NodeConfig
from tolserve.transport.errors import LinkError
from tolserve.transport.link import Address
from tolserve.transport.session import Responder, Session

NAMESPACE = "tolserve-rows"
_TICK_S = 0.5
_MOST_LINKS = 512
"""A client that died left its link: the one that was silent for longest makes room for a new one."""

Answer = tuple[NDArray[np.uint8], bool]
"""Bytes of the row protocol, and whether the connection ends behind them."""


class RowCalls:
    """Sessions by the number of their link. Calls of one client come in order, one at a time."""

    def __init__(self, responders: Sequence[Responder]) -> None:
        self._responders = list(responders)
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def open(self, link: str, place: int) -> bool:
        """Begin a session with the responder number `place`; whether there is one."""
        if place >= len(self._responders):
            return False
        self._sessions[link] = Session(self._responders[place])
        while len(self._sessions) > _MOST_LINKS:
            self._sessions.popitem(last=False)
        return True

    def end(self, link: str) -> None:
        """The client has gone."""
        self._sessions.pop(link, None)

    def exchange(self, link: str, said: bytes) -> Answer | None:
        """What a session answers to these bytes; None where it has ended."""
        session = self._sessions.get(link)
        if session is None:
            return None
        self._sessions.move_to_end(link)
        answer = bytearray()
        left = memoryview(said)
        while left and not session.closing:
            left = left[session.take(left) :]
            while (piece := session.piece()) or session.waiting:
                session.wait(_TICK_S)
                for buffer in piece:
                    answer += buffer
        if session.closing:
            self.end(link)
        return np.frombuffer(answer, np.uint8), session.closing


class RowActor(RowCalls):
    """One partition of a table, loaded when made. Calls of the group `control` get through while rows are served."""

    def __init__(self, config: NodeConfig, versions: Sequence[int] | None = None) -> None:
        self._holdings = Holdings(config, versions)
        super().__init__([self._holdings.service])

    @ray.method(concurrency_group="control")
    def held(self) -> tuple[bytes, tuple[int, ...]]:
        """Identity of the version held for longest, and all versions; the first answer says that it is loaded."""
        return self._holdings.identity, self._holdings.versions

    @ray.method(concurrency_group="control")
    def load(self, version: int | None) -> None:
        """See `Holdings.load`."""
        self._holdings.load(version)

    @ray.method(concurrency_group="control")
    def drop(self, version: int) -> None:
        """See `Holdings.drop`."""
        self._holdings.drop(version)

    @ray.method(concurrency_group="control")
    def figures(self) -> dict[str, Any]:
        """See `MemoryNode.figures`."""
        return {**self._holdings.figures(), "num_clients": len(self._sessions)}


class RayMemoryNode:
    """A `RowActor` of its own on this machine, which ends with the process that made it.

    Args:
        environment: variables that the actor needs beside those of its maker.

    Raises:
        RayError: the actor could not be made; the cause is the fault of its table.
    """

    def __init__(
        self,
        config: NodeConfig,
        versions: Sequence[int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        name = f"rows-{config.partition.index}-{uuid.uuid4().hex[:8]}"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        decorate: Any = ray.remote
        actor = decorate(num_cpus=0, concurrency_groups={"control": 1})(RowActor)
        more = {"runtime_env": {"env_vars": dict(environment)}} if environment else {}
        made = actor.options(name=name, namespace=NAMESPACE, scheduling_strategy=here, **more)
        self._actor = made.remote(config, versions)
        self.address: Address = (name, 0)
        self.identity: bytes
        self.versions: tuple[int, ...]
        self._see()
        self._figures: dict[str, Any] = {}

    def load(self, version: int | None) -> None:
        """See `Holdings.load`; rows are served meanwhile.

        Raises:
            ToLError: as there.
        """
        self._ask(self._actor.load.remote(version))

    def drop(self, version: int) -> None:
        """See `Holdings.drop`."""
        self._ask(self._actor.drop.remote(version))

    def _ask(self, call: Any) -> None:
        try:
            ray.get(call)
        except RayTaskError as error:
            raise error.cause from error
        self._see()

    def _see(self) -> None:
        self.identity, self.versions = ray.get(self._actor.held.remote())

    def figures(self) -> dict[str, Any]:
        """What it had done when it was last checked."""
        return self._figures

    async def check(self) -> None:
        """Ask it how it is.

        Raises:
            RayError: it has ended.
        """
        self._figures = await self._actor.figures.remote()

    def stop(self) -> None:
        """End the actor."""
        ray.kill(self._actor)


class RayLink:
    """Calls of one actor, answered in order."""

    def __init__(self, actor: Any, link: str, name: str) -> None:
        self._actor = actor
        self._link = link
        self._name = name
        self._calls: deque[Any] = deque()
        self._part = memoryview(b"")
        self._is_open = True
        self._has_ended = False
        self._fault = f"{name} closed the connection"

    def send(self, frame: bytes) -> None:
        """See `Link.send`."""
        if not self._is_open:
            raise LinkError(f"the link to {self._name} is closed")
        try:
            self._calls.append(self._actor.exchange.remote(self._link, frame))
        except RayError as error:
            raise LinkError(f"{self._name}: {first_line(error)}") from error

    def recv_into(self, *views: memoryview) -> int:
        """See `Link.recv_into`."""
        total = 0
        for view in views:
            filled = 0
            while filled < len(view) and (len(self._part) or self._next(total + filled)):
                count = min(len(self._part), len(view) - filled)
                view[filled : filled + count] = self._part[:count]
                self._part = self._part[count:]
                filled += count
            total += filled
            if filled < len(view):  # what comes from now on belongs here, not into the next
                break
        return total

    def wait_readable(self, timeout_s: float) -> None:
        """See `Link.wait_readable`."""
        if self._calls and not len(self._part):
            ray.wait([self._calls[0]], timeout=timeout_s)

    def close(self) -> None:
        """See `Link.close`."""
        if self._is_open:
            self._is_open = False
            self._calls.clear()
            self._part = memoryview(b"")
            self._actor.end.remote(self._link)

    def _next(self, before: int) -> bool:
        """Take the next answer that has bytes; False where none has come. Its end is told behind its last bytes.

        Raises:
            LinkError: the connection is over, and nothing came `before` that.
        """
        while self._is_open and not self._has_ended and self._calls and ray.wait([self._calls[0]], timeout=0)[0]:
            try:
                answer: Answer | None = ray.get(self._calls.popleft())
            except RayError as error:
                self._fault = f"{self._name}: {first_line(error)}"
                self._has_ended = True
                break
            if answer is None:
                self._has_ended = True
                break
            self._part, self._has_ended = memoryview(answer[0]), answer[1]
            if len(self._part):
                return True
        if before or (self._is_open and not self._has_ended):
            return False
        raise LinkError(self._fault)


class RayTransport:
    """Connects to actors by their names; see `RayMemoryNode.address`."""

    def connect(self, address: Address, timeout_s: float) -> RayLink:
        """See `Transport.connect`."""
        actor_name, place = address
        name = f"memory node {actor_name}:{place}"
        try:
            actor = ray.get_actor(actor_name, namespace=NAMESPACE)
            link = uuid.uuid4().hex
            opening: Any = actor.open.remote(link, place)
            is_there = bool(ray.get(opening, timeout=timeout_s))
        except (ValueError, RayError) as error:
            raise LinkError(f"{name} cannot be reached: {first_line(error)}") from error
        if not is_there:
            raise LinkError(f"{name} cannot be reached: its actor has no such responder")
        return RayLink(actor, link, name)


def first_line(error: Exception) -> str:
    """What a Ray error says, without the traces that it carries."""
    return next(iter(str(error).strip().splitlines()), repr(error))
