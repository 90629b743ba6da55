"""A run's tokenizer and packed ids, made once under its folder and read by every later start."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from tolbuild.train.config import TrainConfig
from tolbuild.train.data import END_OF_TEXT, encode_packed, read_texts, train_tokenizer
from tolbuild.train.state import state_path


@dataclass(frozen=True)
class Processes:
    """This process among those that torchrun started; alone where it did not."""

    rank: int
    count: int

    @classmethod
    def join(cls) -> Processes:
        """Join torchrun's process group, gloo on CPUs and NCCL on GPUs."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count > 1:
            torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            return cls(torch.distributed.get_rank(), count)
        return cls(0, 1)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()


@dataclass(frozen=True)
class Corpus:
    """A tokenizer and the packed ids of the training and validation text."""

    tokenizer: Tokenizer
    train_N: np.ndarray[Any, np.dtype[np.uint32]]
    valid_N: np.ndarray[Any, np.dtype[np.uint32]] | None

    @property
    def end_of_text(self) -> int:
        """The id that ends a document."""
        token_id = self.tokenizer.token_to_id(END_OF_TEXT)
        assert token_id is not None, "encode_packed refuses such a tokenizer"
        return token_id


def prepare_corpus(config: TrainConfig, processes: Processes) -> Corpus:
    """Make tokenizer.json and the packed ids under `out`, or read what an earlier start made of the same files.

    Raises:
        ValueError: the run that is under `out` reads other text, or the tokenizer is too large for the model.
    """
    if processes.rank == 0:
        _prepare(config)
    processes.wait()
    tokenizer = Tokenizer.from_file(str(config.out / "tokenizer.json"))
    if tokenizer.get_vocab_size() > config.model.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.get_vocab_size():,} entries and the model {config.model.vocab_size:,}; "
            "raise --model.vocab-size"
        )
    valid_N = np.load(config.out / "valid.npy") if config.valid else None
    return Corpus(tokenizer, np.load(config.out / "train.npy"), valid_N)


def _prepare(config: TrainConfig) -> None:
    digest_path = config.out / "corpus.sha256"
    digest = _digest(config)
    if digest_path.exists() and digest_path.read_text() == digest:
        return
    if state_path(config).exists():
        raise ValueError(f"{config.out} holds a run on other --data, --valid or --tokenizer; choose another --out")
    digest_path.unlink(missing_ok=True)
    if config.tokenizer:
        tokenizer = Tokenizer.from_file(str(config.tokenizer))
    else:
        print(f"training a byte-level BPE of {config.model.vocab_size:,} entries", flush=True)
        tokenizer = train_tokenizer(read_texts(config.data), config.model.vocab_size)
    tokenizer.save(str(config.out / "tokenizer.json"))
    print("encoding the corpus", flush=True)
    if config.valid:
        np.save(config.out / "valid.npy", encode_packed(tokenizer, read_texts([config.valid])))
    np.save(config.out / "train.npy", encode_packed(tokenizer, read_texts(config.data)))
    digest_path.write_text(digest)


def _digest(config: TrainConfig) -> str:
    """SHA-256 of all that tokenizer and ids are made from, whatever the files are called."""
    total = hashlib.sha256(str(config.model.vocab_size).encode())
    for role, paths in (("data", config.data), ("valid", (config.valid,)), ("tokenizer", (config.tokenizer,))):
        for path in paths:
            total.update(role.encode())
            if path is not None:
                with path.open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
