"""Results of the cost bench: an interrupted run goes on, sweeps are compared, predictions held against measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cost_kit import made_up, made_up_result

from tolserve.bench.cost.figures import latency, prices, shares
from tolserve.bench.cost.matrix import matrix
from tolserve.bench.cost.state import Results
from tolserve.bench.cost.summary import summarise
from tolserve.bench.cost.terminal import table

POINTS = matrix(full=False, only=["base", "pace"])


def results(path: Path, *, fresh: bool = False, **key: Any) -> Results:
    return Results(path, POINTS, {"full": False, **key}, fresh=fresh)


def test_an_interrupted_run_keeps_its_points_and_measures_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "result.json"
    first = results(path)
    first.about["links"] = {"loopback": {}}
    for _, point in first.left()[:3]:
        first.add(point, made_up(point))
    again = results(path)
    assert again.num_kept == 3 and again.about == {"links": {"loopback": {}}}
    assert [(n, point.name) for n, point in again.left()] == [(n, point.name) for n, point in first.left()]
    for _, point in again.left():
        again.add(point, made_up(point))
    last = results(path)
    assert last.left() == [] and last.num_kept == again.num_kept, "paced_overhead is still to be measured"
    last.finish()
    again = last
    assert again.finished and json.loads(path.read_text())["finished"]
    assert not list(path.parent.glob("*.part"))
    assert results(path).num_kept == 0, "a finished run is begun anew"


def test_a_sweep_goes_over_all_points_before_the_next_begins(tmp_path: Path) -> None:
    order = results(tmp_path / "result.json").left()
    assert [n for n, _ in order] == [0] * len(POINTS) + [1] * len(POINTS)


def test_an_unfinished_run_of_other_settings_is_not_lost_unasked(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    results(path, more=1).add(POINTS[0], made_up(POINTS[0]))
    with pytest.raises(ValueError, match="--fresh"):
        results(path)
    assert results(path, fresh=True).num_kept == 0


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"key": 1, "finished": 0, "points": [1]}'])
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="no result"):
        results(path)


def test_the_last_line_has_every_key_and_says_why_one_is_null() -> None:
    without = summarise(made_up_result())
    assert without["model_median_stall_error"] is None and "model_errors_absent" in without
    found = summarise(made_up_result(predicted=True))
    assert set(found) == {
        "model_median_stall_error", "model_median_step_error", "tokens_equal_all", "paced_overhead", "repeatability",
    }  # fmt: skip
    assert found["model_median_step_error"] == pytest.approx(0.05)
    assert 0 < found["model_median_stall_error"] <= 0.1
    assert found["tokens_equal_all"] is True and found["repeatability"] == 1.0


def test_one_unequal_token_and_medians_far_apart_are_seen() -> None:
    result = made_up_result()
    result["points"][3]["sweeps"][1]["tokens_equal"] = False
    for point in result["points"][: len(result["points"]) // 2]:
        point["sweeps"][1]["median_ms"] *= 1.2
    found = summarise(result)
    assert found["tokens_equal_all"] is False
    assert 0.45 < found["repeatability"] < 0.55


def test_figures_of_values() -> None:
    assert latency([]) is None
    assert latency([0.001, 0.003]) == {"mean": 2.0, "p50": 2.0, "p99": 2.98}
    price = prices([1.1, 2.2], {"dense": [1.0, 2.0]})["dense"]
    assert price["mean"] == pytest.approx(0.1) and price["low"] < 0.1 < price["high"]
    assert shares({"cache": 3, "remote": 1}) == {"cache": 0.75, "remote": 0.25} and shares({}) == {}


def test_the_table_has_a_line_a_point() -> None:
    result = made_up_result()
    lines = table(result["points"]).splitlines()
    assert len(lines) == 2 + len(result["points"])
    assert all(point["name"] in line for point, line in zip(result["points"], lines[2:], strict=True))
