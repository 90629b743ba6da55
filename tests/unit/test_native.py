"""The compiled helper and what takes its place give the same arrays, the same bytes and the same refusals."""

from __future__ import annotations

import socket
import struct
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_kit import IDENTITY, TIMEOUT_S, partition_store, random_rows, row_spec, rows_frame, rows_payload, wait_until

from tolserve.memory.cached import CachedSource
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.partition import Partition
from tolserve.memory.policy import LRU
from tolserve.memory.service import RowService, Served, ServedCounters
from tolserve.memory.store import CyclicStore, RowStore
from tolserve.native import compiled
from tolserve.native.lookups import CompiledLookups, NumpyLookups
from tolserve.transport.errors import RefusedError
from tolserve.transport.frames import RESPONSE, Hello, Ids32, RequestHeader, Status, pack_hello, unpack_response
from tolserve.transport.lanes import Lanes
from tolserve.transport.server import RowServer, ServerConfig
from tolserve.transport.session import Answer, Later, Responder

SPEC = row_spec()
ROWS = random_rows(SPEC)
MAX_IDS = 50
HELPER = compiled.load()
needs_helper = pytest.mark.skipif(HELPER is None, reason="the helper was not compiled here: no compiler, or not Linux")
PATHS = [pytest.param("compiled", marks=needs_helper), "plain"]

some_ids = st.lists(st.integers(0, 99), max_size=40).map(lambda ids: np.array(ids, np.int64))


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(compiled, "load", lambda: None)
    return str(request.param)


def filled_map(seed: int) -> Any:
    draw = np.random.default_rng(seed)
    return np.where(draw.random(100) < 0.5, draw.integers(0, 60, 100), -1).astype(np.int32)


@needs_helper
@given(ids=some_ids, seed=st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_both_look_up_alike(ids: Any, seed: int) -> None:
    plain, quick = NumpyLookups(), CompiledLookups(HELPER)
    assert np.array_equal(plain.distinct(ids), quick.distinct(ids))
    results = []
    for lookups in (plain, quick):
        row_of, readers = filled_map(seed), np.zeros(40, np.int32)
        rows, missing, num_missing = lookups.look_up(row_of, ids)
        row_of[missing] = np.arange(len(missing))
        slots = lookups.settle(row_of, ids, rows, readers, 20)
        held = readers.copy()
        lookups.let_go(readers, slots)
        assert not readers.any()
        results.append((rows, missing, num_missing, slots, held))
    assert all(np.array_equal(one, other) for one, other in zip(*results, strict=True))


@needs_helper
@given(ids=some_ids, tokens=some_ids, index_type=st.sampled_from([np.int32, np.int64]))
@settings(max_examples=100, deadline=None)
def test_both_match_alike(ids: Any, tokens: Any, index_type: Any) -> None:
    known = np.unique(ids)
    index = (np.arange(len(known)) * 7).astype(index_type)
    for wanted in (tokens, ids):
        one, other = (lookups.match(known, index, wanted) for lookups in (NumpyLookups(), CompiledLookups(HELPER)))
        assert (one is None) == (other is None) == (not np.isin(wanted, known).all())
        if one is not None and other is not None:
            assert np.array_equal(one[0], other[0]) and one[1] == other[1]


@needs_helper
@pytest.mark.parametrize("lookups", [NumpyLookups(), CompiledLookups(HELPER)] if HELPER else [])
def test_what_cannot_be_looked_up_is_refused(lookups: Any) -> None:
    row_of = filled_map(0)
    for bad in (np.array([3, 100]), np.array([-1])):
        with pytest.raises(IndexError):
            lookups.look_up(row_of, bad)
    with pytest.raises(TypeError):
        lookups.look_up(row_of, np.array([1], np.int32))
    assert lookups.look_up(row_of, np.arange(20)[::2])[0].tolist() == row_of[:20:2].tolist()


@needs_helper
def test_the_helper_checks_what_it_is_given() -> None:
    assert HELPER is not None
    bands = [np.zeros((128, 8), np.uint8)]
    fine = {"identity": IDENTITY, "vocab_size": 100, "partition": (0, 1), "num_cyclic": 0, "bands": bands}
    wrong = [{"identity": b""}, {"vocab_size": 129}, {"partition": (1, 1)}, {"num_cyclic": 200}, {"bands": []}]
    lanes = HELPER.Lanes(4)
    for change in wrong:
        with pytest.raises(ValueError, match=r"16 bytes|at least|0 bands"):
            lanes.hold(**{**fine, **change})
    assert not lanes.holds(IDENTITY) and lanes.hold(**fine) and lanes.holds(IDENTITY)
    assert [lanes.hold(**{**fine, "identity": bytes([number]) * 16}) for number in range(16)] == [True] * 15 + [False]
    with pytest.raises(ValueError, match="are needed"):
        lanes.add(0, bytearray(10), 0)
    with pytest.raises(KeyError):
        lanes.remove(0)
    lanes.close()
    lanes.withdraw(IDENTITY)
    assert not lanes.hold(**fine) and not lanes.holds(IDENTITY)
    with pytest.raises(RuntimeError):
        lanes.run(0, 0)
    short = np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="as long as the ids"):
        HELPER.look_up(filled_map(0), np.arange(3), short, np.zeros(3, np.int64))


def serve(store: RowStore, **config: Any) -> tuple[RowServer, RowService, socket.socket]:
    service = RowService(store, max_ids=MAX_IDS)
    server, peer = serve_by(service, **config)
    return server, service, peer


def serve_by(service: Responder, **config: Any) -> tuple[RowServer, socket.socket]:
    server = RowServer(service, ServerConfig(**config))
    server.start()
    return server, socket.create_connection(server.address, timeout=TIMEOUT_S)


def exactly(peer: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = peer.recv(length - len(data))
        assert part, "the connection was closed"
        data += part
    return data


def answer(peer: socket.socket) -> tuple[int, int, bytes]:
    header = unpack_response(exactly(peer, RESPONSE.size))
    return header.status, header.request_id, exactly(peer, header.length)


def mixed_requests() -> Iterator[tuple[bytes, Status, bytes | None]]:
    """Requests that are right and, among them, each kind that leaves the connection open and is not."""
    draw = np.random.default_rng(1)
    for number in range(40):
        ids = draw.integers(0, SPEC.vocab_size, draw.integers(1, MAX_IDS))
        bands = ((0, 1, 2), (1,), (0, 2))[number % 3]
        yield rows_frame(number, ids, bands), Status.OK, rows_payload(ROWS, ids, bands)
        match number % 8:
            case 1:
                yield rows_frame(number, ids, bands, identity=bytes(16)), Status.WRONG_IDENTITY, None
            case 2:
                yield rows_frame(number, np.append(ids, SPEC.vocab_size), bands), Status.BAD_IDS, None
            case 3:
                yield rows_frame(number, ids, (0, 3)), Status.BAD_BANDS, None
            case 4:
                yield rows_frame(number, ids, ()), Status.BAD_BANDS, None
            case 5:
                yield rows_frame(number, ids[:0], bands), Status.OK, b""
            case 6:
                yield pack_hello(IDENTITY, number), Status.OK, None


@pytest.mark.parametrize("spin_us", [0, 2000])
@pytest.mark.parametrize("cut", [1 << 20, 61])
def test_a_node_answers_right_and_wrong_requests_in_their_order(path: str, cut: int, spin_us: int) -> None:
    """However the stream is cut into packets."""
    server, service, peer = serve(partition_store(SPEC, ROWS), spin_us=spin_us)
    requests = list(mixed_requests())
    stream = b"".join(frame for frame, _, _ in requests)
    for start in range(0, len(stream), cut):
        peer.sendall(stream[start : start + cut])
    for frame, status, payload in requests:
        found = answer(peer)
        assert found[:2] == (status, struct.unpack_from("<Q", frame, 24)[0])
        assert payload is None or found[2] == payload
    right = [payload for _, status, payload in requests if status == Status.OK and payload is not None]
    assert (service.served.num_requests, service.served.num_bytes) == (len(right), sum(map(len, right)))
    assert service.served.refused == {"wrong_identity": 5, "bad_ids": 5, "bad_bands": 10}
    peer.close()
    wait_until(lambda: server.num_clients == 0)
    server.stop()


@pytest.mark.parametrize("bad", [b"x" * 48, rows_frame(1, np.zeros(MAX_IDS + 1, np.int64), (0,))])
def test_what_ends_a_connection_ends_it_with_a_reason(path: str, bad: bytes) -> None:
    server, _, peer = serve(partition_store(SPEC, ROWS))
    peer.sendall(rows_frame(1, np.arange(3), (0,)) * 3 + bad)
    for _ in range(3):
        assert answer(peer)[0] == Status.OK
    assert answer(peer)[0] in (Status.MALFORMED, Status.TOO_MANY_IDS)
    assert peer.recv(1) == b""
    peer.close()
    server.stop()


STORES: dict[str, Callable[[], RowStore]] = {
    "a partition": lambda: partition_store(SPEC, ROWS, Partition(index=1, count=3)),
    "repeating rows": lambda: CyclicStore(SPEC, num_rows=70, seed=3),
    "long rows": lambda: partition_store(LONG, LONG_ROWS),
}
LONG = row_spec(vocab_size=200, widths=(70_000, 40_000, 9))
LONG_ROWS = random_rows(LONG)


@pytest.mark.parametrize("name", STORES)
def test_rows_come_from_their_places(path: str, name: str) -> None:
    """Several requests are on their way before the first answer is read: the node has to wait for room."""
    store = STORES[name]()
    server, _, peer = serve(store)
    draw = np.random.default_rng(2)
    own = np.flatnonzero(store.partition.owns(np.arange(store.spec.vocab_size)))
    asked = [draw.choice(own, 40) for _ in range(6)]
    peer.sendall(b"".join(rows_frame(number, ids, (0, 1, 2)) for number, ids in enumerate(asked)))
    for number, ids in enumerate(asked):
        expected = b""
        for band in store.spec.bands:
            rows = np.empty((len(ids), band.row_bytes), np.uint8)
            store.gather(store.locate(ids), band.index, rows)
            expected += rows.tobytes()
        assert answer(peer) == (Status.OK, number, expected)
    if store.partition.count > 1:
        peer.sendall(rows_frame(9, np.array([own[0], 0]), (0,)))
        assert answer(peer)[0] == Status.BAD_IDS
    peer.close()
    server.stop()


def test_a_client_that_takes_nothing_is_dropped_and_the_others_are_served(path: str) -> None:
    server, _, greedy = serve(STORES["long rows"](), stuck_s=0.3)
    good = socket.create_connection(server.address, timeout=TIMEOUT_S)
    ids = np.arange(40)
    greedy.sendall(rows_frame(0, ids, (2,)))
    assert answer(greedy)[0] == Status.OK
    greedy.sendall(rows_frame(1, ids, (0, 1)) * 20)
    for number in range(3):
        good.sendall(rows_frame(number, ids, (1, 2)))
        assert answer(good) == (Status.OK, number, rows_payload(LONG_ROWS, ids, (1, 2)))
    wait_until(lambda: server.num_clients == 1)
    greedy.close()
    good.close()
    server.stop()


class Versions:
    """A responder that holds some table versions and shares each from when it is there until it is not."""

    max_ids = MAX_IDS

    def __init__(self) -> None:
        self.counts = Served()
        self._held: dict[bytes, RowService] = {}
        self._lanes: list[Lanes] = []

    @property
    def served(self) -> ServedCounters:
        return self.counts.total()

    def add(self, store: RowStore) -> None:
        service = RowService(store, max_ids=MAX_IDS, counts=self.counts)
        self._held[store.spec.identity] = service
        for lanes in self._lanes:
            service.share(lanes)

    def remove(self, identity: bytes) -> None:
        del self._held[identity]
        for lanes in self._lanes:
            lanes.withdraw(identity)

    def share(self, lanes: Lanes) -> bool:
        self._lanes.append(lanes)
        shared = [service.share(lanes) for service in self._held.values()]
        return any(shared)

    def hello(self, identity: bytes) -> Hello:
        return self._of(identity).hello(identity)

    def rows(self, header: RequestHeader, ids: Ids32) -> Answer | Later:
        return self._of(header.identity).rows(header, ids)

    def refused(self, status: Status) -> None:
        self.counts.own.refused[status.name] = self.counts.own.refused.get(status.name, 0) + 1

    def _of(self, identity: bytes) -> RowService:
        if identity not in self._held:
            raise RefusedError(Status.WRONG_IDENTITY, "not held")
        return self._held[identity]


def test_versions_come_and_go_while_they_are_served(path: str) -> None:
    """A connection asks for several; one that was removed is refused at once, and is not held in memory for long."""
    versions = [replace(SPEC, identity=bytes([number]) * 16) for number in range(20)]
    tables = [random_rows(spec, seed=number) for number, spec in enumerate(versions)]
    service = Versions()
    service.add(partition_store(versions[0], tables[0]))
    server, peer = serve_by(service)
    ids = np.arange(30)

    def ask(number: int) -> tuple[int, int, bytes]:
        peer.sendall(rows_frame(number, ids, (0, 2), identity=versions[number].identity))
        return answer(peer)

    def right(number: int) -> tuple[int, int, bytes]:
        return Status.OK, number, rows_payload(tables[number], ids, (0, 2))

    for number in range(1, 20):
        assert ask(number)[0] == Status.WRONG_IDENTITY
        store = partition_store(versions[number], tables[number])
        gone = weakref.ref(store.bands[0])
        service.add(store)
        del store
        for wanted in (number, number, 0, number):
            assert ask(wanted) == right(wanted)
        if number > 2:
            continue  # more than have room in the helper
        service.remove(versions[number].identity)
        assert ask(number)[0] == Status.WRONG_IDENTITY
        wait_until(lambda gone=gone: gone() is None)  # type: ignore[misc]
    assert service.served.num_requests == 19 * 4
    peer.close()
    server.stop()


@pytest.mark.parametrize("spin_us", [0, 3000])
def test_steps_get_their_rows_of_several_nodes(path: str, spin_us: int) -> None:
    """Requests overlap, rows are cached and given up, some bands are asked for alone."""
    parts = [Partition(index=index, count=3) for index in range(3)]
    servers = [serve(partition_store(SPEC, ROWS, part), spin_us=spin_us) for part in parts]
    client = PartitionedClient(
        SPEC, [[server.address] for server, _, _ in servers], ClientConfig(spin_us=spin_us, max_ids=MAX_IDS)
    )
    client.wait_connected(TIMEOUT_S)
    source = CachedSource(client, num_slots=40, policy=LRU(40), num_staging=300)
    draw = np.random.default_rng(4)
    held: list[tuple[Any, Any]] = []
    for number in range(60):
        bands = (0, 1, 2) if number % 5 else (1,)
        ids = draw.integers(0, 200, 30)
        held.append((ids, source.start(ids, bands=bands)))
        if len(held) == 2:
            ids, handle = held.pop(0)
            for band in (0, 1, 2) if (number - 1) % 5 else (1,):
                assert np.array_equal(source.wait(handle, band), ROWS[band][ids])
            source.release(handle)
    source.close()
    for server, _, peer in servers:
        peer.close()
        server.stop()
