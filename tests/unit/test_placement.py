"""Which hosts nodes may be on: resources by kind of node, and copies of a partition kept apart."""

from __future__ import annotations

from typing import Any

import pytest

from tolserve.on_ray.placement import attention_resources, copies_per_host, gateway_resources, memory_resources
from tolserve.serve_config import ServeConfig


def config(**options: Any) -> ServeConfig:
    return ServeConfig(checkpoint="c", table="t", **options)


def hosts(*alive: bool) -> list[dict[str, Any]]:
    return [{"Alive": one} for one in alive]


def test_each_kind_of_node_takes_one_of_its_resource_and_none_unless_told() -> None:
    told = config(memory_resource="ram", attention_resource="accelerator", gateway_resource="edge")
    assert memory_resources(told) == {"ram": 1}
    assert attention_resources(told) == {"accelerator": 1}
    assert gateway_resources(told) == {"edge": 1}
    assert memory_resources(config()) == attention_resources(config()) == gateway_resources(config()) == {}
    assert gateway_resources(config(gateway_node="10.0.0.7")) == {"node:10.0.0.7": 0.001}


@pytest.mark.parametrize(
    ("options", "alive", "expected"),
    [
        ({"replication": 2}, hosts(True, True), 1),
        ({"replication": 2}, hosts(True, False), None),
        ({"replication": 1}, hosts(True), 1),
        ({"replication": 2, "memory_resource": "ram"}, hosts(True), 1),
    ],
)
def test_copies_are_apart_where_hosts_can_hold_them_so(
    options: dict[str, Any], alive: list[dict[str, Any]], expected: int | None
) -> None:
    assert copies_per_host(config(**options), alive) == expected
