"""What the model says of machines that are not here: the link that suffices, memory's price, one pool for many."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from tolserve.bench.cost_model.arrivals import Described
from tolserve.bench.cost_model.hardware import Accelerator, Link, Store
from tolserve.bench.cost_model.hits import Misses, zipf_law, zipf_misses
from tolserve.bench.cost_model.pace import ModelShape, dense_layer_s, layer_s
from tolserve.bench.cost_model.timeline import StepTime, expected_step

BLOCK_ROWS = 64
SHARES = (0.0, 0.05, 0.1, 0.25)
"""Shares of the table's bytes on the device: a pinned band where a whole one fits, then the most frequent tokens."""
WANTED = 0.03
"""Overhead at which networked memory counts as free."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One question: a model on a device, its rows behind a link.

    alpha: of the Zipf law of tokens. context: tokens that a sequence attends to.
    """

    shape: ModelShape
    device: Accelerator
    link: Link
    store: Store
    batch: int
    device_share: float
    num_nodes: int = 1
    alpha: float = 1.05
    context: int = 1024

    @property
    def pinned_bands(self) -> int:
        """One where the device's share holds a band for every token, else none."""
        return int(self.device_share * len(self.shape.band_layers) >= 1)

    @property
    def cached_tokens(self) -> int:
        """Tokens whose other bands are on the device."""
        bands = len(self.shape.band_layers)
        left = self.device_share * bands - self.pinned_bands
        return min(self.shape.vocab_size, int(self.shape.vocab_size * left / (bands - self.pinned_bands)))

    @property
    def misses(self) -> Misses:
        """Distinct rows that a step fetches."""
        return zipf_misses(self.shape.vocab_size, alpha=self.alpha, batch=self.batch, num_on_device=self.cached_tokens)

    @property
    def fetched_bytes(self) -> tuple[float, ...]:
        """Of one row, by band; nothing of a pinned one."""
        per_layer = self.shape.row_bytes / self.shape.num_layers
        return tuple(
            0.0 if band < self.pinned_bands else layers * per_layer
            for band, layers in enumerate(self.shape.band_layers)
        )

    def step(self) -> StepTime:
        """Expected time of a decode step of the whole batch."""
        layer = layer_s(self.shape, self.device, batch=self.batch, context=self.context)
        segments_s = np.array(self.shape.band_layers) * layer
        arrivals = Described(link=self.link, store=self.store, band_bytes=self.fetched_bytes, num_nodes=self.num_nodes)
        return expected_step(segments_s, self.misses, arrivals, on_device=tuple(range(self.pinned_bands)))

    def dense_s(self) -> float:
        """A step of the model that computes its feed-forward networks."""
        layer = dense_layer_s(self.shape, self.device, batch=self.batch, context=self.context)
        return layer * self.shape.num_layers


def smallest(setting: Setting, links: list[Link]) -> tuple[Link, float] | None:
    """The first link, in the order given, and with it the least device share that keeps the overhead below 3 %."""
    for link in links:
        for share in SHARES:
            if replace(setting, link=link, device_share=share).step().overhead < WANTED:
                return link, share
    return None


@dataclass(frozen=True, kw_only=True)
class Price:
    """Dollars per million tokens with the table on the device, and with it on shared memory nodes."""

    on_device: float
    networked: float
    devices: int
    """Devices that one replica takes where the table lies on them."""


def price(setting: Setting, *, attention_nodes: int, replication: int = 2) -> Price:
    """What tokens cost where every attention node holds the table, and where all of them share one.

    A device that holds the table pays for the part of its memory which the table takes, or for as many devices as that
    fills; networked rows pay for the device without it, the slower step, `replication` copies in the store, and links.
    """
    step = setting.step()
    tokens_per_hour = setting.batch * 3600 / step.step_s
    ideal_per_hour = setting.batch * 3600 / (step.step_s - step.stall_s)
    device, table = setting.device, setting.shape.table_bytes
    share = table / device.memory_bytes
    on_device = device.dollars_per_hour * (1 + share) / ideal_per_hour * 1e6
    shared = replication * table / 1e9 * setting.store.dollars_per_gb_hour / attention_nodes
    held = device.dollars_per_hour * (1 + setting.device_share * share)
    reads = (
        setting.misses.mean * len(setting.shape.band_layers) / setting.batch * setting.store.dollars_per_million_reads
    )
    networked = (held + shared + setting.link.dollars_per_hour) / tokens_per_hour * 1e6 + reads
    return Price(on_device=on_device, networked=networked, devices=math.ceil(1 + share))


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A pool of memory nodes for many attention nodes.

    bytes_per_s, rows_per_s: that all attention nodes ask for together. by_memory, by_bytes, by_messages: nodes that
    memory, links and messages want. skew: load of the busiest partition over the mean. replicas: copies of each
    partition so that the busiest is not overloaded.
    """

    bytes_per_s: float
    rows_per_s: float
    by_memory: int
    by_bytes: int
    by_messages: int
    skew: float
    replicas: int

    @property
    def nodes(self) -> int:
        """Memory nodes in all."""
        return self.by_memory * self.replicas


def pool(setting: Setting, *, attention_nodes: int, node_memory_bytes: float = 512e9, load: float = 0.6) -> Pool:
    """What `attention_nodes` that all decode at full speed ask of one pool.

    Args:
        load: share of a link or of its messages that a node is planned for.
    """
    steps_per_s = attention_nodes / setting.step().step_s
    rows_per_s = steps_per_s * setting.misses.mean
    bytes_per_s = rows_per_s * sum(setting.fetched_bytes)
    by_memory = max(1, math.ceil(setting.shape.table_bytes / node_memory_bytes))
    skew = partition_skew(setting, by_memory)
    messages = steps_per_s * min(by_memory, max(1.0, setting.misses.mean))
    by_bytes = math.ceil(bytes_per_s * skew / (setting.link.bytes_per_s * load))
    by_messages = math.ceil(messages * skew / (setting.link.messages_per_s * load))
    replicas = max(1, math.ceil(max(by_bytes, by_messages) / by_memory))
    return Pool(
        bytes_per_s=bytes_per_s,
        rows_per_s=rows_per_s,
        by_memory=by_memory,
        by_bytes=by_bytes,
        by_messages=by_messages,
        skew=skew,
        replicas=replicas,
    )


def partition_skew(setting: Setting, partitions: int) -> float:
    """Rows asked of the busiest partition over the mean: blocks of 64 ids in turn, what is cached not asked for."""
    asked = -np.expm1(setting.batch * np.log1p(-zipf_law(setting.shape.vocab_size, setting.alpha)))
    asked[: setting.cached_tokens] = 0.0
    ids = np.random.default_rng(0).permutation(setting.shape.vocab_size)
    load = np.bincount(ids // BLOCK_ROWS % partitions, weights=asked, minlength=partitions)
    return float(load.max() / load.mean()) if load.mean() else 1.0
