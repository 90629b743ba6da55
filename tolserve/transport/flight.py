"""The row protocol on an Arrow Flight port: one `do_exchange` stream a client, kept open, each served by a thread."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyarrow import flight

from tolserve.transport import exchange
from tolserve.transport.admission import NO_TOKEN, WRONG_TOKEN
from tolserve.transport.frames import Status
from tolserve.transport.link import Address
from tolserve.transport.running import Running
from tolserve.transport.security import Security, TokenCheck
from tolserve.transport.server import ServerConfig
from tolserve.transport.session import Responder, Session

_log = logging.getLogger(__name__)

_TICK_S = 0.5
_GRACE_S = 0.05


@dataclass(eq=False)
class _Stream:
    """One client's stream; `sending_since` is set while the node waits for it to take bytes."""

    peer: str
    sending_since: float | None = None


class FlightRowServer(Running):
    """Serves `responder` until `stop`, as a `RowServer` does, with the same settings but `spin_us`.

    The responder is asked by one thread at a time.

    Raises:
        OSError: the port is taken.
        SecurityError: a file of `security` cannot be used.
    """

    thread_name = "flight-server"

    def __init__(
        self, responder: Responder, config: ServerConfig | None = None, security: Security | None = None
    ) -> None:
        super().__init__()
        self.config = config or ServerConfig()
        self.responder = responder
        self._streams: set[_Stream] = set()
        self._lock = threading.Lock()
        self._responding = threading.Lock()
        self._closed = False
        self._flight = _listen(self, security or Security())
        self._address = self.config.host, int(self._flight.port)
        atexit.register(self.stop)  # else gRPC would wait for clients at the interpreter's end

    @property
    def address(self) -> Address:
        """Where clients connect to."""
        return self._address

    @property
    def num_clients(self) -> int:
        """Streams open now."""
        return len(self._streams)

    def run(self) -> None:
        """Look after the streams until `stop`; gRPC's own threads serve them."""
        try:
            while not self._stopping:
                select.select([self._wake_end], [], [], _TICK_S)
                self._drop_stuck(time.monotonic())
        finally:
            self._close()

    def serve(self, peer: str, reader: Any, writer: Any) -> None:
        """One stream from its first to its last message.

        Raises:
            FlightUnavailableError: the node stops, or has all the clients that it takes.
        """
        with self._admitted(peer) as stream:
            writer.begin(exchange.SCHEMA)
            session = Session(self.responder)
            with contextlib.suppress(StopIteration, *exchange.FAULTS):  # the client is gone
                while not session.closing:
                    chunk = reader.read_chunk()
                    if chunk.app_metadata is not None and chunk.app_metadata.size:
                        self._take(stream, session, memoryview(chunk.app_metadata).cast("B"), writer)

    def _take(self, stream: _Stream, session: Session, said: memoryview, writer: Any) -> None:
        while said and not session.closing:
            said = said[session.take(said) :]
            while (piece := self._piece(session)) or (session.waiting and not self._stopping):
                if piece is None:
                    session.wait(_TICK_S)
                    continue
                stream.sending_since = time.monotonic()
                exchange.write_piece(writer, *piece)
                stream.sending_since = None

    def _piece(self, session: Session) -> tuple[bytes, list[memoryview | bytes]] | None:
        """The next of the answer: its head, and buffers that stay. gRPC may send them after the write has returned."""
        with self._responding:
            piece = session.piece()
            if not piece:
                return None
            if session.lasting:
                head = bytes(piece.pop(0)) if isinstance(piece[0], bytes) else b""
                return head, [buffer for buffer in piece if len(buffer)]
            said = b"".join(piece)
        if len(said) <= exchange.INLINE_BYTES:
            return said, []
        return b"", [said]

    @contextlib.contextmanager
    def _admitted(self, peer: str) -> Iterator[_Stream]:
        stream = _Stream(peer)
        with self._lock:
            if self._stopping or len(self._streams) >= self.config.max_clients:
                _log.warning("client %s is turned away: %d are connected", peer, len(self._streams))
                raise flight.FlightUnavailableError(f"the node stops, or has {self.config.max_clients} clients")
            self._streams.add(stream)
        try:
            yield stream
        finally:
            with self._lock:
                self._streams.discard(stream)

    def _drop_stuck(self, now: float) -> None:
        for stream in list(self._streams):
            since = stream.sending_since
            if since is not None and now - since > self.config.stuck_s:
                _cut(self._address[1], stream.peer)

    def _close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = self._stopping = True
        ending = threading.Thread(target=self._flight.shutdown, daemon=True)
        ending.start()
        while ending.is_alive():  # it waits for streams, which wait for their clients
            _cut(self._address[1])
            ending.join(_GRACE_S)
        for sock in (self._wake, self._wake_end):
            sock.close()
        atexit.unregister(self.stop)


class _FlightServer(flight.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    """Hands streams to a `FlightRowServer`; all other methods of Flight are refused."""

    def __init__(self, owner: FlightRowServer, uri: str, **settings: Any) -> None:
        self._owner = owner
        super().__init__(uri, **settings)

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """See `tolserve.transport.exchange`."""
        if descriptor.command != exchange.COMMAND:
            raise flight.FlightServerError(f"the command is {descriptor.command!r}; expected {exchange.COMMAND!r}")
        try:
            self._owner.serve(context.peer(), reader, writer)
        except flight.FlightError:
            raise
        except Exception:
            _log.exception("a client is dropped: its request could not be answered")
            raise


class _TokenFactory(flight.ServerMiddlewareFactory):  # type: ignore[misc]  # pyarrow has no types
    """Refuses every call that does not say the token, as `authorization: Bearer TOKEN`."""

    def __init__(self, responder: Responder, token: bytes) -> None:
        self._responder = responder
        self._check = TokenCheck(token)

    def start_call(self, info: Any, headers: dict[str, list[Any]]) -> None:
        """Called by Flight before anything else."""
        said = next(iter(headers.get("authorization", ())), "")
        scheme, _, token = (said.decode("latin-1") if isinstance(said, bytes) else str(said)).partition(" ")
        if scheme.lower() != "bearer" or not self._check.accepts(token.encode()):
            self._responder.refused(Status.UNAUTHORISED)
            raise flight.FlightUnauthenticatedError(WRONG_TOKEN if said else NO_TOKEN)


def _listen(owner: FlightRowServer, security: Security) -> _FlightServer:
    host, port = owner.config.host, owner.config.port
    settings: dict[str, Any] = {}
    token = security.token()
    if token is not None:
        settings["middleware"] = {"token": _TokenFactory(owner.responder, token)}
    if security.uses_tls:
        pems = security.pems()
        settings |= {
            "tls_certificates": [(pems.cert, pems.key)],
            "verify_client": True,
            "root_certificates": pems.authorities,
        }
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # gRPC shares a port with whoever listens there already and lets it: ask the system whether it is free.
    socket.create_server((host, port), family=family).close()
    uri = exchange.location(host, port, tls=security.uses_tls)
    try:
        return _FlightServer(owner, uri, **settings)
    except exchange.FAULTS as error:
        raise OSError(f"Flight cannot listen at {uri}: {exchange.told(error)}") from error


def _cut(port: int, peer: str | None = None) -> None:
    """End the connections that this process has accepted on `port`, or the one from `peer` alone.

    Flight has no way to end a stream whose client is silent, so that its socket is sought among the process's own.
    """
    for name in os.listdir("/dev/fd"):
        try:
            copy = os.dup(int(name))
        except OSError:  # it was this listing's own
            continue
        try:
            sock = socket.socket(fileno=copy)
        except OSError:  # no socket
            os.close(copy)
            continue
        with sock, contextlib.suppress(OSError):
            own = sock.getsockname()
            if sock.family not in (socket.AF_INET, socket.AF_INET6) or own[1] != port:
                continue
            other = sock.getpeername()
            if peer is None or peer.rpartition(":")[2] == str(other[1]):
                sock.shutdown(socket.SHUT_RDWR)
