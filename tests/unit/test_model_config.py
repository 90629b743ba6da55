"""config.json: a value of another type or out of its range is refused by name, and `dtype` is `torch_dtype`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tolbuild.config import ModelConfig

VALUES: dict[str, Any] = {
    "kind": "memory",
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 3.0), ("num_hidden_layers", "3"), ("num_hidden_layers", True), ("num_hidden_layers", 0),
        ("vocab_size", None), ("tie_word_embeddings", "false"), ("tie_word_embeddings", 0), ("rope_theta", None),
        ("rope_theta", 0), ("rope_theta", -1.0), ("layer_norm_eps", "1e-5"), ("layer_norm_eps", -1),
        ("layer_norm_eps", float("nan")), ("layer_norm_eps", float("inf")), ("rms_norm_eps", -1e-5),
        ("num_attention_heads", -4), ("num_key_value_heads", -4), ("num_key_value_heads", None),
        ("intermediate_size", -96), ("memory_intermediate_size", -1), ("max_position_embeddings", 0),
        ("initializer_range", -0.1), ("bos_token_id", [1, 2]), ("eos_token_id", 1.5), ("torch_dtype", None),
        ("model_type", 3), ("kind", None), ("beta", "1"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key) as refused:
        ModelConfig.from_dict(json.loads(json.dumps(VALUES | {key: value})))
    assert repr(value) in str(refused.value)


def test_whole_numbers_are_numbers() -> None:
    config = ModelConfig.from_dict(VALUES | {"rope_theta": 500000, "layer_norm_eps": 0, "eos_token_id": None})
    assert config.rope_theta == 500000
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_dtype_is_another_spelling() -> None:
    assert ModelConfig.from_dict(VALUES | {"dtype": "bfloat16"}).torch_dtype == "bfloat16"
    assert ModelConfig.from_dict(VALUES | {"dtype": "float16", "torch_dtype": "float16"}).torch_dtype == "float16"
    with pytest.raises(ValueError, match="dtype is 'float16' and torch_dtype is 'bfloat16'"):
        ModelConfig.from_dict(VALUES | {"dtype": "float16", "torch_dtype": "bfloat16"})
