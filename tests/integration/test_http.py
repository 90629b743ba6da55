"""The HTTP application over a real server and client: the openai client, streams, limits, faults, disconnects.

The engine behind it is the scripted one, once in this process and once behind the gateway's link.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from http_kit import Service, running, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine

from tolserve.app import AppConfig
from tolserve.http_server import HttpServer
from tolserve.link import fleet as fleet_module
from tolserve.link.fleet import Fleet
from tolserve.link.protocol import encode
from tolserve.link.server import LinkServer
from tolserve.openai_api.request import CompletionRequest


@pytest.fixture(scope="module", params=[0, 2], ids=["local", "linked"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with running(AppConfig(max_open=8, max_body_bytes=100_000), linked=request.param) as one:
        yield one


def test_the_openai_client_completes(service: Service) -> None:
    answer = service.client().completions.create(
        model="letters",
        prompt=["abc", "xy"],
        n=2,
        max_tokens=4,
        logprobs=1,
        echo=True,
        extra_body={"memory_bill": True},
    )
    assert [choice.text for choice in answer.choices] == ["abcabca"] * 2 + ["xyxyxy"] * 2
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs == [None, -2.0, -2.0, -1.0, -1.0, -1.0, -1.0]
    assert logprobs.text_offset == [0, 1, 2, 3, 4, 5, 6]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 16)
    bill = answer.usage.model_extra["memory_bill"]  # type: ignore[index]
    assert (bill["rows_needed"], bill["hits_by_tier"]) == (16, {"cache": 2.0})


def test_the_openai_client_streams(service: Service) -> None:
    stream = service.client().completions.create(
        model="letters",
        prompt=[97, 98],
        max_tokens=5,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = {index: "".join(c.text for chunk in chunks for c in chunk.choices if c.index == index) for index in (0, 1)}
    assert texts == {0: "ababa", 1: "ababa"}
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 10
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == [
        "length",
        "length",
    ]


def test_the_first_token_is_sent_before_the_second_exists(service: Service) -> None:
    for engine in service.engines:
        engine.gate.clear()
        engine.let_through = 1
    stream = iter(service.client().completions.create(model="letters", prompt="qr", max_tokens=2, stream=True))
    assert next(stream).choices[0].text == "q"
    for engine in service.engines:
        engine.let_through = 0
        engine.gate.set()
    assert "".join(chunk.choices[0].text for chunk in stream) == "r"


def test_an_evaluation_of_the_prompt_alone(service: Service) -> None:
    status, answer, _ = service.post(max_tokens=0, echo=True, logprobs=0)
    assert (status, answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) == (200, "abc", 0)
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, -2.0, -2.0]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"prompt": [1]}, 503),
        ({"prompt": [2]}, 400),
        ({"prompt": [3]}, 500),
        ({"prompt": [128]}, 400),
        ({"prompt": "a" * 5000}, 400),
        ({"max_tokens": 4096}, 400),
        ({"n": 9}, 400),
        ({"model": "other"}, 404),
        ({"stop_token_ids": [128]}, 400),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_faults_have_their_status(service: Service, fields: dict[str, Any], status: int, stream: bool) -> None:
    answered, body, headers = service.post(stream=stream, **fields)
    assert answered == status
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert ("retry-after" in headers) == (status == 503)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/completions", b"{", 400),
        ("POST", "/v1/completions", b"[1]", 400),
        ("POST", "/v1/completions", b"", 400),
        ("POST", "/v1/completions", b"\x00" * 2000, 400),
        ("POST", "/v1/completions", b" " * 200_000, 413),
        ("GET", "/v1/completions", None, 405),
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/v1/models/other", None, 404),
    ],
)
def test_bad_requests_are_refused(service: Service, method: str, path: str, body: bytes | None, status: int) -> None:
    answered, answer, headers = service.raw(method, path, body)
    assert (answered, answer["error"]["type"]) == (status, "invalid_request_error")
    assert headers.get("allow") == ("POST" if status == 405 else None)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["letters", 1, 2.0, "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(sorted(CompletionRequest.model_fields)), VALUES, max_size=5),
    st.booleans(),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_is_answered_with_a_server_error(service: Service, fields: dict[str, Any], valid: bool) -> None:
    base = {"model": "letters", "prompt": "abc", "max_tokens": 2} if valid else {}
    body = json.dumps({**base, **fields}).encode()
    connection = http.client.HTTPConnection(*service.server.address, timeout=20)
    connection.request("POST", "/v1/completions", body)
    status = connection.getresponse().status
    connection.close()
    assert status == 200 or 400 <= status < 500


def test_models_health_and_metrics(service: Service) -> None:
    assert [model.id for model in service.client().models.list()] == ["letters"]
    assert service.client().models.retrieve("letters").owned_by == "tolserve"
    assert service.raw("GET", "/health")[0] == 200
    service.post(stream=True)
    wait_for(lambda: "vllm:num_requests_running{" in service.raw("GET", "/metrics")[1])
    text = service.raw("GET", "/metrics")[1]
    for name in (
        "vllm:time_to_first_token_seconds_count",
        "vllm:generation_tokens_total",
        "tol_engine_steps_total",
    ):
        assert f"{name}{{" in text
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="letters"} 0.25' in text


@pytest.mark.parametrize("linked", [0, 1])
def test_request_metrics_count_tokens_streamed_or_not(linked: int) -> None:
    with running(AppConfig(), linked=linked) as service:
        for stream in (False, True):
            service.post(stream=stream, n=2)
        service.post(prompt=[1])
        text = service.raw("GET", "/metrics")[1]
    found = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}
    assert found["vllm:time_to_first_token_seconds_count"] == 4
    assert found["vllm:inter_token_latency_seconds_count"] == 4 * 3
    assert found["vllm:prompt_tokens_total"] == 4 * 3
    assert found["vllm:generation_tokens_total"] == 4 * 4


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_cancels_the_request(service: Service, stream: bool) -> None:
    before = sum(len(engine.cancelled) for engine in service.engines)
    for engine in service.engines:
        engine.gate.clear()
    connection = http.client.HTTPConnection(*service.server.address, timeout=20)
    body = {"model": "letters", "prompt": "abc", "max_tokens": 4000, "n": 2, "stream": stream}
    connection.request("POST", "/v1/completions", json.dumps(body))
    wait_for(lambda: sum(len(engine._open) for engine in service.engines) == 2)
    connection.close()
    wait_for(lambda: sum(len(engine.cancelled) for engine in service.engines) == before + 2)
    for engine in service.engines:
        engine.gate.set()
    assert service.post()[0] == 200


def test_a_full_server_answers_429_and_then_goes_on() -> None:
    with running(AppConfig(max_open=2, retry_after_s=3)) as service:
        service.engines[0].gate.clear()
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(service.post()[0])) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(service.engines[0]._open) == 2)
        status, body, headers = service.post()
        assert (status, body["error"]["type"], headers["retry-after"]) == (429, "rate_limit_error", "3")
        service.engines[0].gate.set()
        for thread in threads:
            thread.join()
        assert answers == [200, 200]
        assert service.post()[0] == 200


def test_a_client_that_does_not_read_gives_its_place_back() -> None:
    with running(AppConfig(max_open=8, send_timeout_s=0.3)) as service:
        body = {"model": "letters", "prompt": "abc" * 300, "max_tokens": 3000, "n": 8, "stream": True, "logprobs": 20}
        data = json.dumps(body).encode()
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.connect(service.server.address)
            head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n"
            peer.sendall(head.encode() + data)
            wait_for(lambda: 'status="499"' in service.raw("GET", "/metrics")[1], 60.0)
            assert service.post(n=8)[0] == 200


def test_the_api_key_guards_what_computes() -> None:
    with running(AppConfig(api_key="secret")) as service:
        with pytest.raises(openai.AuthenticationError):
            service.client("wrong").completions.create(model="letters", prompt="a")
        with pytest.raises(openai.AuthenticationError):
            service.client("wrong").models.list()
        assert service.client("secret").completions.create(model="letters", prompt="a", max_tokens=1).choices
        assert service.raw("GET", "/health")[0] == 200


def test_a_failed_engine_fails_its_requests_and_says_so() -> None:
    with running(AppConfig(), linked=1) as service:
        service.engines[0]._fail = {4: RuntimeError("broken")}
        assert service.post(prompt=[4])[0] == 500
        assert str(service.links[0].failure) == "broken"


def test_a_lost_replica_is_replaced_for_what_has_not_streamed_and_fails_what_has() -> None:
    with running(AppConfig(), linked=2) as service:
        results: dict[str, Any] = {}

        def ask(name: str, **fields: Any) -> None:
            results[name] = service.post(**fields)

        def streamed() -> None:
            stream = service.client().completions.create(model="letters", prompt="s", max_tokens=4000, stream=True)
            try:
                for _ in stream:
                    results["seen"] = results.get("seen", 0) + 1
            except openai.APIError as error:
                results["stream"] = error

        thread = threading.Thread(target=streamed)
        thread.start()
        wait_for(lambda: results.get("seen", 0) > 3)
        victim = next(i for i, engine in enumerate(service.engines) if engine._open)
        service.engines[victim].gate.clear()
        service.engines[1 - victim].gate.clear()
        others = [threading.Thread(target=ask, args=(str(i),), kwargs={"max_tokens": 8}) for i in range(3)]
        for other in others:
            other.start()
        wait_for(lambda: sum(len(engine._open) for engine in service.engines) == 4)
        assert len(service.engines[victim]._open) > 1
        service.links[victim].stop()
        service.engines[1 - victim].gate.set()
        for one in [thread, *others]:
            one.join()
        assert "was lost" in str(results["stream"])
        assert [results[str(i)][0] for i in range(3)] == [200] * 3
        assert service.post()[0] == 200
        service.links[1 - victim].stop()
        status, body, headers = service.post()
        assert status == 503 and "no attention replica" in body["error"]["message"] and "retry-after" in headers
        assert service.raw("GET", "/health")[0] == 503


def test_a_replica_that_comes_back_is_used_by_requests_that_waited() -> None:
    with running(AppConfig(), linked=1) as service:
        fleet: Fleet = service.engine
        fleet.deadline_s = 20
        service.links[0].stop()
        wait_for(lambda: not fleet.ready())
        results: list[int] = []
        thread = threading.Thread(target=lambda: results.append(service.post()[0]))
        thread.start()
        wait_for(lambda: bool(fleet.waiting))
        service.links.append(LinkServer(ScriptedEngine(), host="127.0.0.1", hello={}))
        loop = service.server.loop
        asyncio.run_coroutine_threadsafe(fleet.update({"new": service.links[1].address}), loop).result()
        thread.join()
        assert results == [200]


def test_a_replica_that_does_not_greet_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "CONNECT_TIMEOUT_S", 0.1)

    async def connect(address: tuple[str, int]) -> bool:
        fleet = Fleet(deadline_s=1.0)
        await fleet.update({"mute": address})
        return fleet.ready()

    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert not asyncio.run(connect(mute.getsockname()[:2]))
        peer, _ = mute.accept()
        peer.settimeout(10)
        assert peer.recv(1) == b""
        peer.close()


def test_a_silent_replica_is_dropped_and_its_request_runs_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "SILENCE_S", 1.0)
    with running(AppConfig(), linked=1) as service, socket.create_server(("127.0.0.1", 0)) as listener:
        fleet: Fleet = service.engine
        service.links[0].stop()
        wait_for(lambda: not fleet.ready())
        loop = service.server.loop
        frozen = asyncio.run_coroutine_threadsafe(fleet.update({"frozen": listener.getsockname()}), loop)
        peer, _ = listener.accept()
        peer.sendall(encode({"hello": {}}))
        frozen.result()
        results: list[int] = []
        thread = threading.Thread(target=lambda: results.append(service.post()[0]))
        thread.start()
        assert peer.recv(1000)
        service.links.append(LinkServer(ScriptedEngine(), host="127.0.0.1", hello={}))
        time.sleep(1.1)
        asyncio.run_coroutine_threadsafe(fleet.update({"new": service.links[1].address}), loop).result()
        thread.join()
        peer.close()
        assert results == [200]


def test_a_taken_port_is_said() -> None:
    with running(AppConfig()) as service, pytest.raises(OSError, match="give another port"):
        HttpServer(service._app, host="127.0.0.1", port=service.server.address[1])
