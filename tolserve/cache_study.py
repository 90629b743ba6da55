"""`python -m tolserve.cache_study`: how many rows a cache of each size and policy would have to fetch.

Text is cut into requests and batched as the engine batches them: `decode` (outputs only, one token of each sequence a
step), `prompt` (prompts only, in chunks), `served` (prompts of 512 tokens and outputs of 128 side by side) and
`documents` (the same, from one document after another, where the others take requests at random). The rows of each
step, every id once, go through the row cache that serves. For each cache size it prints the share of the rows that must
be fetched, a cold start and one warm from the counts of other text, beside Belady's optimum, which knows the future.
Streams named zipf are synthetic.

Examples:

  the shipped tokenizer and the corpus of this repository:
    python -m tolserve.cache_study

  larger vocabularies beside it, trained on the same text and kept for the next time:
    python -m tolserve.cache_study --train-vocab 32768 131072 --folder /tmp/tokenizers --out study.json

  your own model and text, two sizes:
    python -m tolserve.cache_study --tokenizer s3://models/mine --text mine.jsonl.gz --shares 5% 10%
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tolbuild.bench.machine import describe
from tolbuild.cli import parse
from tolbuild.table.errors import ToLError
from tolbuild.train.data import read_texts
from tolserve.study.curves import curves
from tolserve.study.tokens import TokenSet, load_tokenizer, text_tokens, trained_tokenizer, zipf_tokens
from tolserve.study.traces import Workload

Stream = Literal["decode", "prompt", "served", "documents"]

_SHARES = ("0.5%", "1%", "2%", "5%", "10%", "20%", "50%")


@dataclass(frozen=True, kw_only=True)
class CacheStudyConfig:
    """One study.

    Raises:
        ValueError: a share outside (0, 100] %, a number that is too small, or a file that is not there.
    """

    tokenizer: tuple[str, ...] = ("builtin:tiny",)
    """Tokenizers: a tokenizer.json, or a checkpoint that has one (a path, s3:// or builtin:tiny)."""
    train_vocab: tuple[int, ...] = ()
    """Sizes of further byte-level BPE vocabularies, trained on the text (some 15 s each for the corpus)."""
    folder: Path | None = None
    """Where trained tokenizers are kept and found again; they are trained anew without it."""
    text: tuple[Path, ...] = (Path("data/public_domain.train.jsonl.gz"),)
    """JSON lines with a `text` field, gzip or plain."""
    streams: tuple[Stream, ...] = ("decode", "prompt", "served", "documents")
    """Which streams of requests."""
    zipf_vocab: int = 131072
    """Ids of the synthetic stream, which is decoded only; 0 leaves it out."""
    tokens: int = 500_000
    """Tokens of each stream; the text has to have as many again, which are counted for the warm start."""
    num_seqs: int = 64
    """Sequences that run at once."""
    num_batched_tokens: int = 1024
    """Tokens of a step at most."""
    shares: tuple[str, ...] = _SHARES
    """Cache sizes as shares of the vocabulary's rows."""
    policies: tuple[Literal["lru", "s3fifo", "frequency"], ...] = ("lru", "s3fifo", "frequency")
    """As in `tolserve.run --cache-policy`; Belady's optimum always stands beside them."""
    seed: int = 0
    """Order of documents and requests, their lengths, synthetic draws."""
    out: Path | None = None
    """Write the result there as JSON."""

    def __post_init__(self) -> None:
        missing = [str(path) for path in self.text if not path.is_file()]
        if missing:
            raise ValueError(
                f"--text {', '.join(missing)}: no such file; run in the root of the repository or name one"
            )
        if self.tokens < 1000 or self.zipf_vocab < 0 or any(size < 512 for size in self.train_vocab):
            raise ValueError("--tokens is at least 1000, --train-vocab at least 512, --zipf-vocab not negative")
        if not self.share_values or not self.streams:
            raise ValueError("--shares or --streams is empty")
        self.workload(self.streams[0])

    @property
    def share_values(self) -> tuple[float, ...]:
        """`shares` as numbers, ascending."""
        return tuple(sorted(_share(text) for text in self.shares))

    def workload(self, stream: Stream) -> Workload:
        """The requests of a stream."""
        lengths = {"decode": (1, 256), "prompt": (512, 1), "served": (512, 128), "documents": (512, 128)}
        return Workload(
            name=stream,
            prompt_tokens=lengths[stream][0],
            output_tokens=lengths[stream][1],
            num_seqs=self.num_seqs,
            num_batched_tokens=self.num_batched_tokens,
            in_order=stream == "documents",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Study and print; 0 when done, 1 with the reason on standard error."""
    try:
        config = parse(CacheStudyConfig, module="tolserve.cache_study", doc=__doc__, arguments=arguments)
        results = []
        for tokens, workload in _streams(config):
            result = curves(tokens, workload, shares=config.share_values, policies=config.policies, seed=config.seed)
            print(table(result, config.share_values), flush=True)
            results.append(result)
    except (ValueError, ToLError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if config.out is not None:
        config.out.write_text(json.dumps(_report(config, results, arguments), indent=1) + "\n")
    return 0


def table(result: dict[str, Any], shares: Sequence[float]) -> str:
    """The miss ratios of one stream for readers, in percent."""
    head = (
        f"\n{result['tokenizer']}, {result['vocab_size']:,} ids, {result['stream']}: {result['tokens']:,} tokens in "
        f"{result['steps']:,} steps ask for {result['rows']:,} rows, {result['distinct']:,} different ones\n"
        f"rows fetched, %{'cache':>10}" + "".join(f"{share:>8.1%}" for share in shares)
    )
    lines = [
        f"{name:>15}{start:>10}" + "".join(f"{100 * ratio:8.2f}" for ratio in ratios)
        for name, starts in result["miss_ratio"].items()
        for start, ratios in starts.items()
    ]
    return "\n".join([head, *lines])


def _streams(config: CacheStudyConfig) -> Iterator[tuple[TokenSet, Workload]]:
    texts = list(read_texts(config.text))
    for place in config.tokenizer:
        tokens = text_tokens(place, "as given", load_tokenizer(place), texts, config.tokens, seed=config.seed)
        yield from ((tokens, config.workload(stream)) for stream in config.streams)
    for size in config.train_vocab:
        about = f"byte-level BPE trained on the text for {size:,} tokens"
        tokenizer = trained_tokenizer(config.text, size, config.folder)
        tokens = text_tokens(f"bpe-{size}", about, tokenizer, texts, config.tokens, seed=config.seed)
        yield from ((tokens, config.workload(stream)) for stream in config.streams)
    if config.zipf_vocab:
        yield zipf_tokens(config.zipf_vocab, config.tokens, seed=config.seed), config.workload("decode")


def _report(config: CacheStudyConfig, results: list[dict[str, Any]], arguments: Sequence[str] | None) -> dict[str, Any]:
    words = sys.argv[1:] if arguments is None else arguments
    about = describe(torch.device("cpu"), config.seed, " ".join(["python -m tolserve.cache_study", *words]))
    return {"study": "caches", "shares": config.share_values, "results": results, **about}


def _share(text: str) -> float:
    number = text.removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = 0.0
    if not (text.endswith("%") and 0 < share <= 1):
        raise ValueError(f"--shares has {text!r}; write a percentage above 0 % and up to 100 %, as 0.5%")
    return share


if __name__ == "__main__":
    sys.exit(main())
