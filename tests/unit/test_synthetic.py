"""Random checkpoints: read like any other, the same bytes for the same seed, small memory, refusals by name."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tolbuild import synthesize
from tolbuild.bench.worker_memory import Watcher, anonymous_bytes
from tolbuild.checkpoint import load_model, open_checkpoint
from tolbuild.checkpoint.synthetic import PIECE_VALUES, write_synthetic
from tolbuild.config import ModelConfig
from tolbuild.synthesize import SynthesizeConfig

PINNED = "41eda2c1e2915755fb7805eb595817d2e2e0465fd93a863492060ba5369b0bae"
"""Of the file of `test_is_pinned`: figures of other machines and days are compared on the same weights."""


def config(**changes: object) -> ModelConfig:
    shape = {
        "kind": "memory", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 40, **changes,
    }  # fmt: skip
    return ModelConfig(**shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [{"kind": "base"}, {"kind": "memory"}, {"kind": "flex", "beta": 2}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_any_reader_reads_it(tmp_path: Path, kind: dict[str, object], dtype: str) -> None:
    made = config(**kind, torch_dtype=dtype)
    num_bytes = write_synthetic(tmp_path, made)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == made
    theirs = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert sum(tensor.nbytes for tensor in theirs.values()) == num_bytes
    assert set(theirs) == set(checkpoint.names)
    assert all(torch.equal(tensor, checkpoint.tensor(name)) for name, tensor in theirs.items())
    assert load_model(checkpoint)(torch.tensor([[1, 2, 99]])).isfinite().all()
    written = (tmp_path / "model.safetensors").read_bytes()
    assert written == safetensors.torch.save(theirs, metadata={"format": "pt"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_weights_follow_the_distribution_of_a_new_model(tmp_path: Path) -> None:
    write_synthetic(tmp_path, config(hidden_size=256, vocab_size=4000))
    checkpoint = open_checkpoint(tmp_path)
    embedding_VD = checkpoint.tensor("model.embed_tokens.weight")
    assert abs(float(embedding_VD.mean())) < 1e-4 and abs(float(embedding_VD.std()) - 0.02) < 1e-4
    down = checkpoint.tensor("model.layers.1.memory_mlp.down_proj.weight")
    assert abs(float(down.std()) - 0.02 / 2) < 2e-4
    assert torch.equal(checkpoint.tensor("model.layers.0.memory_layernorm.weight"), torch.ones(256))
    assert torch.equal(checkpoint.tensor("model.layers.0.memory_layernorm.bias"), torch.zeros(256))
    assert not torch.equal(down, checkpoint.tensor("model.layers.0.memory_mlp.down_proj.weight"))


def test_files_are_cut_at_their_bound_and_hold_the_same_weights(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "one", config(), seed=3)
    write_synthetic(tmp_path / "many", config(), seed=3, max_shard_bytes=10_000)
    write_synthetic(tmp_path / "other", config(), seed=4)
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 3
    one, many, other = (open_checkpoint(tmp_path / name).fingerprint for name in ("one", "many", "other"))
    assert one == many != other


def test_is_pinned(tmp_path: Path) -> None:
    write_synthetic(tmp_path, config(torch_dtype="bfloat16"), seed=7)
    assert hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest() == PINNED


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """256 MiB of embedding; a piece of it in fp32 and in bf16 are 6 MiB."""
    write_synthetic(tmp_path / "small", config())
    before = anonymous_bytes()
    with Watcher() as watcher:
        write_synthetic(tmp_path / "large", config(vocab_size=1 << 17, hidden_size=1024, torch_dtype="bfloat16"))
    assert watcher.peak_bytes - before < 10 * 4 * PIECE_VALUES
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 1 << 28


def test_what_an_interrupted_run_left_is_replaced_and_a_checkpoint_is_not(tmp_path: Path) -> None:
    write_synthetic(tmp_path, config())
    with pytest.raises(ValueError, match="holds a checkpoint already"):
        write_synthetic(tmp_path, config())
    (tmp_path / "config.json").unlink()
    write_synthetic(tmp_path, config(), max_shard_bytes=10_000)
    assert not (tmp_path / "model.safetensors").exists()
    open_checkpoint(tmp_path).close()


def test_the_papers_shapes() -> None:
    for shape, sizes in (("1b", (2048, 5464, 32)), ("750m", (1600, 4272, 16)), ("250m", (960, 2560, 16))):
        model = SynthesizeConfig(out=Path("x"), shape=shape).model_config()  # type: ignore[arg-type]
        assert (model.hidden_size, model.intermediate_size, model.num_attention_heads) == sizes
        assert (model.vocab_size, model.num_hidden_layers, model.kind) == (128_256, 24, "memory")
    wide = SynthesizeConfig(out=Path("x"), shape="1b", vocab_size=1_000_000, layers=2).model_config()
    assert (wide.vocab_size, wide.num_hidden_layers, wide.hidden_size) == (1_000_000, 2, 2048)


@given(st.integers(1, 512).map(lambda half: 2 * half))
def test_heads_always_fit_the_width(width: int) -> None:
    heads = synthesize.pick_heads(width)
    assert width % (2 * heads) == 0
    assert heads == 1 or width // heads >= 64


def test_the_command_writes_a_checkpoint(tmp_path: Path) -> None:
    sizes = ("--vocab-size", "50", "--hidden-size", "64", "--intermediate-size", "96", "--layers", "2")
    command = [sys.executable, "-m", "tolbuild.synthesize", "--out", str(tmp_path / "m")]
    done = subprocess.run([*command, *sizes, "--kind", "flex", "--beta", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert open_checkpoint(tmp_path / "m").config.kind == "flex"
    assert "weights" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vocab_size": 50}, "--hidden-size, --intermediate-size, --layers must be given, or a --shape"),
        ({"shape": "250m", "seed": -1}, "--seed is -1"),
        ({"shape": "250m", "heads": 7}, "hidden_size 960 over 7 heads"),
        ({"shape": "250m", "beta": 1}, "only a flex model"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_sizes_that_no_model_has_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SynthesizeConfig(out=Path("x"), **options)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_synthetic(tmp_path, config())
    assert synthesize.main(["--out", str(tmp_path), "--shape", "1b"]) == 1
    assert "holds a checkpoint already" in capsys.readouterr().err
