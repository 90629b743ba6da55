"""A fetcher over memory nodes: one request a node and fetch (if it fits), and the replica's turn when a node fails.

Everything but connecting happens in the caller's thread: there is no hand-over between a row and its user.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from tolbuild.table.errors import ToLError
from tolserve.memory.channel import Channel, Flight
from tolserve.memory.errors import NodesUnavailableError
from tolserve.memory.flights import RemoteFetch, plan_fetch
from tolserve.memory.nodes import Addresses, Nodes
from tolserve.memory.outages import Outages
from tolserve.memory.service import DEFAULT_MAX_IDS
from tolserve.memory.spec import Ids, RowSpec
from tolserve.native import compiled
from tolserve.transport.link import Transport
from tolserve.transport.tcp import TcpTransport

_NAP_S = 5e-4
_LOOK_US, _SLEEP_S = 10_000.0, 0.05
"""A look without sleeping, and a sleep, are at most so long; faults are looked for in between."""


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """When a client loses patience.

    Attributes:
        silence_s: a node from which nothing comes for so long, while rows are waited for, is ejected.
        deadline_s: rows that no node has sent so long after they were asked for are an error, and at once those of a
            partition that has been without a node for so long: whoever waits for it waits together.
        connect_s: limit for connecting and for the answer to the hello.
        probe_s: pause between attempts to reach a node that is down.
        spin_us: how long a wait looks for bytes without sleeping.
        first_node: which node of each partition is asked first; give clients different ones to spread them.
        max_ids: most ids in one request; more leave as several. A node that takes fewer is not used.

    Raises:
        ValueError: a time or `max_ids` is not positive.
    """

    silence_s: float = 0.3
    deadline_s: float = 30.0
    connect_s: float = 1.0
    probe_s: float = 0.2
    spin_us: int = 200
    first_node: int = 0
    max_ids: int = DEFAULT_MAX_IDS

    def __post_init__(self) -> None:
        for name in ("silence_s", "deadline_s", "connect_s", "probe_s", "max_ids"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.spin_us < 0 or self.first_node < 0:
            raise ValueError(f"spin_us {self.spin_us} and first_node {self.first_node} must not be negative")


@dataclass(kw_only=True)
class ClientCounters:
    """Since the client was made.

    Attributes:
        num_requests: requests sent, those sent again among them.
        num_ejections: connections given up.
        num_rerouted: requests that an ejected node had not answered in full.
    """

    num_requests: int = 0
    num_ejections: int = 0
    num_rerouted: int = 0


class PartitionedClient:
    """Rows from memory nodes. One thread at a time fetches; `update_addresses` may be called by another.

    Args:
        spec: of the table whose rows are wanted; nodes that hold another are not used.
        addresses: for each partition its nodes.
        transport: TCP by default.

    Raises:
        ValueError: no partitions.
    """

    tier = "remote"

    def __init__(
        self,
        spec: RowSpec,
        addresses: Addresses,
        config: ClientConfig | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.spec = spec
        self.config = config or ClientConfig()
        self.counters = ClientCounters()
        self._nodes = Nodes(
            transport or TcpTransport(),
            spec,
            addresses,
            connect_s=self.config.connect_s,
            probe_s=self.config.probe_s,
            first=self.config.first_node,
            max_ids=min(self.config.max_ids, spec.vocab_size),
        )
        self._outages = Outages()
        self._request_ids = itertools.count(1)
        self._helper = compiled.load()
        spin_us = min(float(self.config.spin_us), _LOOK_US)
        self._patience = {"spin_us": spin_us, "timeout_s": min(_SLEEP_S, self.config.silence_s)}

    @property
    def num_connected(self) -> int:
        """Nodes that can be asked now."""
        return self._nodes.num_connected

    def stats(self) -> dict[str, int]:
        """The counters and connections (made, open now), for metrics; any thread may ask."""
        nodes = self._nodes
        return asdict(self.counters) | {"num_connections": nodes.num_connections, "num_connected": nodes.num_connected}

    def update_addresses(self, addresses: Addresses) -> None:
        """Use these nodes from now on; those that stay keep their connections. Any thread may call this.

        Raises:
            ValueError: another number of partitions.
        """
        self._nodes.update(addresses)

    def wait_connected(self, timeout_s: float) -> None:
        """Return when every partition has a node.

        Raises:
            NodesUnavailableError: one has none in time.
        """
        deadline = time.monotonic() + timeout_s
        for partition in range(self._nodes.num_partitions):
            while self._nodes.pick(partition) is None:
                if time.monotonic() > deadline:
                    raise self._unavailable(partition, timeout_s)
                time.sleep(_NAP_S)

    def request(self, ids: Ids, bands: tuple[int, ...]) -> RemoteFetch:
        """See `RowFetcher.request`. Where no node is up the request leaves when one is, while rows are waited for."""
        fetch = plan_fetch(ids, bands, num_partitions=self._nodes.num_partitions, max_ids=self.config.max_ids)
        for flight in fetch.flights:
            self._assign(flight)
        fetch.deadline = time.monotonic() + self.config.deadline_s
        self._nodes.close_left()
        return fetch

    def receive(self, fetch: RemoteFetch, out: Mapping[int, memoryview]) -> None:
        """See `RowFetcher.receive`."""
        views = [out[band] for band in fetch.bands]
        if len(fetch.flights) == 1:
            fetch.flights[0].regions = views
            return
        start = 0
        row_bytes = [self.spec.bands[band].row_bytes for band in fetch.bands]
        for flight in fetch.flights:
            stop = start + len(flight.ids)
            flight.regions = [view[start * size : stop * size] for view, size in zip(views, row_bytes, strict=True)]
            start = stop

    def arrive(self, fetch: RemoteFetch, band: int) -> None:
        """See `RowFetcher.arrive`.

        Raises:
            NodesUnavailableError: no node of a partition sent its rows before the deadline, or the partition has been
                without a node for as long.
            RowRequestError: a node refuses the request for what it asks.
        """
        num_bands = fetch.bands.index(band) + 1
        waiting = [flight for flight in fetch.flights if flight.num_done < num_bands]
        if not waiting:
            return
        began = 0.0
        while True:
            moved = False
            patient = len(waiting) == 1
            for flight in waiting:
                if flight.num_done < num_bands:
                    moved |= self._progress(flight, num_bands, patient=patient)
            waiting = [flight for flight in waiting if flight.num_done < num_bands]
            if not waiting:
                return
            if moved:
                began = 0.0
                continue
            now = time.monotonic()
            began = began or now
            left_us = self.config.spin_us - (now - began) * 1e6
            if left_us <= 0:
                self._pause(fetch, waiting, now)
            elif self._helper is not None:
                self._wait(waiting, spin_us=min(left_us, _LOOK_US))

    def drop(self, fetch: RemoteFetch) -> None:
        """See `RowFetcher.drop`: what still comes is read and thrown away."""
        for flight in fetch.flights:
            flight.dropped = True

    def close(self) -> None:
        """End all connections."""
        self._nodes.close()

    def _assign(self, flight: Flight) -> bool:
        """Ask a node that is up; False where none is."""
        while True:
            node = self._nodes.pick(flight.partition)
            if node is None or node.channel is None:
                self._outages.begin(flight.partition)
                return False
            try:
                node.channel.submit(flight, next(self._request_ids))
            except ToLError as error:
                self._eject(node.channel, str(error))
                continue
            self.counters.num_requests += 1
            return True

    def _progress(self, flight: Flight, num_bands: int, *, patient: bool) -> bool:
        """Receive for a flight, waiting for it if told to be patient, or find it a node; whether anything moved."""
        if flight.fault is not None:
            raise flight.fault
        channel = flight.channel
        if channel is None:
            return self._assign(flight)
        try:
            if channel.pump(flight, num_bands, **(self._patience if patient else {})):
                self._outages.end(flight.partition)
                return True
        except ToLError as error:
            self._eject(channel, str(error))
            return True
        silent_since = channel.silent_since
        if silent_since is not None and time.monotonic() - silent_since > self.config.silence_s:
            self._eject(channel, f"nothing came for {self.config.silence_s} s")
            return True
        return False

    def _eject(self, channel: Channel, fault: str) -> None:
        """Give up a node and ask others for what it was asked; flights for which none is up wait unassigned."""
        node = self._nodes.owner(channel)
        if node is None:
            channel.link.close()
        elif node.eject(fault) > self.config.deadline_s:
            self._outages.end(node.partition)
        self.counters.num_ejections += 1
        flights = [flight for flight in channel.flights if not flight.dropped]
        channel.flights.clear()
        for flight in flights:
            flight.channel = None
        for flight in flights:
            self.counters.num_rerouted += 1
            self._assign(flight)

    def _pause(self, fetch: RemoteFetch, waiting: list[Flight], now: float) -> None:
        for flight in waiting:
            lasted_s = self._outages.lasted_s(flight.partition, now) if flight.channel is None else 0.0
            if now > fetch.deadline or lasted_s > self.config.deadline_s:
                raise self._unavailable(flight.partition, self.config.deadline_s)
        channel = next((flight.channel for flight in waiting if flight.channel is not None), None)
        if channel is None:
            time.sleep(_NAP_S)
            return
        if self._wait(waiting, timeout_s=min(_SLEEP_S, self.config.silence_s)):
            return
        # All of them are needed: whichever is waited for, nothing is lost, but the others have to flow as well.
        try:
            channel.link.wait_readable(min(_SLEEP_S, self.config.silence_s) if len(waiting) == 1 else _NAP_S)
        except ToLError as error:
            self._eject(channel, str(error))

    def _wait(self, waiting: list[Flight], *, spin_us: float = 0.0, timeout_s: float = 0.0) -> bool:
        """Return when something has come for one of them, or not for so long; False where that cannot be told here."""
        if self._helper is None:
            return False
        filenos = tuple([flight.channel.fileno for flight in waiting if flight.channel is not None])
        if len(filenos) < len(waiting) or None in filenos:
            return False
        self._helper.wait_readable(filenos, spin_us, round(timeout_s * 1e3))
        return True

    def _unavailable(self, partition: int, after_s: float) -> NodesUnavailableError:
        return NodesUnavailableError(
            f"no memory node of partition {partition}/{self._nodes.num_partitions} sent its rows within {after_s} s "
            f"({self._nodes.faults(partition)}); start one, or try again"
        )
