"""The token at the start of a TCP connection: what a client says before its first request, and how a node answers.

    offset  bytes  field
         0      4  magic "ToLt"
         4      1  protocol version, 1
         5      1  zero
         6      2  n, length of the token, 1 to 512
         8    512  token, zeros behind it

The answer is a response of the row protocol with request id 0: status 0 without a payload, or status 7 and a message
behind which the connection is closed.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from tolserve.transport.errors import LinkError
from tolserve.transport.frames import (
    RESPONSE,
    VERSION,
    Status,
    pack_response,
    unpack_response,
)
from tolserve.transport.security import MAX_TOKEN_BYTES, TokenCheck
from tolserve.transport.session import Responder, Session

_MAGIC = b"ToLt"
_HEAD = struct.Struct("<4sBBH")
_FRAME_BYTES = _HEAD.size + MAX_TOKEN_BYTES
"""Longer than a request's fixed part, so that a node that asks for no token answers at once."""
NO_TOKEN = "this node asks for a token and none was said: give --token-file"  # noqa: S105 - a message
WRONG_TOKEN = "the token is not this node's: give the same --token-file to both ends"  # noqa: S105 - a message


class GuardedSession(Session):
    """A session that has to be let in: by the token where there is one, else by its first byte, which came by TLS.

    Args:
        check: None asks for no token.
    """

    def __init__(self, responder: Responder, check: TokenCheck | None, wake: Callable[[], None] | None = None) -> None:
        super().__init__(responder, wake)
        self.admitted = False
        self._refuses = responder.refused
        self._check = check
        self._said = bytearray()
        self._box = memoryview(bytearray(_FRAME_BYTES))
        self._reply: bytes | None = None

    def inbox(self) -> memoryview:
        """See `Session.inbox`."""
        if self._check is None:
            return super().inbox()
        return self._box[: self._expected() - len(self._said)]

    def received(self, count: int) -> None:
        """See `Session.received`."""
        if self._check is None:
            self.admitted = True
            super().received(count)
            return
        self._said += self._box[:count]
        if len(self._said) < self._expected():
            return
        magic, version, zero, length = _HEAD.unpack_from(self._said)
        if (magic, version, zero) != (_MAGIC, VERSION, 0) or not 0 < length <= MAX_TOKEN_BYTES:
            self._turn_away(NO_TOKEN)
        elif not self._check.accepts(bytes(self._said[_HEAD.size : _HEAD.size + length])):
            self._turn_away(WRONG_TOKEN)
        else:
            self._reply = pack_response(Status.OK, 0, 0)
            self._check = None
            self.admitted = True

    def piece(self) -> list[bytes | memoryview]:
        """See `Session.piece`."""
        if self._reply is not None:
            reply, self._reply = self._reply, None
            return [reply]
        return [] if self._check is not None else super().piece()

    def _expected(self) -> int:
        """Bytes of the frame, as far as they are known; a head that is none is all that is read."""
        if len(self._said) < _HEAD.size:
            return _HEAD.size
        return _FRAME_BYTES if self._said.startswith(_MAGIC) else _HEAD.size

    def _turn_away(self, message: str) -> None:
        self._reply = pack_response(Status.UNAUTHORISED, 0, len(message)) + message.encode()
        self.closing = True
        self._refuses(Status.UNAUTHORISED)


def token_frame(token: bytes) -> bytes:
    """What says it."""
    return _HEAD.pack(_MAGIC, VERSION, 0, len(token)) + token.ljust(MAX_TOKEN_BYTES, b"\0")


def say_token(sock: socket.socket, token: bytes) -> None:
    """A client's part, on a socket that still waits.

    Raises:
        LinkError: the node does not take it; the message is the node's.
        OSError: the connection is over.
    """
    sock.sendall(token_frame(token))
    header = unpack_response(_receive(sock, RESPONSE.size))
    message = _receive(sock, header.length).decode(errors="replace")
    if header.status == Status.MALFORMED:
        raise LinkError(f"the node asks for no token: leave --token-file out, or give it to the node ({message})")
    if header.status != Status.OK:
        raise LinkError(message)


def _receive(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = sock.recv(length - len(data))
        if not part:
            raise ConnectionResetError("the node closed the connection")
        data += part
    return data
