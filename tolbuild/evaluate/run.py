"""One evaluation from its config to its printed table and JSON line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tolbuild.checkpoint import Checkpoint, load_model, open_checkpoint
from tolbuild.evaluate.config import EvaluateConfig
from tolbuild.evaluate.generate import generate
from tolbuild.evaluate.perplexity import Score, measure
from tolbuild.evaluate.text import pack
from tolbuild.evaluate.variant import RowsOf, Variant
from tolbuild.model import MemoryLLM
from tolbuild.table import IdentityError, Table, open_table
from tolbuild.train.data import read_texts

_LINE_EVERY_S = 5.0


def evaluate(config: EvaluateConfig) -> dict[str, object]:
    """Measure and sample as the config says, print it all, and return what the JSON line holds.

    Raises:
        ValueError: options that do not fit the checkpoint, or no text.
        IdentityError: the table is of another checkpoint.
        ToLError: checkpoint or table cannot be read.
    """
    checkpoint = open_checkpoint(config.checkpoint)
    table = None if config.table is None else open_matching_table(config, checkpoint)
    model = load_model(checkpoint).to(_device(config))
    variants = make_variants(config, table)
    for variant in variants:
        variant.check(model)
    samples = _samples(config, checkpoint, model, variants[-1])
    scores = [] if config.limit == 0 else _scores(config, checkpoint, model, variants)
    result: dict[str, object] = {
        "checkpoint": config.checkpoint,
        "fingerprint": checkpoint.fingerprint,
        "table": config.table,
        "version": None if table is None else table.manifest.version,
        "num_tokens": scores[0].num_tokens if scores else 0,
        "num_bytes": scores[0].num_bytes if scores else 0,
        "results": [score.as_dict() for score in scores],
        "samples": samples,
    }
    if scores:
        print(score_table(scores))
    print(json.dumps(result), flush=True)
    return result


def open_matching_table(config: EvaluateConfig, checkpoint: Checkpoint) -> Table:
    """The table of the config.

    Raises:
        IdentityError: it was built from another checkpoint.
    """
    assert config.table is not None
    table = open_table(config.table, version=config.version)
    theirs, ours = table.manifest.model_fingerprint, checkpoint.fingerprint
    if theirs != ours:
        raise IdentityError(
            f"{config.table} is a table of the checkpoint {theirs[:16]}, {config.checkpoint} is {ours[:16]}; "
            "give the checkpoint that the table was built from"
        )
    return table


def make_variants(config: EvaluateConfig, table: Table | None) -> list[Variant]:
    """The dense model, and the one that the options ask for if that is another."""
    dense = Variant(name="dense")
    if table is None and config.alpha == 1 and not config.drop_layers:
        return [dense]
    origin = "dense" if table is None else "table"
    alpha = f", alpha {config.alpha:g}" if config.alpha != 1 else ""
    dropped = f", without layers {' '.join(map(str, config.drop_layers))}" if config.drop_layers else ""
    rows_of = None if table is None else _rows_of(table)
    name = f"{origin}{alpha}{dropped}"
    return [dense, Variant(name=name, rows_of=rows_of, alpha=config.alpha, drop_layers=config.drop_layers)]


def score_table(scores: Sequence[Score]) -> str:
    """The scores as a small table for a person, changes against the first."""
    width, first = max(len(score.variant.name) for score in scores), scores[0].perplexity
    lines = [f"{'':<{width}}  {'perplexity':>10}  {'change':>8}  {'per byte':>8}  {'bits/byte':>9}  {'tokens/s':>8}"]
    lines += [
        f"{score.variant.name:<{width}}  {score.perplexity:>10.3f}  {score.perplexity / first - 1:>+8.2%}  "
        f"{score.byte_perplexity:>8.4f}  {score.bits_per_byte:>9.4f}  {score.num_tokens / score.seconds:>8,.0f}"
        for score in scores
    ]
    tokens, text_bytes = scores[0].num_tokens, scores[0].num_bytes
    return "\n".join([*lines, f"on {tokens:,} tokens, {text_bytes:,} bytes of text"])


def _rows_of(table: Table) -> RowsOf:
    def rows(ids_N: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(table.rows(ids_N))

    return rows


def _device(config: EvaluateConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but there is no GPU here; use --device auto or cpu")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def _scores(
    config: EvaluateConfig, checkpoint: Checkpoint, model: MemoryLLM, variants: Sequence[Variant]
) -> list[Score]:
    missing = [str(path) for path in config.data if not path.is_file()]
    if missing:
        raise ValueError(f"no such file: {', '.join(missing)}; run from the repository's root or give --data")
    length = config.sequence_length or checkpoint.config.max_position_embeddings
    text = pack(checkpoint.tokenizer(), read_texts(config.data))
    progress = _Progress(min(len(text.ids_N) - 1, config.limit or len(text.ids_N)) // length * length)
    scores: list[Score] = []
    for scores in measure(model, variants, text, length=length, limit=config.limit, batch=config.batch):
        progress.show(scores)
    progress.end()
    return scores


def _samples(
    config: EvaluateConfig, checkpoint: Checkpoint, model: MemoryLLM, variant: Variant
) -> list[dict[str, object]]:
    tokenizer = checkpoint.tokenizer() if config.prompt else None
    samples: list[dict[str, object]] = []
    for prompt in config.prompt:
        assert tokenizer is not None
        bos = checkpoint.config.bos_token_id
        ids = ([] if bos is None else [bos]) + tokenizer.encode(prompt).ids
        made = list(
            generate(
                model, variant, ids, max_tokens=config.max_tokens, temperature=config.temperature, seed=config.seed
            )
        )
        text = tokenizer.decode(made)
        print(f"[{variant.name}] {prompt}|{text}\n")
        samples.append({"variant": variant.name, "prompt": prompt, "text": text, "num_tokens": len(made)})
    return samples


@dataclass
class _Progress:
    """A line that renews itself in a terminal, a plain one now and then in a log."""

    total: int
    began: float = field(default_factory=time.monotonic)
    shown: float = field(default_factory=time.monotonic)

    def show(self, scores: Sequence[Score]) -> None:
        now, done = time.monotonic(), scores[0].num_tokens
        if now - self.shown < (0.2 if sys.stderr.isatty() else _LINE_EVERY_S):
            return
        self.shown = now
        rate = done / (now - self.began)
        figures = "  ".join(f"{score.variant.name} {score.perplexity:.3f}" for score in scores)
        line = f"{done:>9,} of {self.total:,} tokens  {figures}  {(self.total - done) / rate:,.0f} s left"
        print(f"\r{line}\x1b[K" if sys.stderr.isatty() else line, end=self._end, file=sys.stderr, flush=True)

    def end(self) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    @property
    def _end(self) -> str:
        return "" if sys.stderr.isatty() else "\n"
