"""The three kinds of model against an independent fp64 reading of the paper's equations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tolbuild.config import Kind, ModelConfig, split_widths
from tolbuild.model import MemoryLLM

Array = NDArray[np.float64]


def make_model(kind: Kind, *, beta: int = 0, kv_heads: int = 0, tied: bool = True) -> MemoryLLM:
    config = ModelConfig(
        kind=kind, vocab_size=97, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, intermediate_size=128, beta=beta, tie_word_embeddings=tied,
        initializer_range=0.3,
    )  # fmt: skip
    model = MemoryLLM(config)
    model.reset_parameters(1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


class Reference:
    """One sequence at a time, one position at a time, numpy in fp64."""

    def __init__(self, model: MemoryLLM) -> None:
        self.config = model.config
        self.weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}

    def rms_norm(self, x: Array, name: str) -> Array:
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + self.config.rms_norm_eps) * self.weights[name]

    def layer_norm(self, x: Array, prefix: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.config.layer_norm_eps)
        return scaled * self.weights[prefix + ".weight"] + self.weights[prefix + ".bias"]

    def ffn(self, z: Array, prefix: str) -> Array:
        gate = z @ self.weights[prefix + ".gate_proj.weight"].T
        hidden = (z @ self.weights[prefix + ".up_proj.weight"].T) * gate / (1 + np.exp(-gate))
        return hidden @ self.weights[prefix + ".down_proj.weight"].T

    def rotate(self, x: Array) -> Array:
        """x [S, head_dim] as complex pairs (first half real, second imaginary) turned by position * frequency."""
        half = x.shape[-1] // 2
        frequency = self.config.rope_theta ** (-np.arange(half) / half)
        turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * np.arange(len(x))[:, None] * frequency)
        return np.concatenate((turned.real, turned.imag), -1)

    def attention(self, x: Array, prefix: str) -> Array:
        head = self.config.head_dim
        q, k, v = (x @ self.weights[f"{prefix}.{n}_proj.weight"].T for n in "qkv")
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        outputs = []
        for h in range(self.config.num_attention_heads):
            own, shared = slice(h * head, (h + 1) * head), slice(h // group * head, (h // group + 1) * head)
            scores = self.rotate(q[:, own]) @ self.rotate(k[:, shared]).T / np.sqrt(head)
            scores[np.triu_indices(len(x), 1)] = -np.inf
            mass = np.exp(scores - scores.max(-1, keepdims=True))
            outputs.append(mass / mass.sum(-1, keepdims=True) @ v[:, shared])
        return np.concatenate(outputs, -1) @ self.weights[f"{prefix}.o_proj.weight"].T

    def logits(self, ids: NDArray[np.int64]) -> Array:
        embedding = self.weights["model.embed_tokens.weight"][ids]
        x = embedding
        for i in range(self.config.num_hidden_layers):
            layer = f"model.layers.{i}"
            h = x + self.attention(self.rms_norm(x, f"{layer}.input_layernorm.weight"), f"{layer}.self_attn")
            x = h
            if self.config.kind != "memory":
                x = h + self.ffn(self.rms_norm(h, f"{layer}.post_attention_layernorm.weight"), f"{layer}.mlp")
            if self.config.kind != "base":
                x = x + self.ffn(self.layer_norm(embedding, f"{layer}.memory_layernorm"), f"{layer}.memory_mlp")
        head = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        return self.rms_norm(x, "model.norm.weight") @ self.weights[head].T


CASES = [
    ("base", 0, 0, True),
    ("memory", 0, 0, True),
    ("memory", 0, 2, False),
    ("flex", 1, 1, True),
    ("flex", 3, 0, True),
]


@pytest.mark.parametrize(("kind", "beta", "kv_heads", "tied"), CASES)
def test_logits_equal_the_fp64_reference(kind: Kind, beta: int, kv_heads: int, tied: bool) -> None:
    model = make_model(kind, beta=beta, kv_heads=kv_heads, tied=tied)
    ids = torch.randint(0, 97, (2, 19), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        got = model.double()(ids).numpy()
    reference = Reference(model)
    for row in range(2):
        wanted = reference.logits(ids[row].numpy())
        np.testing.assert_allclose(got[row], wanted, rtol=1e-6, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["memory", "flex"])
def test_looked_up_rows_give_the_same_logits(kind: Kind) -> None:
    model = make_model(kind, beta=2 if kind == "flex" else 0)
    ids = torch.randint(0, 97, (3, 11), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        table_VLD = torch.stack([layer.rows(model.model.embed_tokens.weight) for layer in model.model.layers], 1)
        torch.testing.assert_close(model(ids, table_VLD, ids), model(ids), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(model(ids, torch.zeros_like(table_VLD), ids), model(ids), atol=1e-2)


def test_rows_of_the_wrong_shape_or_model_are_refused() -> None:
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"shape \(5, 2, 48\); expected \[N, 3, 48\]"):
        make_model("memory")(ids, torch.zeros(5, 2, 48), ids)
    with pytest.raises(ValueError, match="a base model adds no looked-up rows"):
        make_model("base")(ids, torch.zeros(5, 3, 48), ids)
    with pytest.raises(ValueError, match="inverse_BS"):
        make_model("memory")(ids, torch.zeros(5, 3, 48))


def test_flex_widths_are_the_papers_at_its_shape() -> None:
    widths = [split_widths(2048, 5464, beta)[1] for beta in (1, 2, 3)]
    assert widths == [4778, 4096, 3418]
    context, memory = split_widths(192, 512, 2)
    assert context == 128 and memory == 512 - 128


def test_config_refuses_by_name() -> None:
    config = make_model("memory").config
    with pytest.raises(ValueError, match="unknown config keys: hidden_sise"):
        ModelConfig.from_dict({**config.to_dict(), "hidden_sise": 3})
    with pytest.raises(ValueError, match="beta is 4"):
        ModelConfig.from_dict({**config.to_dict(), "kind": "flex", "beta": 4})
    with pytest.raises(ValueError, match=r"5 is no multiple|no multiple of num_key_value_heads 3"):
        dataclasses.replace(config, num_key_value_heads=3)
    with pytest.raises(ValueError, match="vocab_size is 0"):
        dataclasses.replace(config, vocab_size=0)
    assert ModelConfig.from_dict(config.to_dict()) == config
