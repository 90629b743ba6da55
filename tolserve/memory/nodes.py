"""The memory nodes a client knows: which are connected, and bringing back those that are not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from tolbuild.table.errors import ToLError
from tolserve.memory.channel import Channel, open_channel
from tolserve.memory.spec import RowSpec
from tolserve.transport.errors import ProtocolError
from tolserve.transport.frames import Hello
from tolserve.transport.link import Address, Transport

_log = logging.getLogger(__name__)

Addresses = Sequence[Sequence[Address]]
"""For each partition the addresses of its nodes."""

_MAX_BACKOFF_S = 5.0
_FORGIVEN_S = 30.0
"""A node that lasted so long starts again with the shortest pause when it fails."""


class Node:
    """One address. While it has no channel a thread of its own tries to connect; the client's thread uses the channel.

    Attributes:
        channel: set by the connecting thread, taken away by the client's (`eject`).
        fault: what was last wrong with it.
    """

    def __init__(self, nodes: Nodes, partition: int, address: Address) -> None:
        self._nodes = nodes
        self.partition = partition
        self.address = address
        self.channel: Channel | None = None
        self.fault = "not connected yet"
        self._closed = threading.Event()
        self._connected_at = 0.0
        self._backoff_s = 0.0
        self._connect_soon()

    def eject(self, fault: str) -> float:
        """Give the connection up and try for a new one, the later the more often this happened of late.

        Returns:
            How many seconds the connection had lasted; 0 where there was none.
        """
        channel, self.channel = self.channel, None
        if channel is None:
            return 0.0
        channel.link.close()
        self.fault = fault
        _log.warning("%s:%d is ejected: %s", *self.address, fault)
        lasted = time.monotonic() - self._connected_at
        shortest = self._nodes.probe_s
        self._backoff_s = shortest if lasted > _FORGIVEN_S else min(_MAX_BACKOFF_S, max(shortest, 2 * self._backoff_s))
        self._connect_soon()
        return lasted

    def close(self) -> None:
        """No further attempts; what is connected is ended."""
        self._closed.set()
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.link.close()

    def _connect_soon(self) -> None:
        threading.Thread(target=self._connect, name=f"connect-{self.address[1]}", daemon=True).start()

    def _connect(self) -> None:
        pause = self._backoff_s
        while not self._closed.wait(pause):
            pause = self._nodes.probe_s
            try:
                channel = self._nodes.open(self.partition, self.address)
            except ToLError as error:
                self.fault = str(error)
                continue
            self._nodes.count_connection()
            self._connected_at = time.monotonic()
            self.channel = channel
            if self._closed.is_set():
                channel.link.close()
            return


class Nodes:
    """All nodes by partition. `update` may be called by any thread, the rest by the client's."""

    def __init__(
        self,
        transport: Transport,
        spec: RowSpec,
        addresses: Addresses,
        *,
        connect_s: float,
        probe_s: float,
        first: int,
        max_ids: int,
    ) -> None:
        if not addresses:
            raise ValueError("no partitions: give the addresses of each partition's nodes")
        self.probe_s = probe_s
        self._transport = transport
        self._spec = spec
        self._connect_s = connect_s
        self._first = first
        self._max_ids = max_ids
        self._lock = threading.Lock()
        self._num_connections = 0
        self._leaving: list[Node] = []
        self._by_partition: list[tuple[Node, ...]] = [()] * len(addresses)
        self.update(addresses)

    @property
    def num_partitions(self) -> int:
        """P, fixed when made."""
        return len(self._by_partition)

    @property
    def num_connected(self) -> int:
        """Nodes that can be asked."""
        return sum(node.channel is not None for nodes in self._by_partition for node in nodes)

    @property
    def num_connections(self) -> int:
        """Connections made, lost ones too."""
        return self._num_connections

    def count_connection(self) -> None:
        """One was made; called by the connecting threads."""
        with self._lock:
            self._num_connections += 1

    def update(self, addresses: Addresses) -> None:
        """Know these addresses from now on; nodes that stay keep their connections.

        Raises:
            ValueError: another number of partitions.
        """
        if len(addresses) != len(self._by_partition):
            raise ValueError(f"addresses of {len(addresses)} partitions; this client has {len(self._by_partition)}")
        with self._lock:
            for partition, wanted in enumerate(addresses):
                old = {node.address: node for node in self._by_partition[partition]}
                hosts = dict.fromkeys((host, port) for host, port in wanted)
                self._leaving += [node for address, node in old.items() if address not in hosts]
                self._by_partition[partition] = tuple(
                    old.get(address) or Node(self, partition, address) for address in hosts
                )

    def pick(self, partition: int) -> Node | None:
        """A connected node of the partition, this client's first choice if that is up."""
        nodes = self._by_partition[partition]
        for offset in range(len(nodes)):
            node = nodes[(self._first + offset) % len(nodes)]
            if node.channel is not None:
                return node
        return None

    def owner(self, channel: Channel) -> Node | None:
        """The node that has this channel."""
        everywhere = [*self._leaving, *(node for nodes in self._by_partition for node in nodes)]
        return next((node for node in everywhere if node.channel is channel), None)

    def close_left(self) -> None:
        """End nodes that are known no more and have nothing on the way."""
        if self._leaving:
            with self._lock:
                done = [node for node in self._leaving if node.channel is None or not node.channel.flights]
                self._leaving = [node for node in self._leaving if node not in done]
            for node in done:
                node.close()

    def faults(self, partition: int) -> str:
        """What is wrong with each node of a partition."""
        nodes = self._by_partition[partition]
        return "; ".join(f"{node.address[0]}:{node.address[1]}: {node.fault}" for node in nodes) or "no node is known"

    def open(self, partition: int, address: Address) -> Channel:
        """A channel to a node that holds what it should and takes the largest request there will be.

        Raises:
            ToLError: it does not, or is not there.
        """
        channel, hello = open_channel(self._transport, address, self._spec.identity, self._connect_s)
        try:
            self._check(channel.name, partition, hello)
        except ProtocolError:
            channel.link.close()
            raise
        return channel

    def _check(self, name: str, partition: int, hello: Hello) -> None:
        expected = (partition, self.num_partitions, self._spec.vocab_size, tuple(b.row_bytes for b in self._spec.bands))
        found = (hello.partition, hello.num_partitions, hello.vocab_size, hello.row_bytes)
        if found != expected:
            raise ProtocolError(
                f"{name} holds partition, partitions, vocabulary, row bytes {found}; expected {expected}"
            )
        if hello.max_ids < self._max_ids:
            raise ProtocolError(
                f"{name} takes at most {hello.max_ids} ids in one request; this client asks for up to {self._max_ids}: "
                "give the node a higher max_ids, or the client a lower one"
            )

    def close(self) -> None:
        """End every node."""
        with self._lock:
            for node in [*self._leaving, *(node for nodes in self._by_partition for node in nodes)]:
                node.close()
