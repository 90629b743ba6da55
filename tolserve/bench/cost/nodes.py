"""Memory nodes of the bench: those that it starts on this machine, and those that it is given."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tolbuild.table.errors import ToLError
from tolserve.bench.paced_rows import NODE_SPIN_US
from tolserve.bench.peers import started
from tolserve.memory.channel import open_channel
from tolserve.memory.spec import IDENTITY_BYTES, RowSpec
from tolserve.transport.link import Address
from tolserve.transport.tcp import TcpTransport

_HELLO_S = 5.0
_LOOPBACK = "127.0.0.1"

Wrap = Callable[[Sequence[str]], list[str]]


class NodeError(ToLError):
    """A node of the bench did not start, or what it was given does not answer."""


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """This thread, and so whatever process or thread it starts, on a core; None changes nothing."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def start(description: dict[str, Any], *, host: str = _LOOPBACK, wrap: Wrap = list) -> Iterator[Address]:
    """The address of a process of `tolserve.bench.cost.node`; it ends with the context.

    Args:
        host: interface that it listens on.
        wrap: makes its command line run elsewhere, for example in a network namespace.

    Raises:
        NodeError: it ended before it was ready.
    """
    command = wrap([sys.executable, "-m", "tolserve.bench.cost.node"])
    whole = {"host": host, "partition": "0/1", "spin_us": 0, "core": None, **description}
    with started(command, whole, lambda code: _fault(code, description)) as address:
        yield address


def _fault(code: int, description: dict[str, Any]) -> NodeError:
    return NodeError(f"a memory node of the bench ended with {code} before it was ready: {description}")


class Fleet:
    """Nodes by what they hold; those of this machine are started when first asked for and kept until `close`.

    Args:
        core: that local nodes run on.
        given: addresses of nodes on other hosts, which hold rows of `CyclicStore`s.
        links: by name the host at which the given nodes are reached; without any they are reached as given.
    """

    def __init__(self, core: int | None, given: Sequence[Address] = (), links: dict[str, str] | None = None) -> None:
        self.core = core
        self._stack = ExitStack()
        self._started: dict[str, Address] = {}
        self._given = held_by(given)
        self.links = dict(links or ({"given": ""} if given else {}))

    def addresses(self, description: dict[str, Any], spec: RowSpec, *, num_nodes: int, link: str) -> list[Address]:
        """A node for each partition.

        Raises:
            NodeError: none of the given nodes holds these rows, or there is no such link.
        """
        if link == "loopback":
            return [self._local(description, index, num_nodes) for index in range(num_nodes)]
        if link not in self.links:
            raise NodeError(f"there is no link {link!r}; there are {', '.join(self.links) or 'none'}")
        return [self._find(spec, index, num_nodes, self.links[link]) for index in range(num_nodes)]

    def close(self) -> None:
        """End the nodes that were started."""
        self._stack.close()

    def _local(self, description: dict[str, Any], index: int, count: int) -> Address:
        """Nodes that share the core sleep between requests: a spinning one takes the time of the others."""
        spin_us = NODE_SPIN_US if count == 1 else 0
        told = {**description, "partition": f"{index}/{count}", "core": self.core, "spin_us": spin_us}
        key = json.dumps(told, sort_keys=True)
        if key not in self._started:
            self._started[key] = self._stack.enter_context(start(told))
        return self._started[key]

    def _find(self, spec: RowSpec, index: int, count: int, host: str) -> Address:
        wanted = wanted_of(spec, index, count)
        for address, held in self._given.items():
            if held == wanted:
                return (host or address[0], address[1])
        raise NodeError(f"no given node holds partition, partitions, vocabulary, row bytes {wanted}")


Held = tuple[int, int, int, tuple[int, ...]]
"""Partition, partitions, vocabulary and row bytes by band."""


def held_by(addresses: Sequence[Address]) -> dict[Address, Held]:
    """What each of these nodes holds, as it says itself.

    Raises:
        NodeError: one does not answer, or is no node of this bench.
    """
    return {address: _hello(address) for address in addresses}


def wanted_of(spec: RowSpec, index: int, count: int) -> Held:
    """What a node of partition `index` of `count` holds of `spec`."""
    return index, count, spec.vocab_size, tuple(band.row_bytes for band in spec.bands)


def _hello(address: Address) -> Held:
    try:
        channel, hello = open_channel(TcpTransport(), address, bytes(IDENTITY_BYTES), _HELLO_S)
    except ToLError as error:
        raise NodeError(f"--memory-nodes {address[0]}:{address[1]}: {error}") from error
    channel.link.close()
    return hello.partition, hello.num_partitions, hello.vocab_size, hello.row_bytes
