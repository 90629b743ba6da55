"""Which hosts may hold which node: the resources that a deployment's actors claim, and copies kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tolserve.serve_config import ServeConfig


def memory_resources(config: ServeConfig) -> dict[str, float]:
    """What a memory node claims beside no CPU."""
    return _one(config.memory_resource)


def attention_resources(config: ServeConfig) -> dict[str, float]:
    """What an attention node claims beside its CPUs and GPUs."""
    return _one(config.attention_resource)


def gateway_resources(config: ServeConfig) -> dict[str, float]:
    """What the gateway claims: its group's resource, or a trace of the host that was named."""
    return _one(config.gateway_resource) or ({f"node:{config.gateway_node}": 0.001} if config.gateway_node else {})


def copies_per_host(config: ServeConfig, hosts: Sequence[Mapping[str, Any]]) -> int | None:
    """1 where losing one host must lose one copy of a partition; None (any number) where there are too few hosts.

    Where memory nodes have a resource of their own, their hosts may come later than the application: always 1.

    Args:
        hosts: as `ray.nodes()` has them.
    """
    if config.memory_resource:
        return 1
    return 1 if sum(bool(host["Alive"]) for host in hosts) >= config.replication else None


def _one(resource: str) -> dict[str, float]:
    return {resource: 1} if resource else {}
