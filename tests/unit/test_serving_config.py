"""Settings of a deployment, the directory's memory of who is there, what the command line says."""

from __future__ import annotations

from typing import Any

import pytest

from tolbuild.config import ModelConfig
from tolserve.membership import EXPIRY_S, HEARTBEAT_S, Directory, Member
from tolserve.serve_config import ServeConfig, max_model_len, model_info


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"colour": 1}, "colour"),
        ({"memory_nodes": -1}, "--memory-nodes"),
        ({"replication": 0}, "--replication"),
        ({"cache_share": 1.5}, "--cache-share"),
        ({"cache_bytes": -1}, "--cache-bytes"),
        ({"port": 70000}, "--port"),
        ({"deadline_s": 0}, "--deadline-s"),
        ({"table_version": 3}, "--table"),
        ({"checkpoint": " "}, "--checkpoint"),
        ({"port": "eight"}, "port"),
        ({"alpha": "x"}, "alpha"),
        ({"drop_layers": 3}, "drop_layers"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ServeConfig.from_dict({"checkpoint": "c", **values})


def test_a_file_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="checkpoint"):
        ServeConfig.from_dict({})


@pytest.mark.parametrize(
    ("checkpoint", "name"), [("builtin:tiny", "tiny"), ("s3://models/mine/", "mine"), ("/a/b", "b")]
)
def test_the_model_is_called_as_its_checkpoint(checkpoint: str, name: str) -> None:
    assert ServeConfig(checkpoint=checkpoint).name == name
    assert ServeConfig(checkpoint=checkpoint, model_name="x").name == "x"


def test_the_length_is_what_model_and_cache_allow() -> None:
    shape = ModelConfig(
        kind="base",
        vocab_size=10,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=64,
        eos_token_id=3,
    )
    assert max_model_len(ServeConfig(checkpoint="c"), shape) == 64
    assert max_model_len(ServeConfig(checkpoint="c", kv_cache_tokens=32), shape) == 32
    assert model_info(ServeConfig(checkpoint="c", max_model_len=50), shape).max_model_len == 50
    assert model_info(ServeConfig(checkpoint="c"), shape).start_token_id == 3
    with pytest.raises(ValueError, match="64 positions"):
        max_model_len(ServeConfig(checkpoint="c", max_model_len=65), shape)


def test_the_directory_forgets_who_is_silent() -> None:
    now = [0.0]
    directory = Directory(clock=lambda: now[0])
    directory.announce(Member(name="b", kind="memory", address=("h", 2), partition=1))
    directory.announce(Member(name="c", kind="attention", address=("h", 3)))
    assert not directory.view().complete
    now[0] = 3 * HEARTBEAT_S
    view = directory.announce(Member(name="a", kind="memory", address=("h", 1), partition=1))
    assert view.complete
    assert view.memory(2) == [[], [("h", 1), ("h", 2)]]
    assert view.attention() == {"c": ("h", 3)}
    now[0] = EXPIRY_S + 1
    assert directory.view().memory(2) == [[], [("h", 1)]]
    directory.leave("a")
    assert directory.view().members == ()
