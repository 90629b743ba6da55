"""`paced_overhead` of `bench rows`: what rows from a memory node add to the steps of the paced engine.

A step with rows from the memory node and a step with all rows on the device take turns;
overhead = (mean step time with the memory node - mean step time without) / (24 layers x pace). 24 layers in bands of 4
(or of 2, where a point's name says so), V = 128,256. On the device: every token of the pinned bands, and all other
bands of the most frequent tokens, together at most 25 % of the bytes of the table as stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tolserve.bench.disturbed import Turns
from tolserve.bench.paced import PacedEngine, StepTime
from tolserve.bench.peers import node_description, peer
from tolserve.bench.report import estimate
from tolserve.bench.streams import TokenStream, text_stream, zipf_stream
from tolserve.memory.arena import HostArena
from tolserve.memory.cached import CachedSource, slots_for
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.policy import StaticByFrequency
from tolserve.memory.spec import Ids, RowSpec
from tolserve.transport.delayed import Delayed
from tolserve.transport.link import Address
from tolserve.transport.tcp import TcpTransport

VOCAB_SIZE = 128_256
DEVICE_SHARE = 0.25
NODE_SPIN_US = 500_000
"""The memory node has a core of its own, and stays awake from one of the rare fetches of a small batch to the next."""
_NUM_STAGING = 2048
_WARM_STEPS = 20
_SIZES = {"12k": (512, "int8"), "96k": (2048, "float16")}


KEYS = {
    "12k_b1": "12k_b1",
    "12k_b8": "12k_b8",
    "12k_b64": "12k_b64",
    "96k_b8": "96k_b8",
    "12k_b8_10us": "12k_b8 10us",
    "12k_b8_rtt100us": "12k_b8 rtt+100us bands_of_2",
}
"""What has a bar, and the point that it is."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """One point: what is varied around 20 us a layer, loopback, bands of 4 layers, one pinned, the rest cached."""

    size: str
    batch: int
    stream: str = "text"
    pace_us: float = 20.0
    round_trip_us: float = 0.0
    layers_per_band: int = 4
    pinned_bands: int = 1
    cache: bool = True

    @property
    def place(self) -> tuple[float, int, int, bool]:
        """Regimes that can share a source."""
        return self.round_trip_us, self.layers_per_band, self.pinned_bands, self.cache

    @property
    def node(self) -> tuple[str, int]:
        """Regimes that can share a memory node."""
        return self.size, self.layers_per_band

    @property
    def has_bar(self) -> bool:
        """Whether a figure is asked of it."""
        return self.name in KEYS.values()

    @property
    def name(self) -> str:
        """The key of the point, what differs from the usual behind it."""
        parts = [f"{self.size}_b{self.batch}"]
        usual = Regime(size=self.size, batch=self.batch)
        if self.stream != usual.stream:
            parts.append(self.stream)
        if self.pace_us != usual.pace_us:
            parts.append(f"{self.pace_us:g}us")
        if self.round_trip_us:
            parts.append(f"rtt+{self.round_trip_us:g}us")
        if self.layers_per_band != usual.layers_per_band:
            parts.append(f"bands_of_{self.layers_per_band}")
        if not self.pinned_bands:
            parts.append("no_pinning")
        if not self.cache:
            parts.append("no_cache")
        return " ".join(parts)


class DeviceSlots(HostArena):
    """Staging rows in host memory; cache slots are the device's, whose bytes this process neither has nor moves."""

    def __init__(self, spec: RowSpec) -> None:
        super().__init__(spec, num_staging=_NUM_STAGING, slots={})

    def move(self, band: int, sources: Ids, targets: Ids) -> None:
        """The device's work."""


def regimes() -> list[Regime]:
    """The points at 20 us on loopback, and what is varied around them.

    Far away, where no pinned band of a reasonable size covers the round trip, the share of the device does more as
    cached tokens than as a pinned band: bands of 2 layers, one pinned, leave more of it to the cache.
    """
    usual = [Regime(size=size, batch=batch) for size, batch in (("12k", 1), ("12k", 8), ("12k", 64), ("96k", 8))]
    varied: list[dict[str, Any]] = [
        {"stream": "zipf"},
        {"pace_us": 10.0},
        {"pace_us": 40.0},
        {"round_trip_us": 35.0},
        {"round_trip_us": 100.0},
        {"round_trip_us": 100.0, "layers_per_band": 2},
        {"cache": False},
        {"pinned_bands": 0},
    ]
    points = usual + [replace(regime, **changes) for changes in varied for regime in usual]
    return [point for point in points if point.size == "12k" or point.layers_per_band == 4]


def measure_paced(core: int | None, *, quick: bool, barred_only: bool = False) -> dict[str, Any]:
    """`paced_overhead` by key, and every point with its interval, split, fetches and bytes.

    A quick run leaves out the long rows where no bar is: to fill the device's share takes seconds for each place.
    With `barred_only` no point is measured that has no key.
    """
    streams = {"text": text_stream(Path("data"), VOCAB_SIZE), "zipf": zipf_stream(VOCAB_SIZE, 400_000, seed=0)}
    points = [point for point in regimes() if not quick or point.size == "12k" or point.has_bar]
    points = [point for point in points if not barred_only or point.has_bar]
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(point.node for point in points):
        rank, dtype = _SIZES[kind[0]]
        node = node_description(
            rank=rank,
            dtype=dtype,
            vocab_size=VOCAB_SIZE,
            core=core,
            spin_us=NODE_SPIN_US,
            max_bytes=512 << 20,
            layers_per_band=kind[1],
        )
        spec = RowSpec.uniform(**node["shape"])
        with peer(node) as address:
            own = [point for point in points if point.node == kind]
            for place in dict.fromkeys(point.place for point in own):
                alike = [point for point in own if point.place == place]
                with device_source(spec, address, alike[0], streams["text"]) as source:
                    for point in alike:
                        num_pairs = _num_pairs(point, quick=quick)
                        found[point.name] = _measure(point, source, streams[point.stream], num_pairs)
                        print(_line(point.name, found[point.name]), flush=True)
    return {"paced_overhead": {key: found[name]["overhead"] for key, name in KEYS.items()}, "paced": found}


def _num_pairs(point: Regime, *, quick: bool) -> int:
    """More where a bar is held against the mean, since one stall of the machine is worth many steps."""
    if quick:
        return 500 if point.has_bar else 30
    return 2000 if point.has_bar else 400


def _line(name: str, found: dict[str, Any]) -> str:
    low, high = found["interval"]
    ours, local = (found[key]["p99"] for key in ("step_us", "local_step_us"))
    return (
        f"{name}: {found['overhead']:+.2%} [{low:+.2%}, {high:+.2%}] of the ideal step, p99 {ours:.0f} us "
        f"({local:.0f} us local), {found['fetching_steps']:.0%} of {found['pairs']} steps fetch"
    )


@contextmanager
def device_source(spec: RowSpec, address: Address, regime: Regime, stream: TokenStream) -> Iterator[CachedSource]:
    """A row client whose cache takes what the pinned bands leave of the device's share.

    Both streams number tokens by frequency, so that one set of cached tokens is the right one for both.
    """
    tcp = TcpTransport()
    transport = Delayed(tcp, round_trip_s=regime.round_trip_us * 1e-6) if regime.round_trip_us else tcp
    client = PartitionedClient(spec, [[address]], ClientConfig(spin_us=5000), transport)
    client.wait_connected(30)
    bands = tuple(range(regime.pinned_bands, len(spec.bands)))
    budget = int(DEVICE_SHARE * spec.table_bytes) - pinned_bytes(spec, regime)
    source = CachedSource(
        client,
        num_slots=slots_for(spec, budget, bands) if regime.cache else 0,
        policy=StaticByFrequency(stream.counts),
        bands=bands,
        num_staging=_NUM_STAGING,
        arena=DeviceSlots(spec),
    )
    source.warm()
    try:
        yield source
    finally:
        source.close()


def pinned_bytes(spec: RowSpec, regime: Regime) -> int:
    """Bytes of the bands that are on the device for every token."""
    return sum(band.row_bytes for band in spec.bands[: regime.pinned_bands]) * spec.vocab_size


def _measure(regime: Regime, source: CachedSource, stream: TokenStream, num_pairs: int) -> dict[str, Any]:
    spec = source.spec
    tokens = stream.batches(regime.batch, num_pairs + _WARM_STEPS)
    num_layers = tuple(len(band.layers) for band in spec.bands)
    bands = tuple(range(regime.pinned_bands, len(spec.bands)))
    pace_s = regime.pace_us * 1e-6
    remote = PacedEngine(tokens, pace_s=pace_s, num_layers=num_layers, source=source, bands=bands)
    local = PacedEngine(tokens, pace_s=pace_s, num_layers=num_layers)
    turns: Turns[tuple[StepTime, StepTime]] = Turns()
    for _ in range(num_pairs + _WARM_STEPS):
        turns.add((remote.step(), local.step()))
    remote.close()
    turns.forget(_WARM_STEPS)
    pairs = turns.undisturbed
    ideal_s = pace_s * sum(num_layers)
    overhead = estimate([(ours.step_s - theirs.step_s) / ideal_s for ours, theirs in pairs])
    pinned = pinned_bytes(spec, regime) / spec.table_bytes
    cached = source.num_slots * sum(spec.bands[band].row_bytes for band in bands) / spec.table_bytes
    assert pinned + cached <= DEVICE_SHARE, f"{pinned + cached:.3f} of the table is on the device"
    return {
        "overhead": round(overhead.mean, 4),
        "interval": [round(overhead.low, 4), round(overhead.high, 4)],
        "step_us": _percentiles([ours for ours, _ in pairs]),
        "local_step_us": _percentiles([theirs for _, theirs in pairs]),
        "pairs": len(pairs),
        "fetching_steps": round(sum(ours.bytes_moved > 0 for ours, _ in pairs) / len(pairs), 4),
        "bytes_a_step": round(sum(ours.bytes_moved for ours, _ in pairs) / len(pairs)),
        "on_device": {"pinned_bands": round(pinned, 4), "cache": round(cached, 4), "cached_tokens": source.num_slots},
    }


def _percentiles(steps: list[StepTime]) -> dict[str, float]:
    values = np.array([step.step_s for step in steps]) * 1e6
    p50, p99 = np.percentile(values, [50, 99])
    return {"mean": round(float(values.mean()), 1), "p50": round(float(p50), 1), "p99": round(float(p99), 1)}
