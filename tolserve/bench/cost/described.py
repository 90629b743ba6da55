"""The cost model as it answers for machines that are not here, held against the points that were measured here.

`predict` has a fetch of every kind timed alone. A machine that is not at hand offers no such fetches, so the answers of
`cost_model` describe a link by its round trip, bandwidth and work a message. Here such a description of this machine's
links, from a bare socket and fetches of one row, takes the place of the timed fetches.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tolserve.bench.cost.material import paced_shape
from tolserve.bench.cost.point import Point, base
from tolserve.bench.cost.streams import STREAMS
from tolserve.bench.cost.summary import compared
from tolserve.bench.cost_model.arrivals import Described
from tolserve.bench.cost_model.check import Compared
from tolserve.bench.cost_model.hardware import Link
from tolserve.bench.cost_model.hits import binomial
from tolserve.bench.cost_model.profiles import LINKS, STORES
from tolserve.bench.cost_model.timeline import expected_step
from tolserve.memory.spec import RowSpec

_PROFILE = LINKS["25gbe-tcp"]
"""What a description has and nothing here was measured for: the tail, work a message, messages a second."""


def described(result: dict[str, Any]) -> list[Compared]:
    """The measured networked points of the paced engine, predicted from descriptions; none without a base point."""
    points = {one["name"]: one for one in result["points"] if one["sweeps"]}
    usual = points.get(base("paced").name)
    links = result.get("links", {})
    if usual is None or "loopback" not in links:
        return []
    client_s = _client_s(usual, links["loopback"])
    found = []
    for one in compared(list(points.values())):
        point = Point.from_dict(points[one.name]["settings"])
        if point.is_networked and point.link in links:
            predicted = _predict(point, points[one.name]["sweeps"], links[point.link], client_s)
            found.append(replace(one, predicted_step_us=predicted[0], predicted_stall_us=predicted[1]))
    return found


def _client_s(usual: dict[str, Any], loopback: dict[str, float]) -> float:
    """Work of client and node for a row, beyond the round trip of a bare socket."""
    one_row_ms: float = min(sweep["link_reached"]["one_row_ms"] for sweep in usual["sweeps"])
    return max(1e-6, one_row_ms * 1e-3 - loopback["round_trip_us"] * 1e-6 - _PROFILE.message_s)


def _predict(
    point: Point, sweeps: list[dict[str, Any]], reached: dict[str, float], client_s: float
) -> tuple[float, float]:
    """Microseconds of a step, and of its stall."""
    spec = RowSpec.uniform(**paced_shape(point.codes, STREAMS[point.stream].vocab_size))
    row_bytes = [band.row_bytes if band.index >= point.pinned_bands else 0 for band in spec.bands]
    gbit_per_s = min(reached["gbit_per_s"], point.gbit_per_s or np.inf)
    link: Link = replace(
        _PROFILE,
        name=point.link,
        bytes_per_s=gbit_per_s * 1e9 / 8,
        round_trip_s=reached["round_trip_us"] * 1e-6 + point.round_trip_ms * 1e-3,
    )
    arrivals = Described(
        link=link, store=STORES["ram"], band_bytes=tuple(row_bytes), num_nodes=point.num_nodes, client_s=client_s
    )
    segments_s = np.array([len(band.layers) for band in spec.bands]) * point.pace_us * 1e-6
    moved = float(np.mean([sweep["bytes_a_token"] for sweep in sweeps])) * point.batch
    misses = binomial(moved / sum(row_bytes), most=point.batch)
    pinned = tuple(range(point.pinned_bands))
    if not point.overlap:
        arrivals = replace(arrivals, band_bytes=(sum(row_bytes), *[0.0] * (len(row_bytes) - 1)))
        pinned = ()
    step = expected_step(segments_s, misses, arrivals, on_device=pinned)
    return step.step_s * 1e6, max(0.0, step.stall_s) * 1e6
