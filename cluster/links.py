"""Cables of chosen bandwidths between two network namespaces: one pair of interfaces each, both ends shaped alike."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.namespaces import Namespace, ip

RATES: Mapping[str, float | None] = {"unshaped": None, "5gbit": 5e9, "2.5gbit": 2.5e9, "1gbit": 1e9}
"""Links by name and their bits a second; None leaves a cable as it is."""
_BURST_S = 0.25e-3
"""What may pass at once after a pause, in seconds of the link; a larger bucket makes pauses look like bandwidth."""
_LATENCY = "50ms"


def lay_cables(one: Namespace, two: Namespace, rates: Mapping[str, float | None] = RATES) -> dict[str, str]:
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
                place.shape(device, f"{rate:.0f}bit", burst=f"{rate * _BURST_S / 8:.0f}b", latency=_LATENCY)
        found[name] = ends[two]
    return found
