"""Links to responders in this process: the same frames and the same checks, no socket."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from tolserve.transport.errors import LinkError
from tolserve.transport.link import Address
from tolserve.transport.session import Responder, Session


class InProcessLink:
    """Hands frames to a session and gives back what it answers."""

    def __init__(self, responder: Responder, lock: threading.Lock) -> None:
        self._session = Session(responder)
        self._lock = lock
        self._unread = bytearray()
        self._pending: list[bytes | memoryview] = []
        self._open = True

    def send(self, frame: bytes) -> None:
        """See `Link.send`."""
        if not self._open:
            raise LinkError("the in-process link is closed")
        self._unread += frame

    def recv_into(self, *views: memoryview) -> int:
        """See `Link.recv_into`."""
        view = next(view for view in views if len(view))
        with self._lock:
            if not self._pending:
                self._pending = self._next()
        if not self._pending:
            return 0
        part = memoryview(self._pending[0])
        count = min(len(part), len(view))
        view[:count] = part[:count]
        if count == len(part):
            self._pending.pop(0)
        else:
            self._pending[0] = part[count:]
        return count

    def wait_readable(self, timeout_s: float) -> None:
        """An answer is made when it is read: there is nothing to wait for."""

    def close(self) -> None:
        """See `Link.close`."""
        self._open = False

    def _next(self) -> list[bytes | memoryview]:
        while True:
            piece = self._session.piece()
            if piece:
                return piece
            if self._session.closing or not self._open:
                raise LinkError("the in-process peer has ended the connection")
            if not self._unread:
                return []
            del self._unread[: self._session.take(self._unread)]


class InProcessTransport:
    """Connects to responders by made-up addresses."""

    def __init__(self, responders: Mapping[Address, Responder]) -> None:
        self.responders = dict(responders)
        self._lock = threading.Lock()

    def connect(self, address: Address, timeout_s: float) -> InProcessLink:
        """See `Transport.connect`."""
        responder = self.responders.get(address)
        if responder is None:
            raise LinkError(f"no responder of this process has the address {address[0]}:{address[1]}")
        return InProcessLink(responder, self._lock)
