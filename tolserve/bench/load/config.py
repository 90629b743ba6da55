"""Every choice of a load run, as one frozen dataclass that the command line fills."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

SLO_METRICS = ("ttft", "tpot", "e2el")
DEFAULT_INPUT_LEN = 128
DEFAULT_OUTPUT_LEN = 64


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """One run: what is sent, when, and what counts as good.

    Raises:
        ValueError: a value that no run can have, or options that contradict each other.
    """

    url: str
    """Of the endpoint, http://HOST:PORT, with or without /v1."""
    request_rate: float | None = None
    """Open loop: requests a second, at times of a Poisson process however slow answers are; inf sends all at once."""
    max_concurrency: int | None = None
    """Closed loop: so many clients, each with one request at a time."""
    num_prompts: int = 100
    """Requests in all; with `trace` at most so many of its first lines."""
    dataset: Literal["corpus", "random", "trace"] = "random"
    """Prompts: pieces of real text, random token ids, or what a trace says of lengths and times."""
    dataset_path: Path | None = None
    """Of the corpus (JSON lines with "text", maybe gzipped; the repository's when left out) or the trace."""
    input_len: int | None = None
    """Tokens of a prompt (128); of a corpus without `tokenizer`, words."""
    output_len: int | None = None
    """Tokens to generate a request (64)."""
    tokenizer: str | None = None
    """A checkpoint whose tokenizer cuts the corpus into prompts of `input_len` tokens, sent as ids."""
    vocab_size: int | None = None
    """Random ids are below it; the endpoint's own word when left out."""
    model: str | None = None
    """The endpoint's first when left out."""
    api_key: str | None = field(default=None, repr=False)
    """Sent as `Authorization: Bearer`."""
    temperature: float = 0.0
    """Of the sampler; 0 is greedy."""
    ignore_eos: bool = True
    """Generate `output_len` tokens whatever they are."""
    memory_bill: bool = False
    """Ask what the rows of each request cost, and add it up."""
    goodput: tuple[str, ...] = ()
    """Limits in milliseconds that a good request keeps, as ttft:200 tpot:50 e2el:3000."""
    num_warmups: int = 0
    """Requests sent one after another before the run and not counted."""
    request_timeout_s: float = 3600.0
    """A request that takes longer has failed."""
    result_file: Path | None = None
    """Where the result is written as JSON."""
    save_detailed: bool = False
    """Write the lists by request as well: lengths, times, texts, errors."""
    seed: int = 0
    """Of prompts and arrival times."""

    def __post_init__(self) -> None:
        least = {"max_concurrency": 1, "num_prompts": 1, "input_len": 1, "output_len": 1, "num_warmups": 0, "seed": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{_option(name)} is {value}; it must be at least {bound}")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"--url is {self.url!r}; it begins with http:// or https://")
        if self.request_rate is not None and not self.request_rate > 0:
            raise ValueError(f"--request-rate is {self.request_rate}; it must be positive")
        if not self.request_timeout_s > 0:
            raise ValueError(f"--request-timeout-s is {self.request_timeout_s}; it must be positive")
        self._check_loop()
        self._check_dataset()
        parse_goodput(self.goodput)

    def _check_loop(self) -> None:
        if self.request_rate is not None and self.max_concurrency is not None:
            raise ValueError("--request-rate is an open loop, --max-concurrency a closed one; give one of them")
        if self.dataset != "trace" and self.request_rate is None and self.max_concurrency is None:
            raise ValueError("give --request-rate (open loop) or --max-concurrency (closed loop)")

    def _check_dataset(self) -> None:
        """Refuse what would have no effect."""
        if self.dataset == "trace" and self.dataset_path is None:
            raise ValueError("--dataset trace needs --dataset-path")
        useless: dict[str, dict[str, object]] = {
            "random": {"dataset_path": self.dataset_path, "tokenizer": self.tokenizer},
            "corpus": {"vocab_size": self.vocab_size},
            "trace": {"input_len": self.input_len, "output_len": self.output_len, "tokenizer": self.tokenizer},
        }
        for name, value in useless[self.dataset].items():
            if value is not None:
                raise ValueError(f"{_option(name)} says nothing with --dataset {self.dataset}")

    @property
    def base_url(self) -> str:
        """Without /v1 and without a slash at the end."""
        return self.url.rstrip("/").removesuffix("/v1")


def parse_goodput(limits: tuple[str, ...]) -> dict[str, float]:
    """Milliseconds by metric, of texts such as "ttft:200".

    Raises:
        ValueError: another metric, one twice, or no positive number.
    """
    found: dict[str, float] = {}
    for limit in limits:
        name, _, text = limit.partition(":")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if name not in SLO_METRICS or name in found or not 0 < value < math.inf:
            raise ValueError(
                f"--goodput {limit}: expected {', '.join(SLO_METRICS)}, each once, with milliseconds behind a colon"
            )
        found[name] = value
    return found


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
