"""`tolbuild.verify` and `tolbuild.inspect` as commands: every kind of damage is found and its object named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from table_kit import table_spec, write_table

from tolbuild import inspect, verify
from tolbuild.table import open_store, publish
from tolbuild.table.check import check_table
from tolbuild.table.manifest import Manifest, manifest_key

SPEC = table_spec(rank=4, dtype="int8")
OTHER = table_spec(plan_hash="0ther0ther0ther0")
PARQUET = table_spec(plan_hash="1nparquet1nparqu", rank=3, dtype="int4", files="parquet", token_scaled=(1,))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of other plans, and a third that is the first again."""
    folder = tmp_path_factory.mktemp("sound") / "table"
    store = open_store(folder)
    made = write_table(store, SPEC, zero_rows=slice(0, 64))
    write_table(store, OTHER, version=2, seed=1)
    publish(store, replace(made.manifest, version=3))
    return folder


@pytest.fixture
def table(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "table"))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def faults(folder: Path) -> dict[str, str]:
    return {fault.key: fault.reason for fault in check_table(open_store(folder)).faults}


def test_a_sound_table(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(sound)]) == 0
    out = capsys.readouterr().out
    assert f"{len(files(sound))} objects" in out and "3 versions" in out and "FAULT" not in out


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


DAMAGES: dict[str, Callable[[Path], None]] = {"missing": Path.unlink, "cut": cut, "grown": grow, "flipped": flip}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_object_is_found_and_named(damage: str, sound: Path, tmp_path: Path) -> None:
    """Every object of the table in turn: manifests, receipts, zarr metadata, codes, row checksums, bases, means."""
    for key in files(sound):
        folder = Path(shutil.copytree(sound, tmp_path / "table"))
        DAMAGES[damage](folder / key)
        found = faults(folder)
        if damage == "missing" and key == manifest_key(3):
            assert not found, "an older version is then the latest; nothing can tell"
        else:
            assert key in found, (key, found)
            if not key.startswith("manifests/"):
                assert list(found) == [key]
        shutil.rmtree(folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_parquet_files_is_found_and_named(damage: str, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write_table(store, PARQUET)
    assert check_table(store).sound
    for key in (key for key in files(tmp_path) if key.endswith(".parquet")):
        data = (tmp_path / key).read_bytes()
        DAMAGES[damage](tmp_path / key)
        assert list(faults(tmp_path)) == [key]
        (tmp_path / key).write_bytes(data)


def test_every_byte_of_a_parquet_file_counts(tmp_path: Path) -> None:
    made = write_table(open_store(tmp_path), PARQUET)
    layout = made.manifest.bands[0].layout
    path = tmp_path / layout.shard_key(1)
    data, start, behind = path.read_bytes(), layout.data_start(1), layout.data_start(1) + layout.data_bytes(1)
    for byte in [*range(start), start, behind - 1, *range(behind, len(data), 7), len(data) - 1]:
        changed = bytearray(data)
        changed[byte] ^= 2
        path.write_bytes(changed)
        reason = faults(tmp_path)[layout.shard_key(1)]
        assert reason.startswith("damaged") and ("rows of 1 tokens" in reason) == (start <= byte < behind), (
            byte,
            reason,
        )


def test_every_single_bit_of_the_documents_counts(table: Path) -> None:
    rng = np.random.default_rng(0)
    for key in (manifest_key(2), "receipts/00c0ffee00c0ffee/band-000/00001.json"):
        data = (table / key).read_bytes()
        for bit in rng.choice(8 * len(data), 60, replace=False).tolist():
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            (table / key).write_bytes(changed)
            assert key in faults(table), f"bit {bit}"
        (table / key).write_bytes(data)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("manifests/00000001.json", "manifests/00000002.json"),
        ("receipts/00c0ffee00c0ffee/band-000/00000.json", "receipts/00c0ffee00c0ffee/band-000/00001.json"),
        ("arrays/0ther0ther0ther0/band-000/c/0/0/0", "arrays/0ther0ther0ther0/band-000/c/1/0/0"),
        ("arrays/00c0ffee00c0ffee/basis-000/c/0/0", "arrays/00c0ffee00c0ffee/basis-003/c/0/0"),
        ("arrays/00c0ffee00c0ffee/band-000/zarr.json", "arrays/00c0ffee00c0ffee/band-001/zarr.json"),
    ],
)
def test_swapped_objects_are_both_named(one: str, two: str, table: Path) -> None:
    first, second = (table / one).read_bytes(), (table / two).read_bytes()
    (table / one).write_bytes(second)
    (table / two).write_bytes(first)
    found = faults(table)
    assert {one, two} <= set(found), found
    if len(first) == len(second) and not one.startswith("manifests"):
        assert found[one].endswith(f"holds the bytes of {two}")


def test_what_does_not_belong_is_named(table: Path) -> None:
    store = open_store(table)
    strangers = ["notes.txt", "arrays/00c0ffee00c0ffee/band-000/c/7/0", "manifests/latest.json", "receipts/x", "data/a"]
    for key in strangers:
        store.write(key, b"?")
    assert sorted(faults(table)) == sorted(strangers)


def test_an_unfinished_build_beside_a_table_is_no_fault_but_its_damage_is(table: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    third = replace(SPEC, plan_hash="third")
    write_table(open_store(begun), third)
    for part in ("arrays", "receipts"):
        shutil.copytree(begun / part / "third", table / part / "third")
    assert list(faults(table)) == [manifest_key(4)], "complete, and no manifest names it"
    (table / "arrays/third/zarr.json").unlink()
    open_store(table).write("_build/third/sum-000-0", b"?")
    found = check_table(open_store(table))
    assert found.sound and len(found.notes) == 2 and any("third" in note for note in found.notes)
    flip(table / "arrays/third/band-000/c/0/0")
    flip(table / "receipts/third/band-001/00000.json")
    assert list(faults(table)) == ["arrays/third/band-000/c/0/0", "receipts/third/band-001/00000.json"]


def test_no_table_is_not_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(tmp_path)]) == 1
    assert manifest_key(1) in capsys.readouterr().out
    for url in ("nope://x", "s3://"):
        assert verify.main([url]) == 1
        assert capsys.readouterr().err.startswith("error: ")
        assert inspect.main([url]) == 1


def test_the_command_names_each_object(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["arrays/0ther0ther0ther0/band-001/c/0/0/0", "receipts/0ther0ther0ther0/band-000/00001.json"]
    for key in keys:
        flip(table / key)
    assert verify.main([str(table)]) == 1
    out = capsys.readouterr().out
    assert all(f"FAULT     {key}: " in out for key in keys) and "not sound: 2 objects" in out


def test_sampled_tokens_are_spread_and_fixed() -> None:
    ids = verify.sample_tokens(1000, 100)
    assert np.array_equal(ids // 10, np.arange(100)) and np.array_equal(ids, verify.sample_tokens(1000, 100))
    assert verify.sample_tokens(5, 100).tolist() == [0, 1, 2, 3, 4]


def row_errors(*relative: float) -> verify.RowErrors:
    return verify.RowErrors(relative_N=np.array(relative), rounding_N=np.full(len(relative), verify.ROUNDING))


def test_rows_beyond_the_stated_error_name_their_shard(sound: Path) -> None:
    manifest = Manifest.from_bytes((sound / manifest_key(1)).read_bytes(), manifest_key(1))
    ids = np.array([0, 100, 150, 199])
    assert verify.beyond_stated(manifest, 3, ids, row_errors(0.2, 0.0, 0.1, 0.2), 0.2) == []
    found = verify.beyond_stated(manifest, 3, ids, row_errors(0.0, 0.5, 0.0, np.nan), 0.2)
    assert [fault.key for fault in found] == [manifest.bands[1].layout.shard_key(shard) for shard in (0, 1)]
    assert "token 100" in found[0].reason and "2.00e-01 is stated" in found[0].reason


def test_inspect_tells_what_is_there(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(sound)]) == 0
    out = capsys.readouterr().out
    for part in ("-> version 3", "version 1, ", "V 200", "int8 x 9", "basis, mean, scaled", "left out: 2", "2.00e-01"):
        assert part in out, part
    assert inspect.main([str(sound), "--version", "2"]) == 0
    assert "identity, none, cast" in capsys.readouterr().out
    write_table(open_store(tmp_path), PARQUET)
    assert inspect.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for part in ("int4 x 7", "parquet; basis, mean, scaled, s_token in layers 1", "parquet; basis, mean, scaled\n"):
        assert part in out, part
    assert inspect.main([str(sound), "--version", "9"]) == 1
    assert "no version 9" in capsys.readouterr().err
    assert inspect.main([str(sound), "--version", "1", "--json"]) == 0
    assert capsys.readouterr().out == (sound / manifest_key(1)).read_text()
