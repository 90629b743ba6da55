"""One of several clients of a bench, a process of its own: fetches rows, or bytes from a bare socket, when told.

`python -m tolserve.bench.fleet_client` reads one JSON line that describes it and then one a turn:
{"who": one of below, "num_rows": n, "seconds": s}; it answers each turn with {"us": [of each fetch]}.

- "client": by the row client, without a cache.
- "node": requests to the memory node that were written before, answers into one buffer, only their heads looked at:
  what a load generator does, so that the node is measured and not who asks.
- "socket": the same of a bare socket, which sends as many bytes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tolserve.bench.peers import REQUEST
from tolserve.memory.cached import CachedSource
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.spec import Ids, RowSpec
from tolserve.transport.frames import RESPONSE, Status, mask_of, pack_rows, unpack_response

_CONNECT_S = 60.0
_MAX_ROWS = 2048
_CHECKED_ROWS = 64
_NUM_FRAMES = 64


class FleetClient:
    """Fetches in one of the three ways; all of them wait asleep."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._spec = RowSpec.uniform(**told["shape"])
        client = PartitionedClient(self._spec, told["addresses"], ClientConfig(spin_us=0, first_node=told["index"]))
        client.wait_connected(_CONNECT_S)
        self._source = CachedSource(client, num_staging=2 * _MAX_ROWS)
        self._draw = np.random.default_rng(told["index"])
        self._frames: dict[int, list[bytes]] = {}
        self._node = _connect(told["addresses"][0][0])
        self._bare = None if told["socket"] is None else _connect(told["socket"])
        self._buffer = memoryview(bytearray(RESPONSE.size + _MAX_ROWS * self._spec.row_bytes))

    def turn(self, *, who: str, num_rows: int, seconds: float) -> list[float]:
        """Microseconds of each fetch, one after another for `seconds`."""
        ways: dict[str, Callable[[int], None]] = {
            "client": self._by_client, "node": self._by_node, "socket": self._by_socket,
        }  # fmt: skip
        fetch = ways[who]
        times = []
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            fetch(num_rows)
            times.append((time.perf_counter() - began) * 1e6)
        return times

    def check(self, num_physical: int) -> None:
        """Ids that share a row of the node (`CyclicStore`) and those that do not bring what they should.

        Raises:
            RuntimeError: they do not.
        """
        ids = np.arange(_CHECKED_ROWS) * (self._spec.vocab_size // _CHECKED_ROWS)
        again = (ids + num_physical) % self._spec.vocab_size
        for band in self._spec.choose(None):
            handles = [self._source.start(each) for each in (ids, again)]
            one, other = (self._source.wait(handle, band).copy() for handle in handles)
            for handle in handles:
                self._source.release(handle)
            same = ids % num_physical == again % num_physical
            if not np.array_equal(one[same], other[same]) or len(np.unique(one, axis=0)) < 2:
                raise RuntimeError(f"band {band} came with the rows of other tokens")

    def _ids(self, num_rows: int) -> Ids:
        return self._draw.choice(self._spec.vocab_size, num_rows, replace=False).astype(np.int64)

    def _by_client(self, num_rows: int) -> None:
        handle = self._source.start(self._ids(num_rows))
        for band in reversed(self._spec.choose(None)):
            self._source.arrive(handle, band)
        self._source.release(handle)

    def _by_node(self, num_rows: int) -> None:
        frames = self._frames.get(num_rows)
        if frames is None:
            mask = mask_of(self._spec.choose(None))
            frames = self._frames[num_rows] = [
                pack_rows(self._spec.identity, number, mask, self._ids(num_rows).astype(np.uint32))
                for number in range(_NUM_FRAMES)
            ]
        frames.append(frames.pop(0))
        num_bytes = num_rows * self._spec.row_bytes
        self._node.sendall(frames[0])
        self._fill(self._node, RESPONSE.size + num_bytes)
        header = unpack_response(self._buffer)
        if (header.status, header.length) != (Status.OK, num_bytes):
            raise RuntimeError(f"the node answered {header}")

    def _by_socket(self, num_rows: int) -> None:
        assert self._bare is not None
        num_bytes = num_rows * self._spec.row_bytes
        self._bare.sendall(REQUEST.pack(num_bytes))
        self._fill(self._bare, num_bytes)

    def _fill(self, sock: socket.socket, num_bytes: int) -> None:
        """In the system, so that the two servers are not waiting for Python."""
        filled = 0
        while filled < num_bytes:
            count = sock.recv_into(self._buffer[filled:num_bytes], flags=socket.MSG_WAITALL)
            if count == 0:
                raise ConnectionError("the peer is gone")
            filled += count


def _connect(address: Sequence[Any]) -> socket.socket:
    made = socket.create_connection(tuple(address))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def main() -> None:
    """Take turns until standard input ends."""
    told = json.loads(sys.stdin.readline())
    if told["core"] is not None:
        os.sched_setaffinity(0, {told["core"]})
    client = FleetClient(told)
    client.check(told["num_physical"])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps({"us": client.turn(**json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
