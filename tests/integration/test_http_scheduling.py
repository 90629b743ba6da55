"""What a request may say of its scheduling, over HTTP with the real engine: deadlines, priorities, reused prefixes."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import http_kit
import openai
import pytest
from engine_models import VOCAB_SIZE, tiny_engine, tiny_model
from scripted_engine import LetterTokenizer, ScriptedEngine

from tolserve.app import App, AppConfig
from tolserve.async_engine import CompletionEngine, LocalEngine, StepEngine
from tolserve.engine.engine import Engine
from tolserve.engine.request import RequestOutput
from tolserve.http_server import HttpServer
from tolserve.link.fleet import Fleet
from tolserve.link.server import LinkServer
from tolserve.openai_api.prompts import ModelInfo

MODEL = ModelInfo(name="tiny", vocab_size=VOCAB_SIZE, max_model_len=128)
LONG = {"prompt": [1, 2, 3], "max_tokens": 120, "ignore_eos": True}


class Slow:
    """An engine whose steps take 10 ms more."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        for name in ("add_request", "cancel", "has_work", "stats"):
            setattr(self, name, getattr(engine, name))

    def step(self) -> list[RequestOutput]:
        time.sleep(0.01)
        return self.engine.step()


class Service:
    """A server over `engine`, in this process or behind a link."""

    def __init__(self, engine: StepEngine, *, linked: bool) -> None:
        self.link = LinkServer(engine, host="127.0.0.1", hello={}) if linked else None
        self._engine = engine
        self.engine: Any = None
        self.server = HttpServer(self._app, host="127.0.0.1", port=0)
        self.url = f"http://127.0.0.1:{self.server.address[1]}/v1"

    async def _app(self) -> App:
        engine: CompletionEngine
        if self.link is None:
            engine = LocalEngine(self._engine)
        else:
            engine = fleet = Fleet(deadline_s=20)
            await fleet.update({"0": self.link.address})
        self.engine = engine
        return App(engine, MODEL, LetterTokenizer(), AppConfig())

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.server.address, timeout=20)
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, text

    def post(self, **fields: Any) -> tuple[int, Any]:
        status, text = self.ask("POST", "/v1/completions", {"model": "tiny", "temperature": 0, **fields})
        return status, json.loads(text)

    def metric(self, start: str) -> float:
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))

    @property
    def num_running(self) -> int:
        """As the engine itself knows it; metrics of a link come now and then."""
        return int(self._engine.stats()["num_running"])

    def stop(self) -> None:
        if self.link is not None:
            self.link.stop()
        self.server.stop()
        if isinstance(self.engine, LocalEngine):
            self.engine.stop()


@contextmanager
def running(engine: Any, *, linked: bool) -> Iterator[Service]:
    service = Service(engine, linked=linked)
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(params=[False, True], ids=["local", "linked"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with running(Slow(tiny_engine(tiny_model("memory"), max_num_seqs=1)), linked=request.param) as one:
        yield one


wait_for = partial(http_kit.wait_for, timeout_s=10.0)


def test_a_deadline_ends_its_request_with_408_and_frees_its_blocks(service: Service) -> None:
    status, body = service.post(**LONG, deadline_s=0.2)
    assert (status, body["error"]["code"], body["error"]["param"]) == (408, "deadline_exceeded", "deadline_s")
    assert "deadline of 0." in body["error"]["message"]
    wait_for(lambda: service.metric("tol_deadlines_passed_total") == 1)
    wait_for(lambda: service.metric("vllm:kv_cache_usage_perc") == 0)
    assert service.metric("tol_http_answers_total{") == service.metric(
        'tol_http_answers_total{model_name="tiny",status="408"'
    )
    assert service.metric('vllm:request_success_total{finished_reason="error"') == 1
    assert service.post(prompt=[5], max_tokens=2, deadline_s=60)[0] == 200


def test_a_deadline_ends_a_stream_with_an_error_event(service: Service) -> None:
    body = {"model": "tiny", "temperature": 0, **LONG, "stream": True, "deadline_s": 0.3}
    status, text = service.ask("POST", "/v1/completions", body)
    events = text.decode().strip().split("\n\n")
    assert status == 200 and len(events) > 3
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    client = openai.OpenAI(base_url=service.url, api_key="none", max_retries=0)
    with pytest.raises(openai.APIError, match="deadline"):
        list(
            client.completions.create(
                model="tiny", prompt=[1], max_tokens=120, stream=True, extra_body={"deadline_s": 0.2}
            )
        )


def test_an_urgent_request_overtakes_and_the_other_still_ends_as_it_would(service: Service) -> None:
    fields = LONG | {"max_tokens": 40}
    _, alone = service.post(**fields)
    finished: list[tuple[str, str]] = []

    def ask(name: str, **fields: Any) -> None:
        finished.append((name, service.post(**LONG | fields)[1]["choices"][0]["text"]))

    first = threading.Thread(target=ask, args=("usual",), kwargs=fields)
    first.start()
    wait_for(lambda: service.num_running == 1)
    ask("urgent", prompt=[9], max_tokens=3, priority=-1)
    first.join()
    assert [name for name, _ in finished] == ["urgent", "usual"]
    assert finished[1][1] == alone["choices"][0]["text"]
    wait_for(lambda: service.metric("vllm:num_preemptions_total") == 1)


def test_reused_tokens_are_in_usage_in_the_bill_and_in_the_metrics(service: Service) -> None:
    fields = {"prompt": list(range(30)), "max_tokens": 4, "memory_bill": True, "ignore_eos": True}
    answers = [service.post(**fields)[1] for _ in range(2)]
    assert answers[0]["choices"] == answers[1]["choices"]
    usages = [answer["usage"] for answer in answers]
    assert [one["prompt_tokens_details"] for one in usages] == [{"cached_tokens": 0}, {"cached_tokens": 28}]
    assert [one["memory_bill"]["rows_needed"] for one in usages] == [33, 5]
    _, scored = service.post(**fields, echo=True, logprobs=1)
    assert scored["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert len(scored["choices"][0]["logprobs"]["tokens"]) == 34
    wait_for(lambda: service.metric("vllm:prefix_cache_queries_total") == 60)
    assert service.metric("vllm:prefix_cache_hits_total") == 28


def test_the_openai_client_reads_the_cached_tokens(service: Service) -> None:
    client = openai.OpenAI(base_url=service.url, api_key="none", max_retries=0)
    for cached in (0, 12):
        usage = client.completions.create(model="tiny", prompt=list(range(14)), max_tokens=2, n=2).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == cached


@pytest.mark.parametrize("linked", [False, True])
def test_a_request_is_answered_though_its_engine_is_stuck(linked: bool) -> None:
    engine = ScriptedEngine()
    engine.gate.clear()
    with running(engine, linked=linked) as service:
        status, body = service.post(prompt=[97], max_tokens=4, deadline_s=0.05)
        assert (status, body["error"]["code"]) == (408, "deadline_exceeded")
        assert "did not answer" in body["error"]["message"]
        wait_for(lambda: len(engine.cancelled) == 1)
        engine.gate.set()
        assert service.post(prompt=[97], max_tokens=4, deadline_s=10)[0] == 200


def test_waiting_for_a_replica_takes_from_the_deadline() -> None:
    with running(tiny_engine(tiny_model("base")), linked=True) as service:
        fleet: Fleet = service.engine
        assert service.link is not None
        service.link.stop()
        wait_for(lambda: not fleet.ready())
        answers: list[tuple[int, Any]] = []
        thread = threading.Thread(
            target=lambda: answers.append(service.post(prompt=[1], max_tokens=100, deadline_s=0.2))
        )
        thread.start()
        wait_for(lambda: bool(fleet.waiting))
        time.sleep(0.2)
        service.link = LinkServer(tiny_engine(tiny_model("base")), host="127.0.0.1", hello={})
        asyncio.run_coroutine_threadsafe(fleet.update({"new": service.link.address}), service.server.loop).result()
        thread.join()
        assert answers[0][0] == 408 and "waited for its turn" in answers[0][1]["error"]["message"]
