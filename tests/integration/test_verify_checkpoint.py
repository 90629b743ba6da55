"""`tolbuild.verify --checkpoint` on real builds: rows of zeros and odd shapes are sound, other rows are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from build_kit import arguments, edited_checkpoint, make_checkpoint

from tolbuild import run, verify
from tolbuild.table.manifest import Manifest, manifest_key


def build_and_verify(checkpoint: str, table: Path, sample: int = 2000, **options: object) -> None:
    line = arguments({"checkpoint": checkpoint, "table": str(table), "no_ray": True, "device": "cpu", **options})
    assert run.main(line) == 0
    assert verify.main([str(table), "--checkpoint", checkpoint, "--sample", str(sample)]) == 0


@pytest.fixture(scope="module")
def with_zeros(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A block of zero embeddings and one of tiny ones, without biases: rows of (nearly) zeros."""

    def edit(name: str, values: torch.Tensor) -> None:
        if name == "model.embed_tokens.weight":
            values[64:128] = 0
            values[200:210] *= 1e-6
        elif name.endswith("memory_layernorm.bias"):
            values[:] = 0

    folder = tmp_path_factory.mktemp("zeros")
    made = make_checkpoint(folder / "made", vocab_size=300, num_hidden_layers=2)
    return edited_checkpoint(made, folder / "edited", edit)


@pytest.mark.parametrize("codes", ["fp32", "fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("rank", ["full", 1, 24, 64, "energy:0.9"])
def test_rows_of_zeros_are_sound(with_zeros: str, tmp_path: Path, codes: str, rank: object) -> None:
    build_and_verify(with_zeros, tmp_path / "table", rank=rank, codes=codes, shard_rows=128)
    manifest = Manifest.from_bytes((tmp_path / "table" / manifest_key(1)).read_bytes(), manifest_key(1))
    assert all(stats.max_relative_error < 1100 for stats in manifest.layer_stats)


@pytest.mark.parametrize("codes", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("layout", ["zarr", "parquet"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({"vocab_size": 1}, {"rank": 1}),
        ({"vocab_size": 1}, {"rank": 64}),
        ({"vocab_size": 1}, {"rank": "full"}),
        ({"vocab_size": 65, "num_hidden_layers": 1}, {"rank": 24, "shard_rows": 64}),
        ({"vocab_size": 65, "num_hidden_layers": 1}, {"rank": "full", "shard_rows": 4096}),
        ({"vocab_size": 300}, {"rank": 64, "layers_per_band": 9, "drop_layers": (1,)}),
    ],
    ids=str,
)
def test_odd_shapes_are_sound(
    tmp_path: Path, shape: dict[str, object], options: dict[str, object], codes: str, layout: str
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", **shape)  # type: ignore[arg-type]
    build_and_verify(checkpoint, tmp_path / "table", codes=codes, layout=layout, **options)
