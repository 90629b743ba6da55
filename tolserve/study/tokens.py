"""Text as token ids under several tokenizers: those that are given, and some trained on the text itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tolbuild.checkpoint import open_checkpoint
from tolbuild.train.data import END_OF_TEXT, read_texts, train_tokenizer
from tolserve.bench.streams import zipf_stream
from tolserve.memory.spec import Ids

_TEXTS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """Ids of text to be served and, for a warm start, how often each occurs in other text of the kind.

    Attributes:
        tokens, counts_V: int64 [N] and [V].
        about: of which tokenizer.
    """

    name: str
    about: str
    tokens: Ids
    counts_V: Ids

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.counts_V)


def load_tokenizer(place: str) -> Tokenizer:
    """The tokenizer in a tokenizer.json or beside a checkpoint.

    Raises:
        ValueError: the file is no tokenizer.
        ToLError: the checkpoint cannot be read.
    """
    if not place.endswith(".json"):
        return open_checkpoint(place).tokenizer()
    try:
        return Tokenizer.from_file(place)
    except Exception as error:
        raise ValueError(f"{place} is no tokenizer: {error}") from error


def trained_tokenizer(texts: Sequence[Path], vocab_size: int, folder: Path | None) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens of these files; kept in `folder`, where there is one."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in texts)).hexdigest()[:12]
    kept = None if folder is None else folder / f"bpe-{vocab_size}-{digest}.json"
    if kept is not None and kept.exists():
        return load_tokenizer(str(kept))
    tokenizer = train_tokenizer(read_texts(texts), vocab_size)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(kept))
    return tokenizer


def text_tokens(
    name: str, about: str, tokenizer: Tokenizer, texts: Sequence[str], num_tokens: int, *, seed: int
) -> TokenSet:
    """`num_tokens` of whole documents in random order to be served, and the counts of as many of other documents.

    Raises:
        ValueError: there is not so much text, or the tokenizer does not end a document.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise ValueError(f"{name} has no {END_OF_TEXT} token to end a document with")
    order = np.random.default_rng(seed).permutation(len(texts))
    documents = _encoded(tokenizer, (texts[index] for index in order.tolist()), end)
    served, other = _take(documents, num_tokens), _take(documents, num_tokens)
    if len(served) < num_tokens or len(other) < num_tokens:
        found = len(served) + len(other)
        raise ValueError(
            f"the text has {found:,} tokens of {name}; {num_tokens:,} to serve and as many to count are needed"
        )
    counts_V = np.bincount(other, minlength=tokenizer.get_vocab_size())
    return TokenSet(name=name, about=about, tokens=served, counts_V=counts_V)


def zipf_tokens(vocab_size: int, num_tokens: int, *, seed: int) -> TokenSet:
    """Independent draws; the counts are the weights that they are drawn with."""
    stream = zipf_stream(vocab_size, num_tokens, seed)
    about = "synthetic: independent draws, P(rank k) proportional to k ** -1.05"
    return TokenSet(name=f"zipf-{vocab_size}", about=about, tokens=stream.tokens, counts_V=stream.counts)


def _encoded(tokenizer: Tokenizer, texts: Iterator[str], end: int) -> Iterator[Ids]:
    some: list[str] = []
    for text in texts:
        some.append(text)
        if len(some) == _TEXTS_AT_ONCE:
            yield from _encode(tokenizer, some, end)
            some = []
    yield from _encode(tokenizer, some, end)


def _encode(tokenizer: Tokenizer, texts: list[str], end: int) -> Iterator[Ids]:
    for encoding in tokenizer.encode_batch(texts):
        yield np.array([*encoding.ids, end], np.int64)


def _take(documents: Iterator[Ids], num_tokens: int) -> Ids:
    found, have = [np.empty(0, np.int64)], 0
    for ids in documents:
        found.append(ids)
        have += len(ids)
        if have >= num_tokens:
            break
    return np.concatenate(found)[:num_tokens]
