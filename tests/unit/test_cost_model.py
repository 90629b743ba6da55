"""The cost model: the timeline by hand, misses against simulation, arrivals, answers in the limit, and its command."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tolserve.bench.cost_model.__main__ import main
from tolserve.bench.cost_model.answers import Setting, partition_skew, pool, price, smallest
from tolserve.bench.cost_model.arrivals import Described, Measured
from tolserve.bench.cost_model.check import FLOOR_US, Compared, errors, table
from tolserve.bench.cost_model.hardware import Link, Store
from tolserve.bench.cost_model.hits import Misses, poisson, zipf_misses
from tolserve.bench.cost_model.pace import SHAPES, compressed, dense_layer_s, layer_s
from tolserve.bench.cost_model.profiles import ACCELERATORS, LINKS, STORES
from tolserve.bench.cost_model.timeline import Seconds, ends_s, expected_step


@dataclass(frozen=True)
class Fixed:
    """Rows that always come at the same times; nothing to wait for where none are fetched."""

    times_s: tuple[float, ...]
    busy_s: float = 0.0

    def arrival_s(self, num_rows: int) -> Seconds:
        return np.array([self.times_s]) * (num_rows > 0)

    def host_s(self, num_rows: int) -> Seconds:
        return np.array([self.busy_s])


ALWAYS = Misses(probability_N=np.array([0.0, 1.0]))
INSTANT = Link(
    name="instant", bytes_per_s=1e18, round_trip_s=1e-12, message_s=1e-12, tail=1.0, messages_per_s=1e12, source="none"
)


def stream_misses(tokens_SB: NDArray[np.int64], on_device_V: NDArray[np.bool_]) -> Misses:
    return Misses.counted([len(np.unique(step[~on_device_V[step]])) for step in tokens_SB])


def setting(**changes: object) -> Setting:
    known = {"shape": SHAPES["1b"], "device": ACCELERATORS["h100"], "link": LINKS["100gbe-tcp"], "store": STORES["ram"]}
    return Setting(**{**known, "batch": 8, "device_share": 0.1, **changes})  # type: ignore[arg-type]


def test_a_band_waits_for_its_rows_and_delays_those_behind_it() -> None:
    segments_s = np.array([4.0, 4.0, 4.0])
    assert ends_s(segments_s, np.array([[0.0, 3.0, 8.0]]), np.zeros(1)) == [12.0]
    assert ends_s(segments_s, np.array([[0.0, 6.0, 7.0]]), np.zeros(1)) == [14.0]
    assert ends_s(segments_s, np.array([[0.0, 6.0, 13.0]]), np.zeros(1)) == [17.0]
    assert ends_s(segments_s, np.array([[0.0, 6.0, 7.0]]), np.array([20.0])) == [20.0]


def test_the_expected_step_weighs_steps_with_and_without_fetches() -> None:
    misses = Misses(probability_N=np.array([0.75, 0.25]))
    found = expected_step(np.array([1.0, 1.0]), misses, Fixed((5.0, 5.0)))
    assert found.step_s == 0.75 * 2 + 0.25 * 7 and found.stall_s == 1.25 and found.overhead == 1.25 / 2


def test_bands_on_the_device_wait_for_nothing() -> None:
    assert expected_step(np.array([3.0, 1.0]), ALWAYS, Fixed((9.0, 2.0)), on_device=(0,)).stall_s == 0.0


@given(st.lists(st.floats(0.0, 50.0), min_size=3, max_size=3), st.floats(0.0, 50.0))
def test_later_rows_never_make_a_step_shorter(times_s: list[float], later_s: float) -> None:
    segments_s = np.array([1.0, 2.0, 3.0])
    early = expected_step(segments_s, ALWAYS, Fixed(tuple(times_s))).step_s
    late = expected_step(segments_s, ALWAYS, Fixed(tuple(time + later_s for time in times_s))).step_s
    assert early - 1e-9 <= late <= early + later_s + 1e-9


def test_misses_of_a_stream_are_counted() -> None:
    cached_V = np.array([True, False, False, False])
    tokens_SB = np.array([[0, 0], [1, 1], [1, 2], [0, 3]])
    assert stream_misses(tokens_SB, cached_V).probability_N.tolist() == [0.25, 0.5, 0.25]


def test_misses_of_a_zipf_law_are_those_of_its_draws() -> None:
    weights = np.arange(1, 5001) ** -1.05
    draws = np.random.default_rng(0).choice(5000, (4000, 16), p=weights / weights.sum())
    simulated = stream_misses(draws, np.arange(5000) < 500)
    law = zipf_misses(5000, alpha=1.05, batch=16, num_on_device=500)
    assert law.mean == pytest.approx(simulated.mean, rel=0.02)
    assert law.probability_N[0] == pytest.approx(simulated.probability_N[0], abs=0.05)


def test_no_probability_is_lost_among_many_cases() -> None:
    wide = poisson(150.0, most=256)
    cases = list(wide.likely())
    assert len(cases) <= 49 and sum(probability for _, probability in cases) == pytest.approx(1.0)
    assert sum(count * probability for count, probability in cases) == pytest.approx(wide.mean, rel=0.01)
    assert poisson(0.0, most=4).probability_N.tolist() == [1, 0, 0, 0, 0]


def test_probabilities_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"add up to 0\.7"):
        Misses(probability_N=np.array([0.5, 0.2]))


def test_measured_fetches_are_read_between_and_beyond() -> None:
    arrivals = np.array([0.0, 10.0, 20.0, 40.0])[:, None, None] * np.ones((4, 3, 2))
    measured = Measured(num_rows=(0, 1, 2, 4), arrivals_NQB=arrivals, host_NQ=arrivals[:, :, 0], round_trip_s=100.0)
    assert [measured.arrival_s(count)[0, 0] for count in (0, 1, 3, 8)] == [0.0, 110.0, 130.0, 180.0]
    assert measured.host_s(2).tolist() == [120.0] * 3


def test_described_rows_come_band_by_band_at_the_links_rate() -> None:
    link = Link(name="l", bytes_per_s=1e6, round_trip_s=1e-3, message_s=1e-9, tail=1.0, messages_per_s=1, source="s")
    described = Described(link=link, store=STORES["ram"], band_bytes=(0.0, 1000.0, 1000.0), client_s=1e-9)
    assert described.arrival_s(2)[0] == pytest.approx([1e-3, 3e-3, 5e-3], rel=1e-3)
    assert described.arrival_s(0).max() == 1e-9


def test_the_slowest_of_several_nodes_counts() -> None:
    one, eight = (
        Described(link=LINKS["25gbe-tcp"], store=STORES["nvme"], band_bytes=(1.0,), num_nodes=count) for count in (1, 8)
    )
    assert np.median(eight.arrival_s(1)) > 1.2 * np.median(one.arrival_s(1))
    assert one.arrival_s(1).max() < STORES["nvme"].p99_s * 2


def test_a_layer_is_bound_by_bytes_at_batch_1_and_by_arithmetic_at_large_ones() -> None:
    shape, device = SHAPES["1b"], ACCELERATORS["h100"]
    few = layer_s(shape, device, batch=1, context=1) - device.layer_s
    assert few == pytest.approx(33.55e6 / (3.35e12 * 0.85), rel=0.01)
    many = layer_s(shape, device, batch=4096, context=1) - device.layer_s
    assert many == pytest.approx(2 * 4096 * 16.8e6 / (989e12 * 0.6), rel=0.01)
    assert dense_layer_s(shape, device, batch=1, context=1) > 2.5 * few


def test_compressed_rows_are_an_eighth() -> None:
    assert compressed(SHAPES["1b"]).table_bytes * 8 == SHAPES["1b"].table_bytes == 128_256 * 98_304


def test_an_instant_link_costs_nothing_and_a_slow_one_much() -> None:
    assert setting(link=INSTANT, device_share=0.25).step().overhead < 1e-3
    slow = replace(LINKS["25gbe-tcp"], bytes_per_s=1e8)
    assert setting(link=slow, device_share=0.0).step().overhead > 1
    assert smallest(setting(), [slow, INSTANT]) == (INSTANT, 0.0)
    assert smallest(setting(), [replace(slow, bytes_per_s=1e6)]) is None


def test_prices_follow_the_table() -> None:
    small, large = (
        price(setting(shape=replace(SHAPES["8b"], vocab_size=v)), attention_nodes=100) for v in (128, 10**6)
    )
    assert large.on_device > 2 * small.on_device and large.devices > 3
    assert large.networked < large.on_device


def test_a_pool_has_enough_of_everything() -> None:
    one = pool(setting(batch=64), attention_nodes=1000)
    assert one.nodes * LINKS["100gbe-tcp"].bytes_per_s > one.bytes_per_s * one.skew
    twice = pool(setting(batch=64), attention_nodes=2000)
    assert twice.bytes_per_s == pytest.approx(2 * one.bytes_per_s)
    assert partition_skew(setting(), 1) == 1.0 <= partition_skew(setting(device_share=0.0), 16)


def point(**changes: object) -> Compared:
    known = {"name": "p", "measured_step_us": 500.0, "measured_stall_us": 20.0, "p99_us": 520.0}
    return Compared(**{**known, "predicted_step_us": 510.0, "predicted_stall_us": 30.0, **changes})  # type: ignore[arg-type]


def test_errors_of_small_stalls_are_taken_over_the_floor() -> None:
    assert point().stall_error == 10 / FLOOR_US and point().step_error == 10 / 500
    assert point(measured_stall_us=200.0, predicted_stall_us=100.0).stall_error == 0.5


def test_the_worst_points_are_named_with_a_reason() -> None:
    tail = point(name="tail", measured_stall_us=300.0, predicted_stall_us=10.0, p99_us=2000.0)
    found = errors([point(), tail, point(name="early", measured_stall_us=5.0, predicted_stall_us=60.0)])
    assert found["model_median_stall_error"] == pytest.approx(55 / 80, abs=1e-4)
    assert found["worst"][0]["name"] == "tail" and "slowest steps" in found["worst"][0]["reason"]
    assert "worst: tail, off by 97%" in table(found)
    with pytest.raises(ValueError, match="no paced points"):
        errors([])


@pytest.mark.parametrize("field", ["bytes_per_s", "reads_per_s"])
def test_hardware_with_a_rate_of_zero_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"Store ram: {field} is 0"):
        replace(STORES["ram"], **{field: 0})
    assert all(one.source for one in (*ACCELERATORS.values(), *LINKS.values(), *STORES.values()))
    assert isinstance(STORES["ram"], Store)


def test_the_command_answers_and_takes_profiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiles = tmp_path / "mine.json"
    profiles.write_text(json.dumps({"links": {"100gbe-tcp": {"bytes_per_s": 1e6}}}))
    assert main(["--profiles", str(profiles), "--out", str(tmp_path / "out.json"), "--context", "64"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text.splitlines()[-1])
    assert set(found) == {"suffices", "prices", "pool"} and "70b rank 2048 int8" in text
    assert min(one["overhead"] for one in found["prices"] if one["model"] == "8b") > 1
    assert json.loads((tmp_path / "out.json").read_text())["link"]["bytes_per_s"] == 1e6


@pytest.mark.parametrize("text", ["{", '{"cables": {}}', '{"links": {"x": {}}}', '{"links": {"100gbe-tcp": {"y": 1}}}'])
def test_profiles_that_are_none_are_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.json").write_text(text)
    assert main(["--profiles", str(tmp_path / "bad.json")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
