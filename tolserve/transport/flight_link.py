"""Links over an Arrow Flight `do_exchange` stream: a thread receives, since Flight can only be waited for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from pyarrow import flight

from tolserve.transport import exchange
from tolserve.transport.errors import LinkError, ProtocolError
from tolserve.transport.link import Address
from tolserve.transport.security import Pems, Security

_MOST_QUEUED = 64 << 20
"""Bytes that wait to be taken before no more are received."""


class FlightLink:
    """One stream, opened when made; `open` waits for it.

    Args:
        connect: makes the client; called by the receiving thread.
        headers: sent with the call.
        timeout_s: a node that takes no data for so long is given up.
    """

    def __init__(
        self, connect: Callable[[], Any], headers: list[tuple[bytes, bytes]], address: Address, timeout_s: float
    ) -> None:
        self._connect = connect
        self._headers = headers
        self._name = f"memory node {address[0]}:{address[1]}"
        self._timeout_s = timeout_s
        self._parts: deque[memoryview] = deque()
        self._queued = 0
        self._room = threading.Condition()
        self._arrived = threading.Event()
        self._greeted = threading.Event()
        self._ended = threading.Event()
        self._fault = ""
        self._sending_since: float | None = None
        self._writer: Any = None
        self._reader: Any = None
        for target in (self._run, self._watch):
            threading.Thread(target=target, name=f"flight-{address[1]}", daemon=True).start()

    def open(self) -> None:
        """Return when the node has sent its first word.

        Raises:
            LinkError: it did not in time.
        """
        if not self._greeted.wait(self._timeout_s):
            self.close()
            raise LinkError(f"{self._name} did not answer within {self._timeout_s} s")
        if self._fault:
            self.close()
            raise LinkError(f"{self._name} cannot be reached: {self._fault}")

    def send(self, frame: bytes) -> None:
        """See `Link.send`."""
        self._check()
        self._sending_since = time.monotonic()
        try:
            self._writer.write_metadata(pa.py_buffer(frame))
        except exchange.FAULTS as error:
            raise LinkError(f"{self._name}: {self._fault or exchange.told(error)}") from error
        finally:
            self._sending_since = None

    def recv_into(self, *views: memoryview) -> int:
        """See `Link.recv_into`."""
        if not self._parts or self._ended.is_set():
            if self._ended.is_set() or self._fault:
                self._check_after_last()
            time.sleep(0)  # whoever looks again and again leaves the receiving thread no turn otherwise
            return 0
        total = 0
        for view in views:
            filled = 0
            while self._parts and filled < len(view):
                part = self._parts[0]
                count = min(len(part), len(view) - filled)
                view[filled : filled + count] = part[:count]
                filled += count
                if count == len(part):
                    self._parts.popleft()
                else:
                    self._parts[0] = part[count:]
            total += filled
            if filled < len(view):  # what comes from now on belongs here, not into the next
                break
        with self._room:
            self._queued -= total
            self._room.notify()
        return total

    def wait_readable(self, timeout_s: float) -> None:
        """See `Link.wait_readable`."""
        self._arrived.clear()
        if not (self._parts or self._fault or self._ended.is_set()):
            self._arrived.wait(timeout_s)

    def close(self) -> None:
        """See `Link.close`."""
        self._ended.set()
        self._parts.clear()
        self._arrived.set()
        with self._room:
            self._room.notify_all()
        self._cancel()

    def _check(self) -> None:
        if self._ended.is_set():
            raise LinkError(f"the link to {self._name} is closed")
        if self._fault:
            raise LinkError(f"{self._name}: {self._fault}")

    def _check_after_last(self) -> None:
        """The fault comes behind the last bytes, which may have come since there were none."""
        if not self._parts or self._ended.is_set():
            self._check()

    def _cancel(self) -> None:
        reader = self._reader
        if reader is not None:
            with contextlib.suppress(*exchange.FAULTS):
                reader.cancel()

    def _run(self) -> None:
        client = None
        try:
            client = self._connect()
            options = flight.FlightCallOptions(headers=self._headers)
            self._writer, self._reader = client.do_exchange(exchange.descriptor(), options)
            if self._ended.is_set():
                return
            self._writer.begin(exchange.SCHEMA)
            assert self._reader.schema is not None
            self._greeted.set()
            while not self._ended.is_set():
                self._put(exchange.bytes_of(self._reader.read_chunk()))
        except StopIteration:
            self._fault = self._fault or "closed the connection"
        except (ProtocolError, *exchange.FAULTS) as error:
            self._fault = self._fault or exchange.told(error)
        finally:
            self._greeted.set()
            self._arrived.set()
            self._hang_up(client)

    def _put(self, parts: list[memoryview]) -> None:
        size = sum(map(len, parts))
        with self._room:
            while self._queued > _MOST_QUEUED and not self._ended.is_set():
                self._room.wait()
            self._queued += size
        self._parts.extend(parts)
        self._arrived.set()

    def _hang_up(self, client: Any) -> None:
        """What is over already says so again when it is closed."""
        self._cancel()
        for end in (self._writer, client):
            if end is not None:
                with contextlib.suppress(StopIteration, *exchange.FAULTS):
                    end.close()

    def _watch(self) -> None:
        """A blocked write can only be ended by ending the stream."""
        while not self._ended.wait(self._timeout_s / 2) and not self._fault:
            since = self._sending_since
            if since is not None and time.monotonic() - since > self._timeout_s:
                self._fault = f"took no data for {self._timeout_s} s"
                self._cancel()


class FlightTransport:
    """Connects by Arrow Flight, with certificates and a token where `security` has them.

    Raises:
        SecurityError: a file of `security` cannot be used.
    """

    def __init__(self, security: Security | None = None) -> None:
        security = security or Security()
        token = security.token()
        self._pems: Pems | None = security.pems() if security.uses_tls else None
        self._name = security.tls_name
        self._headers = [] if token is None else [(b"authorization", b"Bearer " + token)]

    def connect(self, address: Address, timeout_s: float) -> FlightLink:
        """See `Transport.connect`."""
        link = FlightLink(lambda: self._client(address), self._headers, address, timeout_s)
        link.open()
        return link

    def _client(self, address: Address) -> Any:
        uri = exchange.location(*address, tls=self._pems is not None)
        if self._pems is None:
            return flight.FlightClient(uri)
        return flight.FlightClient(
            uri,
            tls_root_certs=self._pems.authorities,
            cert_chain=self._pems.cert,
            private_key=self._pems.key,
            override_hostname=self._name or None,
        )
