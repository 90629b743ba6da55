"""Builds that meet a wrong place, a changed checkpoint, rows that no table holds, or a damaged table."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from build_kit import build_config, contents, edited_checkpoint, make_checkpoint

from tolbuild import run, verify
from tolbuild.build import WorkOrder
from tolbuild.build_config import BuildConfig
from tolbuild.drive.driver import build_table, thread_pool
from tolbuild.drive.estimate import estimate
from tolbuild.drive.pool import Pool
from tolbuild.table import open_store
from tolbuild.table.errors import IdentityError, TableCorruptError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture
def config(checkpoint: str, tmp_path: Path) -> BuildConfig:
    return build_config(checkpoint, tmp_path)


def change(name: str, row: int) -> Callable[[str, torch.Tensor], None]:
    def edit(found: str, tensor: torch.Tensor) -> None:
        if found == name:
            tensor[row] += 0.5

    return edit


@pytest.mark.parametrize("rank", ["full", 24])
@pytest.mark.parametrize(
    ("name", "row", "named"),
    [
        ("model.layers.1.memory_mlp.up_proj.weight", 7, "model.layers.1.memory_mlp.up_proj.weight"),
        ("model.layers.2.memory_layernorm.bias", 3, "model.layers.2.memory_layernorm.bias"),
        ("model.embed_tokens.weight", 999, "model.embed_tokens.weight, rows from 960 on,"),
        ("model.embed_tokens.weight", 64, "model.embed_tokens.weight, rows from 64 on,"),
    ],
)
def test_workers_that_read_another_checkpoint_say_so(
    config: BuildConfig, tmp_path: Path, rank: str | int, name: str, row: int, named: str
) -> None:
    other = edited_checkpoint(config.checkpoint, tmp_path / "other", change(name, row))

    @contextmanager
    def elsewhere(config: BuildConfig, order: WorkOrder) -> Iterator[Pool]:
        with thread_pool(config, replace(order, checkpoint=other)) as pool:
            yield pool

    with pytest.raises(IdentityError) as refused:
        build_table(replace(config, rank=rank), elsewhere)
    assert f"tensor {named}" in str(refused.value) and other in str(refused.value)


def test_workers_that_read_another_config_say_so(config: BuildConfig, tmp_path: Path) -> None:
    other = Path(shutil.copytree(config.checkpoint, tmp_path / "other"))
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text.replace('"layer_norm_eps": 1e-05', '"layer_norm_eps": 1e-04'))
    assert (other / "config.json").read_text() != text

    @contextmanager
    def elsewhere(config: BuildConfig, order: WorkOrder) -> Iterator[Pool]:
        with thread_pool(config, replace(order, checkpoint=str(other))) as pool:
            yield pool

    with pytest.raises(IdentityError, match=r"config\.json of .*other"):
        build_table(config, elsewhere)


@pytest.mark.parametrize("rank", ["full", 24])
@pytest.mark.parametrize("codes", ["fp32", "int8"])
def test_rows_beyond_fp32_are_named(config: BuildConfig, tmp_path: Path, rank: str | int, codes: str) -> None:
    def edit(name: str, tensor: torch.Tensor) -> None:
        if name.startswith("model.layers.1.memory_mlp"):
            tensor *= 1e17

    huge = edited_checkpoint(config.checkpoint, tmp_path / "huge", edit)
    with pytest.raises(ValueError, match=r"the row of layer 1 and token \d+ is beyond fp32"):
        build_table(replace(config, checkpoint=huge, rank=rank, codes=codes, workers=1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file:///tmp/x#1", "holds a ? or #"),
        ("file:///tmp/x?2", "holds a ? or #"),
        ("https://127.0.0.1:9/table", "https://127.0.0.1:9/table is read-only here"),
        ("nosuch://table", "nosuch"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["build", "dry"])
def test_places_that_cannot_hold_a_table(
    checkpoint: str, table: str, message: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["--checkpoint", checkpoint, "--table", table, "--no-ray", *more]) == 1
    assert message in capsys.readouterr().err


def test_names_with_marks_are_escaped_in_file_urls(config: BuildConfig, tmp_path: Path) -> None:
    build_table(replace(config, table=f"file://{tmp_path}/x%231"))
    assert (tmp_path / "x#1" / "manifests").is_dir()


@pytest.mark.parametrize("damage", ["missing", "cut"])
@pytest.mark.parametrize(
    "pattern", ["arrays/*/band-001/c/1/0", "arrays/*/basis-001/c/0/0", "receipts/*/band-000/*1.json"]
)
def test_a_damaged_table_is_not_called_complete(config: BuildConfig, tmp_path: Path, damage: str, pattern: str) -> None:
    build_table(config)
    table = Path(config.table)
    before = contents(table)
    (path,) = table.glob(pattern)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    key = path.relative_to(table).as_posix()
    with pytest.raises(TableCorruptError, match=r"1 of its .* objects are missing or of another size") as refused:
        build_table(config)
    assert key in str(refused.value) and "delete manifests/00000001.json" in str(refused.value)
    (table / "manifests/00000001.json").unlink()
    build_table(config)
    assert contents(table) == before


def test_a_damaged_older_manifest_is_skipped_and_a_latest_one_named(
    config: BuildConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    for codes in ("int8", "fp16"):
        build_table(replace(config, codes=codes, new_version=True))  # type: ignore[arg-type]
    (Path(config.table) / "manifests/00000001.json").write_text("{} x")
    build_table(replace(config, codes="fp32", new_version=True))
    said = capsys.readouterr().err
    assert "table: the manifest of version 1 is damaged: manifests/00000001.json" in said
    assert build_table(replace(config, new_version=True)).manifest.version == 4  # type: ignore[union-attr]
    (Path(config.table) / "manifests/00000004.json").write_text("{} x")
    with pytest.raises(TableCorruptError, match=f"{config.table}: the manifest of version 4 is damaged"):
        build_table(replace(config, new_version=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shard_rows": 64},
        {"rank": "full", "codes": "fp16", "layers_per_band": 1},
        {"rank": 8, "codes": "int8", "shard_rows": 4096},
        {"rank": 16, "codes": "int4", "layout": "parquet"},
        {"rank": "full", "codes": "int8"},
    ],
    ids=str,
)
def test_a_dry_run_counts_what_is_written(config: BuildConfig, options: dict[str, object]) -> None:
    config = replace(config, row_scales="never", **options)  # type: ignore[arg-type]
    cost = estimate(build_table(config).plan, spools=True)
    table = Path(config.table)
    written = sum(path.stat().st_size for path in table.rglob("*") if path.is_file())
    assert cost.table_bytes + cost.document_bytes == pytest.approx(written, rel=0.03)


def test_words_for_one_and_for_larger(config: BuildConfig) -> None:
    text = build_table(replace(config, rank="full", codes="fp32", layers_per_band=3, shard_rows=1024)).text
    assert "times larger" in text and "1 band of 1 shard\n" in text
    assert verify.main([config.table]) == 0 and open_store(config.table).list("manifests")
