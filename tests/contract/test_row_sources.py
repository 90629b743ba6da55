"""What every source of rows promises: one table, whole on the device, read here, or spread over memory nodes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from row_kit import TIMEOUT_S, draw_ids, network, partition_store, random_rows, row_spec, serve_store

from tolserve.memory.cached import CachedSource, arena_slots, slots_for
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.device import DeviceArena
from tolserve.memory.device_table import DeviceTable
from tolserve.memory.errors import StagingFullError
from tolserve.memory.host_cache import HostCache
from tolserve.memory.local import StoreFetcher
from tolserve.memory.partition import Partition
from tolserve.memory.policy import LRU, CachePolicy, StaticByFrequency
from tolserve.memory.source import RowFetcher, RowSource
from tolserve.memory.spec import Ids

SPEC = row_spec()
ROWS = random_rows(SPEC)
BANDS = (0, 1, 2)
NUM_SLOTS = 30
NUM_STAGING = 100
COUNTS = np.random.default_rng(5).permutation(SPEC.vocab_size) + 1

POLICIES: dict[str, Callable[[], CachePolicy | None]] = {
    "no cache": lambda: None,
    "static": lambda: StaticByFrequency(COUNTS),
    "lru": lambda: LRU(NUM_SLOTS),
}


@dataclass(frozen=True)
class Case:
    """Where a source's rows come from: "store", or by a network from as many nodes."""

    origin: str
    nodes: int = 1
    policy: str = "no cache"
    max_ids: int = 1000
    device_arena: bool = False
    host_rows: int = 0

    def __str__(self) -> str:
        rest = f"{' in parts' * (self.max_ids < 1000)}{' on a device' * self.device_arena}"
        rest += " behind a host cache" * (self.host_rows > 0)
        return f"{self.origin} {self.nodes} {self.policy}{rest}"


CACHED = [
    *(Case("store", policy=policy) for policy in POLICIES),
    *(Case("tcp", nodes, policy) for nodes, policy in itertools.product((1, 2, 3), POLICIES)),
    *(Case("in-process", nodes, policy) for nodes, policy in zip((1, 2, 3), POLICIES, strict=True)),
    Case("delayed tcp", 2, "lru"),
    Case("tcp", 1, max_ids=7),
    Case("in-process", 2, "lru", max_ids=7),
    Case("tcp", 2, "lru", device_arena=True),
    Case("store", policy="static", host_rows=45),
    Case("tcp", 2, "lru", host_rows=45),
    Case("tcp", 2, "lru", device_arena=True, host_rows=45),
    Case("flight", 2, "lru"),
    Case("flight", 1, max_ids=7),
    Case("secure tcp", 2, "lru"),
    Case("secure flight", 2, "lru", device_arena=True),
    Case("ray", 2, "lru"),
]


@contextlib.contextmanager
def fetcher(case: Case) -> Iterator[RowFetcher]:
    if case.origin == "store":
        yield StoreFetcher(partition_store(SPEC, ROWS))
        return
    with network(case.origin) as net:
        parts = [Partition(index=index, count=case.nodes) for index in range(case.nodes)]
        addresses = [[serve_store(net, partition_store(SPEC, ROWS, part))] for part in parts]
        client = PartitionedClient(SPEC, addresses, ClientConfig(max_ids=case.max_ids), net.transport)
        client.wait_connected(TIMEOUT_S)
        yield client


@contextlib.contextmanager
def cached_source(case: Case) -> Iterator[CachedSource]:
    policy = POLICIES[case.policy]()
    num_slots = NUM_SLOTS if policy else 0
    slots = arena_slots(BANDS, num_slots)
    device = torch.device("cpu")
    arena = DeviceArena(SPEC, num_staging=NUM_STAGING, slots=slots, device=device) if case.device_arena else None
    with fetcher(case) as made:
        if case.host_rows:
            made = HostCache(made, cache_bytes=case.host_rows * SPEC.row_bytes)
        source = CachedSource(made, num_slots=num_slots, policy=policy, num_staging=NUM_STAGING, arena=arena)
        yield source
        source.close()


@pytest.fixture(params=CACHED, ids=str)
def cached(request: pytest.FixtureRequest) -> Iterator[CachedSource]:
    with cached_source(request.param) as source:
        yield source


@pytest.fixture(params=[*CACHED, None], ids=lambda case: str(case or "device table"))
def source(request: pytest.FixtureRequest) -> Iterator[RowSource]:
    if request.param is None:
        yield DeviceTable.load(CachedSource(StoreFetcher(partition_store(SPEC, ROWS))))
        return
    with cached_source(request.param) as source:
        yield source


def same_bytes(source: RowSource, handle: Any, ids: Ids, bands: tuple[int, ...]) -> bool:
    """Whether a handle gets the table's rows by `wait`, and reads them where its index says."""
    for band in bands:
        waited = np.asarray(source.wait(handle, band))
        in_pool = np.asarray(source.pool(band))[handle.index]
        if not (np.array_equal(waited, ROWS[band][ids]) and np.array_equal(in_pool, waited)):
            return False
    return True


def test_rows_are_those_of_the_table_however_often_an_id_occurs(source: RowSource) -> None:
    assert isinstance(source, RowSource)
    draw = np.random.default_rng(0)
    for count in [0, 1, 2, *draw.integers(0, NUM_STAGING, 20)]:
        ids = draw_ids(draw, SPEC.vocab_size, count)
        handle = source.start(ids)
        for band in BANDS:
            source.arrive(handle, band)
        assert same_bytes(source, handle, ids, BANDS)
        assert len(np.unique(handle.index)) == len(np.unique(ids))
        source.release(handle)


def test_bands_can_be_asked_for_alone(source: RowSource) -> None:
    draw = np.random.default_rng(1)
    for bands in [(0,), (1,), (2,), (0, 2), (1, 2), (2, 0), BANDS, (0,)]:
        ids = draw_ids(draw, 200, 40)
        handle = source.start(ids, bands=bands)
        for band in sorted(bands):
            source.arrive(handle, band)
        assert same_bytes(source, handle, ids, bands)
        source.release(handle)


def test_handles_are_read_and_released_in_any_order(source: RowSource) -> None:
    draw = np.random.default_rng(2)
    for order in itertools.permutations(range(3)):
        asked = [draw_ids(draw, 60, 20) for _ in order]
        handles = [source.start(ids) for ids in asked]
        for place in order:
            assert same_bytes(source, handles[place], asked[place], (2, 0))
        for turn, place in enumerate(order, start=1):
            assert same_bytes(source, handles[place], asked[place], (1,))
            source.release(handles[place])
            for other in order[turn:]:
                assert same_bytes(source, handles[other], asked[other], (0, 2))


@pytest.mark.parametrize("seed", range(2))
def test_what_an_open_handle_reads_stays_whatever_else_happens(source: RowSource, seed: int) -> None:
    draw = np.random.default_rng(seed)
    reading: list[tuple[Any, Ids, tuple[int, ...], set[int]]] = []
    for _ in range(250):
        move = draw.integers(0, 3)
        if move == 0 or not reading:
            ids = draw_ids(draw, 150, draw.integers(1, 25))
            bands = BANDS if draw.random() < 0.7 else tuple(draw.permutation(3)[: draw.integers(1, 3)].tolist())
            with contextlib.suppress(StagingFullError):
                reading.append((source.start(ids, bands=bands), ids, bands, set()))
        elif move == 1:
            handle, _, bands, arrived = reading[draw.integers(len(reading))]
            band = int(draw.choice(bands))
            source.arrive(handle, band)
            arrived.add(band)
        else:
            source.release(reading.pop(draw.integers(len(reading)))[0])
        assert all(same_bytes(source, handle, ids, tuple(arrived)) for handle, ids, _, arrived in reading)
    for handle, *_ in reading:
        source.release(handle)
    assert getattr(source, "num_staged", 0) == 0
    everything = np.arange(60)
    handle = source.start(everything)
    assert same_bytes(source, handle, everything, BANDS)


def test_what_the_table_does_not_have_is_refused(source: RowSource) -> None:
    good = np.array([3])
    for ids, bands, message in [
        (np.array([3, SPEC.vocab_size]), None, "token id 1000 is outside the vocabulary of 1000"),
        (np.array([-1, 3]), None, "token id -1"),
        (np.array([1, 2], np.int32), None, "int32; expected int64"),
        (good, (3,), "bands 0 to 2"),
        (good, (-1, 0), "bands 0 to 2"),
        (good, (), "bands 0 to 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            source.start(ids, bands=bands)
    assert getattr(source, "num_staged", 0) == 0
    assert same_bytes(source, source.start(good), good, BANDS)


def test_a_bill_counts_needed_and_distinct_rows(source: RowSource) -> None:
    ids = np.array([7, 100, 7, 7, 200, 100])
    handle = source.start(ids)
    assert (handle.bill.rows_needed, handle.bill.rows_unique) == (6, 3)
    assert sum(handle.bill.hits_by_tier.values()) == 6


def test_an_id_is_fetched_once_while_it_is_needed(cached: CachedSource) -> None:
    first = cached.start(np.array([7, 100, 7, 7, 200, 100]))
    assert first.bill.bytes_moved == 3 * SPEC.row_bytes
    assert cached.num_staged == 3
    second = cached.start(np.array([200, 300, 200]))
    assert second.bill.hits_by_tier.pop("flight") == 2
    assert list(second.bill.hits_by_tier.values()) == [1]
    assert second.bill.bytes_moved == SPEC.row_bytes
    assert cached.num_staged == 4
    assert len(set(first.index) & set(second.index)) == 1
    cached.release(first)
    assert same_bytes(cached, second, np.array([200, 300, 200]), BANDS)
    cached.release(second)
    cached.release(second)
    assert cached.num_staged == 0
    third = cached.start(np.array([300, 200, 200, 5]))
    held = {"cache": 3} if cached.num_slots else {}
    assert sum(third.bill.hits_by_tier.values()) == 4
    assert {tier: third.bill.hits_by_tier[tier] for tier in held} == held
    assert third.bill.bytes_moved == (1 if held else 3) * SPEC.row_bytes


def test_a_request_given_up_spoils_nothing(cached: CachedSource) -> None:
    draw = np.random.default_rng(3)
    for _ in range(20):
        given_up, ids = draw_ids(draw, 80, 30), draw_ids(draw, 80, 30)
        lost = cached.start(given_up)
        cached.arrive(lost, int(draw.integers(3)))
        cached.release(lost)
        handle = cached.start(ids)
        assert same_bytes(cached, handle, ids, BANDS)
        cached.release(handle)


def test_a_full_staging_budget_is_told_and_passes(cached: CachedSource) -> None:
    with pytest.raises(ValueError, match=f"101 rows at once; this source stages {NUM_STAGING}"):
        cached.start(np.arange(NUM_STAGING + 1))
    handles = [cached.start(np.arange(first, first + 40)) for first in (0, 40)]
    with pytest.raises(StagingFullError, match="21 rows do not fit beside the 80 of 100"):
        cached.start(np.arange(80, 101))
    handles.append(cached.start(np.arange(70, 100)))
    assert cached.num_staged == NUM_STAGING
    cached.release(handles.pop(0))
    handles.append(cached.start(np.arange(500, 540)))
    assert same_bytes(cached, handles[-1], np.arange(500, 540), BANDS)
    assert same_bytes(cached, handles[-2], np.arange(70, 100), BANDS)


def test_a_band_that_was_not_asked_for_is_refused(cached: CachedSource) -> None:
    handle = cached.start(np.array([900, 901]), bands=(0, 2))
    with pytest.raises(ValueError, match="band 1 was not asked for"):
        cached.arrive(handle, 1)
    assert same_bytes(cached, handle, np.array([900, 901]), (0, 2))


@pytest.mark.parametrize("bands", [(0,), (1, 2)])
def test_a_cache_may_hold_some_bands_only(bands: tuple[int, ...]) -> None:
    made = StoreFetcher(partition_store(SPEC, ROWS))
    num_slots = slots_for(SPEC, 25 * sum(SPEC.bands[band].row_bytes for band in bands), bands)
    source = CachedSource(made, num_slots=num_slots, policy=LRU(num_slots), bands=bands, num_staging=NUM_STAGING)
    assert num_slots == 25
    ids = np.arange(20)
    for asked, hits in [(bands, None), (bands, 20), ((bands[0],), 20), (BANDS, None)]:
        handle = source.start(ids, bands=asked)
        assert same_bytes(source, handle, ids, asked)
        assert handle.bill.hits_by_tier.get("cache") == hits
        source.release(handle)


def test_warming_brings_the_most_frequent_rows(cached: CachedSource) -> None:
    policy = LRU(NUM_SLOTS, COUNTS) if cached.num_slots else None
    warmed = CachedSource(cached._fetcher, num_slots=cached.num_slots, policy=policy, num_staging=8)
    assert warmed.warm() == warmed.num_cached == cached.num_slots
    handle = warmed.start(np.argsort(-COUNTS)[:8])
    assert handle.bill.hits_by_tier.get("cache", 0) == (8 if policy else 0)
    assert same_bytes(warmed, handle, np.argsort(-COUNTS)[:8], BANDS)
