"""Token streams by name: the corpus in several vocabularies, Zipf draws, and what the shipped model wrote itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tolserve.bench.streams import TokenStream, text_stream, zipf_stream

CHECKPOINT = "builtin:tiny"
TINY_VOCAB = 16_384
PAPER_VOCAB = 128_256
_TRAIN = "public_domain.train.jsonl.gz"
_VALID = "public_domain.valid.jsonl.gz"
_COUNTED_CHARACTERS = 4_000_000
"""Of the training text, evenly spaced documents: enough to rank the tokens of a vocabulary by how often they occur."""
_ZIPF_TOKENS = 400_000
_RECORDED = (64, 224)
"""Sequences, and tokens that the model writes for each."""


@dataclass(frozen=True, kw_only=True)
class StreamKind:
    """How a stream is made, and what the report says of it."""

    vocab_size: int
    label: str
    make: Callable[[Path, int], TokenStream]


class Streams:
    """Streams made when first asked for and kept in `folder` for later runs.

    Args:
        data: folder of the corpus.
    """

    def __init__(self, data: Path, folder: Path) -> None:
        self._data = data
        self._folder = folder
        self._made: dict[str, TokenStream] = {}

    def get(self, name: str) -> TokenStream:
        """The stream of a name of `STREAMS`.

        Raises:
            ValueError: the corpus is not there.
        """
        if name not in self._made:
            self._made[name] = self._load(name)
        return self._made[name]

    def _load(self, name: str) -> TokenStream:
        path = self._folder / f"stream-{name}.npz"
        if path.exists():
            with np.load(path) as kept:
                return TokenStream(name=name, tokens=kept["tokens"], counts=kept["counts"])
        kind = STREAMS[name]
        made = kind.make(self._data, kind.vocab_size)
        self._folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, tokens=made.tokens, counts=made.counts)
        part.replace(path)
        return TokenStream(name=name, tokens=made.tokens, counts=made.counts)


@lru_cache(maxsize=1)
def _own(data: Path, vocab_size: int) -> TokenStream:
    from tolbuild.checkpoint import open_checkpoint

    return _tokenised(data, vocab_size, open_checkpoint(CHECKPOINT).tokenizer())


def _bpe(data: Path, vocab_size: int) -> TokenStream:
    from tolbuild.train.data import read_texts, train_tokenizer

    _check(data)
    return _tokenised(data, vocab_size, train_tokenizer(read_texts([data / _TRAIN]), vocab_size))


def _tokenised(data: Path, vocab_size: int, tokenizer: object) -> TokenStream:
    from tolbuild.train.data import read_texts

    _check(data)
    counts = np.zeros(vocab_size, np.int64)
    for ids in _encode(tokenizer, _sample(list(read_texts([data / _TRAIN])))):
        counts += np.bincount(ids, minlength=vocab_size)
    valid = list(_encode(tokenizer, list(read_texts([data / _VALID]))))
    return TokenStream(name="text", tokens=np.concatenate(valid), counts=counts)


def _encode(tokenizer: object, texts: list[str]) -> Iterator[NDArray[np.int64]]:
    from tokenizers import Tokenizer

    assert isinstance(tokenizer, Tokenizer)
    for encoding in tokenizer.encode_batch(texts):
        yield np.array(encoding.ids, np.int64)


def _sample(texts: list[str]) -> list[str]:
    every = max(1, sum(map(len, texts)) // _COUNTED_CHARACTERS)
    return texts[::every]


def _check(data: Path) -> None:
    if not ((data / _TRAIN).exists() and (data / _VALID).exists()):
        raise ValueError(f"the corpus is not in {data}; run this in the repository's root, which has data/")


def _zipf(data: Path, vocab_size: int) -> TokenStream:
    return zipf_stream(vocab_size, _ZIPF_TOKENS, seed=0)


def _recorded(data: Path, vocab_size: int) -> TokenStream:
    """What the shipped model writes after prompts of the validation text, a sequence after another."""
    from tolserve.engine.config import EngineConfig
    from tolserve.engine.load import build_engine
    from tolserve.engine.request import SamplingParams

    text = _own(data, vocab_size)
    num_sequences, length = _RECORDED
    engine = build_engine(CHECKPOINT, None, EngineConfig(max_num_seqs=num_sequences, max_model_len=length + 32))
    for index, prompt in enumerate(text.batches(num_sequences, 32).T):
        params = SamplingParams(max_tokens=length, temperature=1.0, seed=index, ignore_eos=True)
        engine.add_request(str(index), prompt.tolist(), params)
    written: dict[str, list[int]] = {str(index): [] for index in range(num_sequences)}
    while engine.has_work():
        for output in engine.step():
            written[output.request_id] += [token.token_id for token in output.tokens]
    engine.close()
    tokens = np.concatenate([np.array(ids, np.int64) for ids in written.values()])
    return TokenStream(name="recorded", tokens=tokens, counts=text.counts)


STREAMS: dict[str, StreamKind] = {
    "text-own": StreamKind(
        vocab_size=TINY_VOCAB, label="real text (data/), the shipped model's own vocabulary of 16,384", make=_own
    ),
    "text-128k": StreamKind(
        vocab_size=PAPER_VOCAB,
        label="real text (data/), words and marks ranked by frequency in a vocabulary of 128,256",
        make=text_stream,
    ),
    "bpe-32k": StreamKind(
        vocab_size=32_000, label="real text (data/), a byte-level BPE of 32,000 entries trained on it", make=_bpe
    ),
    "bpe-128k": StreamKind(
        vocab_size=PAPER_VOCAB,
        label="real text (data/), a byte-level BPE trained on it for 128,256 entries (the corpus fills 90,602)",
        make=_bpe,
    ),
    "zipf-32k": StreamKind(vocab_size=32_000, label="synthetic: Zipf 1.05 over 32,000 ids", make=_zipf),
    "zipf-256k": StreamKind(vocab_size=1 << 18, label="synthetic: Zipf 1.05 over 262,144 ids", make=_zipf),
    "zipf-1m": StreamKind(vocab_size=1 << 20, label="synthetic: Zipf 1.05 over 1,048,576 ids", make=_zipf),
    "recorded": StreamKind(
        vocab_size=TINY_VOCAB,
        label="a recorded trace: 64 sequences that the shipped model sampled (temperature 1) after prompts of the text",
        make=_recorded,
    ),
}
