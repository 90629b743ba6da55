"""TCP with mutual TLS and a token: sockets for the row server, links for its clients."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from tolbuild.table.errors import ToLError
from tolserve.transport.admission import GuardedSession, say_token
from tolserve.transport.errors import LinkError
from tolserve.transport.link import Address, Link
from tolserve.transport.security import Security, TokenCheck, told
from tolserve.transport.session import Responder, Session
from tolserve.transport.tcp import TcpLink, tune

_log = logging.getLogger(__name__)

_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
_RECORD_BYTES = 16 << 10
"""Most bytes that TLS encrypts as one."""
_TURN_BYTES = 1 << 20


class TlsSocket:
    """A non-blocking node's end, with as much of a socket as the row server uses. The first reads shake hands."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket) -> None:
        self._peer = sock.getpeername()[:2]
        self._sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._is_shaken = False
        self._is_turned_away = False

    def recv_into(self, view: memoryview) -> int:
        """As a socket's. A client whose certificate does not hold is read until it goes, so that it gets the reason.

        Raises:
            BlockingIOError: nothing is there.
        """
        try:
            if not self._is_shaken and not self._is_turned_away:
                self._shake()
            if self._is_turned_away:
                self._drain()
            return self._sock.recv_into(view)
        except _WANTS as error:
            raise BlockingIOError from error

    def recv(self, size: int) -> bytes:
        """As a socket's."""
        try:
            return self._sock.recv(size)
        except _WANTS as error:
            raise BlockingIOError from error

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        """As a socket's, but fewer bytes at once. What could not be sent must be tried again with the same buffers."""
        part: bytes | memoryview = buffers[0]
        if len(part) < _RECORD_BYTES and len(buffers) > 1:
            gathered = bytearray()
            for buffer in buffers:
                gathered += buffer[: _RECORD_BYTES - len(gathered)]
                if len(gathered) == _RECORD_BYTES:
                    break
            part = bytes(gathered)
        try:
            return self._sock.send(part)
        except _WANTS as error:
            raise BlockingIOError from error

    def shutdown(self, how: int) -> None:
        """As a socket's; what is received behind it is not decrypted."""
        self._sock.shutdown(how)

    def fileno(self) -> int:
        """As a socket's."""
        return self._sock.fileno()

    def close(self) -> None:
        """As a socket's."""
        self._sock.close()

    def _shake(self) -> None:
        try:
            self._sock.do_handshake()
            self._is_shaken = True
        except (*_WANTS, ssl.SSLEOFError):
            raise
        except ssl.SSLError as error:
            _log.warning("client %s:%d is turned away: %s", *self._peer, told(error))
            self._is_turned_away = True
            self._sock.shutdown(socket.SHUT_WR)

    def _drain(self) -> None:
        if not self._sock.recv(65536):
            raise ConnectionResetError("closed by the client")
        raise BlockingIOError


class SecureDoor:
    """Lets clients in to a row server that asks for certificates, for a token, or for both.

    Raises:
        SecurityError: a file of `security` cannot be used.
    """

    def __init__(self, security: Security) -> None:
        token = security.token()
        self._check = None if token is None else TokenCheck(token)
        self._context = security.contexts()[0] if security.uses_tls else None

    def __call__(self, sock: socket.socket, responder: Responder, wake: Callable[[], None]) -> tuple[Any, Session]:
        """What the server uses in the place of an accepted socket, and its session."""
        end = sock if self._context is None else TlsSocket(self._context, sock)
        return end, GuardedSession(responder, self._check, wake)


class TlsLink:
    """A link over a socket that has shaken hands."""

    def __init__(self, sock: ssl.SSLSocket, address: Address, timeout_s: float) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._name = f"memory node {address[0]}:{address[1]}"
        self._timeout_s = timeout_s

    def send(self, frame: bytes) -> None:
        """See `Link.send`."""
        left = memoryview(frame)
        while left:
            try:
                left = left[self._sock.send(left) :]
            except _WANTS as want:
                events = select.POLLIN if isinstance(want, ssl.SSLWantReadError) else select.POLLOUT
                if not self._poll(events, self._timeout_s):
                    raise LinkError(f"{self._name} took no data for {self._timeout_s} s") from want
            except (OSError, ValueError) as error:
                raise LinkError(f"{self._name}: {told(error)}") from error

    def recv_into(self, *views: memoryview) -> int:
        """See `Link.recv_into`. TLS gives 16 KiB at a time; they are collected here."""
        total = 0
        for view in views:
            left = view
            while left and total < _TURN_BYTES:
                count = self._receive(left, total)
                if count == 0:
                    return total
                total += count
                left = left[count:]
        return total

    def wait_readable(self, timeout_s: float) -> None:
        """See `Link.wait_readable`."""
        with contextlib.suppress(OSError, ValueError):
            if not self._sock.pending():
                self._poll(select.POLLIN, timeout_s)

    def close(self) -> None:
        """See `Link.close`."""
        self._sock.close()

    def _receive(self, view: memoryview, before: int) -> int:
        """0 where nothing is there; an end that comes behind `before` bytes is told by the next call."""
        try:
            count = self._sock.recv_into(view)
        except _WANTS:
            return 0
        except (OSError, ValueError) as error:
            if before:
                return 0
            raise LinkError(f"{self._name}: {told(error)}") from error
        if count == 0 and not before:
            raise LinkError(f"{self._name} closed the connection")
        return count

    def _poll(self, events: int, timeout_s: float) -> bool:
        ready = select.poll()
        ready.register(self._sock, events)
        return bool(ready.poll(max(1.0, timeout_s * 1e3)))


class SecureTcpTransport:
    """Connects by TCP, shows its certificate where there is one, and says its token where there is one.

    Raises:
        SecurityError: a file of `security` cannot be used.
    """

    def __init__(self, security: Security) -> None:
        self._token = security.token()
        self._name = security.tls_name
        self._context = security.contexts()[1] if security.uses_tls else None

    def connect(self, address: Address, timeout_s: float) -> Link:
        """See `Transport.connect`."""
        name = f"memory node {address[0]}:{address[1]}"
        try:
            sock = socket.create_connection(address, timeout=timeout_s)
        except OSError as error:
            raise LinkError(f"{name} cannot be reached: {error}") from error
        try:
            tune(sock)
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_hostname=self._name or address[0])
            if self._token is not None:
                say_token(sock, self._token)
        except (OSError, ToLError) as error:
            sock.close()
            raise LinkError(f"{name} was not agreed with: {_cause(error)}") from error
        if isinstance(sock, ssl.SSLSocket):
            return TlsLink(sock, address, timeout_s)
        return TcpLink(sock, address, timeout_s)


def _cause(error: Exception) -> str:
    text = told(error)
    if "wrong version number" in text or "unexpected eof" in text:
        return f"it does not speak TLS here: give it --tls-cert, or leave that out ({text})"
    return text
