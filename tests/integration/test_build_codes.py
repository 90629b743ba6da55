"""Builds with other files and types of codes: the same rows in either kind of file, scales by token where they pay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from build_kit import build_config, make_checkpoint

from tolbuild import inspect, run, verify
from tolbuild.build_config import BuildConfig
from tolbuild.drive.driver import build_table
from tolbuild.table.errors import TableConflictError
from tolbuild.table.reader import open_table


@pytest.fixture
def config(tmp_path: Path) -> BuildConfig:
    return build_config(make_checkpoint(tmp_path / "model"), tmp_path)


def test_other_files_or_scales_are_other_options(config: BuildConfig) -> None:
    build_table(config)
    for changes, message in (
        ({"layout": "parquet"}, "layout zarr, not parquet"),
        ({"row_scales": "never"}, "row_scales auto, not never"),
        ({"layout": "parquet", "codes": "fp16"}, r"\(codes int8, not fp16; layout zarr, not parquet\)"),
    ):
        with pytest.raises(TableConflictError, match=message):
            build_table(replace(config, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", ["full", 24])
def test_zarr_and_parquet_hold_the_same_rows(config: BuildConfig, tmp_path: Path, rank: object) -> None:
    config = replace(config, rank=rank)  # type: ignore[arg-type]
    tables = [str(tmp_path / layout) for layout in ("zarr", "parquet")]
    made = [build_table(replace(config, table=table, layout=Path(table).name)).manifest for table in tables]  # type: ignore[arg-type]
    assert made[0] is not None and made[1] is not None and made[0].layer_stats == made[1].layer_stats
    with open_table(tables[0]) as one, open_table(tables[1]) as other:
        assert one.manifest.bands[0].token_scaled == (0, 1), "int8 of these rows gains from a scale by token"
        assert np.array_equal(one.row_checksums, other.row_checksums)
        assert np.array_equal(one.rows(np.arange(1000)), other.rows(np.arange(1000)))


@pytest.mark.parametrize("codes", ["int8", "int4"])
def test_a_scale_by_token_lowers_the_error(config: BuildConfig, tmp_path: Path, codes: str) -> None:
    """Which is why plans of int8 have another hash than before there was one: the bytes differ."""
    config = replace(config, rank="full", codes=codes)  # type: ignore[arg-type]
    errors = []
    for choice in ("auto", "never"):
        manifest = build_table(replace(config, table=str(tmp_path / choice), row_scales=choice)).manifest  # type: ignore[arg-type]
        assert manifest is not None
        errors.append([stats.relative_error for stats in manifest.layer_stats])
        assert (manifest.bands[0].token_scaled == (0, 1)) == (choice == "auto")
    assert all(auto < never for auto, never in zip(*errors, strict=True))


def test_the_command_line_builds_parquet_and_the_other_commands_read_it(
    config: BuildConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--checkpoint", config.checkpoint, "--table", config.table, "--codes", "int4", "--layout", "parquet"]
    assert run.main([*line, "--shard-rows", "256", "--no-ray", "--device", "cpu"]) == 0
    assert "as int4 (parquet) at full rank" in capsys.readouterr().out
    assert run.main([*line, "--shard-rows", "256", "--no-ray", "--device", "cpu"]) == 0
    assert "already complete" in capsys.readouterr().out
    assert verify.main([config.table, "--checkpoint", config.checkpoint, "--sample", "64"]) == 0
    assert inspect.main([config.table]) == 0
    out = capsys.readouterr().out
    assert "int4 x 192" in out and "parquet; identity, none, scaled, s_token in layers 0,1,2" in out
    assert run.main([*line, "--layout", "zarr", "--dry-run"]) == 0
