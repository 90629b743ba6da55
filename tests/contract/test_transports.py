"""What every transport promises: TCP, in this process, and each of them from further away."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from row_kit import (
    NETWORKS,
    TIMEOUT_S,
    InProcessNetwork,
    Network,
    ServedNetwork,
    ask,
    network,
    partition_store,
    random_rows,
    read_answer,
    receive_some,
    row_spec,
    rows_frame,
    rows_payload,
    serve_store,
)

from tolserve.transport.delayed import Delayed
from tolserve.transport.errors import LinkError
from tolserve.transport.frames import RESPONSE, Status, unpack_response
from tolserve.transport.link import Address, Link
from tolserve.transport.tcp import TcpTransport

SPEC = row_spec()
ROWS = random_rows(SPEC)
WIDE_SPEC = row_spec(vocab_size=128, widths=(100_000, 1))
WIDE_ROWS = random_rows(WIDE_SPEC)
ALL_WIDE = np.arange(128)


@pytest.fixture(params=NETWORKS)
def net(request: pytest.FixtureRequest) -> Iterator[Network]:
    with network(request.param) as made:
        yield made


@pytest.fixture
def address(net: Network) -> Address:
    return serve_store(net, partition_store(SPEC, ROWS))


@pytest.fixture
def link(net: Network, address: Address) -> Iterator[Link]:
    made = net.transport.connect(address, TIMEOUT_S)
    yield made
    made.close()


def test_frames_arrive_whole_and_in_order(link: Link) -> None:
    draw = np.random.default_rng(0)
    for request_id in range(60):
        ids = draw.integers(0, SPEC.vocab_size, draw.integers(0, 300))
        bands = tuple(np.flatnonzero(draw.integers(0, 2, 3)).tolist()) or (1,)
        header, payload = ask(link, rows_frame(request_id, ids, bands))
        assert (header.status, header.request_id) == (Status.OK, request_id)
        assert payload == rows_payload(ROWS, ids, bands)


def test_many_requests_leave_before_an_answer_is_read(link: Link) -> None:
    draw = np.random.default_rng(1)
    asked = [draw.integers(0, SPEC.vocab_size, draw.integers(0, 20)) for _ in range(200)]
    for request_id, ids in enumerate(asked):
        link.send(rows_frame(request_id, ids, (0, 2)))
    for request_id, ids in enumerate(asked):
        header, payload = read_answer(link)
        assert (header.request_id, payload) == (request_id, rows_payload(ROWS, ids, (0, 2)))


def test_an_answer_larger_than_any_buffer_comes_whole(net: Network) -> None:
    link = net.transport.connect(serve_store(net, partition_store(WIDE_SPEC, WIDE_ROWS)), TIMEOUT_S)
    for request_id in range(2):
        header, payload = ask(link, rows_frame(request_id, ALL_WIDE, (0, 1)))
        assert header.request_id == request_id
        assert payload == rows_payload(WIDE_ROWS, ALL_WIDE, (0, 1))
    link.close()


def test_a_reader_of_single_bytes_gets_them_in_order(link: Link) -> None:
    ids = np.array([5, 3])
    link.send(rows_frame(1, ids, (0,)))
    expected = rows_payload(ROWS, ids, (0,))
    assert b"".join(receive_some(link) for _ in range(24 + len(expected)))[24:] == expected


def test_bytes_fill_the_views_in_order_whenever_they_come(link: Link) -> None:
    ids = np.arange(20)
    expected = rows_payload(ROWS, ids, (0, 1, 2))
    for request_id in range(100):
        data = memoryview(bytearray(RESPONSE.size + len(expected)))
        link.send(rows_frame(request_id, ids, (0, 1, 2)))
        filled = 0
        while filled < len(data):
            cuts = [filled, *(cut for cut in (24, 100, 300) if cut > filled), len(data)]
            count = link.recv_into(*(data[start:stop] for start, stop in itertools.pairwise(cuts)))
            filled += count
            if count == 0:
                link.wait_readable(1.0)
        assert unpack_response(data).request_id == request_id
        assert data[RESPONSE.size :] == expected


def test_nothing_comes_unasked_and_waiting_for_it_ends(link: Link) -> None:
    link.wait_readable(0.01)
    assert link.recv_into(memoryview(bytearray(10))) == 0


def test_half_a_request_gets_no_answer_before_the_other_half(link: Link) -> None:
    ids = np.arange(10)
    frame = rows_frame(1, ids, (1,))
    for part in (frame[:20], frame[20:60], frame[60:-1]):
        link.send(part)
        link.wait_readable(0.01)
        assert link.recv_into(memoryview(bytearray(10))) == 0
    assert ask(link, frame[-1:])[1] == rows_payload(ROWS, ids, (1,))


def test_a_peer_that_ends_the_connection_is_noticed_after_its_last_words(link: Link) -> None:
    header, message = ask(link, b"not the row protocol".ljust(48))
    assert header.status == Status.MALFORMED and message
    with pytest.raises(LinkError):
        receive_some(link)


def test_links_of_one_peer_do_not_disturb_each_other(net: Network, address: Address, link: Link) -> None:
    ids = np.arange(200)
    left = net.transport.connect(address, TIMEOUT_S)
    left.send(rows_frame(1, ids, (0, 1, 2)))
    receive_some(left, 30)
    link.send(rows_frame(2, ids, (2,)))
    receive_some(left, 30)
    left.close()
    assert read_answer(link)[1] == rows_payload(ROWS, ids, (2,))


def test_connecting_to_nobody_is_a_link_error_that_names_the_address(net: Network) -> None:
    host, port = net.nobody()
    with pytest.raises(LinkError, match=f"{host}:{port}"):
        net.transport.connect((host, port), 5.0)


def test_a_closed_link_takes_and_gives_nothing(link: Link) -> None:
    link.send(rows_frame(1, np.arange(3), (0,)))
    link.close()
    link.close()
    with pytest.raises(LinkError):
        link.send(rows_frame(2, np.arange(3), (0,)))
    with pytest.raises(LinkError):
        receive_some(link)


def test_a_stopped_server_is_noticed_by_every_client(net: Network) -> None:
    if not isinstance(net, ServedNetwork):
        pytest.skip("it has no server of its own")
    address = serve_store(net, partition_store(SPEC, ROWS))
    links = [net.transport.connect(address, TIMEOUT_S) for _ in range(3)]
    for link in links:
        assert ask(link, rows_frame(1, np.arange(3), (0,)))[0].status == Status.OK
    net.close()
    for link in links:
        with pytest.raises(LinkError, match=r"closed the connection|Socket closed|Stream removed"):
            receive_some(link)
        link.close()


def test_a_peer_that_takes_no_data_is_a_link_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = TcpTransport().connect(listener.getsockname(), 0.1)
        with pytest.raises(LinkError, match=r"took no data for 0\.1 s"):
            link.send(bytes(64 << 20))
        link.close()


def test_more_clients_than_a_server_looks_at_directly_get_large_answers() -> None:
    net = ServedNetwork()
    address = serve_store(net, partition_store(WIDE_SPEC, WIDE_ROWS))
    expected = rows_payload(WIDE_ROWS, ALL_WIDE, (0,))
    links = [TcpTransport().connect(address, TIMEOUT_S) for _ in range(24)]
    for link in links:
        link.send(rows_frame(1, ALL_WIDE, (0,)))
    with ThreadPoolExecutor(len(links)) as pool:
        answers = list(pool.map(read_answer, links))
    assert all(payload == expected for _, payload in answers)
    for link in links:
        link.close()
    net.close()


def test_a_delayed_request_does_not_leave_before_its_time() -> None:
    net = InProcessNetwork()
    address = serve_store(net, partition_store(SPEC, ROWS))
    link = Delayed(net.transport, round_trip_s=3600.0).connect(address, TIMEOUT_S)
    link.send(rows_frame(1, np.arange(3), (0,)))
    link.wait_readable(0.01)
    assert link.recv_into(memoryview(bytearray(100))) == 0


def test_a_narrow_link_gives_no_more_than_its_bandwidth() -> None:
    net = InProcessNetwork()
    address = serve_store(net, partition_store(SPEC, ROWS))
    link = Delayed(net.transport, bytes_per_s=50.0).connect(address, TIMEOUT_S)
    link.send(rows_frame(1, np.arange(100), (0,)))
    assert [len(receive_some(link, 1000)) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("wrong", [{"round_trip_s": -1.0}, {"bytes_per_s": -1.0}])
def test_a_negative_delay_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        Delayed(TcpTransport(), **wrong)
