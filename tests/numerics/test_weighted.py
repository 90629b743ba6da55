"""Weights of tokens against rows repeated, and sensitivities of layers against noise in their rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tolbuild import sensitivity
from tolbuild.checkpoint import open_checkpoint, save_checkpoint
from tolbuild.compress.basis import fit_basis, gram_update
from tolbuild.config import ModelConfig
from tolbuild.evaluate.variant import dense_rows
from tolbuild.model import MemoryLLM
from tolbuild.train.data import train_tokenizer


def test_a_weight_of_n_is_a_row_n_times() -> None:
    draw = np.random.default_rng(0)
    rows_ND = torch.from_numpy(draw.standard_normal((1300, 150)).astype(np.float32))
    counts_N = torch.from_numpy(draw.integers(0, 5, 1300))
    gram_DD, sum_D = torch.zeros(150, 150, dtype=torch.float64), torch.zeros(150, dtype=torch.float64)
    gram_update(gram_DD, sum_D, rows_ND, counts_N.double())
    repeated = rows_ND.repeat_interleave(counts_N, dim=0).double()
    np.testing.assert_allclose(np.triu(gram_DD), np.triu(repeated.T @ repeated), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(sum_D, repeated.sum(0), rtol=1e-12, atol=1e-10)
    energies_D = fit_basis(gram_DD, sum_D, len(repeated), 9).energies_D
    expected = np.linalg.svd(repeated - repeated.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(energies_D, expected, rtol=1e-9)


def spread_model(kind: str) -> MemoryLLM:
    """A random model whose later layers matter less."""
    config = ModelConfig(
        kind=kind,  # type: ignore[arg-type]
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=96,
        beta=1 if kind == "flex" else 0,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    model = MemoryLLM(config)
    model.reset_parameters(1)
    return model.eval()


@pytest.mark.parametrize("kind", ["memory", "flex"])
def test_a_sensitivity_predicts_what_noise_in_the_rows_does(kind: str) -> None:
    """Mean KL divergence under noise of a known size, independent of the token, against s_l |e|^2."""
    model = spread_model(kind)
    draw = torch.Generator().manual_seed(0)
    windows_BT = torch.randint(300, (24, 32), generator=draw)
    predicted = sensitivity.layer_sensitivities(model, windows_BT, batch=8, seed=0)
    unique_N, inverse_BT = torch.unique(windows_BT, return_inverse=True)
    with torch.no_grad():
        rows_NLD = dense_rows(model, unique_N)

        def scores(rows: torch.Tensor) -> torch.Tensor:
            return F.linear(model.hidden(windows_BT, rows, inverse_BT), model.head_VD).log_softmax(-1).double()

        exact_BTV = scores(rows_NLD)
        for layer, weight in enumerate(predicted):
            size = (0.004 / weight) ** 0.5
            noise_ND = torch.randn(rows_NLD[:, layer].shape, generator=draw)
            noise_ND *= size / float(noise_ND[inverse_BT].square().sum(-1).mean()) ** 0.5
            noisy_NLD = rows_NLD.clone()
            noisy_NLD[:, layer] += noise_ND
            divergence = F.kl_div(scores(noisy_NLD), exact_BTV, reduction="sum", log_target=True)
            assert float(divergence) / windows_BT.numel() == pytest.approx(0.004, rel=0.25)
    assert sensitivity.layer_sensitivities(model, windows_BT, batch=8, seed=0) == predicted


def test_the_command_writes_what_a_build_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["the whale and the sea", "a long white road to the islands"] * 4
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    model = spread_model("memory")
    save_checkpoint(
        tmp_path / "c", model.config, model.state_dict(), tokenizer_json=train_tokenizer(iter(texts), 270).to_str()
    )
    line = ["--checkpoint", str(tmp_path / "c"), "--data", str(tmp_path / "text.jsonl"), "--out"]
    assert sensitivity.main([*line, str(tmp_path / "layers.json"), "--limit", "40"]) == 0
    assert "layer   2" in capsys.readouterr().out
    found = json.loads((tmp_path / "layers.json").read_text())
    assert len(found["layer_weights"]) == 3 and min(found["layer_weights"]) > 0
    assert found["fingerprint"] == open_checkpoint(tmp_path / "c").fingerprint and found["num_tokens"] == 32
    assert sensitivity.main([*line, str(tmp_path / "nowhere" / "layers.json")]) == 1
    assert "nowhere" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--limit is 0; it must be at least 1"):
        sensitivity.SensitivityConfig(checkpoint="c", data=(tmp_path,), out=tmp_path, limit=0)
    with pytest.raises(ValueError, match="a base model has no rows"):
        sensitivity.layer_sensitivities(spread_model("base"), torch.zeros(1, 4, dtype=torch.int64), batch=1, seed=0)
