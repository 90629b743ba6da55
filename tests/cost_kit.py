"""What tests of `bench cost` share: a result whose figures are made up, and runs so short that they mean nothing."""

from __future__ import annotations

import gzip
import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from tolserve.bench.cost import paced, real, run
from tolserve.bench.cost.matrix import matrix
from tolserve.bench.cost.point import Point

DATA = Path(__file__).parents[1] / "data"
LINKS = ("unshaped", "5gbit", "2.5gbit", "1gbit")
ABOUT = {
    "machine": {
        "cpu": "some <CPU>",
        "cores": 2,
        "memory_bytes": 2**34,
        "kernel": "Linux 6",
        "load_average": [0.1, 0, 0],
    },
    "versions": {"torch": "2.13.0"},
    "seed": 0,
    "command": "python -m tolserve.bench cost --full",
    "quick": False,
    "rents": {"device_hour": 3.0},
    "slo": {"ttft_ms": 200.0},
    "links": {"loopback": {"gbit_per_s": 31.2, "round_trip_us": 22.0}},
    "paced_overhead": {"12k_b8": 0.02},
}


def made_up(point: Point, *, sweep: int = 0) -> dict[str, Any]:
    """Figures that look like measured ones: a price that falls with cache and pinning, and grows with the rest."""
    load = 0.03 * point.batch**0.5 * (1 - point.cache_share) * 20 / point.pace_us + point.round_trip_ms
    load *= (4 if "full" in point.codes else 1) * (1 if point.overlap else 3) / (1 + point.pinned_bands)
    price = {"mean": load, "low": load * 0.9, "high": load * 1.1}
    local = 24 * point.pace_us / 1e3
    times = {"mean": local * (1 + load), "p50": local * (1 + load), "p99": local * (1 + 2 * load)}
    place_bytes = {"attention_node": 4 * 10**8, "memory_nodes": [], "host": 0, "disk": 0}
    place_bytes |= {"memory_nodes": [16 * 10**8]} if point.is_networked else {"host": 16 * 10**8}
    return {
        "num_pairs": 30,
        "ttft_ms": None if point.engine == "paced" else times,
        "itl_ms": times,
        "reference_itl_ms": {name: {"mean": local, "p50": local, "p99": local} for name in ("codes_local", "dense")},
        "tokens_per_s": 1e3 * point.batch / times["mean"],
        "goodput_tokens_per_s": 900.0,
        "rows_a_step": point.batch,
        "unique_rows_a_step": math.sqrt(point.batch),
        "bytes_a_token": 12288.0,
        "hits": {"cache": 0.8, "remote": 0.2},
        "fetch_ms": {"mean": 0.2, "p50": 0.2, "p99": 0.4} if point.place != "device" else None,
        "stall_us": local * load * 1e3,
        "step_us": times["mean"] * 1e3,
        "stall_share": load / (1 + load),
        "resident_bytes": place_bytes,
        "dollars_per_million": 0.4,
        "price": dict.fromkeys(("codes_local", "fp16_local", "dense"), price),
        "median_ms": times["p50"] * (1 + 0.02 * sweep),
        "tokens_equal": True,
        "link_reached": {"one_row_ms": 0.1, "gbit_per_s": 8.0, "added_ms": point.round_trip_ms},
    }


def made_up_result(*, predicted: bool = False) -> dict[str, Any]:
    """A finished full run."""
    points = []
    for point in matrix(full=True, links=LINKS):
        sweeps = [made_up(point, sweep=0), made_up(point, sweep=1)]
        guess = {"step_us": sweeps[0]["step_us"] * 1.05, "stall_us": sweeps[0]["stall_us"] * 0.9}
        points.append(
            {
                "name": point.name,
                "settings": point.to_dict(),
                "sweeps": sweeps,
                "predicted": guess if predicted and point.engine == "paced" else None,
            }
        )
    return {"bench": "cost", "key": {}, "finished": True, **ABOUT, "points": points}


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points in a second or two, on whatever cores there are."""
    effort = run.Effort(num_pairs=6, num_rounds=1, limit_s=0.0, calibration_rounds=4)
    monkeypatch.setattr(run, "QUICK", effort)
    monkeypatch.setattr(run, "own_cores", lambda: (None, None))
    monkeypatch.setattr(paced, "_LEAST_PAIRS", 6)
    monkeypatch.setattr(paced, "_CHECKED_STEPS", 8)
    monkeypatch.setattr(real, "_LEAST_ROUNDS", 1)


def small_corpus(folder: Path) -> Path:
    """The first documents of the corpus under its names, in `folder`."""
    for name, count in (("public_domain.train.jsonl.gz", 20), ("public_domain.valid.jsonl.gz", 3)):
        with gzip.open(DATA / name, "rt", encoding="utf-8") as lines, gzip.open(folder / name, "wt") as out:
            out.writelines(itertools.islice(lines, count))
    return folder
