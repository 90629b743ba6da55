"""The row protocol: frames survive the wire, nonsense ends a connection with a reason and harms nobody else."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from row_kit import (
    IDENTITY,
    TIMEOUT_S,
    TcpNetwork,
    ask,
    partition_store,
    random_rows,
    read_answer,
    receive_some,
    row_spec,
    rows_frame,
    rows_payload,
    serve_store,
)

from tolbuild.table.errors import StoreError
from tolserve.memory.partition import Partition
from tolserve.memory.service import RowService
from tolserve.memory.spec import Ids
from tolserve.memory.store import RamStore
from tolserve.transport import frames
from tolserve.transport.errors import LinkError, ProtocolError
from tolserve.transport.frames import RequestHeader, ResponseHeader, Status
from tolserve.transport.link import Address, Link
from tolserve.transport.session import Session
from tolserve.transport.tcp import TcpTransport

SPEC = row_spec()
ROWS = random_rows(SPEC)
PARTITION = Partition(index=1, count=2)
MAX_IDS = 50
OWN = np.arange(64, 74)
ALL_BANDS = (0, 1, 2)
GOOD = rows_frame(7, OWN, ALL_BANDS)
ANSWER = rows_payload(ROWS, OWN, ALL_BANDS)

u64 = st.integers(0, 2**64 - 1)
identities = st.binary(min_size=16, max_size=16)


class FailingStore(RamStore):
    """Its disk is gone."""

    def locate(self, ids: Ids) -> Ids:
        raise StoreError("the disk is gone")


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    net = TcpNetwork()
    yield serve_store(net, partition_store(SPEC, ROWS, PARTITION), max_ids=MAX_IDS)
    net.close()


@pytest.fixture(scope="module")
def witness(address: Address) -> Iterator[Link]:
    """A client that has been connected all the time."""
    link = TcpTransport().connect(address, TIMEOUT_S)
    yield link
    link.close()


def talk(address: Address, data: bytes) -> list[tuple[ResponseHeader, bytes]]:
    """Send bytes and that there are no more; every answer until the node ends the connection."""
    with socket.create_connection(address, timeout=TIMEOUT_S) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        received = bytearray()
        while part := sock.recv(1 << 16):
            received += part
    answers = []
    while received:
        header = frames.unpack_response(received)
        end = frames.RESPONSE.size + header.length
        assert len(received) >= end
        answers.append((header, bytes(received[frames.RESPONSE.size : end])))
        del received[:end]
    return answers


def changed(offset: int, part: bytes) -> bytes:
    """A good request with other bytes at `offset`."""
    return GOOD[:offset] + part + GOOD[offset + len(part) :]


@given(identities, u64, u64, st.lists(st.integers(0, 2**32 - 1), max_size=100))
def test_a_request_survives_the_wire(identity: bytes, request_id: int, mask: int, ids: list[int]) -> None:
    frame = frames.pack_rows(identity, request_id, mask, np.array(ids, np.uint32))
    assert frames.unpack_request(frame) == RequestHeader(frames.ROWS, identity, request_id, mask, len(ids))
    assert np.frombuffer(frame[48:], "<u4").tolist() == ids
    hello = frames.pack_hello(identity, request_id)
    assert frames.unpack_request(hello) == RequestHeader(frames.HELLO, identity, request_id, 0, 0)


@given(st.sampled_from(Status), u64, u64)
def test_a_response_survives_the_wire(status: Status, request_id: int, length: int) -> None:
    length = length if status == Status.OK else length % 1025
    assert frames.unpack_response(frames.pack_response(status, request_id, length)) == (status, request_id, length)


@given(st.integers(1, 2**32 - 1), st.data())
def test_a_hello_survives_the_wire(count: int, data: st.DataObject) -> None:
    u32 = st.integers(0, 2**32 - 1)
    hello = frames.Hello(
        partition=data.draw(st.integers(0, count - 1)),
        num_partitions=count,
        vocab_size=data.draw(u64),
        max_ids=data.draw(u32),
        row_bytes=tuple(data.draw(st.lists(u32, max_size=64))),
    )
    assert frames.Hello.unpack(hello.pack()) == hello
    with pytest.raises(ProtocolError):
        frames.Hello.unpack(hello.pack()[:-1])


@given(st.sets(st.integers(0, 63)))
def test_bands_survive_the_mask(bands: set[int]) -> None:
    ordered = tuple(sorted(bands))
    assert frames.bands_of(frames.mask_of(ordered)) == ordered


@pytest.mark.parametrize(
    ("frame", "status", "reason"),
    [
        (rows_frame(7, OWN, ALL_BANDS, identity=bytes(16)), Status.WRONG_IDENTITY, IDENTITY.hex()),
        (frames.pack_hello(bytes(16), 7), Status.WRONG_IDENTITY, bytes(16).hex()),
        (rows_frame(7, np.array([64, 1000]), (0,)), Status.BAD_IDS, "1000 is outside the vocabulary of 1000"),
        (rows_frame(7, np.array([64, 2**32 - 1]), (0,)), Status.BAD_IDS, "4294967295"),
        (rows_frame(7, np.array([64, 5]), (0,)), Status.BAD_IDS, "5 is not in partition 1/2"),
        (rows_frame(7, OWN, ()), Status.BAD_BANDS, "bands 0 to 2"),
        (rows_frame(7, OWN, (0, 3)), Status.BAD_BANDS, "0x9"),
        (rows_frame(7, OWN, (63,)), Status.BAD_BANDS, "bands 0 to 2"),
    ],
)
def test_a_refused_request_leaves_the_connection_open(
    address: Address, frame: bytes, status: Status, reason: str
) -> None:
    refused, good = talk(address, frame + GOOD)
    assert refused[0][:2] == (status, 7)
    assert reason in refused[1].decode()
    assert good == (ResponseHeader(Status.OK, 7, len(ANSWER)), ANSWER)


@pytest.mark.parametrize(
    ("frame", "status", "reason"),
    [
        (changed(0, b"ToLr"), Status.MALFORMED, "expected b'ToLq'"),
        (changed(0, b"GET / HTTP/1.1\r\n"), Status.MALFORMED, "GET "),
        (changed(4, b"\x02"), Status.MALFORMED, "version 2; this node speaks 1"),
        (changed(5, b"\x00"), Status.MALFORMED, "kind 0"),
        (changed(5, b"\x03"), Status.MALFORMED, "kind 3"),
        (changed(6, b"\x01"), Status.MALFORMED, "zeros"),
        (changed(44, b"\x01"), Status.MALFORMED, "zeros"),
        (changed(5, b"\x01"), Status.MALFORMED, "zeros"),
        (changed(40, b"\x33\0\0\0"), Status.TOO_MANY_IDS, "51 ids in one request; this node takes at most 50"),
        (changed(40, b"\xff\xff\xff\xff"), Status.TOO_MANY_IDS, "4294967295 ids"),
    ],
)
def test_a_request_that_cannot_be_read_on_from_ends_the_connection(
    address: Address, witness: Link, frame: bytes, status: Status, reason: str
) -> None:
    (answer,) = talk(address, frame + GOOD)
    assert answer[0][:2] == (status, 0 if status == Status.MALFORMED else 7)
    assert reason in answer[1].decode()
    assert ask(witness, GOOD)[1] == ANSWER


def test_the_reason_arrives_though_more_was_sent_than_is_ever_read(address: Address) -> None:
    link = TcpTransport().connect(address, TIMEOUT_S)
    header, message = ask(link, changed(40, b"\xff\xff\xff\xff") + bytes(1 << 20))
    assert header.status == Status.TOO_MANY_IDS and message
    with pytest.raises(LinkError):
        receive_some(link)
    link.close()


def test_a_node_that_fails_says_so_and_goes_on() -> None:
    store = FailingStore(SPEC, Partition(), [])
    net = TcpNetwork()
    link = TcpTransport().connect(serve_store(net, store), TIMEOUT_S)
    for request_id in (1, 2):
        header, message = ask(link, rows_frame(request_id, OWN, (0,)))
        assert header[:2] == (Status.FAILED, request_id)
        assert message == b"the disk is gone"
    link.close()
    net.close()


@pytest.mark.parametrize("length", [0, 1, 47, 48, len(GOOD) - 1])
def test_a_truncated_request_gets_nothing(address: Address, witness: Link, length: int) -> None:
    assert talk(address, GOOD + GOOD[:length]) == [(ResponseHeader(Status.OK, 7, len(ANSWER)), ANSWER)]
    assert ask(witness, GOOD)[1] == ANSWER


@given(st.binary(max_size=400))
@example(b"\0" * 400)
@settings(max_examples=60, deadline=None)
def test_garbage_gets_one_reason_at_most(address: Address, witness: Link, garbage: bytes) -> None:
    answers = talk(address, garbage)
    assert [header.status for header, _ in answers] == [Status.MALFORMED] * (len(garbage) >= 48)
    assert ask(witness, GOOD)[1] == ANSWER


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_damaged_request_is_answered_or_refused(
    address: Address, witness: Link, damage: list[tuple[int, int]]
) -> None:
    frame = bytearray(GOOD)
    for place, value in damage:
        frame[place] = value
    for header, payload in talk(address, bytes(frame)):
        assert header.status == Status.OK or payload
    assert ask(witness, GOOD)[1] == ANSWER


def test_a_message_is_never_longer_than_the_protocol_allows() -> None:
    class Verbose(FailingStore):
        def locate(self, ids: Ids) -> Ids:
            raise StoreError("\u00e9" * 3000)

    net = TcpNetwork()
    link = TcpTransport().connect(serve_store(net, Verbose(SPEC, Partition(), [])), TIMEOUT_S)
    message = ask(link, rows_frame(1, OWN, (0,)))[1]
    assert message.decode() == "\u00e9" * 512
    link.close()
    net.close()


def peak_bytes(work: Callable[[], Any]) -> int:
    """Most bytes that Python and NumPy held at once for `work`."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_node_reserves_nothing_for_what_a_request_claims() -> None:
    session = Session(RowService(partition_store(SPEC, ROWS), max_ids=MAX_IDS))
    room = len(session.inbox())

    def claim() -> None:
        frame = changed(40, b"\xff\xff\xff\xff")[:room]
        session.inbox()[: len(frame)] = frame
        session.received(len(frame))
        (answer,) = session.piece()
        assert frames.unpack_response(answer).status == Status.TOO_MANY_IDS

    assert room == 48 + 4 * MAX_IDS
    assert peak_bytes(claim) < 1 << 16
    assert session.closing


@pytest.mark.parametrize("size", [1, 47, 49])
def test_requests_are_read_in_whatever_pieces_they_come(address: Address, size: int) -> None:
    link = TcpTransport().connect(address, TIMEOUT_S)
    for start in range(0, 2 * len(GOOD), size):
        link.send((GOOD + GOOD)[start : start + size])
    assert [read_answer(link)[1], read_answer(link)[1]] == [ANSWER, ANSWER]
    link.close()
