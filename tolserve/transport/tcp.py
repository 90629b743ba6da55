"""Links over TCP sockets."""

from __future__ import annotations

import select
import socket

from tolserve.native import compiled
from tolserve.transport.errors import LinkError
from tolserve.transport.link import Address


def tune(sock: socket.socket) -> None:
    """Small frames leave at once. Buffer sizes are the system's, which grows them further than it lets us ask for."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class TcpLink:
    """A connected socket that is never waited on unless `wait_readable` is asked to."""

    def __init__(self, sock: socket.socket, address: Address, timeout_s: float) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._address = address
        self._timeout_s = timeout_s
        self._receive = sock.recv_into
        self._scatter = sock.recvmsg_into
        helper = compiled.load()
        self._receive_all = helper.receive if helper is not None and type(sock) is socket.socket else None
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    def send(self, frame: bytes) -> None:
        """See `Link.send`."""
        sent = 0
        while True:
            try:
                sent += self._sock.send(frame if sent == 0 else memoryview(frame)[sent:])
            except BlockingIOError:
                self._wait_writable()
            except (OSError, ValueError) as error:
                raise LinkError(f"{self._name}: {error}") from error
            if sent == len(frame):
                return

    def recv_into(self, *views: memoryview) -> int:
        """See `Link.recv_into`."""
        try:
            count = self._receive(views[0]) if len(views) == 1 else self._scatter(views)[0]
        except BlockingIOError:
            return 0
        except (OSError, ValueError) as error:
            raise LinkError(f"{self._name}: {error}") from error
        if count == 0:
            raise LinkError(f"{self._name} closed the connection")
        return count

    @property
    def is_quick(self) -> bool:
        """Whether `receive_answer` can be used."""
        return self._receive_all is not None

    def receive_answer(
        self, parts: list[memoryview], needed: int, head: bytes, *, spin_us: float, timeout_s: float
    ) -> int:
        """As `recv_into`, but waits until `needed` bytes have come.

        It returns before where for so long (looking for them without sleeping, then asleep) nothing came, or where the
        first part, if `head` is not empty, is not that: what follows is then something else than was expected.
        """
        assert self._receive_all is not None, "this link is not quick"
        try:
            count: int | None = self._receive_all(
                self._sock.fileno(), parts, needed, head, spin_us, round(timeout_s * 1e3)
            )
        except (OSError, ValueError) as error:
            raise LinkError(f"{self._name}: {error}") from error
        if count is None:
            raise LinkError(f"{self._name} closed the connection")
        return count

    def wait_readable(self, timeout_s: float) -> None:
        """See `Link.wait_readable`."""
        self._readable.poll(max(1.0, timeout_s * 1e3))

    def fileno(self) -> int:
        """For those who wait for several links at once; readable when `recv_into` may find something."""
        return self._sock.fileno()

    def close(self) -> None:
        """See `Link.close`."""
        self._sock.close()

    def _wait_writable(self) -> None:
        writable = select.poll()
        writable.register(self._sock, select.POLLOUT)
        if not writable.poll(self._timeout_s * 1e3):
            raise LinkError(f"{self._name} took no data for {self._timeout_s} s")

    @property
    def _name(self) -> str:
        return f"memory node {self._address[0]}:{self._address[1]}"


class TcpTransport:
    """Connects by TCP; `connect` waits at most the time it is given."""

    def connect(self, address: Address, timeout_s: float) -> TcpLink:
        """See `Transport.connect`."""
        try:
            sock = socket.create_connection(address, timeout=timeout_s)
        except OSError as error:
            raise LinkError(f"memory node {address[0]}:{address[1]} cannot be reached: {error}") from error
        tune(sock)
        return TcpLink(sock, address, timeout_s)
