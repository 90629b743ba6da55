"""A row server's side of one client: receive, answer, send, in turns that leave the others theirs."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

from tolserve.transport.session import Responder, Session

_TURN_BYTES = 2 << 20
"""Sent to one client before the others have their turn."""

Wake = Callable[[], None]
Door = Callable[[socket.socket, Responder, Wake], tuple[Any, Session]]
"""What is used in the place of an accepted socket, and its session."""


def open_door(sock: socket.socket, responder: Responder, wake: Wake) -> tuple[Any, Session]:
    """Anybody may ask."""
    return sock, Session(responder, wake)


class Client:
    """One connection: what is to be sent, and when it last moved.

    Attributes:
        sock: a socket, or what a door uses in its place.
        events: what the selector looks for; 0 while an answer waits for its rows.
        in_lane: whether the compiled helper has it.
    """

    def __init__(self, sock: Any, session: Session) -> None:
        self.sock = sock
        self.session = session
        self.pending: list[bytes | memoryview] = []
        self.events = selectors.EVENT_READ
        self.lingering = False
        self.in_lane = False
        self.moved_at = time.monotonic()

    def turn(self) -> bool:
        """Receive, answer and send as far as it goes without waiting, and not much at once; whether anything moved.

        Raises:
            OSError: the connection is over.
        """
        budget = _TURN_BYTES
        while budget > 0:
            if not self.pending:
                self.pending = self.session.piece()
            if self.session.waiting and not self.pending:
                self.events = 0  # what the client sends meanwhile stays in the system's buffers
                break
            moved = self._send() if self.pending else self._receive()
            if moved == 0:
                break
            budget -= moved
        if budget <= 0:
            self.events = selectors.EVENT_WRITE  # more may be left: be called again as soon as there is room
        return budget < _TURN_BYTES

    def lend(self) -> tuple[bytearray, int] | None:
        """What the compiled helper needs to go on with this connection; None where Python has to.

        A connection that is more than a plain socket stays with Python, whatever it is.
        """
        if self.pending or self.lingering or type(self.sock) is not socket.socket:
            return None
        return self.session.lend()

    def _send(self) -> int:
        try:
            sent: int = self.sock.sendmsg(self.pending)
        except BlockingIOError:
            self.events = selectors.EVENT_WRITE
            return 0
        left = sent
        while self.pending and left >= len(self.pending[0]):
            left -= len(self.pending.pop(0))
        if left:
            self.pending[0] = memoryview(self.pending[0])[left:]
        self.events = selectors.EVENT_READ
        return sent

    def _receive(self) -> int:
        if self.session.closing and not self.lingering:
            self.lingering = True
            self.sock.shutdown(socket.SHUT_WR)
        try:
            count: int = len(self.sock.recv(65536)) if self.lingering else self.sock.recv_into(self.session.inbox())
        except BlockingIOError:
            self.events = selectors.EVENT_READ
            return 0
        if count == 0:
            raise ConnectionResetError("closed by the client")
        if not self.lingering:
            self.session.received(count)
        return count
