"""Token streams for benches: real text mapped onto a vocabulary by frequency rank, and Zipf draws.

Words and punctuation marks of the training corpus are ranked by how often they occur: the most frequent is token 0. The
stream is the validation text, which the ranking has not seen; a word that the training text lacks is hashed onto the
ranks behind those in use. A checkpoint's own tokenizer is not used: with a few thousand tokens in all, a cache of a
tenth of a 128k vocabulary would hold every one of them.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+|[^\w\s]")
_ZIPF_ALPHA = 1.05


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """Tokens in the order they come, and how often each was seen in other text of the kind.

    Attributes:
        tokens: int64 ids.
        counts: int64 [V], what a frequency policy is given.
    """

    name: str
    tokens: NDArray[np.int64]
    counts: NDArray[np.int64]

    def batches(self, batch: int, num_steps: int) -> NDArray[np.int64]:
        """[num_steps, batch]: `batch` readers at evenly spaced places of the stream, one token each a step."""
        starts = np.arange(batch) * (len(self.tokens) // batch)
        batches: NDArray[np.int64] = self.tokens[(starts + np.arange(num_steps)[:, None]) % len(self.tokens)]
        return batches


def text_stream(folder: Path, vocab_size: int) -> TokenStream:
    """The public-domain corpus.

    Raises:
        ValueError: it is not in `folder`.
    """
    train, valid = folder / "public_domain.train.jsonl.gz", folder / "public_domain.valid.jsonl.gz"
    if not (train.exists() and valid.exists()):
        raise ValueError(f"the corpus is not in {folder}; run this in the repository's root, which has data/")
    seen: Counter[str] = Counter()
    for words in _words(train):
        seen.update(words)
    ranked = seen.most_common(vocab_size)
    rank = {word: index for index, (word, _) in enumerate(ranked)}
    counts = np.zeros(vocab_size, np.int64)
    counts[: len(ranked)] = [count for _, count in ranked]
    first = min(len(ranked), vocab_size // 2)
    unseen = vocab_size - first
    tokens = [rank.get(word, first + zlib.crc32(word.encode()) % unseen) for words in _words(valid) for word in words]
    return TokenStream(name="text", tokens=np.array(tokens, np.int64), counts=counts)


def zipf_stream(vocab_size: int, length: int, seed: int) -> TokenStream:
    """Independent draws, P(rank k) proportional to (k + 1) ** -1.05."""
    weights = np.arange(1, vocab_size + 1) ** -_ZIPF_ALPHA
    weights /= weights.sum()
    draw = np.random.default_rng(seed)
    tokens = np.minimum(np.searchsorted(np.cumsum(weights), draw.random(length)), vocab_size - 1)
    return TokenStream(name="zipf", tokens=tokens, counts=(weights * 1e9).astype(np.int64))


def _words(path: Path) -> list[list[str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [_WORD.findall(json.loads(line)["text"]) for line in lines]
