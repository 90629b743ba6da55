"""The cost model from descriptions of links, held against measured points: by arithmetic on made-up results."""

from __future__ import annotations

from typing import Any

import pytest
from cost_kit import made_up_result

from tolserve.bench.cost.described import described
from tolserve.bench.cost.report import words

LINKS = {name: {"gbit_per_s": rate, "round_trip_us": 50.0} for name, rate in (("1gbit", 0.5), ("loopback", 20.0))}


@pytest.fixture
def result() -> dict[str, Any]:
    made: dict[str, Any] = made_up_result(predicted=True)
    return made | {"links": LINKS}


def test_networked_points_of_known_links_are_predicted(result: dict[str, Any]) -> None:
    found = {one.name: one for one in described(result)}
    settings = {one["name"]: one["settings"] for one in result["points"]}
    assert found and all(settings[name]["place"] == "nodes" for name in found)
    assert {settings[name]["link"] for name in found} == set(LINKS)
    assert all(settings[name]["engine"] == "paced" for name in found)
    far, near = found["paced: +10 ms"], found["paced: base"]
    assert far.predicted_stall_us > near.predicted_stall_us + 1000
    assert near.predicted_step_us == pytest.approx(24 * 20 + near.predicted_stall_us)
    assert "stalls off by" in words.from_descriptions(result)


def test_a_narrow_link_takes_as_long_as_its_bytes(result: dict[str, Any]) -> None:
    """8 rows of 96 KiB at 0.5 Gbit/s, before the step."""
    name = "paced: full-float16, link 1gbit, cache 0%, 0 pinned, no overlap"
    for point in result["points"]:
        if point["name"] == name:
            point["sweeps"] = [sweep | {"bytes_a_token": 96 << 10} for sweep in point["sweeps"]]
    found = {one.name: one for one in described(result)}
    assert found[name].predicted_stall_us == pytest.approx(8 * (96 << 10) / (0.5e9 / 8) * 1e6, rel=0.1)


def test_without_a_base_point_or_its_link_there_is_none(result: dict[str, Any]) -> None:
    assert described(result | {"links": {}}) == []
    result["points"] = [point for point in result["points"] if point["name"] != "paced: base"]
    assert described(result) == [] and words.from_descriptions(result) == ""
