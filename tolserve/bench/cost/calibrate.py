"""What a link carries: a bare socket before any row, and the row client at a point."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import numpy as np

from tolserve.bench.cost.figures import rounded
from tolserve.bench.cost.places import Asked
from tolserve.bench.cost.sources import bare_source
from tolserve.bench.peers import REQUEST, fill
from tolserve.transport.link import Address

_LARGE = 16 << 20
_NUM_SMALL, _NUM_LARGE = 50, 3
_NUM_ROWS = 64


def bare_socket(address: Address) -> dict[str, float]:
    """Round trip of 64 bytes (median us) and Gbit/s of 16 MiB (median) from `peers.serve_bytes`."""
    with socket.create_connection(address, timeout=60) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        small = [_ask(sock, 64) for _ in range(_NUM_SMALL)]
        large = [_ask(sock, _LARGE) for _ in range(_NUM_LARGE)]
    return {
        "round_trip_us": rounded(np.median(small) * 1e6),
        "gbit_per_s": rounded(_LARGE * 8 / float(np.median(large)) / 1e9),
    }


def reached(asked: Asked) -> dict[str, float]:
    """What a point's link gives the row client: ms for one row, what its delay added to that, Gbit/s of 64 rows."""
    one, many = _fetches(asked)
    found = {
        "one_row_ms": rounded(one * 1e3),
        "gbit_per_s": rounded(_NUM_ROWS * asked.material.spec.row_bytes * 8 / many / 1e9),
    }
    if asked.point.round_trip_ms or asked.point.gbit_per_s:
        plain = replace(asked, point=replace(asked.point, round_trip_ms=0.0, gbit_per_s=0.0))
        found["added_ms"] = rounded((one - _fetches(plain)[0]) * 1e3)
    return found


def _fetches(asked: Asked) -> tuple[float, float]:
    """Median seconds of one row, and of `_NUM_ROWS`."""
    took: dict[int, list[float]] = {1: [], _NUM_ROWS: []}
    draw = np.random.default_rng(0)
    with bare_source(asked) as source:
        bands = source.spec.choose(None)
        for _ in range(12):
            for count, values in took.items():
                ids = draw.choice(source.spec.vocab_size, count, replace=False).astype(np.int64)
                began = time.perf_counter()
                handle = source.start(ids)
                for band in bands:
                    source.arrive(handle, band)
                values.append(time.perf_counter() - began)
                source.release(handle)
    return float(np.median(took[1])), float(np.median(took[_NUM_ROWS]))


def _ask(sock: socket.socket, num_bytes: int) -> float:
    buffer = memoryview(bytearray(num_bytes))
    began = time.perf_counter()
    sock.sendall(REQUEST.pack(num_bytes))
    fill(sock, buffer)
    return time.perf_counter() - began
