"""Tables on every store: what is written is read back, by whichever way, and versions appear whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build_kit import contents
from table_kit import FILES, SPECS, Made, spec_of, table_spec, write_table

from tolbuild.table import (
    Credentials,
    LayerTally,
    ObjectExistsError,
    Store,
    StoreError,
    TableConflictError,
    TableCorruptError,
    TableNotFoundError,
    finish_table,
    finished_shards,
    latest_version,
    list_versions,
    open_store,
    open_table,
    publish,
    read_manifest,
    write_shard,
)
from tolbuild.table.check import check_table

Place = tuple[str, Credentials | None]
OpenAgain = Callable[[], Store]


def ways(url: str) -> tuple[str, ...]:
    return ("auto", "range") if "://" in url else ("auto", "mmap", "pread", "range")


def check_reads(place: Place, made: Made) -> None:
    """Every way to read gives the codes that were written, and rows rebuilt from them."""
    manifest = made.manifest
    vocab_size = manifest.vocab_size
    ids = np.random.default_rng(0).integers(0, vocab_size, 50)
    for way in ways(place[0]):
        with open_table(place[0], credentials=place[1], access=way) as table:  # type: ignore[arg-type]
            assert table.manifest == manifest
            assert table.row_checksums.shape == (vocab_size, len(manifest.bands))
            for band in manifest.bands:
                codes = made.codes[band.index]
                read = table.codes(ids, band.index)
                assert read.dtype == codes.dtype and np.array_equal(read, codes[ids])
                raw = np.full((len(ids), band.row_bytes), 7, np.uint8)
                table.codes_into(ids, band.index, raw)
                assert raw.tobytes() == codes[ids].tobytes()
                blocks = np.arange(band.layout.num_blocks)[::-1].copy()
                bulk = np.full((64 * len(blocks), band.row_bytes), 7, np.uint8)
                table.read_blocks_into(band.index, blocks, bulk)
                padded = np.zeros((64 * len(blocks), codes.shape[1]), codes.dtype)
                padded[:vocab_size] = codes
                assert bulk.tobytes() == padded.reshape(len(blocks), -1)[::-1].tobytes()
            rows_NLD = table.rows(ids)
            assert rows_NLD.dtype == np.float32
            np.testing.assert_allclose(rows_NLD, made.rows_VLD[ids], rtol=2e-5, atol=2e-4)
            last = manifest.num_layers - 1
            assert np.array_equal(table.rows(ids, [last, 0]), rows_NLD[:, [last, 0]])
            assert table.codes([], 0).shape == (0, made.codes[0].shape[1])


@FILES
@pytest.mark.parametrize("name", SPECS)
def test_round_trip(name: str, files: str, tmp_path: Path) -> None:
    place = (str(tmp_path / "t"), None)
    check_reads(place, write_table(open_store(*place), spec_of(name, files)))


@FILES
@pytest.mark.parametrize("name", ["full fp16", "rank int8", "int8 by token"])
def test_round_trip_on_every_store(name: str, files: str, place: Place, store: Store) -> None:
    check_reads(place, write_table(store, spec_of(name, files), zero_rows=slice(64, 128)))
    found = check_table(store)
    assert found.sound and not found.notes, (found.faults, found.notes)


@pytest.mark.parametrize("name", SPECS)
def test_other_zarr_readers_agree_byte_for_byte(name: str, tmp_path: Path) -> None:
    import tensorstore
    import zarr

    spec = SPECS[name]
    made = write_table(open_store(tmp_path), spec, zero_rows=slice(64, 128))
    folder = tmp_path / "arrays" / spec.plan_hash
    group = zarr.open_group(folder, mode="r")
    for band in made.manifest.bands:
        expected = made.codes[band.index].reshape(band.layout.shape)
        by_zarr: Any = group[f"band-{band.index:03d}"]
        assert by_zarr.dtype == expected.dtype and by_zarr[:].tobytes() == expected.tobytes()
        kvstore = {"driver": "file", "path": f"{folder}/band-{band.index:03d}/"}
        opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        assert opened.read().result().tobytes() == expected.tobytes()
    with open_table(tmp_path) as table:
        for ref in made.manifest.arrays:
            small: Any = group[ref.name]
            assert small[:].tobytes() == table.array(ref.name).tobytes()


def test_zarr_writes_the_same_shards(tmp_path: Path) -> None:
    import zarr

    spec = table_spec(vocab_size=256, shard_rows=128)
    made = write_table(open_store(tmp_path / "ours"), spec, zero_rows=slice(64, 128))
    layout = spec.layout(0)
    array = zarr.create_array(
        store=str(tmp_path / "zarr"),
        shape=layout.shape,
        dtype=layout.dtype,
        chunks=(64, *layout.shape[1:]),
        shards=(128, *layout.shape[1:]),
        compressors=None,
        config={"write_empty_chunks": True},
    )
    array[:] = made.codes[0].reshape(layout.shape)
    for shard in range(layout.num_shards):
        key = layout.shard_key(shard)
        theirs = tmp_path / "zarr" / key.removeprefix(layout.prefix + "/")
        assert theirs.read_bytes() == (tmp_path / "ours" / key).read_bytes()


@FILES
def test_equal_input_gives_equal_bytes(files: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(open_store(tmp_path / name), spec_of("rank int8", files))
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) > 10
    for file in files:
        same = (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert same or file.parts[0] == "manifests"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("full fp32", "6651832ecfc578c9"),
        ("full fp16", "a2401433a6db014e"),
        ("full int8", "51171b71ae0b0277"),
        ("rank fp16", "b8cee9eb0cdbab99"),
        ("rank int8", "3c5a726e415a575b"),
    ],
)
def test_the_format_keeps_its_bytes(name: str, expected: str, tmp_path: Path) -> None:
    """Every object of a table as it was first written, manifest included (but for write id and time)."""
    write_table(open_store(tmp_path), SPECS[name])
    lines = "\n".join(f"{key} {digest}" for key, digest in contents(tmp_path).items())
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == expected


@FILES
def test_a_shard_that_was_changed_before_the_commit_is_found(files: str, place: Place, store: Store) -> None:
    spec = spec_of("full fp16", files)
    made = write_table(store, spec)
    band = made.manifest.bands[0]
    key, start = band.layout.shard_key(1), band.layout.data_start(1)
    data = store.read(key)
    for at in (start, start + band.layout.data_bytes(1) - 1, len(data) - 5):
        changed = bytearray(data)
        changed[at] ^= 1
        store.write(key, bytes(changed))
        with pytest.raises(TableCorruptError, match="run again") as caught:
            finish_table(store, spec, {}, version=2)
        assert caught.value.objects == (key,)
    store.write(key, data)
    assert finish_table(store, spec, {}, version=2).bands == made.manifest.bands


@FILES
def test_nothing_is_read_before_the_manifest_is_there(
    files: str, place: Place, store: Store, open_again: OpenAgain
) -> None:
    spec = spec_of("full fp16", files)
    with pytest.raises(TableNotFoundError, match="check the URL"):
        open_table(place[0], credentials=place[1])
    for band in range(2):
        for shard in range(2):
            codes = np.zeros((spec.layout(band).rows_in(shard), spec.layout(band).num_columns), np.float16)
            assert len(finished_shards(open_again(), spec.plan_hash)) == 2 * band + shard
            with pytest.raises(TableCorruptError, match="not finished"):
                finish_table(store, spec, {}, version=1)
            write_shard(store, spec, band, shard, codes, [])
            with pytest.raises(TableNotFoundError, match="run it again"):
                open_table(place[0], credentials=place[1])
    manifest = finish_table(store, spec, {}, version=1)
    with pytest.raises(TableNotFoundError):
        open_table(place[0], credentials=place[1])
    publish(store, manifest)
    open_table(place[0], credentials=place[1]).close()


def test_versions(place: Place, store: Store) -> None:
    first = write_table(store, SPECS["full fp16"])
    second = write_table(store, replace(spec_of("rank fp16", "parquet"), plan_hash="another"), version=2, seed=1)
    back = publish(store, replace(first.manifest, version=3))
    assert list_versions(store) == [1, 2, 3] and latest_version(store) == 3
    assert read_manifest(store, 2) == second.manifest and read_manifest(store) == back
    assert len({m.identity for m in (first.manifest, second.manifest, back)}) == 3
    with open_table(place[0], credentials=place[1], version=2) as table:
        assert np.array_equal(table.codes([3], 0), second.codes[0][[3]])
    with open_table(place[0], credentials=place[1]) as table:
        assert np.array_equal(table.codes([3], 0), first.codes[0][[3]])
    with pytest.raises(TableNotFoundError, match="no version 4"):
        open_table(place[0], credentials=place[1], version=4)
    assert check_table(store).sound


def test_of_many_publishers_one_wins(store: Store, open_again: OpenAgain) -> None:
    made = write_table(store, SPECS["one layer"])

    def attempt(other: Store) -> str | None:
        try:
            return publish(other, replace(made.manifest, version=2)).write_id
        except TableConflictError:
            return None

    with ThreadPoolExecutor(4) as pool:
        won = [write_id for write_id in pool.map(attempt, [open_again() for _ in range(4)]) if write_id]
    assert won == [read_manifest(store, 2).write_id]


class Proxy:
    """A store behind something that changes what a conditional put does."""

    def __init__(self, store: Store) -> None:
        self.inner = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class LosesAnswers(Proxy):
    """The put succeeds, its answer is lost, and the client's retry meets its own object."""

    def create(self, key: str, data: bytes) -> None:
        self.inner.create(key, data)
        raise ObjectExistsError(key)


class DropsConditions(Proxy):
    """The condition is not passed on."""

    def create(self, key: str, data: bytes) -> None:
        self.inner.write(key, data)


def test_an_own_object_is_recognised_by_its_write_id() -> None:
    store = open_store("memory://loses-answers")
    made = write_table(store, SPECS["one layer"])
    published = publish(LosesAnswers(store), replace(made.manifest, version=2))
    assert read_manifest(store, 2) == published
    with pytest.raises(TableConflictError):
        publish(LosesAnswers(store), replace(made.manifest, version=2))


def test_a_proxy_that_drops_conditions_is_found_out() -> None:
    store = open_store("memory://drops-conditions")
    made = write_table(store, SPECS["one layer"])
    with pytest.raises(StoreError, match="ignores the condition"):
        publish(DropsConditions(store), replace(made.manifest, version=2))
    assert list_versions(store) == [1]
    assert [info.key for info in store.list("_build")] == []


@FILES
def test_damaged_receipts_count_as_not_written(files: str, store: Store) -> None:
    spec = spec_of("full fp16", files)
    write_table(store, spec)
    receipts = finished_shards(store, spec.plan_hash)
    assert sorted(receipts) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    store.write(receipts[0, 0].key, store.read(receipts[0, 0].key).replace(b'"band": 0', b'"band": 1'))
    store.write(receipts[0, 1].key, receipts[1, 1].to_bytes())
    store.write(receipts[1, 0].codes.key, b"short")
    assert sorted(finished_shards(store, spec.plan_hash)) == [(1, 1)]


@FILES
def test_a_damaged_row_is_named(files: str, place: Place, store: Store) -> None:
    made = write_table(store, spec_of("full fp16", files))
    layout = made.manifest.bands[0].layout
    key = layout.shard_key(1)
    data = bytearray(store.read(key))
    data[layout.data_start(1) + 5 * layout.row_bytes + 3] ^= 4
    store.write(key, bytes(data))
    for way in ways(place[0]):
        with open_table(place[0], credentials=place[1], access=way) as table:  # type: ignore[arg-type]
            table.codes([0, 128, 132, 134], 0)
            for read in (
                lambda t: t.codes([0, 133], 0),
                lambda t: t.rows([133]),
                lambda t: t.read_blocks_into(0, np.array([2]), np.empty((64, layout.row_bytes), np.uint8)),
            ):
                with pytest.raises(TableCorruptError, match="token 133 first") as caught:
                    read(table)
                assert caught.value.objects == (key,)
    with open_table(place[0], credentials=place[1], check_rows=False) as table:
        assert not np.array_equal(table.codes([133], 0), made.codes[0][[133]])


@FILES
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_missing_or_short_object_is_named(damage: str, files: str, place: Place, store: Store) -> None:
    made = write_table(store, spec_of("full fp16", files))
    key = made.manifest.bands[0].layout.shard_key(1)
    data = store.read(key)
    store.delete(key)
    if damage == "short":
        store.write(key, data[:100])
    for way in ways(place[0]):
        with open_table(place[0], credentials=place[1], access=way) as table:  # type: ignore[arg-type]
            table.codes([0], 0)
            with pytest.raises(TableCorruptError, match=key) as caught:
                table.codes([0, 199], 0)
            assert caught.value.objects == (key,)


def test_wrong_values_are_refused(place: Place, store: Store) -> None:
    write_table(store, SPECS["full fp16"])
    with open_table(place[0], credentials=place[1]) as table:
        for ids in ([200], [-1], [0, 10**12]):
            with pytest.raises(ValueError, match="outside the vocabulary of 200"):
                table.codes(ids, 0)
        with pytest.raises(ValueError, match="whole numbers"):
            table.codes([0.5], 0)  # type: ignore[list-item]
        with pytest.raises(ValueError, match="bands 0 to 1"):
            table.codes([0], 2)
        with pytest.raises(ValueError, match="layers 0 to 3"):
            table.rows([0], [4])
        with pytest.raises(ValueError, match="expected 2 contiguous"):
            table.codes_into(np.array([0, 1]), 0, np.empty((3, 32), np.float16))
        with pytest.raises(ValueError, match="outside"):
            table.read_blocks_into(0, np.array([4]), np.empty((64, 64), np.uint8))
        assert table.basis(0) is None and table.mean(2) is None and table.scale(2) is None
    with pytest.raises(ValueError, match="access is 'fast'"):
        open_table(place[0], credentials=place[1], access="fast")  # type: ignore[arg-type]


@FILES
def test_wrong_shards_are_refused(files: str, store: Store) -> None:
    spec = spec_of("full fp16", files)
    tally = LayerTally(layer=0, squared_error=0.0, squared_rows=1.0, max_relative_error=0.0)
    for codes in (np.zeros((128, 31), np.float16), np.zeros((128, 32), np.float32), np.zeros((72, 32), np.float16)):
        with pytest.raises(ValueError, match=r"expected contiguous float16 \[128, 32\]"):
            write_shard(store, spec, 0, 0, codes, [tally])
    with pytest.raises(ValueError, match="shards 0 to 1"):
        write_shard(store, spec, 0, 2, np.zeros((128, 32), np.float16), [tally])
    assert store.list() == []
