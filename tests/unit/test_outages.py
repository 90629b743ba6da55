"""A partition without a node: whoever waits for it waits together, and goes on as soon as one is back."""

from __future__ import annotations

import time

import numpy as np
import pytest
from engine_models import dense_rows, run_all, staged_source, tiny_engine, tiny_model, token_ids
from row_kit import TcpNetwork, partition_store, random_rows, row_spec, serve_store, wait_until

from tolserve.engine.request import RowsUnavailableError, SamplingParams
from tolserve.memory.cached import CachedSource
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.errors import NodesUnavailableError
from tolserve.memory.outages import Outages

DEADLINE_S = 2.0
CONFIG = ClientConfig(deadline_s=DEADLINE_S, probe_s=0.02)
GREEDY = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)


def test_requests_in_a_queue_share_one_deadline() -> None:
    model = tiny_model("memory")
    spec = staged_source(model).spec
    rows_VLD = dense_rows(model).numpy()
    rows = [np.ascontiguousarray(rows_VLD[:, list(band.layers)]).view(np.uint8).reshape(-1, band.row_bytes)
            for band in spec.bands]  # fmt: skip
    net = TcpNetwork()
    client = PartitionedClient(spec, [[serve_store(net, partition_store(spec, rows))]], CONFIG)
    client.wait_connected(60.0)
    source = CachedSource(client)
    engine = tiny_engine(model, source=source, max_num_seqs=1)
    expected = run_all(engine, {"a": ([3, 4, 5], GREEDY)})["a"]
    net.servers[0].stop()

    began = time.monotonic()
    for index in range(3):
        engine.add_request(str(index), [index + 10, index + 20], GREEDY)
    failed = []
    while engine.has_work():
        failed += [(output, time.monotonic() - began) for output in engine.step()]
    assert [output.request_id for output, _ in failed] == ["0", "1", "2"]
    assert all(isinstance(output.error, RowsUnavailableError) for output, _ in failed)
    assert failed[0][1] >= DEADLINE_S
    assert failed[2][1] - failed[0][1] < DEADLINE_S, "each waited for itself"

    client.update_addresses([[serve_store(net, partition_store(spec, rows))]])
    wait_until(lambda: client.num_connected == 1)
    assert token_ids(run_all(engine, {"b": ([3, 4, 5], GREEDY)})["b"]) == token_ids(expected)
    engine.close()
    source.close()
    net.close()


def test_a_node_that_was_back_and_is_lost_again_starts_the_count_anew() -> None:
    spec = row_spec()
    rows = random_rows(spec)
    net = TcpNetwork()
    client = PartitionedClient(spec, [[net.nobody()]], CONFIG)
    source = CachedSource(client)
    with pytest.raises(NodesUnavailableError, match=r"within 2\.0 s"):
        source.wait(source.start(np.arange(5)), 0)
    client.update_addresses([[serve_store(net, partition_store(spec, rows))]])
    wait_until(lambda: client.num_connected == 1)
    assert np.array_equal(source.wait(source.start(np.arange(10, 15)), 0), rows[0][10:15])
    net.servers[-1].stop()
    handle = source.start(np.arange(20, 25))
    client.update_addresses([[serve_store(net, partition_store(spec, rows))]])
    assert np.array_equal(source.wait(handle, 0), rows[0][20:25]), "it waited for the new one"
    source.close()
    net.close()


def test_an_outage_lasts_from_its_first_sign_to_the_first_rows() -> None:
    outages = Outages()
    assert outages.lasted_s(1, time.monotonic() + 9) == 0.0
    outages.begin(1)
    first = time.monotonic()
    time.sleep(0.01)
    outages.begin(1)
    assert outages.lasted_s(1, first + 5) >= 5.0
    assert outages.lasted_s(0, first + 5) == 0.0
    outages.end(1)
    assert outages.lasted_s(1, first + 5) == 0.0
