"""The node's side of one connection without the connection: bytes in, pieces of answers out.

The TCP server and the in-process link both run this, so that they cannot differ in what they accept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
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
    """Rows being sent: `length` bytes in `pieces`, each some buffers that are valid until the next is asked for.

    A future among them is not sent: the next piece is asked for when it is done. `lasting` says that the buffers are
    never written again, so that they may be sent later.
    """

    length: int
    pieces: Iterator[list[memoryview] | Future[None]]
    lasting: bool = False


class Later(NamedTuple):
    """Rows that are not here yet: when `done` is, `finish` gives the answer or raises why there is none."""

    done: Future[None]
    finish: Callable[[], Answer]


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

    def rows(self, header: RequestHeader, ids: Ids32) -> Answer | Later:
        """The answer to a rows request, or when there will be one. `ids` is valid until this returns.

        Raises:
            RefusedError: with the status of the reason.
        """

    def refused(self, status: Status) -> None:
        """A request was answered with this status instead."""


class Session:
    """Feeds requests of one connection to a responder, one after another.

    Usage: receive into `inbox()` and tell `received(count)`; send every piece that `piece()` gives before asking for
    the next; when `closing` is set and `piece()` gives None, end the connection. While `waiting` is set there is
    nothing more to send and nothing to receive; `wake` is called, by any thread, when that may have changed.

    Attributes:
        admitted: whether whoever is at the other end may ask.
        lasting: whether the buffers of the last piece stay as they are (`Answer.lasting`).
        answered_for: identity of the table version whose rows were asked for last and not refused; None at first.
    """

    def __init__(self, responder: Responder, wake: Callable[[], None] | None = None) -> None:
        self._responder = responder
        self._wake = wake
        self._later: tuple[int, Later] | None = None
        self._future: Future[None] | None = None
        self._buffer = bytearray(REQUEST.size + 4 * responder.max_ids)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._head: bytes | None = None
        self._pieces: Iterator[list[memoryview] | Future[None]] | None = None
        self.closing = False
        self.admitted = True
        self.lasting = False
        self.answered_for: bytes | None = None

    @property
    def waiting(self) -> bool:
        """Whether an answer waits for its rows."""
        return self._future is not None

    def wait(self, timeout_s: float) -> None:
        """For whoever serves one client a thread: return when `waiting` may have changed, at the latest then."""
        if self._future is not None:
            wait([self._future], timeout_s)

    def lend(self) -> tuple[bytearray, int] | None:
        """The buffer and how many bytes of it are received; None where this is for nobody else to go on with.

        That is before a first answer with rows, and while one is due. Whoever borrows the buffer leaves a whole number
        of requests out and tells by `take_back` what is there then.
        """
        is_busy = self._head is not None or self._pieces is not None or self._later is not None or self.waiting
        if self.answered_for is None or is_busy or self.closing or not self.admitted:
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

    def take(self, said: bytearray | memoryview) -> int:
        """Receive the first bytes of `said`, as many as fit now; how many that were."""
        inbox = self.inbox()
        count = min(len(inbox), len(said))
        inbox[:count] = said[:count]
        self.received(count)
        return count

    def piece(self) -> list[bytes | memoryview]:
        """The next buffers to send, valid until the next call; none where nothing is to be sent before more comes."""
        if self._future is not None:
            if not self._future.done():
                return []
            self._future = None
        resumed, self._later = self._later, None
        if resumed is not None:
            request_id, later = resumed
            self._refusing(request_id, lambda: self._open(request_id, later.finish()))
        elif self._pieces is None and self._filled < REQUEST.size:
            return []
        piece = self._next_piece()
        if piece is None and resumed is None and not self.closing and self._filled >= REQUEST.size:
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
        if isinstance(piece, Future):
            self._wait_for(piece)
            return []
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
        self._refusing(header.request_id, lambda: self._respond(header))
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
        self.answered_for = header.identity
        if isinstance(answer, Later):
            self._later = header.request_id, answer
            self._wait_for(answer.done)
            return
        self._open(header.request_id, answer)

    def _open(self, request_id: int, answer: Answer) -> None:
        self._head = pack_response(Status.OK, request_id, answer.length)
        self._pieces = answer.pieces
        self.lasting = answer.lasting

    def _wait_for(self, future: Future[None]) -> None:
        self._future = future
        if self._wake is not None:
            wake = self._wake
            future.add_done_callback(lambda _: wake())

    def _refusing(self, request_id: int, respond: Callable[[], None]) -> None:
        """Answer by `respond`, or say why there is no answer."""
        try:
            respond()
        except RefusedError as error:
            self._refuse(Status(error.status), request_id, str(error))
        except (ToLError, OSError) as error:
            self._refuse(Status.FAILED, request_id, str(error))

    def _refuse(self, status: Status, request_id: int, message: str) -> None:
        text = message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore").encode()
        self._head = pack_response(status, request_id, len(text)) + text
        self.closing = status in CLOSING
        self._responder.refused(status)
