"""The node's side of one connection without the connection: bytes in, pieces of answers out.

The TCP server and the in-process link both run this, so that they cannot differ in what they accept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from tolbuild.table.errors import ToLError
from tolserve.transport.errors import ProtocolError, RefusedError
from tolserve.transport.frames import (
    CLOSING,
    HELLO,
    MAX_MESSAGE_BYTES,
    REQUEST,
    Hello,
    Ids32,
    RequestHeader,
    Status,
    pack_response,
    unpack_request,
)


class Answer(NamedTuple):
    """Rows being sent: `length` bytes in `pieces`, each some buffers that are valid until the next is asked for."""

    length: int
    pieces: Iterator[list[memoryview]]


class Responder(Protocol):
    """Answers requests; one object serves all connections of a thread."""

    @property
    def max_ids(self) -> int:
        """Most ids in one request."""

    def hello(self, identity: bytes) -> Hello:
        """What the node is.

        Raises:
            RefusedError: it holds another table.
        """

    def rows(self, header: RequestHeader, ids: Ids32) -> Answer:
        """The answer to a rows request. `ids` is valid until this returns.

        Raises:
            RefusedError: with the status of the reason.
        """

    def refused(self, status: Status) -> None:
        """A request was answered with this status instead."""


class Session:
    """Feeds requests of one connection to a responder, one after another.

    Usage: receive into `inbox()` and tell `received(count)`; send every piece that `piece()` gives before asking for
    the next; when `closing` is set and `piece()` gives None, end the connection.
    """

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._buffer = bytearray(REQUEST.size + 4 * responder.max_ids)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._head: bytes | None = None
        self._pieces: Iterator[list[memoryview]] | None = None
        self._has_answered = False
        self.closing = False

    def lend(self) -> tuple[bytearray, int] | None:
        """The buffer and how many bytes of it are received; None before a first answer with rows, or while one is due.

        Whoever borrows it leaves a whole number of requests out and tells by `take_back` what is there then.
        """
        if not self._has_answered or self._head is not None or self._pieces is not None or self.closing:
            return None
        return self._buffer, self._filled

    def take_back(self, filled: int) -> None:
        """The first `filled` bytes of the buffer are received and not answered."""
        self._filled = filled

    def inbox(self) -> memoryview:
        """Where to receive into; never empty while no answer is pending."""
        return self._view[self._filled :]

    def received(self, count: int) -> None:
        """The first `count` bytes of `inbox()` came."""
        self._filled += count

    def piece(self) -> list[bytes | memoryview]:
        """The next buffers to send, valid until the next call; none where nothing is to be sent before more comes."""
        if self._pieces is None and self._filled < REQUEST.size:
            return []
        piece = self._next_piece()
        if piece is None and not self.closing and self._filled >= REQUEST.size:
            self._answer()
            piece = self._next_piece()
        head, self._head = self._head, None
        return [*(() if head is None else (head,)), *(piece or ())]

    def _next_piece(self) -> list[memoryview] | None:
        """The next of the pending answer. A failure in it cannot be told to the client any more: the stream ends."""
        if self._pieces is None:
            return None
        try:
            piece = next(self._pieces, None)
        except (ToLError, OSError):
            self.closing = True
            piece = None
        if piece is None:
            self._pieces = None
        return piece

    def _answer(self) -> None:
        try:
            header = unpack_request(self._buffer)
        except ProtocolError as error:
            self._refuse(Status.MALFORMED, 0, str(error))
            return
        limit = self._responder.max_ids
        if header.num_ids > limit:
            message = f"{header.num_ids} ids in one request; this node takes at most {limit}"
            self._refuse(Status.TOO_MANY_IDS, header.request_id, message)
            return
        end = REQUEST.size + 4 * header.num_ids
        if self._filled < end:
            return
        try:
            self._respond(header)
        except RefusedError as error:
            self._refuse(Status(error.status), header.request_id, str(error))
        except (ToLError, OSError) as error:
            self._refuse(Status.FAILED, header.request_id, str(error))
        if self._filled > end:
            self._buffer[: self._filled - end] = self._buffer[end : self._filled]
        self._filled -= end

    def _respond(self, header: RequestHeader) -> None:
        if header.kind == HELLO:
            payload = self._responder.hello(header.identity).pack()
            self._head = pack_response(Status.OK, header.request_id, len(payload)) + payload
            return
        ids = np.frombuffer(self._buffer, np.uint32, header.num_ids, REQUEST.size)
        answer = self._responder.rows(header, ids)
        self._head = pack_response(Status.OK, header.request_id, answer.length)
        self._pieces = answer.pieces
        self._has_answered = True

    def _refuse(self, status: Status, request_id: int, message: str) -> None:
        text = message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore").encode()
        self._head = pack_response(status, request_id, len(text)) + text
        self.closing = status in CLOSING
        self._responder.refused(status)
