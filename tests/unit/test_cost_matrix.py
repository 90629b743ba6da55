"""The points of the cost bench, their codes and prices, as lists and numbers before anything runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from tolserve.bench.cost.codes import parse
from tolserve.bench.cost.matrix import FACTORS, matrix, measures
from tolserve.bench.cost.places import PLACES
from tolserve.bench.cost.point import Point, base
from tolserve.bench.cost.prices import Rents, Slo
from tolserve.bench.cost.sources import POLICIES
from tolserve.bench.cost.streams import STREAMS

LINKS = ("unshaped", "1gbit")
CROSSED = ("measures", "cache x batch", "link x rows", "pace x pinned")


@pytest.mark.parametrize("full", [False, True])
def test_every_factor_has_points_and_no_two_points_are_alike(full: bool) -> None:
    points = matrix(full=full, links=LINKS)
    assert len({point.name for point in points}) == len(points)
    assert {point.factor for point in points} == set(FACTORS)
    assert {point.stream for point in points} <= set(STREAMS)
    assert {point.place for point in points} <= {"device", *PLACES}
    assert {point.policy for point in points} <= set(POLICIES)
    for point in points:
        assert parse(point.codes) and Point.from_dict(point.to_dict()) == point


def test_a_single_factor_changes_one_setting_of_its_engines_base() -> None:
    for point in matrix(full=True, links=LINKS):
        differing = {name for name, value in vars(base(point.engine)).items() if vars(point)[name] != value} - {
            "factor"
        }
        bare = {"cache_share", "pinned_bands", "codes"} if point.place in ("computed", "device") else set()
        if point.factor not in CROSSED:
            assert len(differing - bare) == (0 if point.factor == "base" else 1), point.name


def test_the_ladder_goes_from_rows_as_they_are_to_the_base_point_one_measure_at_a_time() -> None:
    for links in ((), LINKS):
        steps = measures(links)
        for before, after in pairwise(steps):
            assert sum(vars(before)[name] != vars(after)[name] for name in vars(before)) == 1
        assert replace(steps[-1], factor="base", link="loopback", gbit_per_s=0.0) == base("paced")


def test_links_are_measured_where_they_are_given() -> None:
    assert not [point for point in matrix(full=True) if point.link != "loopback"]
    assert {point.link for point in matrix(full=False, links=LINKS)} == {"loopback", *LINKS}


def test_only_keeps_the_factors_named_and_refuses_others() -> None:
    assert {point.factor for point in matrix(full=True, only=["pace", "batch"])} == {"pace", "batch"}
    with pytest.raises(ValueError, match="no factor colour"):
        matrix(full=True, only=["colour"])


@pytest.mark.parametrize(
    "changes", [{"engine": "fast"}, {"cache_share": 1.5}, {"batch": 0}, {"round_trip_ms": -1.0}, {"pace_us": 0.0}]
)
def test_points_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(base("paced"), **changes)  # type: ignore[arg-type]


def test_codes_name_a_share_of_the_width_and_a_type() -> None:
    assert parse("512-int8").rank_for(192) == 48
    assert parse("full-float16").spec(width=2048, num_layers=24, layers_per_band=4, vocab_size=10).row_bytes == 96 << 10
    for name in ("512", "half-int8", "4096-int8", "512-int3"):
        with pytest.raises(ValueError, match="RANK-TYPE"):
            parse(name)


def test_dollars_are_time_and_memory_at_their_rents() -> None:
    rents = Rents(device_hour=3.6, machine_hour=0.36, device_gb_hour=0.0, host_gb_hour=0.1)
    assert rents.per_million("paced", 1000.0, device_bytes=1e9, node_bytes=0.0) == pytest.approx(1.0)
    assert rents.per_million("tiny", 1000.0, device_bytes=0.0, node_bytes=3.6e9) == pytest.approx(0.2)
    for wrong in ({"device_hour": -1.0}, {"host_gb_hour": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Rents(**wrong)
    with pytest.raises(ValueError, match="slack"):
        Slo(slack=0.5)
