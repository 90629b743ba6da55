"""Cables of chosen bandwidths between two network namespaces: one pair of interfaces each, both ends shaped alike."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.namespaces import Namespace, ip

RATES: Mapping[str, str | None] = {"unshaped": None, "5gbit": "5gbit", "2.5gbit": "2500mbit", "1gbit": "1gbit"}
"""Links by name, and what `tc` is told; None leaves a cable as it is."""
_BURST = "256kb"
_LATENCY = "50ms"


def lay_cables(one: Namespace, two: Namespace, rates: Mapping[str, str | None] = RATES) -> dict[str, str]:
    """A cable for each rate beside the one that the two have; by name the address of `two` on it.

    Raises:
        NotPermittedError: `tc` is not installed, or shaping is not allowed here.
        NamespacesError: a cable could not be laid.
    """
    found = {}
    for number, (name, rate) in enumerate(rates.items()):
        ends = {one: f"10.77.{100 + number}.1", two: f"10.77.{100 + number}.2"}
        device = f"rate{number}"
        ip("link", "add", device, "netns", one.name, "type", "veth", "peer", "name", device, "netns", two.name)
        for place, address in ends.items():
            ip("-n", place.name, "addr", "add", f"{address}/30", "dev", device)
            ip("-n", place.name, "link", "set", device, "up")
            if rate is not None:
                place.shape(device, rate, burst=_BURST, latency=_LATENCY)
        found[name] = ends[two]
    return found
