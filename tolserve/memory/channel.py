"""One connection of a client to a memory node: requests in order, answers straight into their places."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tolserve.memory.errors import RowRequestError
from tolserve.transport.errors import LinkError, ProtocolError, RefusedError
from tolserve.transport.frames import (
    RESPONSE,
    Hello,
    Ids32,
    Status,
    mask_of,
    pack_hello,
    pack_response,
    pack_rows,
    unpack_response,
)
from tolserve.transport.link import Address, Link, Transport

_OUR_FAULT = frozenset({Status.BAD_IDS, Status.BAD_BANDS, Status.TOO_MANY_IDS})
"""Another node of the partition would refuse these as well."""

_sink = memoryview(bytearray(1 << 18))
"""Where bytes go that nobody wants any more."""


@dataclass(kw_only=True, eq=False, slots=True)
class Flight:
    """Rows asked of one partition: bands `bands` of `ids` into `regions`, one for each band, known before rows come.

    Attributes:
        num_done: bands received in full; a flight that is sent again asks for the others only.
        dropped: its regions must not be written any more.
        fault: why a node refused it for good.
    """

    partition: int
    ids: Ids32
    bands: tuple[int, ...]
    regions: list[memoryview] = field(default_factory=list)
    channel: Channel | None = None
    request_id: int = 0
    num_done: int = 0
    dropped: bool = False
    fault: RowRequestError | None = None

    @property
    def num_bytes(self) -> int:
        """Of all its regions."""
        return sum(map(len, self.regions))

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.num_done == len(self.bands)


@dataclass(kw_only=True, eq=False, slots=True)
class Channel:
    """A link whose peer has said hello. Used by the client's thread alone.

    Attributes:
        flights: requests on the way, the one being answered first.
        silent_since: when it was first found that nothing had come since the last bytes; None while they come.
        fileno: what the system knows the link by, if it does: several links can then be waited for at once.
    """

    link: Link
    name: str
    identity: bytes
    flights: deque[Flight] = field(default_factory=deque)
    silent_since: float | None = None
    fileno: int | None = field(init=False)
    _quick: Any = field(init=False)
    _head: bytearray = field(default_factory=lambda: bytearray(RESPONSE.size))
    _in_head: bool = True
    _filled: int = 0

    def __post_init__(self) -> None:
        fileno = getattr(self.link, "fileno", None)
        self.fileno = None if fileno is None else fileno()
        self._quick = self.link if getattr(self.link, "is_quick", False) else None

    def submit(self, flight: Flight, request_id: int) -> None:
        """Ask for what the flight has not received.

        Raises:
            LinkError: the connection is over; the flight is not taken.
        """
        bands = flight.bands[flight.num_done :] if flight.num_done else flight.bands
        self.link.send(pack_rows(self.identity, request_id, mask_of(bands), flight.ids))
        flight.request_id = request_id
        flight.channel = self
        self.flights.append(flight)

    def pump(self, flight: Flight, num_bands: int, *, spin_us: float = 0.0, timeout_s: float = 0.0) -> bool:
        """Receive what is there, until `flight` has `num_bands` bands; whether anything came.

        Where the link can wait by itself it does, for more than is there: first without sleeping, then asleep.

        Raises:
            LinkError, ProtocolError, RefusedError: the connection is of no more use.
        """
        moved = False
        began = time.monotonic()
        while flight.num_done < num_bands and self.flights:
            if self._quick is None:
                count = self.link.recv_into(*self._targets())
            else:
                count = self._receive(flight, num_bands, spin_us, timeout_s)
            if count == 0:
                break
            moved = True
            if not self._take_whole(count):
                self._take(count)
        if moved:
            self.silent_since = None
        elif self.silent_since is None:
            self.silent_since = began
        return moved

    def _receive(self, flight: Flight, num_bands: int, spin_us: float, timeout_s: float) -> int:
        """All that is needed of the flight that is being answered, in one call if it comes as expected."""
        front = self.flights[0]
        parts = self._targets()
        if front.dropped:
            return int(self._quick.recv_into(*parts))
        last = num_bands if front is flight else len(front.bands)
        needed = sum(map(len, parts[: len(parts) - len(front.bands) + last]))
        head = b""
        if self._in_head and not self._filled:
            head = pack_response(Status.OK, front.request_id, sum(map(len, parts)) - RESPONSE.size)
        return int(self._quick.receive_answer(parts, needed, head, spin_us=spin_us, timeout_s=timeout_s))

    def _targets(self) -> list[memoryview]:
        """Where the next bytes go: what is left of the head, and the regions of the flight that is being answered."""
        flight = self.flights[0]
        if self._in_head:
            head = memoryview(self._head)[self._filled :]
            return [head] if flight.dropped else [head, *flight.regions[flight.num_done :]]
        region, *others = flight.regions[flight.num_done :]
        if flight.dropped:
            return [_sink[: len(region) - self._filled]]
        return [region[self._filled :], *others]

    def _take_whole(self, count: int) -> bool:
        """Whether these bytes are the usual answer, all that was asked for at once; then it is done with."""
        flight = self.flights[0]
        if not self._in_head or self._filled or flight.num_done or flight.dropped:
            return False
        length = count - RESPONSE.size
        if length != flight.num_bytes or self._head != pack_response(Status.OK, flight.request_id, length):
            return False
        flight.num_done = len(flight.bands)
        self.flights.popleft()
        return True

    def _take(self, count: int) -> None:
        """The next `count` bytes have come to where `_targets` said."""
        flight = self.flights[0]
        if self._in_head:
            part = min(count, RESPONSE.size - self._filled)
            self._filled += part
            count -= part
            if self._filled < RESPONSE.size:
                return
            self._filled = 0
            self._open_answer(flight, count)
            if self._in_head:
                return
        while count:
            size = len(flight.regions[flight.num_done])
            part = min(count, size - self._filled)
            self._filled += part
            count -= part
            if self._filled == size:
                self._filled = 0
                flight.num_done += 1
        if flight.complete:
            self.flights.popleft()
            self._in_head = True

    def _open_answer(self, flight: Flight, num_here: int) -> None:
        """Read a head; `num_here` bytes behind it are in the flight's regions already.

        Raises:
            LinkError: it is a refusal, and more than its message has come with it; asking again sorts that out.
        """
        header = unpack_response(self._head)
        if header.request_id != flight.request_id:
            raise ProtocolError(f"{self.name} answered request {header.request_id}; {flight.request_id} was next")
        if header.status == Status.OK:
            expected = sum([len(region) for region in flight.regions[flight.num_done :]])
            if header.length != expected:
                raise ProtocolError(f"{self.name} sends {header.length} bytes of rows; {expected} were asked for")
            self._in_head = False
            return
        here = b"".join(flight.regions[flight.num_done :])[: min(num_here, header.length)]
        rest = read_exactly(self.link, header.length - len(here), 1.0)
        message = f"{self.name}: {(here + rest).decode(errors='replace')}"
        if header.status not in _OUR_FAULT:
            raise RefusedError(header.status, message)
        flight.fault = RowRequestError(message)
        self.flights.popleft()
        if num_here > header.length:
            raise LinkError(f"{self.name} sent more behind a refusal ({message})")


def open_channel(transport: Transport, address: Address, identity: bytes, timeout_s: float) -> tuple[Channel, Hello]:
    """Connect and exchange hellos, so that a peer that accepts connections but does not answer is found out.

    Raises:
        LinkError, ProtocolError, RefusedError: no memory node of this table is there.
    """
    name = f"memory node {address[0]}:{address[1]}"
    link = transport.connect(address, timeout_s)
    try:
        link.send(pack_hello(identity, 0))
        header = unpack_response(read_exactly(link, RESPONSE.size, timeout_s))
        if header.length > 4096:
            raise ProtocolError(f"{name} says hello in {header.length} bytes; at most 4096 are expected")
        payload = read_exactly(link, header.length, timeout_s)
        if header.status != Status.OK:
            raise RefusedError(header.status, f"{name}: {payload.decode(errors='replace')}")
        return Channel(link=link, name=name, identity=identity), Hello.unpack(payload)
    except BaseException:
        link.close()
        raise


def read_exactly(link: Link, length: int, timeout_s: float) -> bytes:
    """The next `length` bytes.

    Raises:
        LinkError: they did not come in time.
    """
    data = memoryview(bytearray(length))
    filled = 0
    deadline = time.monotonic() + timeout_s
    while filled < length:
        count = link.recv_into(data[filled:])
        filled += count
        if count == 0:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LinkError(f"{filled} of {length} bytes came within {timeout_s} s")
            link.wait_readable(left)
    return bytes(data)
