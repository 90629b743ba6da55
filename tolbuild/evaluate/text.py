"""Text as one packed sequence of token ids that knows how many bytes of text each stretch of it stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tolbuild.train.data import END_OF_TEXT


@dataclass(frozen=True, kw_only=True)
class PackedText:
    """Documents one after another, each ended by END_OF_TEXT.

    ids_N: int64. ends_N: int64, UTF-8 bytes of text up to the end of each token, over all documents; END_OF_TEXT has
    none of its own.
    """

    ids_N: NDArray[np.int64]
    ends_N: NDArray[np.int64]

    def num_bytes(self, count: int) -> int:
        """Bytes of text that tokens 1 to `count` stand for: those that a model predicts after seeing token 0."""
        return int(self.ends_N[count] - self.ends_N[0])


def pack(tokenizer: Tokenizer, texts: Iterable[str]) -> PackedText:
    """Encode documents as training does.

    Raises:
        ValueError: the tokenizer has no END_OF_TEXT, or there is no text.
    """
    end_id = tokenizer.token_to_id(END_OF_TEXT)
    if end_id is None:
        raise ValueError(f"the tokenizer has no {END_OF_TEXT} token to end a document with")
    ids: list[NDArray[np.int64]] = []
    ends: list[NDArray[np.int64]] = []
    done = 0
    for text in texts:
        encoding = tokenizer.encode(text)
        bytes_at_char = _bytes_before_chars(text)
        stops = np.array([stop for _, stop in encoding.offsets], np.int64)
        ids.append(np.array([*encoding.ids, end_id], np.int64))
        ends.append(done + np.append(bytes_at_char[stops], bytes_at_char[-1]))
        done += int(bytes_at_char[-1])
    if not ids:
        raise ValueError("there is no text to measure on")
    return PackedText(ids_N=np.concatenate(ids), ends_N=np.maximum.accumulate(np.concatenate(ends)))


def _bytes_before_chars(text: str) -> NDArray[np.int64]:
    """UTF-8 bytes before each character of a text, and before its end."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(widths)))
