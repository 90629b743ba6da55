"""A fetch of more ids than a node takes at once leaves in several requests; a node that takes too few is not used."""

from __future__ import annotations

import numpy as np
import pytest
from row_kit import (
    NETWORKS,
    InProcessNetwork,
    TcpNetwork,
    draw_ids,
    network,
    partition_store,
    random_rows,
    row_spec,
    serve_store,
    wait_until,
)

from tolserve.memory.cached import CachedSource
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.errors import NodesUnavailableError
from tolserve.memory.partition import Partition

SPEC = row_spec()
ROWS = random_rows(SPEC)
LIMIT = 7
BANDS = range(len(SPEC.bands))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_fetch_over_the_limit_leaves_in_parts_and_comes_in_place(name: str, count: int) -> None:
    draw = np.random.default_rng(count)
    with network(name) as net:
        stores = [partition_store(SPEC, ROWS, Partition(index=index, count=count)) for index in range(count)]
        addresses = [[serve_store(net, store, max_ids=LIMIT)] for store in stores]
        client = PartitionedClient(SPEC, addresses, ClientConfig(max_ids=LIMIT), net.transport)
        client.wait_connected(5.0)
        source = CachedSource(client)
        for size in (LIMIT, LIMIT + 1, 200):
            ids = np.unique(draw_ids(draw, SPEC.vocab_size, 2 * size))[:size]
            before = client.counters.num_requests
            handle = source.start(ids)
            owned = [np.count_nonzero(store.partition.owns(ids)) for store in stores]
            assert client.counters.num_requests - before == sum(-(-own // LIMIT) for own in owned)
            assert all(np.array_equal(source.wait(handle, band), ROWS[band][ids]) for band in BANDS)
            source.release(handle)
        source.close()


def test_parts_go_to_the_other_node_when_theirs_is_lost() -> None:
    net = TcpNetwork()
    store = partition_store(SPEC, ROWS)
    addresses = [serve_store(net, store, max_ids=LIMIT) for _ in range(2)]
    client = PartitionedClient(SPEC, [addresses], ClientConfig(max_ids=LIMIT), net.transport)
    wait_until(lambda: client.num_connected == 2)
    source = CachedSource(client)
    ids = np.arange(0, 1000, 3)
    handle = source.start(ids)
    source.arrive(handle, 0)
    net.servers[0].stop()
    assert all(np.array_equal(source.wait(handle, band), ROWS[band][ids]) for band in BANDS)
    source.release(handle)
    again = source.start(ids)
    assert all(np.array_equal(source.wait(again, band), ROWS[band][ids]) for band in BANDS)
    source.close()
    net.close()


def test_a_node_that_takes_too_few_ids_is_not_used_and_the_numbers_are_told() -> None:
    net = InProcessNetwork()
    address = serve_store(net, partition_store(SPEC, ROWS), max_ids=99)
    client = PartitionedClient(SPEC, [[address]], ClientConfig(max_ids=100, probe_s=0.01), net.transport)
    with pytest.raises(NodesUnavailableError, match="at most 99 ids in one request; this client asks for up to 100"):
        client.wait_connected(0.2)
    client.close()


def test_no_fetch_has_more_ids_than_the_vocabulary() -> None:
    net = InProcessNetwork()
    address = serve_store(net, partition_store(SPEC, ROWS), max_ids=SPEC.vocab_size)
    client = PartitionedClient(SPEC, [[address]], ClientConfig(max_ids=1 << 20), net.transport)
    client.wait_connected(5.0)
    client.close()
