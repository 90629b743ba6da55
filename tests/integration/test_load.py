"""The load generator against a real endpoint: schedules are kept, tokens timed as they come, failures counted."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_kit import Service, running, wait_for

from tolserve.app import AppConfig
from tolserve.bench.__main__ import main
from tolserve.bench.load.config import LoadConfig
from tolserve.bench.load.run import LoadRun, measure
from tolserve.bench.load.summary import summarise
from tolserve.bench.load.workload import Ask


@pytest.fixture
def service() -> Iterator[Service]:
    with running(AppConfig(max_open=6, api_key="secret")) as one:
        yield one


def config(service: Service, **options: Any) -> LoadConfig:
    loop = {} if "request_rate" in options else {"max_concurrency": 3}
    return LoadConfig(url=service.url, api_key="secret", **loop, **{"input_len": 4, "output_len": 5, **options})


def test_a_closed_loop_has_as_many_requests_open_as_clients(service: Service) -> None:
    chosen = config(service, num_prompts=10, memory_bill=True, seed=3)
    run = measure(chosen, [Ask(prompt=f"{'abcdefghij'[index]}yz", max_tokens=5) for index in range(10)])
    assert [one.error for one in run.outcomes] == [""] * 10
    assert [one.text for one in run.outcomes] == [f"{letter}yz{letter}y" for letter in "abcdefghij"]
    assert all(len(one.itl_s) == 4 and 0 < one.ttft_s <= one.latency_s for one in run.outcomes)
    result = summarise(run, chosen)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (30, 50)
    assert result["max_concurrent_requests"] <= 3
    assert result["memory_bill"]["rows_needed"] == 50


def in_thread(chosen: LoadConfig, asks: list[Ask]) -> tuple[threading.Thread, list[LoadRun]]:
    runs: list[LoadRun] = []
    thread = threading.Thread(target=lambda: runs.append(measure(chosen, asks)))
    thread.start()
    return thread, runs


def test_an_open_loop_sends_on_schedule_while_nothing_is_answered(service: Service) -> None:
    (engine,) = service.engines
    engine.gate.clear()
    asks = [Ask(prompt="abc", max_tokens=2, at_s=0.05 * index) for index in range(6)]
    thread, runs = in_thread(config(service, request_rate=20.0), asks)
    wait_for(lambda: len(engine._open) == 6)
    engine.gate.set()
    thread.join()
    starts = [one.start_s for one in runs[0].outcomes]
    assert all(start >= ask.at_s for start, ask in zip(starts, asks, strict=True))
    assert summarise(runs[0], config(service))["max_concurrent_requests"] == 6


def test_the_first_token_is_timed_when_it_comes(service: Service) -> None:
    (engine,) = service.engines
    engine.gate.clear()
    engine.let_through = 1
    thread, runs = in_thread(config(service), [Ask(prompt="qr", max_tokens=3)])
    wait_for(lambda: engine.let_through == 0 and bool(engine._open))
    time.sleep(0.3)
    engine.gate.set()
    thread.join()
    (one,) = runs[0].outcomes
    assert one.text == "qrq" and len(one.itl_s) == 2
    assert one.itl_s[0] > one.itl_s[1] and one.latency_s > 0.3
    assert one.latency_s == pytest.approx(one.ttft_s + sum(one.itl_s))


def test_failures_are_counted_with_their_reasons(service: Service) -> None:
    asks = [Ask(prompt=prompt, max_tokens=2) for prompt in ("abc", [1], [2], [500], "xyz")]
    run = measure(config(service), asks)
    assert [one.error.partition(":")[0] for one in run.outcomes] == ["", "503", "400", "400", ""]
    result = summarise(run, config(service))
    assert (result["completed"], result["failed"]) == (2, 3)
    assert result["errors_by_reason"]["503: no memory node"] == 1


def test_more_than_the_endpoint_takes_is_refused_not_held_back(service: Service) -> None:
    (engine,) = service.engines
    engine.gate.clear()
    asks = [Ask(prompt="abc", max_tokens=2) for _ in range(9)]
    thread, runs = in_thread(config(service, request_rate=float("inf")), asks)
    wait_for(lambda: len(engine._open) == 6)
    wait_for(lambda: 'status="429"} 3.0' in service.raw("GET", "/metrics")[1])
    engine.gate.set()
    thread.join()
    assert sum(one.error.startswith("429") for one in runs[0].outcomes) == 3


def test_an_answer_that_does_not_end_has_failed(service: Service) -> None:
    service.engines[0].gate.clear()
    (one,) = measure(config(service, request_timeout_s=0.2), [Ask(prompt="abc", max_tokens=2)]).outcomes
    assert one.error == "no end within 0.2 s"


def test_the_command_writes_what_it_prints(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "load.json"
    arguments = ["load", "--url", service.url, "--api-key", "secret", "--max-concurrency", "2", "--num-prompts", "4"]
    limits = ["--input-len", "3", "--output-len", "2", "--num-warmups", "1", "--goodput", "ttft:60000", "e2el:60000"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *limits, "--seed", "5", "--result-file", str(out), "--save-detailed"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    assert json.loads(out.read_text()) == result
    assert result["completed"] == 4 and result["request_goodput"] == result["request_throughput"]
    assert result["input_lens"] == [3] * 4 and result["output_lens"] == [2] * 4
    assert "time to first token" in printed


def test_an_endpoint_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SystemExit) as ended:
        main(["load", "--url", f"http://127.0.0.1:{port}", "--max-concurrency", "1"])
    assert ended.value.code == 1
    assert "cannot be reached" in capsys.readouterr().err
