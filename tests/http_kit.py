"""What tests of the HTTP application share: a real server in this process, over a scripted engine or a real one."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
from scripted_engine import VOCAB_SIZE, LetterTokenizer, ScriptedEngine

from tolbuild.checkpoint import open_checkpoint
from tolserve.app import App, AppConfig
from tolserve.async_engine import CompletionEngine, LocalEngine
from tolserve.engine.load import build_engine
from tolserve.engine.request import RowsUnavailableError
from tolserve.http_server import HttpServer
from tolserve.link.fleet import Fleet
from tolserve.link.server import LinkServer
from tolserve.openai_api.prompts import ModelInfo
from tolserve.replica import engine_config
from tolserve.serve_config import ServeConfig, model_info

MODEL = ModelInfo(name="letters", vocab_size=VOCAB_SIZE, max_model_len=4096)
FAULTS: dict[int, Exception] = {
    1: RowsUnavailableError("no memory node"),
    2: ValueError("never fits"),
    3: KeyError("x"),
}


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come about in time"
        time.sleep(0.005)


class Service:
    """A server with `engines` behind it, directly or over links; they fail at the prompts of `faults`."""

    def __init__(self, config: AppConfig, *, linked: int, faults: dict[int, Exception]) -> None:
        self.engines = [ScriptedEngine(faults) for _ in range(max(1, linked))]
        self.links = [LinkServer(one, host="127.0.0.1", hello={}) for one in self.engines[:linked]]
        self.engine: Any = None
        self._config = config
        self.server = HttpServer(self._app, host="127.0.0.1", port=0)
        self.url = f"http://127.0.0.1:{self.server.address[1]}/v1"

    async def _app(self) -> App:
        engine: CompletionEngine
        if self.links:
            engine = fleet = Fleet(deadline_s=0.5)
            await fleet.update({str(i): link.address for i, link in enumerate(self.links)})
        else:
            engine = LocalEngine(self.engines[0])
        self.engine = engine
        return App(engine, MODEL, LetterTokenizer(), self._config)

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0)

    def raw(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers of a request that has the key, where there is one."""
        connection = http.client.HTTPConnection(*self.server.address, timeout=20)
        key = self._config.api_key
        connection.request(method, path, body, {"Authorization": f"Bearer {key}"} if key else {})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        kind = answer.headers["content-type"]
        return (
            answer.status,
            json.loads(text) if kind == "application/json" else text.decode(),
            dict(answer.headers),
        )

    def post(self, **fields: Any) -> tuple[int, Any, dict[str, str]]:
        body = {"model": "letters", "prompt": "abc", "max_tokens": 4, **fields}
        return self.raw("POST", "/v1/completions", json.dumps(body).encode())

    def stop(self) -> None:
        for link in self.links:
            link.stop()
        self.server.stop()
        if isinstance(self.engine, LocalEngine):
            self.engine.stop()


@contextmanager
def running(config: AppConfig, *, linked: int = 0, faults: dict[int, Exception] = FAULTS) -> Iterator[Service]:
    service = Service(config, linked=linked, faults=faults)
    try:
        yield service
    finally:
        for engine in service.engines:
            engine.gate.set()
        service.stop()


@contextmanager
def running_model(checkpoint: str) -> Iterator[HttpServer]:
    """The checkpoint's own engine, its rows computed here, behind the real server."""
    config = ServeConfig(checkpoint=checkpoint)
    opened = open_checkpoint(checkpoint)
    engine = build_engine(checkpoint, None, engine_config(config, opened.config))
    started: list[LocalEngine] = []

    async def make() -> App:
        started.append(LocalEngine(engine))
        return App(started[0], model_info(config, opened.config), opened.tokenizer(), AppConfig())

    server = HttpServer(make, host="127.0.0.1", port=0)
    try:
        yield server
    finally:
        server.stop()
        started[0].stop()
