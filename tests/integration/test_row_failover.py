"""Memory node processes killed and frozen under a client: with a replica no fetch fails, without one none hangs."""

from __future__ import annotations

import contextlib
import itertools
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from row_kit import TIMEOUT_S, ask, draw_ids, rows_frame, rows_payload, wait_until
from security_kit import security
from table_kit import table_spec, write_table

from tolbuild.table import open_store
from tolserve.memory.cached import CachedSource
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.errors import NodesUnavailableError
from tolserve.memory.spec import Rows, RowSpec
from tolserve.transport.choose import SERVED, make_transport
from tolserve.transport.link import Address, Transport
from tolserve.transport.tcp import TcpTransport

V = 512
CONFIG = ClientConfig(silence_s=0.3, connect_s=0.5, probe_s=0.05, deadline_s=TIMEOUT_S)


@dataclass
class NodeProcess:
    """`python -m tolserve.memory.node`, started when made."""

    url: str
    partition: str
    port: int = 0
    options: tuple[str, ...] = ()
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "tolserve.memory.node", "--table", self.url, "--partition", self.partition]
        command += ["--port", str(self.port), *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def address(self) -> Address:
        """Where it is, once it is ready."""
        assert self.process.stdout is not None
        found = re.match(r"memory node ready at (\S+):(\d+) ", self.process.stdout.readline())
        assert found, f"the node of partition {self.partition} ended with {self.process.poll()}"
        self.port = int(found[2])
        return found[1], self.port

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        """Whatever state it is in."""
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.communicate()


@dataclass(frozen=True)
class Served:
    """A table and the means to start nodes of it."""

    url: str
    spec: RowSpec
    rows: list[Rows]
    started: list[NodeProcess]
    options: tuple[str, ...] = ()
    transport: Transport = field(default_factory=TcpTransport)

    def start(self, *partitions: str, port: int = 0) -> list[NodeProcess]:
        """Nodes that become ready beside each other."""
        nodes = [NodeProcess(self.url, partition, port, self.options) for partition in partitions]
        self.started.extend(nodes)
        return nodes

    def source(self, addresses: list[list[Address]], config: ClientConfig = CONFIG) -> CachedSource:
        client = PartitionedClient(self.spec, addresses, config, self.transport)
        wait_until(lambda: client.num_connected == sum(map(len, addresses)))
        return CachedSource(client)

    def fetch(self, source: CachedSource, seed: int, disturb: Callable[[], Any] = lambda: None) -> None:
        """Read 200 rows and compare them; `disturb` is called while they are on their way."""
        ids = draw_ids(np.random.default_rng(seed), V, 200)
        handle = source.start(ids)
        disturb()
        for band in range(len(self.rows)):
            assert np.array_equal(source.wait(handle, band), self.rows[band][ids])
        source.release(handle)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = write_table(open_store(tmp_path), table_spec(vocab_size=V, width=1024))
    rows = [np.ascontiguousarray(codes).view(np.uint8) for codes in made.codes]
    started: list[NodeProcess] = []
    yield Served(str(tmp_path), RowSpec.from_manifest(made.manifest), rows, started)
    for node in started:
        node.end()


@pytest.fixture(params=SERVED)
def secured(served: Served, request: pytest.FixtureRequest) -> Iterator[Served]:
    """The same over each transport, with certificates and a token."""
    with security() as files:
        given = {f"--{key.replace('_', '-')}": value for key, value in vars(files).items() if value}
        options = ("--transport", request.param, *itertools.chain(*given.items()))
        yield replace(served, options=options, transport=make_transport(request.param, files))


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_with_a_replica_no_fetch_fails(served: Served, fault: signal.Signals) -> None:
    nodes = served.start("0/2", "0/2", "1/2", "1/2")
    addresses = [node.address() for node in nodes]
    source = served.source([addresses[:2], addresses[2:]])
    failing = {20: nodes[0], 40: nodes[2]}
    for seed in range(60):
        served.fetch(source, seed, partial(failing[seed].signal, fault) if seed in failing else lambda: None)
    assert source.num_staged == 0
    source.close()


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_node_that_fails_at_any_moment_is_replaced_by_its_replica(served: Served, fault: signal.Signals) -> None:
    nodes = served.start("0/1", "0/1")
    source = served.source([[node.address() for node in nodes]])
    fetched = threading.Event()

    def disturb_some_time() -> None:
        fetched.wait(TIMEOUT_S)
        nodes[0].signal(fault)

    other = threading.Thread(target=disturb_some_time)
    other.start()
    after = 0
    for seed in range(2000):
        served.fetch(source, seed)
        if seed == 50:
            fetched.set()
        after += not other.is_alive()
        if after == 100:
            break
    other.join()
    assert after == 100
    source.close()


def test_a_frozen_node_that_wakes_is_used_again(served: Served) -> None:
    nodes = served.start("0/1", "0/1")
    client_addresses = [[node.address() for node in nodes]]
    client = PartitionedClient(served.spec, client_addresses, CONFIG)
    wait_until(lambda: client.num_connected == 2)
    source = CachedSource(client)
    served.fetch(source, 0, lambda: nodes[0].signal(signal.SIGSTOP))
    served.fetch(source, 1)
    assert client.num_connected == 1
    nodes[0].signal(signal.SIGCONT)
    wait_until(lambda: client.num_connected == 2)
    served.fetch(source, 2, lambda: nodes[1].signal(signal.SIGKILL))
    served.fetch(source, 3)
    source.close()


def test_without_a_replica_a_fetch_waits_for_the_restarted_node(served: Served) -> None:
    nodes = served.start("0/2", "1/2")
    source = served.source([[node.address()] for node in nodes])
    nodes[1].signal(signal.SIGKILL)
    nodes[1].process.wait(TIMEOUT_S)
    served.fetch(source, 0, lambda: served.start("1/2", port=nodes[1].port))
    served.fetch(source, 1)
    source.close()


def test_without_a_replica_a_fetch_waits_for_the_frozen_node(served: Served) -> None:
    (node,) = served.start("0/1")
    source = served.source([[node.address()]])
    waking = threading.Timer(1.0, node.signal, [signal.SIGCONT])

    def freeze() -> None:
        node.signal(signal.SIGSTOP)
        waking.start()

    served.fetch(source, 0, freeze)
    waking.join()
    source.close()


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_without_any_node_a_fetch_ends_at_its_deadline(served: Served, fault: signal.Signals) -> None:
    nodes = served.start("0/2", "1/2")
    addresses = [[node.address()] for node in nodes]
    source = served.source(addresses, ClientConfig(silence_s=0.3, connect_s=0.3, probe_s=0.05, deadline_s=1.5))
    served.fetch(source, 0)
    nodes[1].signal(fault)
    for seed in (1, 2):
        with pytest.raises(NodesUnavailableError, match=f"partition 1/2 .* within 1.5 s .*:{nodes[1].port}"):
            served.fetch(source, seed)
    source.close()


def test_new_addresses_take_effect_while_rows_are_fetched(served: Served) -> None:
    first, second = served.start("0/1", "0/1")
    client = PartitionedClient(served.spec, [[first.address()]], CONFIG)
    client.wait_connected(TIMEOUT_S)
    source = CachedSource(client)
    address = second.address()
    served.fetch(source, 0, lambda: client.update_addresses([[address]]))
    served.fetch(source, 1)
    first.signal(signal.SIGKILL)
    served.fetch(source, 2)
    with pytest.raises(ValueError, match="addresses of 2 partitions; this client has 1"):
        client.update_addresses([[address], [address]])
    source.close()


def test_a_node_without_descriptors_left_serves_those_it_has(served: Served) -> None:
    (node,) = served.start("0/1")
    address = node.address()
    frame = rows_frame(1, np.arange(9), (0, 1), identity=served.spec.identity)
    link = TcpTransport().connect(address, TIMEOUT_S)
    expected = rows_payload(served.rows, np.arange(9), (0, 1))
    assert ask(link, frame)[1] == expected
    descriptors = Path(f"/proc/{node.process.pid}/fd")
    limit = len(list(descriptors.iterdir())) + 2
    resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
    with contextlib.ExitStack() as crowd:
        for _ in range(6):
            crowd.enter_context(socket.create_connection(address, timeout=TIMEOUT_S))
        wait_until(lambda: len(list(descriptors.iterdir())) == limit)
        assert [ask(link, frame)[1] for _ in range(20)] == [expected] * 20
    other = TcpTransport().connect(address, TIMEOUT_S)
    assert ask(other, frame)[1] == expected
    for each in (link, other):
        each.close()


def test_a_node_told_to_end_ends_well(served: Served) -> None:
    nodes = served.start("0/1", "0/1")
    source = served.source([[node.address() for node in nodes]])
    served.fetch(source, 0, lambda: nodes[0].signal(signal.SIGTERM))
    served.fetch(source, 1)
    assert nodes[0].process.wait(TIMEOUT_S) == 0
    source.close()


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_secured_node_is_replaced_by_its_replica_and_comes_back(secured: Served, fault: signal.Signals) -> None:
    nodes = secured.start("0/1", "0/1")
    client = PartitionedClient(secured.spec, [[node.address() for node in nodes]], CONFIG, secured.transport)
    wait_until(lambda: client.num_connected == 2)
    source = CachedSource(client)
    for seed in range(10):
        secured.fetch(source, seed, partial(nodes[0].signal, fault) if seed == 3 else lambda: None)
    if fault == signal.SIGSTOP:
        nodes[0].signal(signal.SIGCONT)
    else:
        assert nodes[0].process.wait(TIMEOUT_S) == (0 if fault == signal.SIGTERM else -fault)
        secured.start("0/1", port=nodes[0].port)
    wait_until(lambda: client.num_connected == 2)
    secured.fetch(source, 11)
    source.close()


def test_a_secured_partition_without_a_node_ends_a_fetch_at_its_deadline(secured: Served) -> None:
    (node,) = secured.start("0/1")
    config = ClientConfig(silence_s=0.3, connect_s=TIMEOUT_S, probe_s=0.05, deadline_s=1.5)
    source = secured.source([[node.address()]], config)
    secured.fetch(source, 0)
    node.signal(signal.SIGSTOP)
    threads = Path(f"/proc/{node.process.pid}/task")
    wait_until(lambda: all(each.read_text().rpartition(")")[2].split()[0] == "T" for each in threads.glob("*/stat")))
    with pytest.raises(NodesUnavailableError, match=f"partition 0/1 .* within 1.5 s .*:{node.port}"):
        secured.fetch(source, 1)
    source.close()
