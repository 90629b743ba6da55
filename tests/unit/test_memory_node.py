"""A memory node holds exactly its blocks of one table version, checks them as it loads, and serves whoever comes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from row_kit import (
    TIMEOUT_S,
    ask,
    draw_ids,
    read_answer,
    receive_some,
    row_spec,
    rows_frame,
    rows_payload,
    wait_until,
)
from table_kit import Made, table_spec, write_table

from tolbuild.table import TableCorruptError, TableNotFoundError, open_store
from tolserve.memory.cached import CachedSource
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.errors import NodesUnavailableError
from tolserve.memory.loading import plan_reads
from tolserve.memory.node import MemoryNode, main, parse_arguments
from tolserve.memory.node_config import NodeConfig
from tolserve.memory.partition import Partition
from tolserve.memory.spec import Ids, Rows, RowSpec
from tolserve.transport.errors import LinkError
from tolserve.transport.frames import Status
from tolserve.transport.server import ServerConfig
from tolserve.transport.tcp import TcpTransport

V = 300
WIDE = table_spec(vocab_size=V, layers=((0, 1, 2),), dropped=(), width=8192, plan_hash="1" * 16)


def bytes_of(made: Made) -> list[Rows]:
    """Codes by band, uint8 [V, row_bytes]."""
    return [np.ascontiguousarray(codes).view(np.uint8) for codes in made.codes]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Made]:
    url = str(tmp_path_factory.mktemp("table"))
    return url, write_table(open_store(url), table_spec(vocab_size=V, rank=5))


@contextlib.contextmanager
def node(url: str, partition: str = "0/1", **settings: Any) -> Iterator[MemoryNode]:
    made = MemoryNode(NodeConfig(table=url, partition=Partition.parse(partition), **settings)).start()
    try:
        yield made
    finally:
        made.stop()
        made.stop()


def owned(partition: str) -> Ids:
    return np.flatnonzero(Partition.parse(partition).owns(np.arange(V)))


@pytest.mark.parametrize("keep", ["ram", "mapped", "store"])
@pytest.mark.parametrize("partition", ["0/1", "0/2", "1/2", "1/3", "4/5"])
def test_a_node_serves_the_tables_bytes_of_its_blocks(table: tuple[str, Made], keep: str, partition: str) -> None:
    url, made = table
    own = np.random.default_rng(0).permutation(owned(partition))
    with node(url, partition, keep=keep) as serving:
        link = TcpTransport().connect(serving.address, TIMEOUT_S)
        header, payload = ask(link, rows_frame(1, own, (0, 1), identity=made.manifest.identity))
        assert header.status == Status.OK
        assert payload == rows_payload(bytes_of(made), own, (0, 1))
        others = np.setdiff1d(np.arange(V), own)
        for other in others[[0, -1]] if len(others) else [V]:
            frame = rows_frame(2, np.array([own[0], other]), (0,), identity=made.manifest.identity)
            header, message = ask(link, frame)
            assert header.status == Status.BAD_IDS and f"token id {other} is" in message.decode()
        link.close()


def test_a_partition_without_blocks_is_served_too(table: tuple[str, Made]) -> None:
    url, made = table
    with node(url, "5/6") as serving:
        link = TcpTransport().connect(serving.address, TIMEOUT_S)
        header, _ = ask(link, rows_frame(1, np.array([0]), (0,), identity=made.manifest.identity))
        assert header.status == Status.BAD_IDS
        link.close()


@pytest.mark.parametrize(("vocab_size", "width"), [(1, 8), (64, 8), (1000, 8), (70_000, 4096), (1000, 1 << 20)])
@pytest.mark.parametrize("count", [1, 3])
def test_a_load_reads_every_block_once_and_little_at_a_time(vocab_size: int, width: int, count: int) -> None:
    spec = row_spec(vocab_size=vocab_size, widths=(width, 5))
    for partition in (Partition(index=index, count=count) for index in range(count)):
        read: Counter[tuple[int, int, int]] = Counter()
        for part in plan_reads(spec, partition):
            assert len(part.blocks) == 1 or len(part.blocks) * 64 * spec.bands[part.band].row_bytes <= 8 << 20
            read.update((part.band, int(block), part.first + place) for place, block in enumerate(part.blocks))
        blocks = partition.blocks(vocab_size).tolist()
        assert read == Counter((band, block, place) for band in (0, 1) for place, block in enumerate(blocks))


def test_a_flipped_byte_is_refused_by_name_by_the_node_that_holds_it(tmp_path: Path) -> None:
    made = write_table(open_store(tmp_path), table_spec(vocab_size=V))
    layout = made.manifest.bands[1].layout
    key, token = layout.shard_key(1), 200
    shard = bytearray((tmp_path / key).read_bytes())
    shard[(token - 128) * layout.row_bytes + 3] ^= 4
    (tmp_path / key).write_bytes(shard)
    with pytest.raises(TableCorruptError, match=r"rows of 1 of .* in band 1 .*token 200 first") as caught:
        MemoryNode(NodeConfig(table=str(tmp_path), partition=Partition(index=1, count=2)))
    assert caught.value.objects == (key,)
    with node(str(tmp_path), "0/2"):
        pass
    with node(str(tmp_path), keep="mapped") as serving:
        link = TcpTransport().connect(serving.address, TIMEOUT_S)
        link.send(rows_frame(1, np.array([token]), (1,), identity=made.manifest.identity))
        with pytest.raises(LinkError, match="closed the connection"):
            read_answer(link)
        link = TcpTransport().connect(serving.address, TIMEOUT_S)
        good = rows_frame(1, np.array([token - 1]), (1,), identity=made.manifest.identity)
        assert ask(link, good)[1] == rows_payload(bytes_of(made), np.array([token - 1]), (1,))
        link.close()


def test_a_short_shard_is_refused_by_name(tmp_path: Path) -> None:
    made = write_table(open_store(tmp_path), table_spec(vocab_size=V))
    key = made.manifest.bands[0].layout.shard_key(2)
    (tmp_path / key).write_bytes((tmp_path / key).read_bytes()[:100])
    with pytest.raises(TableCorruptError, match=key):
        MemoryNode(NodeConfig(table=str(tmp_path)))


def test_a_client_uses_no_node_of_another_version(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first = write_table(store, table_spec(vocab_size=V))
    second = write_table(store, table_spec(vocab_size=V, plan_hash="2" * 16), version=2, seed=1)
    ids = np.arange(70)
    with node(str(tmp_path), version=1) as old, node(str(tmp_path)) as new:
        assert (old.identity, new.identity) == (first.manifest.identity, second.manifest.identity)
        config = ClientConfig(deadline_s=1.0, probe_s=0.05)
        for made, serving in ((first, old), (second, new)):
            spec = RowSpec.from_manifest(made.manifest)
            alone = CachedSource(PartitionedClient(spec, [[(new if serving is old else old).address]], config))
            handle = alone.start(ids)
            with pytest.raises(NodesUnavailableError, match=f"the request is for {spec.identity.hex()}"):
                alone.arrive(handle, 0)
            alone.close()
            both = CachedSource(PartitionedClient(spec, [[old.address, new.address]]))
            assert np.array_equal(both.wait(both.start(ids), 0), bytes_of(made)[0][ids])
            both.close()


def test_a_request_over_the_nodes_limit_is_refused(table: tuple[str, Made]) -> None:
    url, made = table
    with node(url, max_ids=3) as serving:
        link = TcpTransport().connect(serving.address, TIMEOUT_S)
        for count, status in ((3, Status.OK), (4, Status.TOO_MANY_IDS)):
            frame = rows_frame(1, np.arange(count), (0,), identity=made.manifest.identity)
            assert ask(link, frame)[0].status == status
        link.close()


def mapped_files() -> str:
    return Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_node_that_maps_its_table_reads_the_files_by_memory_maps(
    table: tuple[str, Made], tmp_path: Path, scheme: str
) -> None:
    made = write_table(open_store(tmp_path), table_spec(vocab_size=V))
    shard = str(tmp_path / made.manifest.bands[0].layout.shard_key(0))
    ids = np.arange(10)
    frame = rows_frame(1, ids, (0,), identity=made.manifest.identity)
    for keep in ("ram", "mapped"):
        with node(f"{scheme}{tmp_path}", keep=keep) as serving:
            link = TcpTransport().connect(serving.address, TIMEOUT_S)
            assert ask(link, frame)[1] == rows_payload(bytes_of(made), ids, (0,))
            assert (shard in mapped_files()) == (keep == "mapped")
            link.close()


@pytest.mark.parametrize(("spin_us", "keep"), [(0, "mapped"), (50, "mapped"), (0, "store"), (50, "store")])
def test_many_clients_are_served_at_once(table: tuple[str, Made], spin_us: int, keep: str) -> None:
    url, made = table
    spec, rows = RowSpec.from_manifest(made.manifest), bytes_of(made)
    server = ServerConfig(spin_us=spin_us)
    with (
        node(url, "0/2", server=server) as first,
        node(url, "1/2", keep=keep, cache_bytes=30 * spec.row_bytes, server=server) as second,
    ):

        def read(seed: int) -> None:
            source = CachedSource(PartitionedClient(spec, [[first.address], [second.address]]))
            draw = np.random.default_rng(seed)
            for _ in range(15):
                ids = draw_ids(draw, V, 60)
                handle = source.start(ids)
                assert all(np.array_equal(source.wait(handle, band), rows[band][ids]) for band in (0, 1))
                source.release(handle)
            source.close()

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(read, range(16)))
        wait_until(lambda: first.num_clients == second.num_clients == 0)


def test_clients_beyond_the_limit_are_turned_away(table: tuple[str, Made]) -> None:
    url, made = table
    frame = rows_frame(1, np.arange(3), (0,), identity=made.manifest.identity)
    with node(url, server=ServerConfig(max_clients=2)) as serving:
        links = [TcpTransport().connect(serving.address, TIMEOUT_S) for _ in range(2)]
        assert all(ask(link, frame)[0].status == Status.OK for link in links)
        with pytest.raises(LinkError):
            receive_some(TcpTransport().connect(serving.address, TIMEOUT_S))
        links.pop().close()
        wait_until(lambda: serving.num_clients == 1)
        links.append(TcpTransport().connect(serving.address, TIMEOUT_S))
        assert all(ask(link, frame)[0].status == Status.OK for link in links)
        for link in links:
            link.close()


def test_a_client_that_reads_nothing_is_dropped_and_holds_nobody_up(tmp_path: Path) -> None:
    made = write_table(open_store(tmp_path), WIDE)
    frame = rows_frame(1, np.arange(V), (0,), identity=made.manifest.identity)
    with node(str(tmp_path), server=ServerConfig(stuck_s=0.2)) as serving:
        stuck = TcpTransport().connect(serving.address, TIMEOUT_S)
        stuck.send(frame)
        link = TcpTransport().connect(serving.address, TIMEOUT_S)
        assert ask(link, frame)[1] == rows_payload(bytes_of(made), np.arange(V), (0,))
        wait_until(lambda: serving.num_clients == 1)
        link.close()
        stuck.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--partition", "2/2"], "partition 2/2"),
        (["--partition", "half"], "not of the form i/P"),
        (["--port", "70000"], "port is 70000"),
        (["--max-ids", "0"], "max_ids is 0"),
        (["--keep", "disk"], "--keep"),
        (["--table", "s3://tables/t", "--keep", "mapped"], "s3://tables/t is not at a path or file://"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--table", "t", *arguments])
    assert message in capsys.readouterr().err


def test_the_command_tells_why_it_cannot_start(
    table: tuple[str, Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--table", str(tmp_path), "--partition", "1/3"]) == 1
    assert "memory node 1/3: no table at" in capsys.readouterr().err
    with node(table[0]) as serving:
        assert main(["--table", table[0], "--port", str(serving.address[1])]) == 1
    assert "in use" in capsys.readouterr().err
    with pytest.raises(TableNotFoundError, match="9"):
        MemoryNode(NodeConfig(table=table[0], version=9))


def test_a_node_of_a_new_layout_holds_nothing_at_first(tmp_path: Path) -> None:
    from tolserve.on_ray.rows import RowActor

    node = RowActor(NodeConfig(table=str(tmp_path / "none")), [])
    assert node.held() == (b"", ()) and node.figures()["num_requests"] == 0
