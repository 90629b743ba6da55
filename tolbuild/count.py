"""`python -m tolbuild.count`: how often each token occurs in text, for `python -m tolbuild.run --weights counts:FILE`.

    python -m tolbuild.count --checkpoint builtin:tiny --data data/public_domain.train.jsonl.gz --out counts.json

The file is a JSON list of V numbers, or a .npy array where --out ends so; entry i is the count of token id i.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tolbuild.checkpoint import open_checkpoint
from tolbuild.table.errors import ToLError
from tolbuild.train.data import END_OF_TEXT, read_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_DOCUMENTS = 256
"""Texts encoded together."""


@dataclass(frozen=True, kw_only=True)
class CountConfig:
    """One count.

    Raises:
        ValueError: no text, or a negative number to add.
    """

    checkpoint: str
    """Checkpoint folder or URL, for its tokenizer: a path, s3://, or builtin:tiny."""
    data: tuple[Path, ...]
    """Text: JSON lines with a `text` field, gzip or plain."""
    out: Path
    """Where the counts go: JSON, or a NumPy array if the name ends in .npy."""
    add: float = 1.0
    """Added to every count, so that a token which the text does not have still counts a little."""

    def __post_init__(self) -> None:
        if self.add < 0:
            raise ValueError(f"--add is {self.add}; it cannot be negative")
        if not self.data:
            raise ValueError("--data names no file")


def main(arguments: Sequence[str] | None = None) -> int:
    """Count and write; 0 when done, 1 with the reason on standard error."""
    from tolbuild.cli import parse

    try:
        config = parse(CountConfig, module="tolbuild.count", doc=__doc__, arguments=arguments)
        checkpoint = open_checkpoint(config.checkpoint)
        counts_V = count(checkpoint.tokenizer(), read_texts(config.data), checkpoint.config.vocab_size)
        save(config.out, counts_V, config.add)
    except (ValueError, ToLError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seen = int(np.count_nonzero(counts_V))
    print(f"{config.out}: {int(counts_V.sum()):,} tokens, {seen:,} of {len(counts_V):,} ids among them")
    return 0


def count(tokenizer: Tokenizer, texts: Iterable[str], vocab_size: int) -> NDArray[np.int64]:
    """Occurrences of each token id, int64 [V]; a document ends with END_OF_TEXT where the tokenizer has it.

    Raises:
        ValueError: the tokenizer gives ids beyond the vocabulary.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    counts_V = np.zeros(vocab_size, np.int64)
    for some in _batches(texts):
        ids = np.concatenate([np.asarray(encoding.ids, np.int64) for encoding in tokenizer.encode_batch(some)])
        if len(ids) and int(ids.max()) >= vocab_size:
            raise ValueError(f"the tokenizer gives the id {int(ids.max())}; the model has {vocab_size} tokens")
        counts_V += np.bincount(ids, minlength=vocab_size)
        if end is not None:
            counts_V[end] += len(some)
    return counts_V


def save(path: Path, counts_V: NDArray[np.int64], add: float) -> None:
    """Write counts as `tolbuild.weighting.token_weights` reads them."""
    numbers_V = counts_V + add
    if path.suffix == ".npy":
        np.save(path, numbers_V)
    else:
        path.write_text(json.dumps(numbers_V.tolist()) + "\n")


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    some: list[str] = []
    for text in texts:
        some.append(text)
        if len(some) == _DOCUMENTS:
            yield some
            some = []
    if some:
        yield some


if __name__ == "__main__":
    sys.exit(main())
