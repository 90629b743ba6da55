"""The replica's end of the link: takes submissions from gateways, gives each its outputs step by step."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from tolserve.async_engine import EngineThread, StepEngine, aborted
from tolserve.engine.request import RequestOutput
from tolserve.link.protocol import (
    LENGTH,
    LinkError,
    RemoteError,
    decode,
    encode,
    frame_length,
    merged,
    output_to_wire,
    params_from_wire,
)

_log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 2.0
"""How long a gateway may leave its socket full before it is dropped: the engine does not wait longer for one."""

STATS_PERIOD_S = 0.5

_DRAINING = encode({"draining": True})


class _Collected:
    """The outputs so far of a generation that is sent in one."""

    def __init__(self) -> None:
        self._outputs: list[RequestOutput] = []
        self._began = 0.0

    def add(self, output: RequestOutput) -> None:
        """Keep a step's output."""
        if not self._outputs:
            self._began = time.monotonic()
        self._outputs.append(output)

    def merged(self) -> RequestOutput:
        """All of them as one, now that the last is there."""
        return merged(self._outputs, time.monotonic() - self._began if len(self._outputs) > 1 else 0.0)


class _Gateway:
    """One connected gateway: its socket and what it has open."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.collected: dict[str, _Collected] = {}
        self._lock = threading.Lock()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        timeout = int(SEND_TIMEOUT_S).to_bytes(8, "little") + (0).to_bytes(8, "little")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)

    def send(self, frame: bytes) -> None:
        """Send a whole frame; a gateway that does not read is cut off."""
        with self._lock:
            try:
                self.sock.sendall(frame)
            except OSError as error:
                _log.warning("gateway %d is dropped: %s", self.number, error)
                self.close()

    def close(self) -> None:
        """Cut the connection; its reader then ends."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class LinkServer:
    """Serves an engine to gateways on a TCP port; a gateway that goes away has its requests cancelled.

    `more_stats` adds to the engine's statistics; it is called by a thread of its own. `place` is told which edition a
    generation is to be of (see `tolserve.edition_engine`) and says whether that is here.

    Attributes:
        address: (host, port) that it listens on.
    """

    def __init__(
        self,
        engine: StepEngine,
        *,
        host: str,
        port: int = 0,
        hello: dict[str, Any],
        more_stats: Callable[[], dict[str, Any]] = dict,
        place: Callable[[str, str], bool] | None = None,
    ) -> None:
        self._hello = encode({"hello": hello})
        self._more_stats = more_stats
        self._place = place
        self._draining = False
        self._gateways: dict[int, _Gateway] = {}
        self._thread = EngineThread(engine, self._deliver)
        self._listener = socket.create_server((host, port))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._stopped = threading.Event()
        for target in (self._accept, self._send_stats):
            threading.Thread(target=target, name=f"link{target.__name__}", daemon=True).start()

    @property
    def failure(self) -> Exception | None:
        """Why the engine does not run any more; None while it does."""
        return self._thread.failure

    @property
    def num_open(self) -> int:
        """Generations that run or wait."""
        return self._thread.num_open

    def drain(self) -> None:
        """Tell every gateway to send nothing more here."""
        self._draining = True
        for gateway in list(self._gateways.values()):
            gateway.send(_DRAINING)

    def stop(self) -> None:
        """Close every connection and end the engine's thread."""
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for gateway in list(self._gateways.values()):
            gateway.close()
        self._thread.stop()

    def _accept(self) -> None:
        number = 0
        while not self._stopped.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            number += 1
            gateway = _Gateway(sock, number)
            self._gateways[number] = gateway
            threading.Thread(target=self._read, args=(gateway,), name=f"link-{number}", daemon=True).start()

    def _read(self, gateway: _Gateway) -> None:
        """Read one gateway's messages until it goes away, then cancel what it had open."""
        opened: set[str] = set()
        try:
            gateway.send(self._hello)
            if self._draining:
                gateway.send(_DRAINING)
            with gateway.sock.makefile("rb", buffering=1 << 16) as stream:
                while header := stream.read(LENGTH.size):
                    if len(header) < LENGTH.size:
                        break
                    self._handle(gateway, decode(stream.read(frame_length(header))), opened)
        except (OSError, LinkError, RuntimeError) as error:
            _log.warning("gateway %d is dropped: %s", gateway.number, error)
        finally:
            del self._gateways[gateway.number]
            gateway.close()
            gateway.sock.close()
            for name in opened:
                self._thread.cancel(name)

    def _handle(self, gateway: _Gateway, message: dict[str, Any], opened: set[str]) -> None:
        wire_id = message.get("submit", message.get("cancel"))
        if type(wire_id) is not int:
            raise LinkError(f"a message with {sorted(message)} has no integer id")
        name = f"{gateway.number}-{wire_id}"
        if "cancel" in message:
            opened.discard(name)
            gateway.collected.pop(name, None)
            self._thread.cancel(name)
            return
        prompt, params = message.get("prompt"), params_from_wire(message.get("params"))
        if not isinstance(prompt, list) or any(type(token) is not int for token in prompt):
            raise LinkError("a submission's prompt is no list of integers")
        edition = message.get("edition")
        if edition is not None and self._place is not None and not self._place(name, str(edition)):
            error = RemoteError("unavailable", "the table version of this request is not served any more; try again")
            gateway.send(encode({"out": [output_to_wire(wire_id, aborted(name, error))]}))
            return
        opened.add(name)
        if not message.get("stream"):
            gateway.collected[name] = _Collected()
        self._thread.submit(name, (prompt, params))

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        """One frame for each gateway that this step made something for. Runs in the engine's thread."""
        batches: dict[int, list[list[Any]]] = defaultdict(list)
        for output in outputs:
            number, wire_id = map(int, output.request_id.split("-"))
            gateway = self._gateways.get(number)
            if gateway is None:
                continue
            parts = gateway.collected.get(output.request_id)
            if parts is not None:
                parts.add(output)
                if not output.finished:
                    continue
                del gateway.collected[output.request_id]
                output = parts.merged()
            batches[number].append(output_to_wire(wire_id, output))
        for number, batch in batches.items():
            if gateway := self._gateways.get(number):
                gateway.send(encode({"out": batch}))

    def _send_stats(self) -> None:
        while not self._stopped.wait(STATS_PERIOD_S):
            frame = encode({"stats": {**self._thread.stats, **self._more_stats()}})
            for gateway in list(self._gateways.values()):
                gateway.send(frame)
