"""A client believes no length and no name that a memory node sends: what is not as it should be ends the connection."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_kit import (
    IDENTITY,
    InProcessNetwork,
    partition_store,
    random_rows,
    row_spec,
    rows_payload,
    serve_store,
    wait_until,
)

from tolbuild.table.errors import ToLError
from tolserve.memory.cached import CachedSource
from tolserve.memory.channel import Flight, open_channel
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.errors import NodesUnavailableError, RowRequestError
from tolserve.memory.service import RowService
from tolserve.transport.errors import LinkError, ProtocolError, RefusedError
from tolserve.transport.frames import RESPONSE, Hello, Status, pack_response
from tolserve.transport.link import Address, Link, Transport

SPEC = row_spec()
ROWS = random_rows(SPEC)
IDS = np.arange(10, dtype=np.int64)
LIAR = "liar", 1
HELLO = Hello(
    partition=0, num_partitions=1, vocab_size=1000, max_ids=1000, row_bytes=tuple(b.row_bytes for b in SPEC.bands)
)
GREETING = pack_response(Status.OK, 0, len(HELLO.pack())) + HELLO.pack()
HUGE = 2**63


class RecordedLink:
    """Gives the same bytes whatever is asked, then silence or the end."""

    def __init__(self, data: bytes, *, ends: bool) -> None:
        self._data = data
        self._ends = ends

    def send(self, frame: bytes) -> None:
        pass

    def recv_into(self, *views: memoryview) -> int:
        if not self._data and self._ends:
            raise LinkError("the record has ended")
        before = len(self._data)
        for view in views:
            part, self._data = self._data[: len(view)], self._data[len(view) :]
            view[: len(part)] = part
        return before - len(self._data)

    def wait_readable(self, timeout_s: float) -> None:
        pass

    def close(self) -> None:
        pass


class WithLiars:
    """A transport at some of whose addresses a record answers."""

    def __init__(self, records: Mapping[Address, bytes], honest: Transport | None = None, *, ends: bool = True) -> None:
        self._records = records
        self._honest = honest
        self._ends = ends

    def connect(self, address: Address, timeout_s: float) -> Link:
        if address in self._records:
            return RecordedLink(self._records[address], ends=self._ends)
        assert self._honest is not None
        return self._honest.connect(address, timeout_s)


def peak_bytes_of_failed_hello(record: bytes, error: type[ToLError], message: str) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(error, match=message):
            open_channel(WithLiars({LIAR: record}), LIAR, IDENTITY, 5.0)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"HTTP/1.1 400 Bad Request".ljust(64), "HTTP"),
        (GREETING[:4] + b"\x02" + GREETING[5:], "version 2"),
        (pack_response(9, 0, 0), "status 9 is unknown"),
        (pack_response(Status.OK, 0, HUGE), f"in {HUGE} bytes"),
        (pack_response(Status.OK, 0, 4097), "in 4097 bytes"),
        (pack_response(Status.FAILED, 0, HUGE), "at most 1024"),
        (pack_response(Status.OK, 0, 23) + bytes(23), "a hello of 23 bytes"),
        (pack_response(Status.OK, 0, 24) + struct.pack("<IIQII", 0, 1, 1, 1, 2**32 - 1), "for 4294967295 bands"),
    ],
)
def test_a_hello_that_lies_is_a_protocol_error_and_takes_no_memory(record: bytes, message: str) -> None:
    assert peak_bytes_of_failed_hello(record, ProtocolError, message) < 1 << 20


def test_a_node_of_another_table_is_refused_with_its_reason() -> None:
    record = pack_response(Status.WRONG_IDENTITY, 0, 5) + b"other"
    peak_bytes_of_failed_hello(record, RefusedError, "liar:1: other")


def test_a_node_that_says_nothing_is_given_up_in_time() -> None:
    with pytest.raises(LinkError, match=r"0 of 24 bytes came within 0\.05 s"):
        open_channel(WithLiars({LIAR: b""}, ends=False), LIAR, IDENTITY, 0.05)


@given(st.binary(max_size=200), st.sampled_from([b"", GREETING[:4], GREETING[:8], GREETING[:16], GREETING[:24]]))
@settings(deadline=None)
def test_any_hello_is_taken_or_refused(garbage: bytes, start: bytes) -> None:
    try:
        _, hello = open_channel(WithLiars({LIAR: start + garbage}), LIAR, IDENTITY, 5.0)
    except ToLError:
        return
    assert (start + garbage)[RESPONSE.size :].startswith(hello.pack())


def flight_of(ids: int) -> Flight:
    """A flight on its way to memory for `ids` rows of two bands."""
    regions = [memoryview(bytearray(ids * SPEC.bands[band].row_bytes)) for band in (0, 1)]
    return Flight(partition=0, ids=np.arange(ids, dtype=np.uint32), bands=(0, 1), regions=regions)


NUM_BYTES = 10 * (8 + 19)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (pack_response(Status.OK, 5, NUM_BYTES + 1) + bytes(NUM_BYTES), f"{NUM_BYTES + 1} bytes of rows; {NUM_BYTES}"),
        (pack_response(Status.OK, 5, HUGE), f"{HUGE} bytes of rows"),
        (pack_response(Status.OK, 5, 0), f"sends 0 bytes of rows; {NUM_BYTES} were"),
        (pack_response(Status.OK, 4, NUM_BYTES), "answered request 4; 5 was next"),
        (pack_response(Status.FAILED, 5, 2000), "at most 1024"),
        (pack_response(8, 5, 0), "status 8"),
        (bytes(24), "expected version 1"),
    ],
)
def test_rows_that_were_not_asked_for_are_a_protocol_error(record: bytes, message: str) -> None:
    channel, _ = open_channel(WithLiars({LIAR: GREETING + record}), LIAR, IDENTITY, 5.0)
    flight = flight_of(10)
    channel.submit(flight, 5)
    with pytest.raises(ProtocolError, match=message):
        channel.pump(flight, 2)
    assert flight.num_done == 0


@given(st.binary(max_size=400), st.sampled_from([b"", pack_response(Status.OK, 5, NUM_BYTES)]))
def test_any_answer_fills_the_rows_or_is_refused(garbage: bytes, start: bytes) -> None:
    channel, _ = open_channel(WithLiars({LIAR: GREETING + start + garbage}), LIAR, IDENTITY, 5.0)
    flight = flight_of(10)
    channel.submit(flight, 5)
    try:
        while flight.fault is None and not flight.complete:
            channel.pump(flight, 2)
    except ToLError:
        return
    assert flight.fault is not None or b"".join(flight.regions) == garbage[:NUM_BYTES]


WRONG_HELLOS = {
    "another partition": replace(HELLO, num_partitions=2),
    "another vocabulary": replace(HELLO, vocab_size=999),
    "other rows": replace(HELLO, row_bytes=(8, 19, 34)),
    "fewer bands": replace(HELLO, row_bytes=(8, 19)),
    "too small requests": replace(HELLO, max_ids=999),
}
LIES = {name: pack_response(Status.OK, 0, len(hello.pack())) + hello.pack() for name, hello in WRONG_HELLOS.items()} | {
    "rows of another length": GREETING + pack_response(Status.OK, 1, HUGE),
    "half an answer": GREETING
    + pack_response(Status.OK, 1, 10 * SPEC.row_bytes)
    + rows_payload(ROWS, IDS, (0, 1))[:100],
    "a failure": GREETING + pack_response(Status.FAILED, 1, 3) + b"bad",
    "nonsense": b"nonsense" * 20,
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("ends", [True, False], ids=["ends", "falls silent"])
def test_the_other_node_answers_where_one_lies(name: str, ends: bool) -> None:
    net = InProcessNetwork()
    honest = serve_store(net, partition_store(SPEC, ROWS))
    transport = WithLiars({LIAR: LIES[name]}, net.transport, ends=ends)
    config = ClientConfig(silence_s=0.05, connect_s=0.05, probe_s=0.01)
    client = PartitionedClient(SPEC, [[LIAR, honest]], config, transport)
    source = CachedSource(client)
    believed = LIES[name].startswith(GREETING)
    wait_until(lambda: client.num_connected == 1 + believed)
    for _ in range(3):
        handle = source.start(IDS)
        assert all(np.array_equal(source.wait(handle, band), ROWS[band][IDS]) for band in range(3))
        source.release(handle)
    assert (client.counters.num_ejections > 0) == believed
    source.close()


def test_the_deadline_names_what_is_wrong_with_each_node() -> None:
    records = {LIAR: LIES["other rows"], ("mute", 2): b""}
    config = ClientConfig(connect_s=0.05, probe_s=0.01, deadline_s=1.0)
    client = PartitionedClient(SPEC, [[*records]], config, WithLiars(records, ends=False))
    source = CachedSource(client)
    handle = source.start(IDS)
    with pytest.raises(NodesUnavailableError, match=r"liar:1: .*\(8, 19, 34\).*mute:2: 0 of 24 bytes") as caught:
        source.arrive(handle, 0)
    assert "partition 0/1" in str(caught.value) and "within 1.0 s" in str(caught.value)
    source.release(handle)
    assert source.num_staged == 0
    source.close()


class StricterThanTold(RowService):
    """Takes fewer ids than its hello says."""

    def hello(self, identity: bytes) -> Hello:
        return replace(super().hello(identity), max_ids=SPEC.vocab_size)


def test_a_request_that_every_node_would_refuse_is_sent_once_and_spoils_nothing() -> None:
    net = InProcessNetwork()
    honest = serve_store(net, partition_store(SPEC, ROWS))
    record = GREETING + pack_response(Status.BAD_IDS, 1, 3) + b"bad"
    config = ClientConfig(silence_s=0.05, probe_s=0.01)
    client = PartitionedClient(SPEC, [[LIAR, honest]], config, WithLiars({LIAR: record}, net.transport, ends=False))
    source = CachedSource(client)
    wait_until(lambda: client.num_connected == 2)
    refused, other = source.start(IDS), source.start(IDS + 500)
    with pytest.raises(RowRequestError, match="liar:1: bad"):
        source.arrive(refused, 0)
    source.release(refused)
    assert (client.counters.num_requests, client.counters.num_ejections) == (2, 0)
    assert np.array_equal(source.wait(other, 2), ROWS[2][IDS + 500])
    source.release(other)
    assert source.num_staged == 0
    source.close()


def test_a_node_that_takes_fewer_ids_than_may_be_asked_for_is_not_used() -> None:
    net = InProcessNetwork()
    address = serve_store(net, partition_store(SPEC, ROWS), max_ids=5)
    client = PartitionedClient(SPEC, [[address]], ClientConfig(max_ids=6, probe_s=0.01), net.transport)
    with pytest.raises(NodesUnavailableError, match="at most 5 ids in one request; this client asks for up to 6"):
        client.wait_connected(1.0)
    client.close()
