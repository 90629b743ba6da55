"""A row server's side of one client: receive, answer, send, in turns that leave the others theirs."""

from __future__ import annotations

import selectors
import socket
import time

from tolserve.transport.session import Session

_TURN_BYTES = 2 << 20
"""Sent to one client before the others have their turn."""


class Client:
    """One connection: what is to be sent, and when it last moved."""

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self.sock = sock
        self.session = session
        self.pending: list[bytes | memoryview] = []
        self.events = selectors.EVENT_READ
        self.lingering = False
        self.in_lane = False
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
            sent = self.sock.sendmsg(self.pending)
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
            count = len(self.sock.recv(65536)) if self.lingering else self.sock.recv_into(self.session.inbox())
        except BlockingIOError:
            self.events = selectors.EVENT_READ
            return 0
        if count == 0:
            raise ConnectionResetError("closed by the client")
        if not self.lingering:
            self.session.received(count)
        return count
