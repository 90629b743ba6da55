"""What is sent and when, as a list of frozen values that is complete before the first request goes out."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tolbuild.checkpoint import open_checkpoint
from tolserve.bench.load.config import DEFAULT_INPUT_LEN, DEFAULT_OUTPUT_LEN, LoadConfig

CORPUS = Path("data/public_domain.valid.jsonl.gz")
HASH_BLOCK = 512
"""Tokens that one of a trace's `hash_ids` stands for."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request.

    Attributes:
        prompt: text or token ids.
        max_tokens: to generate.
        at_s: when it is due, in seconds from the run's start; 0 where the loop is closed.
    """

    prompt: str | list[int]
    max_tokens: int
    at_s: float = 0.0


def make_workload(config: LoadConfig, vocab_size: int | None) -> list[Ask]:
    """The run's requests in the order in which they are due; the same config gives the same ones.

    Args:
        vocab_size: random ids are below it; None where nobody knows.

    Raises:
        ValueError: random ids are needed and `vocab_size` is None, or a file does not hold what it must.
    """
    draw = random.Random(config.seed)
    if config.dataset == "corpus":
        asks = _corpus(config, draw)
    elif vocab_size is None:
        raise ValueError("the endpoint does not tell its vocabulary's size; give --vocab-size")
    elif config.dataset == "trace":
        asks = _trace(config, draw, vocab_size)
    else:
        length = config.input_len or DEFAULT_INPUT_LEN
        asks = [_ask(config, _random_ids(draw, length, vocab_size)) for _ in range(config.num_prompts)]
    if config.request_rate is not None:
        times = poisson_times(config.request_rate, len(asks), random.Random(config.seed))
        asks = [replace(ask, at_s=at_s) for ask, at_s in zip(asks, times, strict=True)]
    elif config.max_concurrency is not None:
        asks = [replace(ask, at_s=0.0) for ask in asks]
    return asks


def poisson_times(rate: float, count: int, draw: random.Random) -> list[float]:
    """Arrival times in seconds: gaps are exponential with the mean 1 / rate; all 0 at an infinite rate."""
    if math.isinf(rate):
        return [0.0] * count
    times, now = [], 0.0
    for _ in range(count):
        now += draw.expovariate(rate)
        times.append(now)
    return times


def _ask(config: LoadConfig, prompt: str | list[int]) -> Ask:
    return Ask(prompt=prompt, max_tokens=config.output_len or DEFAULT_OUTPUT_LEN)


def _random_ids(draw: random.Random, count: int, vocab_size: int) -> list[int]:
    return [draw.randrange(vocab_size) for _ in range(count)]


def _corpus(config: LoadConfig, draw: random.Random) -> list[Ask]:
    """Pieces that begin at random words of the text."""
    path = config.dataset_path or CORPUS
    if not path.exists():
        raise ValueError(f"the corpus {path} is not there; run this in the repository's root, or give --dataset-path")
    words = [word for _, line in _json_lines(path) for word in str(line["text"]).split(" ")]
    length = config.input_len or DEFAULT_INPUT_LEN
    if len(words) <= length:
        raise ValueError(f"{path} has {len(words)} words; prompts of {length} need more")
    encode = None if config.tokenizer is None else open_checkpoint(config.tokenizer).tokenizer().encode
    asks = []
    for _ in range(config.num_prompts):
        start = draw.randrange(len(words) - length)
        text = " ".join(words[start : start + length])
        asks.append(_ask(config, text if encode is None else encode(text).ids[:length]))
    return asks


def _trace(config: LoadConfig, draw: random.Random, vocab_size: int) -> list[Ask]:
    """Requests as a trace has them, one JSON object a line.

    `timestamp` in ms, `input_length` and `output_length` in tokens, as in the traces of Mooncake. Equal `hash_ids` are
    equal blocks of 512 tokens. Instead of `input_length` a line can have a `prompt`, text or ids.
    """
    assert config.dataset_path is not None
    asks: list[Ask] = []
    for number, line in _json_lines(config.dataset_path):
        if len(asks) == config.num_prompts:
            break
        try:
            prompt = line["prompt"] if "prompt" in line else _traced_ids(line, draw, vocab_size, config.seed)
            asks.append(Ask(prompt=prompt, max_tokens=int(line["output_length"]), at_s=float(line["timestamp"]) / 1e3))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{config.dataset_path}, line {number}: {error!r}") from error
    if not asks:
        raise ValueError(f"{config.dataset_path} has no request")
    start = min(ask.at_s for ask in asks)
    return sorted((replace(ask, at_s=ask.at_s - start) for ask in asks), key=lambda ask: ask.at_s)


def _traced_ids(line: dict[str, Any], draw: random.Random, vocab_size: int, seed: int) -> list[int]:
    length = int(line["input_length"])
    ids: list[int] = []
    for block in line.get("hash_ids", ()):
        ids += _random_ids(random.Random(f"{seed} {block}"), HASH_BLOCK, vocab_size)
    return (ids + _random_ids(draw, max(0, length - len(ids)), vocab_size))[:length]


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with their line numbers from 1.

    Raises:
        ValueError: the file cannot be read, or a line is no JSON object.
    """
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, text in enumerate(lines, start=1):
                if text.strip():
                    line = json.loads(text)
                    if not isinstance(line, dict):
                        raise ValueError("not a JSON object")
                    yield number, line
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read beyond line {number}: {error}") from error
