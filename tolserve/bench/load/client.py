"""One streamed completion, timed where its bytes arrive."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tolserve.bench.load.config import LoadConfig
from tolserve.bench.load.workload import Ask

_ERROR_CHARS = 300


@dataclass
class Outcome:
    """How one request went; times in seconds.

    Attributes:
        start_s: when it was sent, from the run's start.
        lag_s: how much later than due that was.
        ttft_s: from sending to the first token.
        latency_s: from sending to the last token.
        itl_s: from each event with a token to the next; events that one read brought came together.
        usage: what the endpoint counted.
        error: why it failed; empty where it did not.
    """

    start_s: float = 0.0
    lag_s: float = 0.0
    ttft_s: float = 0.0
    latency_s: float = 0.0
    itl_s: list[float] = field(default_factory=list)
    text: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def output_len(self) -> int:
        """Tokens that came, by the endpoint's count, else by the events."""
        return 0 if self.error else int(self.usage.get("completion_tokens") or 1 + len(self.itl_s))

    @property
    def input_len(self) -> int:
        """Prompt tokens by the endpoint's count."""
        return int(self.usage.get("prompt_tokens", 0))

    @property
    def tpot_s(self) -> float:
        """Time a token after the first; 0 where there was one only."""
        return 0.0 if self.output_len < 2 else (self.latency_s - self.ttft_s) / (self.output_len - 1)


class Endpoint:
    """Sends requests to one endpoint over as many connections as there are requests open."""

    def __init__(self, config: LoadConfig) -> None:
        self._config = config
        headers = {} if config.api_key is None else {"Authorization": f"Bearer {config.api_key}"}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=config.request_timeout_s),
        )
        self._fields: dict[str, Any] = {}

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def card(self) -> dict[str, Any]:
        """What the endpoint tells of the model that is asked for, its first one where none was named.

        Raises:
            ValueError: it cannot be reached, refuses, or does not have the model.
        """
        url = f"{self._config.base_url}/v1/models"
        try:
            async with self._session.get(url) as answer:
                if answer.status != 200:
                    raise ValueError(f"{url} answered {answer.status}: {(await answer.text())[:_ERROR_CHARS]}")
                cards: list[dict[str, Any]] = (await answer.json())["data"]
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ValueError(f"{url} cannot be reached: {error}") from error
        wanted = [one for one in cards if self._config.model in (None, one["id"])]
        if not wanted:
            raise ValueError(f"{url} has no model {self._config.model!r}; it has {[one['id'] for one in cards]}")
        self._fields = self._common(wanted[0]["id"])
        return wanted[0]

    def _common(self, model: str) -> dict[str, Any]:
        fields = {"model": model, "temperature": self._config.temperature, "stream": True}
        fields["stream_options"] = {"include_usage": True}
        chosen = {"ignore_eos": self._config.ignore_eos, "memory_bill": self._config.memory_bill}
        return fields | {name: True for name, wanted in chosen.items() if wanted}

    async def send(self, ask: Ask, *, began: float) -> Outcome:
        """Send it now and wait for its end; `began` is the run's start on `time.perf_counter`."""
        body = json.dumps({**self._fields, "prompt": ask.prompt, "max_tokens": ask.max_tokens}).encode()
        url, headers = f"{self._config.base_url}/v1/completions", {"Content-Type": "application/json"}
        sent = time.perf_counter()
        outcome = Outcome(start_s=sent - began, lag_s=sent - began - ask.at_s)
        try:
            async with self._session.post(url, data=body, headers=headers) as answer:
                if answer.status != 200:
                    outcome.error = f"{answer.status}: {_reason(await answer.text())}"
                    return outcome
                await _take(answer.content, outcome, sent)
        except TimeoutError:
            outcome.error = f"no end within {self._config.request_timeout_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        return outcome


async def _take(content: aiohttp.StreamReader, outcome: Outcome, sent: float) -> None:
    """Read events to the end of the stream and note when each came."""
    rest, last, ended = b"", 0.0, False
    pieces: list[str] = []
    async for data in content.iter_any():
        now = time.perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            text = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or not text:
                continue
            if text == b"[DONE]":
                ended = True
                continue
            event: Mapping[str, Any] = json.loads(text)
            if "error" in event:
                outcome.error = f"in the stream: {_reason(text.decode())}"
                return
            outcome.usage = event.get("usage") or outcome.usage
            if not event.get("choices"):
                continue
            if last:
                outcome.itl_s.append(now - last)
            else:
                outcome.ttft_s = now - sent
            last = now
            pieces.append(event["choices"][0].get("text") or "")
    outcome.text = "".join(pieces)
    outcome.latency_s = last - sent
    if not (ended and last):
        outcome.error = "the stream ended early" if last else "the stream had no token"


def _reason(body: str) -> str:
    """The message of an error as the OpenAI API words it, else the body's beginning."""
    try:
        return str(json.loads(body)["error"]["message"])[:_ERROR_CHARS]
    except (ValueError, KeyError, TypeError):
        return body[:_ERROR_CHARS]
