"""Predictions of paced points come from fetches timed alone, follow the point, and are kept with the results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tolserve.bench.cost.material import Materials
from tolserve.bench.cost.nodes import Fleet
from tolserve.bench.cost.places import Asked
from tolserve.bench.cost.point import Point
from tolserve.bench.cost.predict import Predictor, replayed
from tolserve.bench.cost.state import Results
from tolserve.bench.cost.summary import compared, summarise
from tolserve.bench.streams import zipf_stream

STREAM = zipf_stream(128_256, 20_000, seed=0)


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    return Materials(tmp_path_factory.mktemp("materials"))


def asked(materials: Materials, **changes: object) -> Asked:
    point = Point(factor="base", place="host", batch=4, **changes)  # type: ignore[arg-type]
    return Asked(point=point, material=materials.get(point), fleet=Fleet(None, (), {}))


def test_a_prediction_is_made_of_one_calibration_for_all_alike(materials: Materials) -> None:
    predictor = Predictor(rounds=8, known={})
    near = predictor.predict(asked(materials), STREAM, num_steps=40)
    far = predictor.predict(asked(materials, round_trip_ms=5.0), STREAM, num_steps=40)
    slow = predictor.predict(asked(materials, pace_us=2000.0), STREAM, num_steps=40)
    assert len(predictor.known) == 1
    assert far["stall_us"] > near["stall_us"] + 500 and slow["stall_us"] <= near["stall_us"]
    assert slow["step_us"] >= 24 * 2000.0


def test_without_overlap_a_step_waits_for_its_last_band(materials: Materials) -> None:
    predictor = Predictor(rounds=8, known={})
    beside = predictor.predict(asked(materials), STREAM, num_steps=40)
    before = predictor.predict(asked(materials, overlap=False), STREAM, num_steps=40)
    assert before["stall_us"] > beside["stall_us"]


def test_misses_are_those_of_the_cache(materials: Materials) -> None:
    tokens_SB = STREAM.batches(4, 60)
    none = replayed(asked(materials, cache_share=0.0), STREAM, tokens_SB)
    tenth = replayed(asked(materials, cache_share=0.1), STREAM, tokens_SB)
    expected = np.mean([len(np.unique(row)) for row in tokens_SB])
    assert none.mean == pytest.approx(expected) and 0 < tenth.mean < none.mean
    assert replayed(asked(materials, pinned_bands=6), STREAM, tokens_SB).mean == 0


def test_predictions_are_kept_and_compared(tmp_path: Path) -> None:
    point = Point(factor="base")
    results = Results(tmp_path / "r.json", [point, Point(factor="batch", batch=2)], {}, fresh=False)
    results.predict(point, {"step_us": 500.0, "stall_us": 20.0})
    results.add(
        point, {"step_us": 550.0, "stall_us": 60.0, "itl_ms": {"p99": 0.7}, "median_ms": 0.5, "tokens_equal": True}
    )
    again = Results(tmp_path / "r.json", results.points, {}, fresh=False)
    assert again.is_predicted(point) and not again.is_predicted(results.points[1])
    (one,) = compared(again.to_dict()["points"])
    assert one.stall_error == 0.5 and one.step_error == pytest.approx(50 / 550)
    assert summarise(again.to_dict())["model_median_stall_error"] == 0.5
