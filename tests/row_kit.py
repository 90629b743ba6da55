"""What tests of the row path share: random rows, nodes that serve them in this process, and one plain request."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray
from security_kit import security

from tolserve.memory.channel import read_exactly
from tolserve.memory.partition import Partition
from tolserve.memory.service import DEFAULT_MAX_IDS, RowService
from tolserve.memory.spec import BandSpec, Ids, Rows, RowSpec
from tolserve.memory.store import RamStore
from tolserve.transport.choose import Server, make_server, make_transport
from tolserve.transport.delayed import Delayed
from tolserve.transport.frames import RESPONSE, ResponseHeader, mask_of, pack_rows, unpack_response
from tolserve.transport.inprocess import InProcessTransport
from tolserve.transport.link import Address, Link, Transport
from tolserve.transport.security import Security
from tolserve.transport.server import ServerConfig
from tolserve.transport.session import Responder

IDENTITY = bytes(range(16))
TIMEOUT_S = 60.0
"""What comes at all comes sooner, on a busy machine too."""


def row_spec(*, vocab_size: int = 1000, widths: tuple[int, ...] = (8, 19, 33)) -> RowSpec:
    """One band of `width` int8 codes for each of `widths`."""
    bands = tuple(
        BandSpec(index=index, layers=(index,), ranks=(width,), dtype="int8", row_bytes=width)
        for index, width in enumerate(widths)
    )
    return RowSpec(bands=bands, vocab_size=vocab_size, identity=IDENTITY)


def random_rows(spec: RowSpec, *, seed: int = 0) -> list[Rows]:
    """uint8 [V, row_bytes] by band."""
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 256, (spec.vocab_size, band.row_bytes), np.uint8) for band in spec.bands]


def partition_store(spec: RowSpec, rows: list[Rows], partition: Partition | None = None) -> RamStore:
    """What a node of `partition` (all by default) holds of `rows`."""
    store = RamStore.empty(spec, partition or Partition())
    own = np.flatnonzero(store.partition.owns(np.arange(spec.vocab_size)))
    for held, band_rows in zip(store.bands, rows, strict=True):
        held[store.locate(own)] = band_rows[own]
    return store


class Network(Protocol):
    """A transport and the means to have somebody at its other end."""

    @property
    def transport(self) -> Transport:
        """What clients connect by."""

    def serve(self, responder: Responder) -> Address:
        """A peer that answers by `responder`."""

    def nobody(self) -> Address:
        """An address that no peer has."""

    def close(self) -> None:
        """End all peers."""


class ServedNetwork:
    """Row servers in threads of this process, by one of the transports that listen on a port."""

    def __init__(self, name: str = "tcp", security: Security | None = None) -> None:
        self._name = name
        self._security = security or Security()
        self.transport = make_transport(name, self._security)
        self.servers: list[Server] = []

    def serve(self, responder: Responder) -> Address:
        server = make_server(self._name, responder, ServerConfig(), self._security)
        self.servers.append(server)
        server.start()
        return server.address

    def nobody(self) -> Address:
        service = RowService(RamStore.empty(row_spec(), Partition()))
        server = make_server(self._name, service, ServerConfig(), self._security)
        server.stop()
        return server.address

    def close(self) -> None:
        for server in self.servers:
            server.stop()


class TcpNetwork(ServedNetwork):
    """Row servers on sockets that anybody may connect to."""

    def __init__(self) -> None:
        super().__init__("tcp")


class InProcessNetwork:
    """Responders called by the reader."""

    def __init__(self) -> None:
        self._inprocess = InProcessTransport({})
        self.transport: Transport = self._inprocess
        self._ports = itertools.count(1)

    def serve(self, responder: Responder) -> Address:
        address = "here", next(self._ports)
        self._inprocess.responders[address] = responder
        return address

    def nobody(self) -> Address:
        return "here", 0

    def close(self) -> None:
        self._inprocess.responders.clear()


NETWORKS = (
    "tcp",
    "in-process",
    "delayed tcp",
    "delayed in-process",
    "flight",
    "delayed flight",
    "secure tcp",
    "secure flight",
    "ray",
)


@contextlib.contextmanager
def network(name: str) -> Iterator[Network]:
    """One of NETWORKS; the delayed ones are a little further away and narrower than a test would notice."""
    with contextlib.ExitStack() as stack:
        made = _network(name.rpartition(" ")[2], name.startswith("secure"), stack)
        stack.callback(made.close)
        if name.startswith("delayed"):
            made.transport = Delayed(made.transport, round_trip_s=5e-4, bytes_per_s=5e8)
        yield made


def _network(name: str, secure: bool, stack: contextlib.ExitStack) -> Any:
    if name == "ray":
        pytest.importorskip("ray")
        from ray_kit import RayNetwork

        return RayNetwork()
    if name == "in-process":
        return InProcessNetwork()
    return ServedNetwork(name, stack.enter_context(security()) if secure else None)


def serve_store(net: Network, store: RamStore, *, max_ids: int = DEFAULT_MAX_IDS) -> Address:
    """A node that serves `store`."""
    return net.serve(RowService(store, max_ids=max_ids))


def rows_frame(request_id: int, ids: Ids, bands: tuple[int, ...], *, identity: bytes = IDENTITY) -> bytes:
    """A request for rows."""
    return pack_rows(identity, request_id, mask_of(bands), ids.astype(np.uint32))


def rows_payload(rows: list[Rows], ids: Ids, bands: tuple[int, ...]) -> bytes:
    """What the protocol answers to it."""
    return b"".join(rows[band][ids].tobytes() for band in bands)


def read_answer(link: Link) -> tuple[ResponseHeader, bytes]:
    """The next answer on a link."""
    header = unpack_response(read_exactly(link, RESPONSE.size, TIMEOUT_S))
    return header, read_exactly(link, header.length, TIMEOUT_S)


def ask(link: Link, frame: bytes) -> tuple[ResponseHeader, bytes]:
    """Send a request, wait for its answer."""
    link.send(frame)
    return read_answer(link)


def receive_some(link: Link, size: int = 1) -> bytes:
    """At most `size` bytes, as soon as there are any."""
    view = memoryview(bytearray(size))
    deadline = time.monotonic() + TIMEOUT_S
    while (count := link.recv_into(view)) == 0:
        assert time.monotonic() < deadline, "nothing came"
        link.wait_readable(1.0)
    return bytes(view[:count])


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what must come about."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"it did not come about within {TIMEOUT_S} s"
        time.sleep(0.005)


def draw_ids(draw: np.random.Generator, vocab_size: int, count: int) -> NDArray[np.int64]:
    """Ids with repetitions, small ones more often."""
    return np.minimum(draw.integers(0, vocab_size, count), draw.integers(0, vocab_size, count))
