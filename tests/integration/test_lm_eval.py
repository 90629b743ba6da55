"""EleutherAI's lm-evaluation-harness against the endpoint: its log-likelihoods are the engine's own and the model's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from http_kit import running_model

import tolbuild
from tolbuild.checkpoint import load_model, open_checkpoint
from tolserve.engine.config import EngineConfig
from tolserve.engine.load import build_engine
from tolserve.engine.request import SamplingParams

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -c constraints.txt -e '.[clients]'")

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

pytestmark = pytest.mark.slow  # importing it takes ten seconds

CHECKPOINT = "builtin:tiny"
TOKENIZER = str(Path(tolbuild.__file__).parent / "assets" / "tiny")
PAIRS = [
    ("The whale", " is the largest of"),
    ("In the beginning of the year", ", the expenditures were $2,430"),
    ("Call me", " Ishmael. Some years ago - never mind how long"),
    ("", "It was the best of times"),
    ("Grüße", " né 深"),
]
TEXTS = ["The whale is the largest of all.", "a", "Whenever I find myself growing grim. " * 60]
ABSOLUTE = 2e-3
"""Log-probabilities are summed in fp32 over hundreds of tokens, in batches of other shapes."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_model(CHECKPOINT) as server:
        yield f"http://127.0.0.1:{server.address[1]}/v1/completions"


def harness(url: str, **options: Any) -> Any:
    """lm-eval's own client, with the tokenizer of the shipped checkpoint."""
    settings = {"tokenizer_backend": "huggingface", "tokenizer": TOKENIZER, "max_length": 512, "max_retries": 1}
    return LocalCompletionsAPI(base_url=url, model="tiny", **settings, **options)


def instances(kind: str, arguments: list[tuple[str, ...]]) -> list[Any]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]


class Own:
    """Log-probabilities of every token after the first, without a server."""

    def __init__(self) -> None:
        self._engine = build_engine(CHECKPOINT, None, EngineConfig(max_model_len=512))
        self._model = load_model(open_checkpoint(CHECKPOINT)).eval()

    def engine(self, ids: list[int]) -> list[float]:
        """By an engine that has nothing else to do."""
        self._engine.add_request("one", ids, SamplingParams(max_tokens=0, prompt_logprobs=0))
        scores: list[Any] = []
        while self._engine.has_work():
            for output in self._engine.step():
                scores = list(output.prompt_logprobs or scores)
        assert scores[0] is None
        return [score.logprob for score in scores[1:]]

    def model(self, ids: list[int]) -> tuple[list[float], list[bool]]:
        """By the dense model, and whether each token was the likeliest."""
        with torch.no_grad():
            logprobs_SV = self._model(torch.tensor([ids]))[0].log_softmax(-1)[:-1]
        next_ids = torch.tensor(ids[1:])
        likeliest: list[bool] = (logprobs_SV.argmax(-1) == next_ids).tolist()
        return logprobs_SV.gather(1, next_ids[:, None])[:, 0].tolist(), likeliest


@pytest.fixture(scope="module")
def own() -> Own:
    return Own()


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_size": 4}, {"num_concurrent": 3}, {"tokenized_requests": False}],
    ids=["one by one", "batched ids", "concurrent", "as text"],
)
def test_loglikelihoods_are_the_engines_own(url: str, own: Own, options: dict[str, Any]) -> None:
    client = harness(url, **options)
    pairs = [pair for pair in PAIRS if pair[0] or options.get("tokenized_requests", True)]
    found = client.loglikelihood(instances("loglikelihood", pairs))
    for (context, continuation), (total, greedy) in zip(pairs, found, strict=True):
        before, after = client._encode_pair(context, continuation) if context else ([], client.tok_encode(continuation))
        ids = [*(before or [client.prefix_token_id]), *after]
        dense, likeliest = own.model(ids)
        assert total == pytest.approx(sum(dense[-len(after) :]), abs=ABSOLUTE)
        assert total == pytest.approx(sum(own.engine(ids)[-len(after) :]), abs=ABSOLUTE)
        assert greedy == all(likeliest[-len(after) :])


def test_rolling_loglikelihoods_are_the_engines_own(url: str, own: Own) -> None:
    client = harness(url, batch_size=2)
    found = client.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,) for text in TEXTS]))
    for text, total in zip(TEXTS, found, strict=True):
        ids = [client.prefix_token_id, *client.tok_encode(text)]
        assert total == pytest.approx(sum(own.model(ids)[0]), abs=ABSOLUTE)
        assert total == pytest.approx(sum(own.engine(ids)), abs=ABSOLUTE)


def test_generation_stops_where_the_harness_says(url: str) -> None:
    client = harness(url)
    asked = {"until": ["\n", "."], "max_gen_toks": 12, "temperature": 0}
    (text,) = client.generate_until([Instance(request_type="generate_until", doc={}, arguments=("The", asked), idx=0)])
    assert text and "." not in text and "\n" not in text
