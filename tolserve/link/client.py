"""The gateway's end of one link: an asyncio protocol that reads a replica's frames where they arrive."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, cast

from tolserve.async_engine import Work
from tolserve.engine.request import RequestOutput
from tolserve.link.protocol import (
    LENGTH,
    LinkError,
    decode,
    encode,
    frame_length,
    output_from_wire,
    params_to_wire,
)

_log = logging.getLogger(__name__)

Sink = Callable[[RequestOutput | None], None]
"""Takes a generation's outputs; None once: the replica is lost."""


class ReplicaLink(asyncio.Protocol):
    """One connection to one attention replica.

    Attributes:
        name: the replica's.
        hello: what the replica said of itself; empty until it did.
        stats: its engine's latest statistics.
        editions: what it can compute with: by key what answers name it by; see `tolserve.rollout.Edition`.
        draining: it is about to end and takes nothing new.
    """

    def __init__(
        self,
        name: str,
        on_lost: Callable[[ReplicaLink], None],
        on_editions: Callable[[ReplicaLink], None] = lambda link: None,
    ) -> None:
        self.name = name
        self.hello: dict[str, Any] = {}
        self.stats: dict[str, Any] = {}
        self.editions: dict[str, str] = {}
        self.draining = False
        self._on_editions = on_editions
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_lost = on_lost
        self._sinks: dict[int, Sink] = {}
        self._next_id = 0
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._heard_at = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since the replica last sent anything."""
        return time.monotonic() - self._heard_at

    @property
    def num_open(self) -> int:
        """Generations that have not finished."""
        return len(self._sinks)

    def submit(self, work: Work, sink: Sink, *, stream: bool, edition: str = "") -> int:
        """Start a generation, of an edition where one is named; its id on this link."""
        assert self._transport is not None
        prompt, params = work
        self._next_id += 1
        self._sinks[self._next_id] = sink
        message = {
            "submit": self._next_id,
            "prompt": prompt,
            "params": params_to_wire(params),
            "stream": stream,
        }
        if edition:
            message["edition"] = edition
        self._transport.write(encode(message))
        return self._next_id

    def cancel(self, wire_id: int) -> None:
        """End a generation; its sink is not called again."""
        if self._sinks.pop(wire_id, None) is not None and self._transport is not None:
            self._transport.write(encode({"cancel": wire_id}))

    def close(self) -> None:
        """Cut the connection; open generations learn that the replica is lost."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: every open generation is told."""
        self._transport = None
        if not self.greeted.done():
            self.greeted.set_exception(exc or ConnectionError(f"replica {self.name} closed the connection"))
        self._on_lost(self)
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink(None)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: take every whole frame."""
        self._buffer += data
        self._heard_at = time.monotonic()
        try:
            while len(self._buffer) >= LENGTH.size:
                end = LENGTH.size + frame_length(self._buffer[: LENGTH.size])
                if len(self._buffer) < end:
                    return
                message = decode(self._buffer[LENGTH.size : end])
                del self._buffer[:end]
                self._handle(message)
        except LinkError as error:
            _log.warning("replica %s is dropped: %s", self.name, error)
            self.close()

    def _handle(self, message: dict[str, Any]) -> None:
        for values in message.get("out", ()):
            wire_id, output = output_from_wire(values)
            sink = self._sinks.pop(wire_id, None) if output.finished else self._sinks.get(wire_id)
            if sink is not None:
                sink(output)
        self.stats = message.get("stats", self.stats)
        self.draining = message.get("draining", self.draining)
        self._learn(self.stats.get("editions"))
        if "hello" in message:
            self.hello = message["hello"]
            self._learn(self.hello.get("editions"))
            if not self.greeted.done():
                self.greeted.set_result(None)

    def _learn(self, editions: dict[str, str] | None) -> None:
        if editions is not None and editions != self.editions:
            self.editions = editions
            self._on_editions(self)
