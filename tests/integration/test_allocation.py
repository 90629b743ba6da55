"""Builds whose ranks follow from spectra: the budget holds, whole layers beside reduced ones, the same bytes always."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from build_kit import contents, make_checkpoint
from interrupt_kit import build_interrupted, finished_cells

from tolbuild import inspect, verify
from tolbuild.build_config import CODE_BYTES, BuildConfig
from tolbuild.checkpoint import open_checkpoint
from tolbuild.drive.driver import build_table
from tolbuild.drive.estimate import estimate
from tolbuild.rows import chunk_rows, compute_rows
from tolbuild.run import main
from tolbuild.table import Manifest, open_table
from tolbuild.table.errors import TableConflictError, TableCorruptError

MIXED = "bytes:135kB"
"""With the layer weights of `files`, layer 1 keeps its rows and the others a few components."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Options with counts that fall like those of words, and with a layer that matters more than others."""
    folder = tmp_path_factory.mktemp("weights")
    counts = 1000 / np.random.default_rng(0).permutation(np.arange(1, 1001))
    (folder / "counts.json").write_text(json.dumps(np.where(counts < 2, 0, counts).tolist()))
    (folder / "layers.json").write_text(json.dumps({"layer_weights": [1e-3, 1.0, 1e-3]}))
    return {"weights": f"counts:{folder / 'counts.json'}", "layer_weights": str(folder / "layers.json")}


@pytest.fixture
def config(checkpoint: str, files: dict[str, str], tmp_path: Path) -> BuildConfig:
    """A table of one mixed band of two layers and a reduced one, with all options at once."""
    return BuildConfig(
        checkpoint=checkpoint,
        table=str(tmp_path / "table"),
        rank=MIXED,
        codes="int8",
        weights=files["weights"],
        layer_weights=Path(files["layer_weights"]),
        layers_per_band=2,
        shard_rows=256,
        workers=2,
        no_ray=True,
        device="cpu",
        spool_dir=tmp_path / "spool",
    )


def exact_rows(config: BuildConfig, layer: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    opened = open_checkpoint(config.checkpoint)
    embedding_VD = opened.embedding_rows(0, opened.config.vocab_size)
    rows_VD = compute_rows(embedding_VD, opened.memory_ffn(layer), chunk=chunk_rows(config.shard_rows))
    return rows_VD.double().numpy()


def built(config: BuildConfig) -> Manifest:
    manifest = build_table(config).manifest
    assert manifest is not None
    return manifest


def ranks(manifest: Manifest) -> list[int]:
    return [stats.rank for stats in manifest.layer_stats]


@pytest.mark.parametrize(
    ("codes", "layout"),
    [("int4", "parquet"), ("int8", "zarr"), ("bf16", "zarr"), ("fp16", "parquet"), ("fp32", "zarr")],
)
def test_a_layer_is_whole_where_others_of_its_band_are_not(config: BuildConfig, codes: str, layout: str) -> None:
    size = round(30_000 + CODE_BYTES[codes] * 105_000)
    config = replace(config, codes=codes, layout=layout, rank=f"bytes:{size}")  # type: ignore[arg-type]
    manifest = built(config)
    assert ranks(manifest)[1] == 64 and max(ranks(manifest)[0], ranks(manifest)[2]) < 64
    band = manifest.bands[0]
    assert band.transform.arrays == ("basis-000", "identity") and band.basis_of(1) is None
    weights = np.array(json.loads(Path(config.weights.removeprefix("counts:")).read_text()))
    with open_table(config.table) as table:
        assert (table.basis(1) is None, table.mean(1) is None) == (True, True)
        assert (table.scale(1) is not None) == codes.startswith("int") and table.scale(0) is None
        rows_VLD = table.rows(np.arange(1000)).astype(np.float64)
        for stats in manifest.layer_stats:
            exact_VD = exact_rows(config, stats.layer)
            error_V = np.linalg.norm(rows_VLD[:, stats.layer] - exact_VD, axis=1)
            size_V = np.linalg.norm(exact_VD, axis=1)
            plain = np.sqrt(np.square(error_V).sum() / np.square(size_V).sum())
            weighted = np.sqrt((weights * error_V**2).sum() / (weights * size_V**2).sum())
            assert stats.relative_error == pytest.approx(plain, rel=1e-3, abs=1e-6)
            assert stats.weighted_error == pytest.approx(weighted, rel=1e-3, abs=1e-6)
            assert stats.max_relative_error == pytest.approx((error_V / size_V).max(), rel=1e-2, abs=1e-6)
        if codes == "fp32":
            assert np.array_equal(rows_VLD[:, 1], exact_rows(config, 1))
    assert verify.main([config.table, "--checkpoint", config.checkpoint]) == 0


@pytest.mark.parametrize(
    "options",
    [{"codes": "int8"}, {"codes": "fp16"}, {"codes": "int4", "layout": "parquet"}, {"codes": "int8", "shard_rows": 64}],
    ids=str,
)
@pytest.mark.parametrize("layers_per_band", [1, 2])
@pytest.mark.parametrize("size", ["bytes:80kB", "bytes:120.5kB", "bytes:1GB"])
def test_the_whole_table_stays_within_the_budget(
    config: BuildConfig, options: dict[str, object], layers_per_band: int, size: str
) -> None:
    size = size if options["codes"] != "fp16" else size.replace("80", "110")
    config = replace(config, rank=size, layers_per_band=layers_per_band, **options)  # type: ignore[arg-type]
    result = build_table(config)
    manifest, costs = result.manifest, result.plan.costs
    assert manifest is not None and result.plan.rule is not None
    budget = int(float(size[6:-2]) * {"kB": 1e3, "GB": 1e9}[size[-2:]])
    assert manifest.total_bytes <= budget
    if size == "bytes:1GB":
        assert ranks(manifest) == [64, 64, 64] and "spectra" in {array.name for array in manifest.arrays}
    else:
        assert manifest.total_bytes > budget - 8 * costs.component - 15 * 1024


def test_a_token_has_its_scale_where_that_pays_at_the_rank_that_its_layer_was_given(config: BuildConfig) -> None:
    """The same scales as of a build that is given that rank."""
    config = replace(config, rank="energy:0.8", weights="uniform", layer_weights=None, layers_per_band=1)
    allocated = built(config)
    (rank,) = {stats.rank for stats in allocated.layer_stats[:1]}
    given = built(replace(config, rank=rank, new_version=True))
    first, other = allocated.bands[0], given.bands[0]
    assert first.token_scaled == other.token_scaled == (0,)
    assert allocated.layer_stats[0].relative_error == pytest.approx(given.layer_stats[0].relative_error, rel=1e-6)


@pytest.mark.parametrize("rank", ["full", 24, 64, "energy:0.8", "energy:1"])
@pytest.mark.parametrize(("codes", "layout"), [("int8", "zarr"), ("fp16", "zarr"), ("int4", "parquet")])
def test_the_plan_counts_the_bytes_of_the_table(config: BuildConfig, rank: int | str, codes: str, layout: str) -> None:
    options = {"rank": rank, "codes": codes, "layout": layout, "weights": "uniform", "layer_weights": None}
    config = replace(config, **options)  # type: ignore[arg-type]
    result = build_table(config)
    assert result.manifest is not None
    counted, stored = estimate(result.plan, spools=True).table_bytes, result.manifest.total_bytes
    num_arrays = len(result.manifest.arrays) + len(result.manifest.bands) + 4
    assert stored <= counted < stored + 1024 * num_arrays + 4 * 3 * 64


def test_an_energy_share_holds_in_every_layer(config: BuildConfig) -> None:
    config = replace(config, rank="energy:0.8", layer_weights=None)
    manifest = built(config)
    for stats in manifest.layer_stats:
        assert stats.energy_kept >= 0.8 and (stats.rank % 8 == 0)
    assert max(ranks(manifest)) < 64
    assert set(ranks(built(replace(config, rank="energy:1", new_version=True)))) == {64}


def test_weights_draw_the_error_to_rare_tokens(config: BuildConfig) -> None:
    config = replace(config, rank=16, codes="fp32", layer_weights=None)
    weighted = built(config)
    uniform = built(replace(config, weights="uniform", new_version=True))
    for mine, other in zip(weighted.layer_stats, uniform.layer_stats, strict=True):
        assert mine.weighted_error is not None and other.weighted_error is None
        assert mine.weighted_error < other.relative_error < mine.relative_error


@pytest.mark.parametrize("rank", [MIXED, "energy:0.8", 24])
def test_the_bytes_do_not_depend_on_who_works(config: BuildConfig, tmp_path: Path, rank: int | str) -> None:
    config = replace(config, rank=rank, layer_weights=config.layer_weights if rank == MIXED else None)
    variants = [{"workers": 1}, {"workers": 3, "rows": "recompute"}, {"workers": 2, "rows": "spool", "spool_gb": 1e-4}]
    found = []
    for index, variant in enumerate(variants):
        table = str(tmp_path / f"table-{index}")
        build_table(replace(config, table=table, **variant))  # type: ignore[arg-type]
        found.append(contents(Path(table)))
    assert all(other == found[0] for other in found[1:])
    assert not any(key.startswith("_build") for key in found[0])


@pytest.mark.parametrize("seed", range(3))
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(config: BuildConfig, tmp_path: Path, seed: int) -> None:
    if seed == 1:
        config = replace(config, codes="int4", layout="parquet", rank="energy:0.9", layer_weights=None)
    reference = replace(config, table=str(tmp_path / "reference"))
    build_table(reference)
    chance, finished = random.Random(seed), set[str]()
    while (pool := build_interrupted(config, chance.randrange(1, 12))) is not None:
        assert not {cell.name for cell in pool.submitted} & finished
        finished = finished_cells(Path(config.table))
    assert contents(Path(config.table)) == contents(Path(reference.table))


@pytest.mark.parametrize("lost", ["sum-*", "fit-*", "ranks", "scale-*", "weights"])
@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_lost_or_damaged_beginnings_are_made_again(config: BuildConfig, tmp_path: Path, lost: str, how: str) -> None:
    reference = replace(config, table=str(tmp_path / "reference"))
    build_table(reference)
    assert build_interrupted(config, 22), "12 sums, 3 fits, the ranks, 3 scales, some of 8 shards"
    paths = list(Path(config.table).glob(f"_build/*/{lost}"))
    assert paths
    for path in paths:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        if how == "missing":
            path.unlink()
    for _ in paths:
        with suppress(TableCorruptError):  # at the commit; the same command makes it anew
            build_table(config)
    assert contents(Path(config.table)) == contents(Path(reference.table))


def test_the_plan_shows_bounds_and_after_pass_1_what_the_ranks_are(
    config: BuildConfig, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--checkpoint", config.checkpoint, "--table", config.table, "--codes", "int8", "--layers-per-band", "2"]
    line += ["--shard-rows", "256", "--rank", MIXED, "--weights", files["weights"]]
    line += ["--layer-weights", files["layer_weights"], "--dry-run"]
    assert main(line) == 0
    text = capsys.readouterr().out
    assert "rank 8 to 64 of 64 by bytes:135000" in text and "3 fits -> ranks -> 3 scales -> 8 codes" in text
    assert "between " in text and "pass 1 is done" not in text
    assert not Path(config.table).exists()
    assert build_interrupted(config, 22)
    before = contents(Path(config.table))
    assert main(line) == 0
    begun = capsys.readouterr().out
    assert contents(Path(config.table)) == before
    result = build_table(config)
    assert main(line) == 0
    assert capsys.readouterr().out == begun
    assert "pass 1 is done" in begun and "mean alone" in begun and "between " not in begun
    assert "mean alone" in result.text and "weighted" in result.text
    assert inspect.main([config.table]) == 0
    shown = capsys.readouterr().out
    assert "mean alone" in shown and "weighted" in shown and "basis, mean, scaled" in shown
    for layer, stats in enumerate(result.manifest.layer_stats):  # type: ignore[union-attr]
        for text in (begun, shown, result.text):
            assert any(words[:2] == [str(layer), str(stats.rank)] for words in map(str.split, text.splitlines()))


def test_what_the_mean_explains_and_the_spectrum_leaves_is_told(config: BuildConfig) -> None:
    """A table of one rank for all layers, as they were before: from its means and spectra."""
    from tolbuild.table.stats import table_energies
    from tolbuild.table.store import open_store

    config = replace(config, rank=24, codes="fp32", weights="uniform", layer_weights=None)
    manifest = built(config)
    for layer, energy in table_energies(open_store(config.table), manifest).items():
        exact_VD = exact_rows(config, layer)
        mean = 1000 * np.square(exact_VD.mean(0)).sum()
        assert energy.total == pytest.approx(np.square(exact_VD).sum(), rel=1e-5)
        assert energy.mean_share == pytest.approx(mean / np.square(exact_VD).sum(), rel=1e-5)
        stats = manifest.layer_stats[layer]
        assert energy.error(24) == pytest.approx(stats.relative_error, rel=1e-3)
        assert energy.kept(24) == pytest.approx(stats.energy_kept)


def test_other_weights_are_other_options(config: BuildConfig) -> None:
    built(config)
    with pytest.raises(TableConflictError, match=r"other options \(weights counts:[0-9a-f]{16}, not uniform\)"):
        build_table(replace(config, weights="uniform"))
    with pytest.raises(TableConflictError, match=r"rank bytes:135000, not energy:0.9; layer_weights \[.*\], not none"):
        build_table(replace(config, rank="energy:0.9", layer_weights=None))
    assert not build_table(replace(config, rank="bytes:135000")).published


def test_a_budget_below_the_least_table_is_refused_before_anything_is_made(
    config: BuildConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--checkpoint", config.checkpoint, "--table", config.table, "--no-ray", "--rank", "bytes:9kB"]
    assert main(line) == 1
    assert "takes at least" in capsys.readouterr().err
    assert not Path(config.table).exists()
