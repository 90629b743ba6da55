"""From a `ServeConfig` to the Serve application: which deployments, how many of each, where they may be."""

from __future__ import annotations

import os
import secrets
from typing import Any

import ray
from ray import serve

from tolbuild.checkpoint import open_checkpoint
from tolbuild.table import open_table
from tolserve.memory.counts import read_counts
from tolserve.memory.state import check_state
from tolserve.on_ray import scaling
from tolserve.on_ray.attention import AttentionDeployment
from tolserve.on_ray.directory import DirectoryDeployment
from tolserve.on_ray.gateway import GatewayDeployment
from tolserve.on_ray.memory_node import MemoryNodeDeployment, MemoryNodesDeployment
from tolserve.on_ray.placement import attention_resources, copies_per_host, gateway_resources, memory_resources
from tolserve.replica import engine_config
from tolserve.serve_config import ServeConfig, settled

_CARRIED = ("AWS_", "OMP_NUM_THREADS")
"""Environment variables that every node gets as the builder has them: access to the store, threads."""

_HEALTH: dict[str, Any] = {"health_check_period_s": 1, "health_check_timeout_s": 10, "graceful_shutdown_timeout_s": 3}


def build(args: dict[str, Any]) -> serve.Application:
    """The application for a Serve config file's `args`, whose keys are the fields of `ServeConfig`.

    Raises:
        ValueError: an unknown setting, or checkpoint, table and settings do not fit each other.
        ToLError: checkpoint or table cannot be read.
    """
    return build_app(settled(ServeConfig.from_dict(args)))


def build_app(config: ServeConfig) -> serve.Application:
    """The application for `config`, which is `settled`; see `build`."""
    version = check(config)
    data = {"table_version": version, "deployed": secrets.token_hex(8)}
    directory = _deployment(DirectoryDeployment, user_config=data).bind(config)
    memory = memory_nodes(config, directory)
    attention = _deployment(
        AttentionDeployment,
        _actor(config.num_cpus, num_gpus=config.num_gpus, resources=attention_resources(config)),
        **scaling.options(config),
    ).bind(config, directory)
    gateway = _deployment(GatewayDeployment, _actor(0, resources=gateway_resources(config)))
    application: serve.Application = gateway.bind(config, directory, attention, *memory)
    return application


def memory_nodes(config: ServeConfig, directory: Any) -> list[serve.Application]:
    """The memory nodes of `config`, which announce themselves to `directory`."""
    return [
        _deployment(
            MemoryNodeDeployment,
            _actor(0, resources=memory_resources(config)),
            name=f"MemoryNodes-{index}",
            num_replicas=config.replication,
            max_replicas_per_node=copies_per_host(config, ray.nodes()),
        ).bind(config, index, directory)
        for index in range(config.num_partitions)
    ]


def layout_app(config: ServeConfig, directory: Any) -> serve.Application:
    """Memory nodes of `config`'s partitions as an application of their own, beside the one that `directory` is of."""
    application: serve.Application = _deployment(MemoryNodesDeployment).bind(*memory_nodes(config, directory))
    return application


def check(config: ServeConfig) -> int | None:
    """The table version to serve, once model, table and settings are found to fit each other.

    Raises:
        ValueError: they do not.
        ToLError: checkpoint or table cannot be read, or a certificate or the token cannot be used.
    """
    config.security.check()
    checkpoint = open_checkpoint(config.checkpoint)
    engine_config(config, checkpoint.config)
    checkpoint.tokenizer()
    num_layers = checkpoint.config.num_hidden_layers
    if any(layer >= num_layers for layer in config.drop_layers):
        raise ValueError(f"--drop-layers is {config.drop_layers}; the model's layers are 0 to {num_layers - 1}")
    if config.table is None:
        return None
    if not checkpoint.config.has_memory:
        raise ValueError(f"{config.checkpoint} is a {checkpoint.config.kind} model, which looks nothing up: no --table")
    table = open_table(config.table, version=config.table_version)
    manifest = table.manifest
    table.close()
    if manifest.model_fingerprint != checkpoint.fingerprint:
        raise ValueError(
            f"{config.table} was built from the checkpoint {manifest.model_fingerprint[:16]}; {config.checkpoint} is "
            f"{checkpoint.fingerprint[:16]}: give the table's own checkpoint"
        )
    if config.pinned_bands > len(manifest.bands):
        raise ValueError(f"--pinned-bands is {config.pinned_bands}; the table has {len(manifest.bands)} bands")
    if config.cache_counts is not None:
        read_counts(config.cache_counts, manifest.vocab_size)
    if config.cache_state is not None:
        check_state(config.cache_state, manifest.vocab_size)
    return int(manifest.version)


def _deployment(kind: type[Any], actor: dict[str, Any] | None = None, **options: Any) -> serve.Deployment:
    make: Any = serve.deployment(ray_actor_options=actor or _actor(0), **(_HEALTH | options))
    deployment: serve.Deployment = make(kind)
    return deployment


def _actor(num_cpus: float, **more: Any) -> dict[str, Any]:
    environment = {"runtime_env": {"env_vars": carried()}} if carried() else {}
    return {"num_cpus": num_cpus, **environment, **more}


def carried() -> dict[str, str]:
    """Variables of this process's environment that its nodes must have as well, on whichever host they are."""
    return {name: value for name, value in os.environ.items() if name.startswith(_CARRIED)}
