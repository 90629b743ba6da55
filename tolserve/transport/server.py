"""The row protocol on a TCP port: one thread, any number of clients, no hand-over between a request and its rows."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from dataclasses import dataclass
from typing import Any

from tolserve.transport.client_turns import Client, Door, open_door
from tolserve.transport.lanes import lanes_for
from tolserve.transport.link import Address
from tolserve.transport.running import Running
from tolserve.transport.session import Responder
from tolserve.transport.tcp import tune

_log = logging.getLogger(__name__)

_TICK_S = 0.5
_TURNS_A_LOOK = 8
"""While some clients are looked at directly, the others are every so many turns."""
_MAX_HOT = 8


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How a row server treats its clients.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        max_clients: further connections are closed at once.
        stuck_s: a client that takes no data for so long is dropped.
        spin_us: the thread looks for the next request without sleeping for so long after the last one, which saves the
            time that the system takes to wake it.
    """

    host: str = "127.0.0.1"
    port: int = 0
    max_clients: int = 512
    stuck_s: float = 30.0
    spin_us: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port is {self.port}; it must be in [0, 65535]")
        if self.max_clients < 1 or self.stuck_s <= 0 or self.spin_us < 0:
            raise ValueError(
                f"max_clients {self.max_clients} and stuck_s {self.stuck_s} must be positive, "
                f"spin_us {self.spin_us} not negative"
            )


class RowServer(Running):
    """Serves `responder` until `stop`. `start` runs it in a thread of its own, `run` in the caller's.

    A client whose request cannot be answered, whatever the reason, is dropped; the others are served on. When `run`
    ends, by a fault too, every connection and the port are closed.

    Args:
        door: what is used in the place of an accepted socket, and its session (see `tolserve.transport.tls`).

    Raises:
        OSError: the port is taken.
    """

    thread_name = "row-server"

    def __init__(self, responder: Responder, config: ServerConfig | None = None, door: Door = open_door) -> None:
        super().__init__()
        self.config = config or ServerConfig()
        self._responder = responder
        self._door = door
        family = socket.AF_INET6 if ":" in self.config.host else socket.AF_INET
        self._listener = socket.create_server((self.config.host, self.config.port), family=family, backlog=128)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._listening = False
        self._listen(True)
        self._selector.register(self._wake_end, selectors.EVENT_READ)
        self._clients: dict[int, Client] = {}
        self._lanes = lanes_for(responder)
        if self._lanes is not None:
            self._lanes.watch(self._selector.fileno())
        self._closed = False
        self._address = self._listener.getsockname()[:2]

    @property
    def address(self) -> Address:
        """Where clients connect to."""
        host, port = self._address
        return host, port

    @property
    def num_clients(self) -> int:
        """Connections open now."""
        return len(self._clients)

    def run(self) -> None:
        """Serve until `stop`."""
        try:
            if self._lanes is None:
                self._serve()
            else:
                self._serve_beside(self._lanes)
        finally:
            self._close()

    def _serve_beside(self, lanes: Any) -> None:
        """The compiled helper serves all clients but those that need Python."""
        next_check = 0.0
        while not self._stopping:
            for fileno, is_gone in lanes.run(self.config.spin_us, int(1e3 * _TICK_S)):
                client = self._clients[fileno]
                self._take_back(client, lanes)
                if is_gone:
                    self._drop(client)
                elif self._turn(client):
                    self._lend(client, lanes)
            for client in self._look(0.0):
                if self._turn(client):
                    self._lend(client, lanes)
            now = time.monotonic()
            if now >= next_check:
                for fileno in lanes.stuck(self.config.stuck_s):
                    self._drop(self._clients[fileno])
                self._drop_stuck(now)
                self._listen(True)
                next_check = now + _TICK_S

    def _lend(self, client: Client, lanes: Any) -> None:
        """Leave a client to the helper, if that has its rows and nothing that Python has begun with it is left."""
        lent = client.lend()
        if lent is not None and lanes.holds(client.session.answered_for):
            self._selector.unregister(client.sock)
            lanes.add(client.sock.fileno(), *lent)
            client.in_lane = True

    def _take_back(self, client: Client, lanes: Any) -> None:
        client.session.take_back(lanes.remove(client.sock.fileno()))
        client.in_lane = False
        client.events = selectors.EVENT_READ
        self._selector.register(client.sock, client.events, client)

    def _serve(self) -> None:
        """Clients that moved of late are looked at directly, all others through the selector."""
        spin_s = self.config.spin_us * 1e-6
        active_at = next_check = 0.0
        hot: list[Client] = []
        turns = 0
        while not self._stopping:
            now = time.monotonic()
            moved = [client for client in hot if self._turn(client)]
            if moved:
                active_at = now
            turns += 1
            if hot and turns % _TURNS_A_LOOK:
                continue
            spinning = now - active_at < spin_s
            hot = [client for client in (hot if spinning else moved) if client.sock.fileno() >= 0]
            for client in self._look(0.0 if hot else _TICK_S):
                if self._turn(client):
                    active_at = now
                if client not in hot:
                    hot = [client, *hot[: _MAX_HOT - 1]]
            if now >= next_check:
                self._drop_stuck(now)
                self._listen(True)
                next_check = now + _TICK_S

    def _look(self, wait_s: float) -> list[Client]:
        """Clients that the selector has something for; new ones are let in on the way."""
        found = []
        for key, _ in self._selector.select(wait_s):
            if isinstance(key.data, Client):
                found.append(key.data)
            elif key.fileobj is self._listener:
                self._accept()
            else:
                with contextlib.suppress(BlockingIOError):
                    self._wake_end.recv(4096)
                found += [client for client in self._clients.values() if client.session.waiting]
        return found

    def _accept(self) -> None:
        try:
            sock, peer = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # no descriptor is free: those who are connected go on, others wait
            _log.warning("no client is let in for %s s: %s", _TICK_S, error)
            self._listen(False)
            return
        if len(self._clients) >= self.config.max_clients:
            _log.warning("client %s is turned away: %d are connected", peer, len(self._clients))
            sock.close()
            return
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            tune(sock)
        try:
            client = Client(*self._door(sock, self._responder, self.wake))
        except OSError:  # it went again before it was let in
            sock.close()
            return
        self._clients[client.sock.fileno()] = client
        self._selector.register(client.sock, selectors.EVENT_READ, client)

    def _listen(self, listening: bool) -> None:
        if listening and not self._listening:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif self._listening and not listening:
            self._selector.unregister(self._listener)
        self._listening = listening

    def _turn(self, client: Client) -> bool:
        events = client.events
        try:
            moved = client.turn()
        except (OSError, ValueError):
            self._drop(client)
            return False
        except Exception:  # noqa: BLE001 - the others are served on whatever it was
            _log.exception("a client is dropped: its request could not be answered")
            self._drop(client)
            return False
        if moved:
            client.moved_at = time.monotonic()
        if client.events != events:
            self._watch(client, before=events)
        return moved

    def _watch(self, client: Client, *, before: int) -> None:
        if not client.events:
            self._selector.unregister(client.sock)
        elif not before:
            self._selector.register(client.sock, client.events, client)
        else:
            self._selector.modify(client.sock, client.events, client)

    def _drop(self, client: Client) -> None:
        if client.in_lane:
            self._take_back(client, self._lanes)
        self._clients.pop(client.sock.fileno(), None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.sock)
        client.sock.close()

    def _drop_stuck(self, now: float) -> None:
        for client in list(self._clients.values()):
            limit = 2.0 if client.lingering else self.config.stuck_s
            if (client.pending or client.lingering or not client.session.admitted) and now - client.moved_at > limit:
                self._drop(client)

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for client in list(self._clients.values()):
            self._drop(client)
        if self._lanes is not None:
            self._lanes.close()
        self._selector.close()
        for sock in (self._listener, self._wake, self._wake_end):
            sock.close()
