"""Plans: every row of every kept layer is in exactly one cell of each pass, and the hash moves with the bytes only."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tolbuild.build_config import BuildConfig
from tolbuild.config import ModelConfig
from tolbuild.drive.estimate import estimate
from tolbuild.grid import MAX_SEGMENTS, FitCell, RanksCell, ScaleCell, ShardCell, make_segments
from tolbuild.plan import make_plan

CONFIG = BuildConfig(checkpoint="c", table="t", rank=8, codes="int8", shard_rows=128, layers_per_band=2)


def model(vocab_size: int = 1000, layers: int = 5, kind: str = "memory") -> ModelConfig:
    return ModelConfig(
        kind=kind,  # type: ignore[arg-type]
        vocab_size=vocab_size,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=192,
        beta=1 if kind == "flex" else 0,
    )


@settings(max_examples=200, deadline=None)
@given(vocab_size=st.integers(1, 300_000), blocks=st.integers(1, 128))
def test_segments_are_whole_shards_and_cover_the_vocabulary(vocab_size: int, blocks: int) -> None:
    shard_rows = 64 * blocks
    segments = make_segments(vocab_size, shard_rows)
    assert 1 <= len(segments) <= MAX_SEGMENTS
    assert segments[0].start == 0 and segments[-1].stop == vocab_size
    assert all(a.stop == b.start for a, b in pairwise(segments))
    assert all(len(s) > 0 and s.start % shard_rows == 0 for s in segments)
    assert max(map(len, segments)) - min(map(len, segments)) <= 2 * shard_rows


@settings(max_examples=100, deadline=None)
@given(
    vocab_size=st.integers(1, 5000),
    layers=st.integers(1, 9),
    per_band=st.integers(1, 4),
    blocks=st.integers(1, 40),
    dropped=st.sets(st.integers(0, 8)),
)
def test_the_grid_covers_every_row_once(
    vocab_size: int, layers: int, per_band: int, blocks: int, dropped: set[int]
) -> None:
    dropped = {layer for layer in dropped if layer < layers}
    if len(dropped) == layers:
        dropped = set()
    config = replace(CONFIG, layers_per_band=per_band, shard_rows=64 * blocks, drop_layers=tuple(dropped))
    plan = make_plan(config, model(vocab_size, layers), "f")
    assert set(plan.kept_layers) | dropped == set(range(layers))
    coded: Counter[int] = Counter()
    for cell in plan.shard_cells():
        for layer in plan.bands[cell.band].layers:
            coded[layer] += len(plan.shard_range(cell.shard))
    assert coded == dict.fromkeys(plan.kept_layers, vocab_size)
    assert {(c.layer, c.segment) for c in plan.sum_cells()} == {
        (layer, s) for layer in plan.kept_layers for s in range(len(plan.segments))
    }
    assert all(segment.start % plan.chunk_rows == 0 for segment in plan.segments)
    assert plan.shard_rows % plan.chunk_rows == 0


def test_the_hash_moves_with_what_changes_bytes_and_with_nothing_else() -> None:
    plan = make_plan(CONFIG, model(), "f")
    same = replace(CONFIG, table="x", workers=7, device="cpu", no_ray=True, rows="recompute", new_version=True)
    assert make_plan(same, model(), "f") == plan
    others = [
        replace(CONFIG, rank="full"),
        replace(CONFIG, rank=9),
        replace(CONFIG, rank=64),
        replace(CONFIG, codes="fp16"),
        replace(CONFIG, codes="bf16"),
        replace(CONFIG, codes="int4"),
        replace(CONFIG, codes="int4", row_scales="never"),
        replace(CONFIG, row_scales="never"),
        replace(CONFIG, layout="parquet"),
        replace(CONFIG, shard_rows=192),
        replace(CONFIG, layers_per_band=3),
        replace(CONFIG, drop_layers=(1,)),
    ]
    hashes = {make_plan(other, model(), "f").plan_hash for other in others}
    hashes.add(make_plan(CONFIG, model(), "g").plan_hash)
    assert len(hashes | {plan.plan_hash}) == len(others) + 2


def test_options_from_before_there_were_others_keep_their_hash() -> None:
    full = replace(CONFIG, rank="full", codes="fp16", drop_layers=(3,))
    assert make_plan(full, model(), "f").plan_hash == "165d47ed74a21056"


@pytest.mark.parametrize("rank", ["energy:0.99", "bytes:120kB"])
def test_before_pass_1_a_plan_has_the_largest_ranks_that_can_be(rank: str) -> None:
    plan = make_plan(replace(CONFIG, rank=rank), model(), "f")
    assert not plan.allocated and plan.ranks_cells() and plan.needs_sums
    (most,) = {rank for band in plan.bands for rank in band.ranks}
    cost = estimate(plan, spools=True)
    assert most == (64 if rank == "energy:0.99" else 24)
    assert cost.least_table_bytes < cost.table_bytes
    final = plan.with_ranks([8, 16, 64, 24, 32])
    assert final.allocated and final.plan_hash == plan.plan_hash
    assert [final.is_whole(layer) for layer in range(5)] == [False, False, True, False, False]
    assert [band.ranks for band in final.bands] == [(8, 16), (64, 24), (32,)]
    with pytest.raises(ValueError, match="takes at least"):
        make_plan(replace(CONFIG, rank="bytes:20kB"), model(), "f")


def test_scales_wait_for_ranks_that_follow_from_spectra() -> None:
    plan = make_plan(replace(CONFIG, rank="energy:0.99"), model(), "f")
    assert plan.needs(ScaleCell(1)) == (FitCell(1), RanksCell())
    assert set(plan.needs(ShardCell(1, 0))) == {FitCell(2), FitCell(3), RanksCell(), ScaleCell(2), ScaleCell(3)}
    assert make_plan(CONFIG, model(), "f").scale_cells() == ()
    assert make_plan(replace(CONFIG, rank="energy:0.99", codes="fp16"), model(), "f").scale_cells() == ()


@pytest.mark.parametrize(
    ("rank", "codes", "plan_hash"),
    [
        ("full", "fp32", "1f330a8c94b6ab65"),
        ("full", "fp16", "956067f11fb61a04"),
        ("full", "int8", "2ed9edcf285aeb86"),
        (8, "fp32", "f9308fb23cc21449"),
        (8, "fp16", "daa83fb0265d55c8"),
        (8, "int8", "86696e454ea8e5f9"),
    ],
)
def test_options_that_were_there_first_keep_their_hashes(rank: object, codes: str, plan_hash: str) -> None:
    """So their tables are found complete and go on where they stopped. Codes of int8 had no scales by token then."""
    config = replace(CONFIG, rank=rank, codes=codes, row_scales="never")  # type: ignore[arg-type]
    plan = make_plan(config, model(), "f")
    assert plan.plan_hash == plan_hash
    assert set(plan.options) == {"rank", "codes", "layers_per_band", "shard_rows", "drop_layers"}
    if codes != "int8":
        assert make_plan(replace(config, row_scales="auto"), model(), "f") == plan


def test_a_shard_that_no_parquet_page_holds_is_refused() -> None:
    wide = replace(model(vocab_size=2**21), hidden_size=8192, num_attention_heads=64)
    config = replace(CONFIG, rank="full", codes="fp32", layout="parquet", shard_rows=2**16)
    with pytest.raises(ValueError, match=r"--shard-rows 65536 of 65,536 bytes do not fit .* at most 32704 do"):
        make_plan(config, wide, "f")
    make_plan(replace(config, shard_rows=32704), wide, "f")
    make_plan(replace(config, layout="zarr"), wide, "f")


@pytest.mark.parametrize(
    ("codes", "has_fit"), [("fp32", False), ("bf16", False), ("fp16", False), ("int8", True), ("int4", True)]
)
def test_full_rank_has_no_pass_1_and_fits_only_scales(codes: str, has_fit: bool) -> None:
    plan = make_plan(replace(CONFIG, rank="full", codes=codes), model(), "f")  # type: ignore[arg-type]
    assert plan.sum_cells() == ()
    assert bool(plan.fit_cells()) == has_fit
    assert all(band.ranks == (64,) * len(band.layers) for band in plan.bands)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_rows": 100}, "--shard-rows is 100; no multiple of 64"),
        ({"shard_rows": 0}, "--shard-rows is 0; it must be at least 64"),
        ({"layers_per_band": 0}, "--layers-per-band is 0"),
        ({"rank": 0}, "--rank is 0; it must be full or at least 1"),
        ({"workers": -1}, "--workers is -1"),
        ({"table": " "}, "--table is empty"),
        ({"spool_gb": -1.0}, "--spool-gb is -1"),
        ({"drop_layers": (1, 1)}, "--drop-layers names a layer twice"),
    ],
)
def test_a_config_that_no_build_can_have(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"rank": 65}, "memory", "65.*64"),
        ({"drop_layers": (5,)}, "memory", "the model has layers 0 to 4"),
        ({"drop_layers": (0, 1, 2, 3, 4)}, "memory", "leaves none of the 5 layers"),
        ({}, "base", "a base model has no table"),
    ],
)
def test_a_config_that_does_not_fit_the_model(options: dict[str, object], kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(replace(CONFIG, **options), model(kind=kind), "f")  # type: ignore[arg-type]


def test_flex_computes_its_memory_part_only() -> None:
    flex = model(kind="flex")
    assert make_plan(CONFIG, flex, "f").hidden_units == flex.memory_intermediate_size < flex.intermediate_size


def test_the_estimate_of_the_papers_model() -> None:
    """Figures worked out by hand: V 128,256, d 2048, K 5464, 24 layers; the full table is 12.6 GB in fp16."""
    paper = ModelConfig(
        kind="memory",
        vocab_size=128_256,
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=32,
        intermediate_size=5464,
    )
    config = BuildConfig(checkpoint="c", table="t")
    full = estimate(make_plan(config, paper, "f"), spools=False)
    assert full.fp16_bytes == 128_256 * 24 * 2048 * 2 == 12_608_077_824
    assert full.row_flops == 6 * 2048 * 5464 * 128_256 * 24
    assert full.gram_flops == full.spooled_bytes == full.partial_bytes == 0
    assert 0 < full.table_bytes - full.fp16_bytes < 5e6
    reduced = make_plan(replace(config, rank=512, codes="int8"), paper, "f")
    spooled, recomputed = estimate(reduced, spools=True), estimate(reduced, spools=False)
    assert recomputed.row_flops == 2 * spooled.row_flops == 2 * full.row_flops
    assert spooled.spooled_bytes == 2 * full.fp16_bytes and recomputed.spooled_bytes == 0
    assert spooled.table_bytes < full.fp16_bytes / 7


@pytest.mark.parametrize("rank", ["full", 256])
@pytest.mark.parametrize("spools", [True, False])
def test_a_workers_memory_does_not_depend_on_the_vocabulary(rank: object, spools: bool) -> None:
    config = replace(CONFIG, rank=rank, shard_rows=4096)  # type: ignore[arg-type]
    large, small = (
        estimate(
            make_plan(
                config,
                ModelConfig(
                    kind="memory",
                    vocab_size=vocab,
                    hidden_size=1024,
                    num_hidden_layers=4,
                    num_attention_heads=16,
                    intermediate_size=2736,
                ),
                "f",
            ),
            spools=spools,
        ).worker_bytes
        for vocab in (131_072, 32_768)
    )
    assert large == small
