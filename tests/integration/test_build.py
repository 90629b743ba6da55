"""Whole builds in this process: the same bytes whoever works and however often it stops, and what is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from build_kit import build_config, contents, make_checkpoint
from interrupt_kit import build_interrupted, finished_cells

from tolbuild.build_config import BuildConfig
from tolbuild.checkpoint import open_checkpoint
from tolbuild.drive.driver import build_table
from tolbuild.rows import chunk_rows, compute_rows
from tolbuild.run import main
from tolbuild.table.errors import TableConflictError
from tolbuild.table.reader import open_table
from tolbuild.worker.spool import PREFIX


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture
def config(checkpoint: str, tmp_path: Path) -> BuildConfig:
    return build_config(checkpoint, tmp_path)


def chunk(config: BuildConfig) -> int:
    return chunk_rows(config.shard_rows)


def exact_rows(checkpoint: str, layer: int, chunk: int) -> torch.Tensor:
    opened = open_checkpoint(checkpoint)
    embedding_VD = opened.embedding_rows(0, opened.config.vocab_size)
    return compute_rows(embedding_VD, opened.memory_ffn(layer), chunk=chunk)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": "full", "codes": "fp32"},
        {"rank": "full", "codes": "fp16"},
        {"rank": "full", "codes": "int8"},
        {"rank": 24, "codes": "fp32"},
        {"rank": 24, "codes": "fp16"},
        {"rank": 24, "codes": "int8"},
        {"rank": 64, "codes": "fp32"},
        {"rank": "full", "codes": "bf16"},
        {"rank": 24, "codes": "bf16", "layout": "parquet"},
        {"rank": 24, "codes": "int8", "row_scales": "never"},
        {"rank": "full", "codes": "int4", "layout": "parquet"},
        {"rank": 25, "codes": "int4"},
        {"drop_layers": (1,)},
        {"shard_rows": 64, "layers_per_band": 1},
        {"shard_rows": 2048, "layers_per_band": 9},
    ],
    ids=lambda options: " ".join(f"{name} {value}" for name, value in options.items()),
)
def test_the_stated_error_is_that_of_the_rows_read_back(config: BuildConfig, options: dict[str, object]) -> None:
    config = replace(config, **options)  # type: ignore[arg-type]
    manifest = build_table(config).manifest
    assert manifest is not None
    with open_table(config.table) as table:
        rows_NLD = table.rows(np.arange(1000))
        for stat in manifest.layer_stats:
            exact_ND = exact_rows(config.checkpoint, stat.layer, chunk(config)).double().numpy()
            error_ND = rows_NLD[:, stat.layer].astype(np.float64) - exact_ND
            relative = np.linalg.norm(error_ND) / np.linalg.norm(exact_ND)
            assert relative == pytest.approx(stat.relative_error, rel=1e-3, abs=1e-6)
            worst = (np.linalg.norm(error_ND, axis=1) / np.linalg.norm(exact_ND, axis=1)).max()
            assert worst == pytest.approx(stat.max_relative_error, rel=1e-2, abs=1e-6)
        for layer in config.drop_layers:
            assert not rows_NLD[:, layer].any()


def test_full_rank_fp32_is_exact(config: BuildConfig) -> None:
    config = replace(config, rank="full", codes="fp32")
    build_table(config)
    with open_table(config.table) as table:
        for layer in range(3):
            exact_ND = exact_rows(config.checkpoint, layer, chunk(config)).numpy()
            assert np.array_equal(table.rows(np.arange(1000), layers=[layer])[:, 0], exact_ND)


@pytest.mark.parametrize(
    "options", [{"rank": "full"}, {}, {"rank": "full", "codes": "int4", "layout": "parquet"}], ids=str
)
def test_the_bytes_do_not_depend_on_who_works(config: BuildConfig, tmp_path: Path, options: dict[str, object]) -> None:
    variants = [
        {"workers": 1},
        {"workers": 4},
        {"workers": 3, "rows": "recompute"},
        {"workers": 2, "rows": "spool", "spool_gb": 1e-4},
    ]
    found = []
    for index, variant in enumerate(variants):
        table = str(tmp_path / f"table-{index}")
        build_table(replace(config, table=table, **options, **variant))  # type: ignore[arg-type]
        found.append(contents(Path(table)))
    assert all(other == found[0] for other in found[1:])
    assert not any(key.startswith("_build") for key in found[0])


@pytest.mark.parametrize("seed", range(4))
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(config: BuildConfig, tmp_path: Path, seed: int) -> None:
    if seed % 2:
        config = replace(config, codes="int4", rank=45, layout="parquet")
    reference = replace(config, table=str(tmp_path / "reference"))
    build_table(reference)
    chance = random.Random(seed)
    table, finished = Path(config.table), set[str]()
    while (pool := build_interrupted(config, chance.randrange(1, 12))) is not None:
        assert not {cell.name for cell in pool.submitted} & finished
        finished = finished_cells(table)
        assert list((tmp_path / "spool").glob(f"{PREFIX}*")) == []
        assert not list(table.glob("manifests/*"))
    assert contents(table) == contents(Path(reference.table))


def test_damaged_beginnings_are_made_again(config: BuildConfig, tmp_path: Path) -> None:
    """A flipped bit in a partial sum, a fit or a receipt, and a missing shard: each counts as not done."""
    reference = replace(config, table=str(tmp_path / "reference"))
    build_table(reference)
    assert build_interrupted(config, 20)
    table = Path(config.table)
    for kind in ("_build/*/sum-*", "_build/*/fit-*", "receipts/**/*.json"):
        for path in sorted(table.glob(kind))[::2]:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    for path in sorted(table.glob("arrays/*/band-*/c/**/*"))[:1]:
        if path.is_file():
            path.unlink()
    build_table(config)
    assert contents(table) == contents(Path(reference.table))


def test_complete_says_so_and_publishes_nothing(config: BuildConfig) -> None:
    build_table(config)
    before = contents(Path(config.table))
    again = build_table(replace(config, workers=1, rows="recompute"))
    assert not again.published and "already complete" in again.text
    assert build_table(replace(config, new_version=True)).published is False
    assert contents(Path(config.table)) == before


def test_other_options_or_checkpoint_are_refused_unless_a_new_version(config: BuildConfig, tmp_path: Path) -> None:
    first = build_table(config)
    other = replace(config, codes="fp16")
    with pytest.raises(TableConflictError, match=r"other options \(codes int8, not fp16\).*--new-version"):
        build_table(other)
    retrained = replace(config, checkpoint=make_checkpoint(tmp_path / "retrained", seed=1))
    with pytest.raises(TableConflictError, match="another checkpoint"):
        build_table(retrained)
    assert build_table(replace(other, new_version=True)).manifest.version == 2  # type: ignore[union-attr]
    assert build_table(replace(retrained, new_version=True)).manifest.version == 3  # type: ignore[union-attr]
    back = build_table(replace(config, new_version=True)).manifest
    assert back is not None and first.manifest is not None
    assert back.version == 4 and back.bands == first.manifest.bands
    for version, codes in ((1, "int8"), (2, "float16"), (3, "int8"), (4, "int8")):
        with open_table(config.table, version=version) as table:
            assert table.manifest.bands[0].dtype == codes
            assert table.rows(np.arange(5)).any()


def test_an_unfinished_build_of_other_options_is_refused(config: BuildConfig) -> None:
    assert build_interrupted(config, 6)
    with pytest.raises(TableConflictError, match="unfinished build with other options"):
        build_table(replace(config, rank=8))
    build_table(replace(config, rank=8, new_version=True))


@pytest.mark.parametrize(
    "shape",
    [
        {"vocab_size": 1},
        {"vocab_size": 997},
        {"num_hidden_layers": 1},
        {"kind": "flex", "beta": 1, "intermediate_size": 192},
    ],
    ids=str,
)
@pytest.mark.parametrize("rank", ["full", 24])
def test_odd_models(config: BuildConfig, tmp_path: Path, shape: dict[str, object], rank: object) -> None:
    checkpoint = make_checkpoint(tmp_path / "odd", **shape)  # type: ignore[arg-type]
    config = replace(config, checkpoint=checkpoint, rank=rank)  # type: ignore[arg-type]
    manifest = build_table(config).manifest
    assert manifest is not None
    with open_table(config.table) as table:
        ids = np.arange(manifest.vocab_size)
        rows_NLD = table.rows(ids)
        for stat in manifest.layer_stats:
            exact_ND = exact_rows(checkpoint, stat.layer, chunk(config)).numpy()
            error = np.linalg.norm(rows_NLD[:, stat.layer] - exact_ND) / np.linalg.norm(exact_ND)
            assert error == pytest.approx(stat.relative_error, rel=1e-2, abs=1e-6)


def test_memory_urls_build_too(config: BuildConfig) -> None:
    url = "memory://test-memory-urls-build"
    build_table(replace(config, table=url))
    build_table(config)
    with open_table(url) as there, open_table(config.table) as here:
        assert np.array_equal(there.rows(np.arange(1000)), here.rows(np.arange(1000)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "65"], "rank is 65"),
        (["--rank", "half"], "half"),
        (["--codes", "int3"], "int3"),
        (["--shard-rows", "100"], "multiple of 64"),
        (["--drop-layers", "3"], "layers 0 to 2"),
        (["--speed", "11"], "--speed"),
        (["--checkpoint", "/nonexistent/model"], "/nonexistent/model"),
        (["--checkpoint", "nosuch://model"], "nosuch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_names_what_is_wrong(
    config: BuildConfig, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--checkpoint", config.checkpoint, "--table", config.table, "--no-ray", *options]
    try:
        code = main(line)
    except SystemExit as refused:
        code = int(refused.code or 0)
    captured = capsys.readouterr()
    assert code not in (0, None)
    assert message in captured.err + captured.out
    assert "Traceback" not in captured.err
    assert not Path(config.table).exists()


def test_a_base_model_has_no_table(config: BuildConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_checkpoint(tmp_path / "base", kind="base")
    assert main(["--checkpoint", base, "--table", config.table, "--no-ray"]) == 1
    assert "a base model has no table" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(config: BuildConfig, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--checkpoint", config.checkpoint, "--table", config.table, "--rank", "24", "--codes", "int8"]
    assert main([*line, "--shard-rows", "128", "--dry-run"]) == 0
    text = capsys.readouterr().out
    for word in ("cells", "FLOP", "written", "spooled", "_build/", "a worker", "12 sums", "3 fits"):
        assert word in text
    assert not Path(config.table).exists()


def test_the_summary_tells_sizes_layers_times_and_place(config: BuildConfig) -> None:
    text = build_table(config).text
    for word in (config.table, "version 1", "384 kB as fp16", "times smaller", "energy kept", "checkpoint", "verify"):
        assert word in text


def test_a_dry_run_tells_time_and_dollars_on_a_described_device(
    config: BuildConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--checkpoint", config.checkpoint, "--table", config.table, "--dry-run", "--workers", "3"]
    assert main([*line, "--device-description", "h100"]) == 0
    text = capsys.readouterr().out
    assert "on 3 workers of h100" in text and "dollars at 2.49 an hour each" in text and "data sheet" in text


def test_a_log_for_programs_is_json_from_the_first_line_to_the_result(
    config: BuildConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--checkpoint", config.checkpoint, "--table", config.table, "--no-ray", "--log-json"]
    assert main(line) == 0
    said = capsys.readouterr()
    events = [json.loads(text) for text in said.err.splitlines()]
    assert not said.out and [event["event"] for event in events][-2:] == ["progress", "done"]
    assert events[-2]["stages"]["codes"]["done"] == events[-2]["stages"]["codes"]["total"]
    assert events[-1]["version"] == 1 and events[-1]["table_bytes"] > 0 and events[-1]["published"] is True
    assert main([*line, "--rank", "8"]) == 1
    (event,) = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert event["event"] == "error" and "--new-version" in event["text"]
