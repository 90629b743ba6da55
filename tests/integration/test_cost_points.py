"""Points of the cost bench, in runs too short to mean anything: rows and tokens are the right ones."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cost_kit import short_runs, small_corpus  # noqa: F401

from tolbuild.table import open_table
from tolserve.bench.__main__ import main
from tolserve.bench.cost import material, run
from tolserve.bench.cost.nodes import Fleet, NodeError, start
from tolserve.bench.cost.objects import Objects
from tolserve.bench.cost.point import Point, base
from tolserve.bench.cost.run import Runner
from tolserve.bench.cost.streams import Streams
from tolserve.memory.store import CyclicStore

PACED = replace(base("paced"), stream="text-own", batch=3, codes="64-int8")
TINY = replace(base("tiny"), batch=2, prompt=8)
EVERYWHERE = [
    replace(PACED, cache_share=0.0),
    replace(PACED, round_trip_ms=1.0, overlap=False, policy="lru"),
    replace(PACED, num_nodes=2, codes="64-int4"),
    replace(PACED, place="host", gbit_per_s=0.0),
    replace(PACED, place="mapped"),
    replace(PACED, place="cold"),
    replace(PACED, place="flight", num_nodes=2),
    replace(PACED, place="ray"),
    replace(PACED, place="host-cached", cache_share=0.0),
    replace(PACED, place="store", policy="s3fifo"),
    replace(TINY, num_nodes=2),
    replace(TINY, place="flight"),
    replace(TINY, place="host-cached", policy="s3fifo"),
    replace(TINY, place="store", cache_share=0.5),
    replace(TINY, place="mapped", overlap=False),
    replace(TINY, place="cold", cache_share=0.0, pinned_bands=0),
    replace(TINY, place="host", arrivals_per_s=500.0),
    replace(TINY, place="device", cache_share=0.0, pinned_bands=0),
    replace(TINY, place="computed", codes="full-float32", cache_share=0.0, pinned_bands=0),
]
RAY = [pytest.param(replace(TINY, place="ray", num_nodes=2), marks=pytest.mark.slow)]
"""Two clusters, one after another."""
FIGURES = {
    "ttft_ms", "itl_ms", "tokens_per_s", "goodput_tokens_per_s", "rows_a_step", "unique_rows_a_step", "bytes_a_token",
    "hits", "fetch_ms", "stall_share", "resident_bytes", "dollars_per_million", "price", "tokens_equal", "median_ms",
    "stall_us", "step_us",
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runner(work: Path, corpus: Path) -> Iterator[Runner]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(material, "NODE_BYTES", 8 << 20)
        made = Runner(run.Setting(full=False, data=corpus, work=work), None)
        yield made
        made.close()


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("point", [*EVERYWHERE, *RAY], ids=lambda point: point.name)
def test_rows_are_the_same_wherever_they_are(runner: Runner, point: Point) -> None:
    if reasons := run.absent([point]):
        pytest.skip(reasons[point.name])
    figures = runner.measure(point)
    assert set(figures) >= FIGURES
    assert figures["tokens_equal"]
    assert set(figures["price"]) == {"codes_local", "fp16_local", "dense"}
    json.dumps(figures, allow_nan=False)
    if point.engine == "paced":
        assert runner.predict(point)["step_us"] > 0
        assert point.cache_share > 0 or figures["rows_compared"] > 0
    assert ("link_reached" in figures) == point.is_networked


def test_what_cannot_be_measured_here_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [replace(PACED, place=place) for place in ("nodes", "flight", "ray", "store")]
    points.append(replace(TINY, place="store"))
    monkeypatch.setattr("tolbuild.bench.s3rver.SCRIPT", Path("no-such-script"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else name)
    assert list(run.absent(points)) == [points[2].name, points[3].name]
    assert "pip install" in run.absent(points)[points[2].name] and "moto" in run.absent(points)[points[3].name]


def test_moto_has_the_objects_where_s3rver_is_not_installed(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("moto")
    monkeypatch.setattr("tolbuild.bench.s3rver.SCRIPT", Path("no-such-script"))
    path = runner._materials.get(TINY).url
    with closing(Objects(tmp_path, None)) as objects:
        url, credentials = objects.table(path)
        with closing(open_table(url, credentials=credentials)) as there, closing(open_table(path)) as here:
            assert there.manifest == here.manifest
        assert objects.table(path) == (url, credentials)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("short_runs")
def test_a_row_that_differs_in_one_byte_is_seen(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    point = replace(PACED, cache_share=0.0)
    rows = runner._materials.get(point)
    monkeypatch.setitem(rows.__dict__, "store", CyclicStore(rows.spec, num_rows=100, seed=1))
    assert not runner.measure(point)["tokens_equal"]


@pytest.mark.usefixtures("short_runs")
def test_the_command_writes_result_page_and_last_line(
    work: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def few(**asked: Any) -> list[Point]:
        return [replace(TINY, batch=1, place="host")]

    monkeypatch.setattr("tolserve.bench.cost.command.matrix", few)
    out = tmp_path / "cost.json"
    main(["cost", "--quick", "--out", str(out), "--work", str(work), "--data", str(corpus)])
    printed = capsys.readouterr().out.splitlines()
    last = json.loads(printed[-1])
    assert last["tokens_equal_all"] is True and last["repeatability"] in (0.0, 1.0)
    assert last["model_median_stall_error"] is None and last["model_errors_absent"]
    result = json.loads(out.read_text())
    assert result["finished"] and len(result["points"][0]["sweeps"]) == 2
    assert {"machine", "versions", "seed", "command", "links", "rents", "slo"} <= set(result)
    assert printed[1].endswith("cost.html (when all is measured)") and out.with_suffix(".html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quick", "--full"], "give one of them"),
        (["--only", "colour"], "no factor colour"),
        (["--links", "a=h"], "give --memory-nodes"),
        (["--memory-nodes", "host"], "HOST:PORT|X:Y"),
        (["--host-gb-hour", "-1"], "host_gb_hour"),
    ],
)
def test_options_that_cannot_be_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main(["cost", "--out", str(tmp_path / "cost.json"), *options])
    assert re.search(message, capsys.readouterr().err)


def test_given_nodes_are_found_by_what_they_hold_and_others_are_named(runner: Runner) -> None:
    rows = runner._materials.get(PACED)
    with start(rows.node) as address:
        fleet = Fleet(None, [address], {"cable": "127.0.0.1"})
        assert fleet.addresses(rows.node, rows.spec, num_nodes=1, link="cable") == [address]
        with pytest.raises(NodeError, match="no given node holds"):
            fleet.addresses(rows.node, rows.spec, num_nodes=2, link="cable")
        given = run.Setting(full=False, data=Path(), work=Path(), memory_nodes=(address,), links=fleet.links)
        narrow = replace(PACED, link="cable")
        assert run.servable(given, [PACED, narrow, replace(narrow, codes="full-int8")])[0] == [PACED, narrow]
        with pytest.raises(NodeError, match="no link 'moon'"):
            fleet.addresses(rows.node, rows.spec, num_nodes=1, link="moon")
    with pytest.raises(NodeError, match="--memory-nodes"):
        Fleet(None, [address])


def test_a_stream_is_kept_and_needs_its_corpus(tmp_path: Path) -> None:
    kept = Streams(tmp_path, tmp_path).get("zipf-32k")
    assert (tmp_path / "stream-zipf-32k.npz").exists()
    assert (Streams(tmp_path, tmp_path).get("zipf-32k").tokens == kept.tokens).all()
    with pytest.raises(ValueError, match="corpus"):
        Streams(tmp_path, tmp_path).get("text-own")


def test_the_bench_leaves_its_cores_as_they_were() -> None:
    before = os.sched_getaffinity(0)
    with run._quiet():
        pass
    assert os.sched_getaffinity(0) == before
