"""Settings of a deployment, the directory's memory of who is there, what the command line says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tolbuild.config import ModelConfig
from tolserve.membership import EXPIRY_S, HEARTBEAT_S, Directory, Member
from tolserve.run import welcome
from tolserve.serve_config import ServeConfig, max_model_len, model_info, settled


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
        ({"memory_nodes": 4}, "--memory-nodes is 4 without --table"),
        ({"replication": 2}, "--replication is 2 without --table"),
        ({"table": "t", "memory_nodes": 0, "replication": 2}, "--replication is 2 with --memory-nodes 0"),
        ({"cache_share": 0.2}, "--cache-share is 0.2 without --table"),
        ({"speculative_rows": -1}, "--speculative-rows"),
        ({"speculative_rows": 2}, "--speculative-rows is 2 without --table"),
        ({"table": "t", "memory_nodes": 0, "keep": "mapped"}, "--keep is mapped with --memory-nodes 0"),
        ({"table": "s3://t/t", "keep": "mapped"}, "s3://t/t is not at a path"),
        ({"rows": "store"}, "--rows is store without --table"),
        ({"table": "t", "rows": "store", "memory_nodes": 2}, "--memory-nodes is 2 with --rows store"),
        ({"table": "t", "rows": "store", "keep": "store"}, "--keep is store with --rows store"),
        ({"table": "t", "host_cache_bytes": -1}, "--host-cache-bytes is -1"),
        ({"table": "t", "memory_nodes": 0, "host_cache_bytes": 9}, "--host-cache-bytes is 9 with --memory-nodes 0"),
        ({"table": "t", "node_cache_bytes": 9}, "--node-cache-bytes is 9 without --keep store"),
        ({"table": "t", "hedge_ms": 9}, "--hedge-ms is 9.0 without --keep store or --rows store"),
        ({"table": "t", "keep": "store", "hedge_quantile": 1}, "the quantile to hedge reads after is 1"),
        ({"table": "t", "keep": "store", "deadline_s": 2}, "--store-deadline-s is 5.0, beyond --deadline-s 2"),
        ({"table": "t", "cache_policy": "frequency"}, "--cache-counts"),
        ({"table": "t", "cache_policy": "fifo"}, "cache_policy"),
        ({"memory_resource": "disk"}, "--memory-resource is disk without --table"),
        ({"gateway_node": "10.0.0.1", "gateway_resource": "edge"}, "both given"),
        ({"follow_versions": 5}, "give --table"),
        ({"table": "t", "follow_versions": 5, "table_version": 2}, "no --table-version"),
        ({"table": "t", "follow_versions": -1}, "--follow-versions"),
        ({"attention_replicas": 3, "max_attention_replicas": 2}, "below --attention-replicas, 3"),
        ({"scale_down_after_s": -1}, "--scale-down-after-s"),
        ({"api_key": "a", "api_key_file": "b"}, "both given"),
        ({"api_key": ""}, "--api-key"),
        ({"checkpoint": " "}, "--checkpoint"),
        ({"port": "eight"}, "port"),
        ({"alpha": "x"}, "alpha"),
        ({"drop_layers": 3}, "drop_layers"),
        ({"table": "t", "transport": "udp"}, "transport"),
        ({"transport": "flight"}, "--transport is flight without --table"),
        ({"table": "t", "memory_nodes": 0, "token_file": "f"}, "--token-file is f with --memory-nodes 0"),
        ({"table": "t", "tls_cert": "c", "tls_ca": "a"}, "--tls-key missing"),
        ({"table": "t", "tls_name": "n"}, "--tls-name is 'n' without"),
        ({"table": "t", "transport": "ray", "token_file": "f"}, "RAY_USE_TLS"),
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


def test_a_key_is_the_first_line_of_its_file_and_shown_nowhere(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sesame \nsecond\n")
    config = settled(ServeConfig(checkpoint="builtin:tiny", api_key_file=str(tmp_path / "key")))
    assert (config.api_key, config.api_key_file) == ("sesame", None)
    assert "sesame" not in repr(config)
    text = welcome(config, "127.0.0.1", 80)
    assert "sesame" not in text and '-H "Authorization: Bearer $API_KEY"' in text
    assert "Authorization" not in welcome(ServeConfig(checkpoint="builtin:tiny"), "127.0.0.1", 80)


@pytest.mark.parametrize("content", [None, b"", b"\nkey", b"\xff"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(ValueError, match="--api-key"):
        settled(ServeConfig(checkpoint="builtin:tiny", api_key_file=str(tmp_path / "key")))


def test_paths_are_those_of_the_command_for_every_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = settled(ServeConfig(checkpoint="builtin:tiny", table="my-table", cache_counts="s3://b/counts.npy"))
    assert (config.checkpoint, config.table) == ("builtin:tiny", str(tmp_path / "my-table"))
    assert config.cache_counts == "s3://b/counts.npy"
    assert settled(config) == config


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
