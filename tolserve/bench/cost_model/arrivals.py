"""When rows come: measured here (`Measured`), or from a link's and a store's description (`Described`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tolserve.bench.cost_model.hardware import Link, Store
from tolserve.bench.cost_model.timeline import Seconds

NUM_CASES = 64
"""Equally likely cases that a distribution is taken as."""

_NORMAL_99 = NormalDist().inv_cdf(0.99)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Fetches of several numbers of rows, as micro-benchmarks timed them; others are interpolated.

    num_rows: ascending, from 0. arrivals_NQB: [N, Q, bands], seconds until each band's rows were seen, the quantiles
    of each band sorted by the last one's. host_NQ: seconds until the host had done its work for the step.
    round_trip_s: added to every fetch.
    """

    num_rows: tuple[int, ...]
    arrivals_NQB: NDArray[np.float64]
    host_NQ: NDArray[np.float64]
    round_trip_s: float = 0.0

    def arrival_s(self, num_rows: int) -> Seconds:
        """See Arrivals."""
        return self._between(self.arrivals_NQB, num_rows) + (self.round_trip_s if num_rows else 0.0)

    def host_s(self, num_rows: int) -> Seconds:
        """See Arrivals."""
        return self._between(self.host_NQ, num_rows) + (self.round_trip_s if num_rows else 0.0)

    def _between(self, values: NDArray[np.float64], num_rows: int) -> Seconds:
        """Linear between the measured numbers, and on from the last two; no rows at all are a case of their own."""
        if num_rows == 0:
            none: Seconds = values[0]
            return none
        known = self.num_rows[1:]
        if len(known) == 1:
            only: Seconds = values[1]
            return only
        right = int(np.clip(np.searchsorted(known, num_rows), 1, len(known) - 1))
        left = right - 1
        share = (num_rows - known[left]) / (known[right] - known[left])
        found: Seconds = values[1:][left] + max(share, 0.0) * (values[1:][right] - values[1:][left])
        return found


@dataclass(frozen=True, kw_only=True)
class Described:
    """Fetches over a described link from a described store, spread over P memory nodes.

    Bands come in order, each as long after the last as its bytes take. Latency is log-normal with the median of the
    parts' sum and the tail of the slowest part; of P nodes the slowest counts.

    Attributes:
        band_bytes: of one row, by band; 0 for bands that are not fetched.
        client_s: the client's work before the request leaves and for a band's arrival, together.
    """

    link: Link
    store: Store
    band_bytes: tuple[float, ...]
    num_nodes: int = 1
    client_s: float = 10e-6

    def arrival_s(self, num_rows: int) -> Seconds:
        """See Arrivals."""
        bands = len(self.band_bytes)
        if num_rows == 0:
            return np.full((NUM_CASES, bands), self.client_s)
        until = np.cumsum(self.band_bytes) * num_rows
        rate = min(self.link.bytes_per_s, self.num_nodes * self.store.bytes_per_s)
        reads_s = num_rows * bands / self.num_nodes / self.store.reads_per_s
        first_s = self._first_s()
        return self.client_s + first_s[:, None] + reads_s + (until / rate)[None, :]

    def host_s(self, num_rows: int) -> Seconds:
        """See Arrivals: a host that is never the bottleneck."""
        return np.zeros(NUM_CASES)

    def _first_s(self) -> Seconds:
        """[Q]: the first byte of the slowest node."""
        link_s = self.link.round_trip_s + self.link.message_s
        shares = ((np.arange(NUM_CASES) + 0.5) / NUM_CASES) ** (1 / self.num_nodes)
        steps = np.array([NormalDist().inv_cdf(share) for share in shares])
        over_link = link_s * np.exp(steps * math.log(self.link.tail) / _NORMAL_99)
        if not self.store.p50_s:
            return over_link
        store_tail = math.log(self.store.p99_s / self.store.p50_s) / _NORMAL_99
        found: Seconds = over_link + self.store.p50_s * np.exp(steps * store_tail)
        return found
