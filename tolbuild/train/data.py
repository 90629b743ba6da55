"""Text to packed token sequences: a tokenizer, one array of ids, and windows of it in a seeded order."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
"""The one special token: it ends each document and starts a prompt."""


def read_texts(paths: Sequence[Path]) -> Iterator[str]:
    """The `text` field of every JSON line.

    Raises:
        ValueError: a line is no JSON object with a text, named by file and number.
    """
    for path in paths:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield json.loads(line)["text"]
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise ValueError(f"{path} line {number} is no JSON object with a text: {error!r}") from error


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with `vocab_size` entries, END_OF_TEXT the first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_packed(tokenizer: Tokenizer, texts: Iterator[str]) -> NDArray[np.uint32]:
    """All documents' ids in one array [N], each document ended by END_OF_TEXT.

    Raises:
        ValueError: the tokenizer has no END_OF_TEXT.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise ValueError(f"the tokenizer has no {END_OF_TEXT} token to end a document with")
    pieces = [np.asarray([*encoding.ids, end], np.uint32) for encoding in tokenizer.encode_batch(list(texts))]
    return np.concatenate(pieces) if pieces else np.empty(0, np.uint32)


class PackedWindows:
    """Windows of `length` + 1 ids over a packed array, in an order that seed and step alone decide.

    Each pass over the data has its own offset and order, so a resumed run sees what the first would have seen.

    Raises:
        ValueError: the array is too short for one batch.
    """

    def __init__(self, ids_N: NDArray[np.uint32], *, length: int, batch: int, seed: int) -> None:
        self._ids, self._length, self._batch, self._seed = ids_N, length, batch, seed
        self._batches_per_epoch = (len(ids_N) - 1 - length) // length // batch
        if self._batches_per_epoch < 1:
            raise ValueError(f"{len(ids_N)} tokens do not fill one batch of {batch} sequences of {length}")

    def batch(self, step: int) -> NDArray[np.int64]:
        """Ids int64 [batch, length + 1] of a step; targets are the same ids one later."""
        epoch, index = divmod(step, self._batches_per_epoch)
        generator = np.random.default_rng((self._seed, epoch))
        offset = int(generator.integers(self._length))
        order = generator.permutation(self._batches_per_epoch * self._batch)
        starts = offset + self._length * order[index * self._batch : (index + 1) * self._batch]
        return np.stack([self._ids[s : s + self._length + 1] for s in starts]).astype(np.int64)
