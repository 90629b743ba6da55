"""Rows read from where the table is, by attention nodes and by memory nodes: right, hedged, bounded, nobody held up."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from row_kit import TIMEOUT_S, ask, draw_ids, read_answer, rows_frame, rows_payload, wait_until
from s3_proxy import ALWAYS, Deed, Exchange, Proxy, Request, be_silent, s3_proxy
from table_kit import Made, table_spec, write_table

from tolbuild.table import Credentials, StoreError, TableCorruptError, open_store, open_table
from tolserve.memory.cached import CachedSource
from tolserve.memory.channel import read_exactly
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.errors import NodesUnavailableError
from tolserve.memory.hedge import ReadConfig
from tolserve.memory.host_cache import HostCache
from tolserve.memory.node import MemoryNode
from tolserve.memory.node_config import NodeConfig
from tolserve.memory.object_rows import ObjectFetcher, ObjectRows, open_object_rows
from tolserve.memory.row_reads import plan_row_reads
from tolserve.memory.spec import Ids, Rows, RowSpec
from tolserve.transport.frames import RESPONSE, Status
from tolserve.transport.tcp import TcpTransport

V = 600
BANDS = (0, 1)
SPEC = table_spec(vocab_size=V, rank=5)
QUICK = ReadConfig(deadline_s=0.6, hedge_quantile=0)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A table, what is in it, and the proxy that its objects come through."""

    url: str
    made: Made
    proxy: Proxy | None = None

    @property
    def rows(self) -> list[Rows]:
        """Codes by band, uint8 [V, row_bytes]."""
        return [np.ascontiguousarray(codes).view(np.uint8) for codes in self.made.codes]

    def shard(self, token: int, band: int) -> str:
        """Path of the object that holds a row."""
        layout = self.made.manifest.bands[band].layout
        return layout.shard_key(token // layout.shard_rows)

    def frame(self, number: int, ids: Ids, bands: tuple[int, ...] = BANDS) -> bytes:
        return rows_frame(number, ids, bands, identity=self.made.manifest.identity)

    def open(self, config: ReadConfig | None = None) -> ObjectRows:
        return open_object_rows(self.url, version=1, config=config)


@pytest.fixture
def s3_place(s3: Credentials, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    url = f"s3://tables/{secrets.token_hex(6)}"
    made = write_table(open_store(url, s3), SPEC)
    with s3_proxy(s3.endpoint_url) as proxy:
        for name, value in {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "AWS_REGION": s3.region,
        }.items():
            monkeypatch.setenv(name, value)
        yield Place(url=url, made=made, proxy=proxy)


@pytest.fixture(params=["file", "s3", "http"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return Place(url=tmp_path.as_uri(), made=write_table(open_store(tmp_path), SPEC))
    on_s3: Place = request.getfixturevalue("s3_place")
    if request.param == "s3":
        return on_s3
    assert on_s3.proxy is not None
    on_s3.proxy.on(as_anybody, times=ALWAYS)
    return replace(on_s3, url=on_s3.url.replace("s3:/", on_s3.proxy.url))


def as_anybody(exchange: Exchange, request: Request) -> None:
    """The server lets everybody read."""
    named = {**request.headers, "authorization": "AWS testing:x"}
    exchange.answer(*exchange.ask(replace(request, headers=named)))


@dataclass
class Held:
    """A deed that answers when the test lets it."""

    come: threading.Event
    let: threading.Event

    @classmethod
    def make(cls) -> tuple[Held, Deed]:
        held = cls(threading.Event(), threading.Event())

        def deed(exchange: Exchange, request: Request) -> None:
            held.come.set()
            held.let.wait(TIMEOUT_S)
            exchange.answer(*exchange.ask(request))

        return held, deed


@contextlib.contextmanager
def source_of(place: Place, *, host_rows: int = 0, config: ReadConfig | None = None) -> Iterator[CachedSource]:
    objects = place.open(config)
    fetcher: Any = ObjectFetcher(objects)
    if host_rows:
        fetcher = HostCache(fetcher, cache_bytes=host_rows * objects.spec.row_bytes)
    source = CachedSource(fetcher)
    try:
        yield source
    finally:
        source.close()


@contextlib.contextmanager
def node(place: Place, **settings: Any) -> Iterator[MemoryNode]:
    made = MemoryNode(NodeConfig(table=place.url, version=1, keep="store", **settings)).start()
    try:
        yield made
    finally:
        made.stop()


def read(source: CachedSource, place: Place, ids: Ids) -> dict[str, Any]:
    """Check a request's rows; what it says that they cost."""
    handle = source.start(ids)
    try:
        assert all(np.array_equal(source.wait(handle, band), place.rows[band][ids]) for band in BANDS)
        return {"hits": dict(handle.bill.hits_by_tier), "bytes": handle.bill.bytes_moved}
    finally:
        source.release(handle)


def test_rows_come_from_the_store_and_then_from_the_host(place: Place) -> None:
    row_bytes = RowSpec.from_manifest(place.made.manifest).row_bytes
    with source_of(place, host_rows=100) as source:
        ids = np.array([5, 599, 130, 5, 400])
        assert read(source, place, ids) == {"hits": {"store": 5}, "bytes": 4 * row_bytes}
        assert read(source, place, ids) == {"hits": {"host": 5}, "bytes": 0}
        mixed = np.array([5, 5, 6, 130])
        assert read(source, place, mixed) == {"hits": {"host": 3, "store": 1}, "bytes": row_bytes}
        draw = np.random.default_rng(0)
        for _ in range(6):
            read(source, place, draw_ids(draw, V, 60))


def test_a_node_over_the_store_answers_and_counts(place: Place) -> None:
    draw = np.random.default_rng(1)
    spec = RowSpec.from_manifest(place.made.manifest)
    with node(place, cache_bytes=40 * spec.row_bytes) as serving:
        link = TcpTransport().connect(serving.address, TIMEOUT_S)
        ids = np.array([3, 300, 3, 500])
        assert ask(link, place.frame(1, ids))[1] == rows_payload(place.rows, ids, BANDS)
        figures = serving.figures()
        assert (figures["cache_hits"], figures["cache_misses"], figures["cache_rows"]) == (0, 4, 3)
        assert (figures["store_reads"], figures["store_bytes"]) == (6, 3 * spec.row_bytes)
        assert ask(link, place.frame(2, ids, (1,)))[1] == rows_payload(place.rows, ids, (1,))
        assert serving.figures()["cache_hits"] == 4
        for number in range(3, 8):
            ids = draw_ids(draw, V, 50)
            bands = BANDS if number % 2 else (0,)
            assert ask(link, place.frame(number, ids, bands))[1] == rows_payload(place.rows, ids, bands)
        assert serving.figures()["num_requests"] == 7
        link.close()


def test_a_slow_read_is_hedged_and_the_rows_come(s3_place: Place) -> None:
    assert s3_place.proxy is not None
    with source_of(s3_place, config=ReadConfig(deadline_s=30, hedge_after_s=0.05)) as source:
        objects: ObjectRows = source._fetcher.rows  # type: ignore[attr-defined]
        s3_place.proxy.on(be_silent, method="GET", path=s3_place.shard(7, 0))
        read(source, s3_place, np.array([7]))
        stats = objects.stats()
        assert stats["num_hedges"] >= 1 and stats["num_hedges_won"] >= 1 and stats["num_failed"] == 0


def test_a_store_that_is_silent_is_an_error_and_rows_come_when_it_is_back(s3_place: Place) -> None:
    assert s3_place.proxy is not None
    with source_of(s3_place, config=QUICK) as source:
        rule = s3_place.proxy.on(be_silent, method="GET HEAD", path="arrays/", times=ALWAYS)
        for _ in range(2):
            with pytest.raises(
                StoreError, match=r"4 of 4 reads .* of 2 tokens are missing, and nothing came for 0.6 s"
            ):
                read(source, s3_place, np.array([7, 300]))
        rule.times = 0

        def is_back() -> bool:
            with contextlib.suppress(StoreError):
                read(source, s3_place, np.array([7, 300]))
                return True
            return False

        wait_until(is_back)


def test_a_row_that_is_not_what_its_checksum_says_is_refused(tmp_path: Path) -> None:
    place = Place(url=str(tmp_path), made=write_table(open_store(tmp_path), SPEC))
    path = tmp_path / place.shard(200, 0)
    layout = place.made.manifest.bands[0].layout
    shard = bytearray(path.read_bytes())
    shard[layout.data_start(1) + (200 - 128) * layout.row_bytes + 3] ^= 4
    path.write_bytes(shard)
    with source_of(place) as source, pytest.raises(TableCorruptError, match=r"in band 0 .*token 200 first"):
        read(source, place, np.array([1, 200, 300]))
    with node(place) as serving:
        link = TcpTransport().connect(serving.address, TIMEOUT_S)
        header, message = ask(link, place.frame(1, np.array([200])))
        assert header.status == Status.FAILED and b"token 200 first" in message
        assert ask(link, place.frame(2, np.array([201])))[1] == rows_payload(place.rows, np.array([201]), BANDS)
        link.close()


def test_a_slow_read_of_one_client_holds_up_no_other_and_order_is_kept(s3_place: Place) -> None:
    assert s3_place.proxy is not None
    warm, cold = np.array([20, 21]), np.array([450])
    with node(s3_place, reads=ReadConfig(deadline_s=TIMEOUT_S, hedge_quantile=0)) as serving:
        slow, other = (TcpTransport().connect(serving.address, TIMEOUT_S) for _ in range(2))
        assert ask(other, s3_place.frame(1, warm))[1] == rows_payload(s3_place.rows, warm, BANDS)
        held, deed = Held.make()
        s3_place.proxy.on(deed, method="GET", path=s3_place.shard(450, 1))
        slow.send(s3_place.frame(1, cold))
        slow.send(s3_place.frame(2, warm))
        assert held.come.wait(TIMEOUT_S)
        for number, ids in enumerate((warm, np.array([100, 101])), start=2):  # from the cache, and read meanwhile
            assert ask(other, s3_place.frame(number, ids))[1] == rows_payload(s3_place.rows, ids, BANDS)
        first = rows_payload(s3_place.rows, cold, (0,))  # its other band is held
        assert read_exactly(slow, RESPONSE.size + len(first), TIMEOUT_S)[RESPONSE.size :] == first
        assert slow.recv_into(memoryview(bytearray(1))) == 0
        held.let.set()
        second = rows_payload(s3_place.rows, cold, (1,))
        assert read_exactly(slow, len(second), TIMEOUT_S) == second
        header, payload = read_answer(slow)
        assert header.request_id == 2 and payload == rows_payload(s3_place.rows, warm, BANDS)
        slow.close()
        other.close()
        wait_until(lambda: serving.num_clients == 0)


def test_a_node_whose_store_is_silent_says_so_and_serves_on(s3_place: Place) -> None:
    assert s3_place.proxy is not None
    warm, cold = np.array([20, 21]), np.array([450])
    with node(s3_place, reads=QUICK) as serving:
        link = TcpTransport().connect(serving.address, TIMEOUT_S)
        ask(link, s3_place.frame(1, warm))
        rule = s3_place.proxy.on(be_silent, method="GET HEAD", path="arrays/", times=ALWAYS)
        link.send(s3_place.frame(2, cold))
        link.send(s3_place.frame(3, warm))
        header, message = read_answer(link)
        assert (header.request_id, header.status) == (2, Status.FAILED)
        assert b"nothing came for 0.6 s: the store is slow or down" in message
        assert read_answer(link)[1] == rows_payload(s3_place.rows, warm, BANDS)
        assert serving.figures()["refused"] == {"failed": 1}
        spec = RowSpec.from_manifest(s3_place.made.manifest)
        config = ClientConfig(deadline_s=1.5, silence_s=TIMEOUT_S, probe_s=0.05)
        source = CachedSource(PartitionedClient(spec, [[serving.address]], config))
        with pytest.raises(NodesUnavailableError, match="the store is slow or down"):
            read(source, s3_place, cold)
        rule.times = 0
        wait_until(lambda: ask(link, s3_place.frame(4, cold))[0].status == Status.OK)
        source.close()
        link.close()


def test_a_fetch_lives_as_long_as_its_reads_are_answered(s3_place: Place) -> None:
    assert s3_place.proxy is not None

    def late(exchange: Exchange, request: Request) -> None:
        time.sleep(0.35)
        exchange.answer(*exchange.ask(request))

    objects = s3_place.open(ReadConfig(num_reads=1, deadline_s=2.0, hedge_quantile=0))
    first, behind = (CachedSource(ObjectFetcher(objects)) for _ in range(2))
    s3_place.proxy.on(late, method="GET", path="arrays/", times=ALWAYS)
    ids = np.array([1, 130, 260])
    waiting = first.start(ids)
    read(behind, s3_place, np.array([400]))
    assert np.array_equal(first.wait(waiting, 1), s3_place.rows[1][ids])
    objects.close()


def test_rows_that_are_being_read_are_not_read_again(s3_place: Place) -> None:
    assert s3_place.proxy is not None
    first, second = np.array([450, 7, 451]), np.array([20, 451, 450, 451])
    with node(s3_place, reads=ReadConfig(deadline_s=TIMEOUT_S, hedge_quantile=0)) as serving:
        held, deed = Held.make()
        s3_place.proxy.on(deed, method="GET", path=s3_place.shard(450, 1))
        links = [TcpTransport().connect(serving.address, TIMEOUT_S) for _ in range(2)]
        links[0].send(s3_place.frame(1, first))
        assert held.come.wait(TIMEOUT_S)
        links[1].send(s3_place.frame(2, second))
        wait_until(lambda: serving.figures()["store_reads"] == 6)
        held.let.set()
        for link, ids in zip(links, (first, second), strict=True):
            assert read_answer(link)[1] == rows_payload(s3_place.rows, ids, BANDS)
            link.close()
        figures = serving.figures()
        assert (figures["store_reads"], figures["shared_reads"], figures["cache_rows"]) == (6, 3, 4)


def test_a_client_that_leaves_while_its_rows_are_read_is_forgotten(s3_place: Place) -> None:
    assert s3_place.proxy is not None
    with node(s3_place, reads=ReadConfig(deadline_s=TIMEOUT_S, hedge_quantile=0)) as serving:
        held, deed = Held.make()
        s3_place.proxy.on(deed, method="GET", path=s3_place.shard(450, 1))
        link = TcpTransport().connect(serving.address, TIMEOUT_S)
        link.send(s3_place.frame(1, np.array([450])))
        assert held.come.wait(TIMEOUT_S)
        link.close()
        held.let.set()
        wait_until(lambda: serving.num_clients == 0)


@pytest.mark.parametrize("files", ["zarr", "parquet"])
def test_reads_are_planned_by_shard_and_nearness(tmp_path: Path, files: str) -> None:
    wide = table_spec(vocab_size=300, layers=((0, 1, 2),), dropped=(), width=8192, shard_rows=256, files=files)
    write_table(open_store(tmp_path), wide)
    with open_table(tmp_path) as table:
        layout = table.manifest.bands[0].layout
        assert plan_row_reads({0: layout}, np.array([], np.int64)) == []
        ids = np.random.default_rng(0).permutation(300)[:80]
        reads = plan_row_reads({0: layout}, ids)
        assert sorted(np.concatenate([one.places for one in reads]).tolist()) == list(range(len(ids)))
        for one in reads:
            shards, starts = layout.locate(ids[one.places])
            assert len(set(shards)) == 1 and np.ptp(starts) < 4 << 20
            assert (np.diff(starts) <= layout.row_bytes + (128 << 10)).all()
        assert len(plan_row_reads({0: layout}, np.arange(8))) == 1
        assert len(plan_row_reads({0: layout}, np.array([0, 3, 7]))) == 2
        assert len(plan_row_reads({0: layout}, np.arange(256))) == 3
